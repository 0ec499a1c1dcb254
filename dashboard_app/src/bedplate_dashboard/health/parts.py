"""One poll, part by part, as page and API show it. Nothing here decides what is healthy."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal

from bedplate_dashboard.health.model import (
    Alert,
    Answered,
    Canary,
    CheckStatus,
    Drain,
    Drift,
    Gpu,
    Limit,
    Operations,
    Part,
    Placement,
    Pull,
    Queue,
    QueueClass,
    ReportStatus,
    Slots,
    Version,
)
from bedplate_dashboard.settings import VERSION, Settings
from bedplate_dashboard.sources.collect import Contact, HostAnswer, Observation, ReportFile
from bedplate_dashboard.sources.payloads import EngineState, clean, clean_label
from bedplate_dashboard.sources.prometheus_text import Samples

CANARY_ALIAS = "canary"


def add_default_tag(model: str) -> str:
    """Return a model's name as Ollama lists it: without a tag it is `latest`."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def describe_contact(contact: Contact) -> Part:
    """Return the result of polling one service."""
    return Part(ok=contact.ok, latency_seconds=contact.seconds, error=contact.error)


def describe_placement(name: str, answer: HostAnswer) -> Placement:
    """Return the state of a declared model on one of its hosts."""
    state = answer.state
    if state is None or not state.engine.up:
        return Placement(host=answer.name, present=None)
    listed = next((model for model in state.models if model.name == add_default_tag(name)), None)
    if listed is None:
        return Placement(host=answer.name, present=False)
    # Both times come from the exporter's clock, so a wrong clock on either machine does not matter.
    unload = (listed.expires_at - state.at).total_seconds() if listed.loaded and listed.expires_at else None
    return Placement(
        host=answer.name,
        present=True,
        loaded=listed.loaded,
        digest=listed.digest,
        size_bytes=listed.size_bytes,
        memory_bytes=listed.memory_bytes,
        gpu_memory_bytes=listed.gpu_memory_bytes,
        context_length=listed.context_length,
        unload_seconds=unload,
    )


def describe_pull(state: EngineState) -> Pull | None:
    """Return the pull that runs on a host."""
    pull = state.pull
    if pull is None:
        return None
    return Pull(
        model=pull.model,
        done_bytes=pull.done,
        total_bytes=pull.total,
        bytes_per_second=pull.per_second,
        left_seconds=max(0, pull.total - pull.done) / pull.per_second if pull.per_second else None,
    )


def find_last_answer(name: str, observation: Observation) -> Answered | None:
    """Return the last request to a model; the canary's file survives a restart of the gateway."""
    times: list[tuple[float, Literal["request", "canary"], bool]] = [
        (
            sample.value,
            "canary" if sample.labels.get("alias") == CANARY_ALIAS else "request",
            sample.labels.get("result") == "answered",
        )
        for sample in observation.gateway.metrics.select(
            "bedplate_gateway_last_request_timestamp_seconds", model=name
        )
    ]
    times += [
        (sample.value, "canary", True)
        for machine in observation.machines
        for sample in machine.metrics.select(
            "bedplate_traffic_canary_last_answer_timestamp_seconds", model=name
        )
    ]
    if not times:
        return None
    seconds, by, ok = max(times)
    at = _to_datetime(seconds)
    return (
        Answered(at=at, age_seconds=max(0.0, (observation.at - at).total_seconds()), by=by, ok=ok)
        if at
        else None
    )


def find_drains(metrics: Samples) -> dict[str, Drain]:
    """Return the drained engines by name."""
    return {
        sample.labels.get("engine", ""): Drain(
            who=str(clean(sample.labels.get("who", ""))),
            since=since,
            why=str(clean(sample.labels.get("why", ""))),
        )
        for sample in metrics["bedplate_gateway_drain_timestamp_seconds"]
        if (since := _to_datetime(sample.value)) is not None
    }


def find_drift(metrics: Samples) -> Drift | None:
    """Return the host's last comparison with its inventory; None where there is none."""
    at = _to_datetime(metrics.value("bedplate_host_drift_timestamp_seconds"))
    differences = to_int(metrics.value("bedplate_host_drift_differences"))
    if at is None or differences is None:
        return None
    labels = next((sample.labels for sample in metrics["bedplate_host_drift"]), {})
    first = f"{labels.get('kind', '')} {labels.get('what', '')}".strip()
    return Drift(at=at, differences=differences, first=clean_label(first))


def list_gpus(observation: Observation) -> tuple[Gpu, ...]:
    """Return every GPU of every inference host."""
    return tuple(
        Gpu(
            host=answer.name,
            vendor=gpu.vendor,
            number=gpu.number,
            name=gpu.name,
            utilization_ratio=gpu.utilization_ratio,
            memory_used_bytes=to_int(gpu.memory_used_bytes),
            memory_bytes=to_int(gpu.memory_bytes),
            temperature_celsius=gpu.temperature_celsius,
            power_watts=gpu.power_watts,
            throttling=gpu.throttling,
        )
        for answer in observation.hosts
        if answer.state
        for gpu in answer.state.gpus
    )


def list_limits(metrics: Samples) -> tuple[Limit, ...]:
    """Return how much of each limit is used, the fullest limit first."""
    used = {_freeze_labels(sample.labels): sample.value for sample in metrics["bedplate_gateway_limit_used"]}
    limits = [
        Limit(
            scope="model" if sample.labels.get("scope") == "model" else "key",
            name=clean_label(sample.labels.get("name", "")),
            unit=clean_label(sample.labels.get("unit", "")),
            used=used.get(_freeze_labels(sample.labels), 0.0),
            limit=sample.value,
        )
        for sample in metrics["bedplate_gateway_limit"]
    ]
    return tuple(
        sorted(limits, key=lambda limit: (-limit.used / max(limit.limit, 1), limit.name, limit.unit))
    )


def describe_queue(metrics: Samples) -> Queue:
    """Return the waiting requests by class and the busy slots by engine."""
    oldest = {
        sample.labels.get("class"): sample.value
        for sample in metrics["bedplate_gateway_queue_oldest_wait_seconds"]
    }
    classes = tuple(
        QueueClass(
            name=clean_label(sample.labels.get("class", "")),
            waiting=round(sample.value),
            oldest_seconds=oldest.get(sample.labels.get("class"), 0.0),
        )
        for sample in metrics["bedplate_gateway_queue_requests"]
    )
    busy = {_freeze_labels(sample.labels): sample.value for sample in metrics["bedplate_gateway_slots_busy"]}
    engines = tuple(
        Slots(
            engine=clean_label(sample.labels.get("engine", "")),
            model=clean_label(sample.labels.get("model", "")),
            busy=round(busy.get(_freeze_labels(sample.labels), 0.0)),
            slots=round(sample.value),
        )
        for sample in metrics["bedplate_gateway_slots"]
    )
    return Queue(
        classes=classes,
        slots_busy=sum(slots.busy for slots in engines),
        slots=sum(slots.slots for slots in engines),
        engines=engines,
    )


def describe_operations(settings: Settings, observation: Observation) -> Operations:
    """Return reports, canary, versions and alerts."""
    alerts = observation.prometheus.alerts
    return Operations(
        verify=summarize_report(observation.verify),
        load_test=summarize_report(observation.smoke),
        canary=tuple(_list_canaries(observation)),
        versions=list_versions(settings, observation),
        alerts=None
        if alerts is None
        else tuple(
            Alert(
                name=alert.labels.alertname,
                severity=alert.labels.severity,
                since=alert.active_at,
                summary=alert.annotations.summary,
                next=alert.annotations.next,
            )
            for alert in sorted(alerts, key=lambda alert: (alert.labels.severity, alert.active_at))
            # The dead man's switch always fires.
            if alert.state == "firing" and alert.labels.severity != "none"
        ),
    )


def summarize_report(file: ReportFile) -> ReportStatus:
    """Count the checks of a report by result."""
    if file.report is None:
        return ReportStatus(ok=None, error=file.error)
    checks = tuple(
        CheckStatus(host=check.host, name=check.name, ok=check.ok, seen=check.seen, next=check.next)
        for check in file.report.checks
    )
    results = [check.ok for check in checks]
    failed = results.count(False)
    return ReportStatus(
        ok=file.report.ok and not failed,
        at=file.report.at,
        passed=results.count(True),
        failed=failed,
        not_asked=results.count(None),
        problems=tuple(check for check in checks if check.ok is not True),
        checks=checks,
    )


def find_gateway_version(observation: Observation) -> str | None:
    """Return the gateway's version, None if its metrics lack it.

    Earlier gateways have only a label `litellm`: LiteLLM's version, not theirs.
    """
    info = next(iter(observation.gateway.metrics["bedplate_gateway_info"]), None)
    version = info.labels.get("version") if info else None
    return clean_label(version) if version else None


def list_versions(settings: Settings, observation: Observation) -> tuple[Version, ...]:
    """Return each component's pinned and running version; packages of the distribution have no pin."""
    running: dict[tuple[str, str], str | None] = {
        ("Ollama", answer.name): answer.state.engine.version for answer in observation.hosts if answer.state
    }
    if (version := find_gateway_version(observation)) is not None:
        running["Gateway", settings.gateway] = version
    pinned: dict[tuple[str, str], str] = {
        (pin.component, pin.host): pin.version for pin in settings.pinned_versions
    }
    versions = [
        Version(
            component=component,
            host=host,
            pinned=pinned.get((component, host)),
            running=version,
            ok=None
            if version is None or (component, host) not in pinned
            else version == pinned[component, host],
        )
        for component, host in dict.fromkeys([*pinned, *running])
        for version in [running.get((component, host))]
    ]
    for answer in observation.machines:
        for sample in answer.metrics["node_exporter_build_info"]:
            version = clean_label(sample.labels.get("version", ""))
            versions.append(
                Version(component="Node exporter", host=answer.name, pinned=None, running=version, ok=None)
            )
    here = settings.monitoring
    versions.append(
        Version(
            component="Prometheus", host=here, pinned=None, running=observation.prometheus.version, ok=None
        )
    )
    versions.append(Version(component="Dashboard", host=here, pinned=None, running=VERSION, ok=None))
    return tuple(versions)


def _list_canaries(observation: Observation) -> Iterator[Canary]:
    for answer in observation.machines:
        metrics = answer.metrics
        for sample in metrics["bedplate_traffic_canary_success"]:
            model = sample.labels.get("model", "")
            result = next(
                (
                    other.labels.get("result", "")
                    for other in metrics.select("bedplate_traffic_canary_result", model=model)
                    if other.value == 1
                ),
                "",
            )
            yield Canary(
                host=answer.name,
                model=clean_label(model),
                ok=sample.value == 1,
                result=clean_label(result),
                at=_to_datetime(
                    metrics.value("bedplate_traffic_canary_last_run_timestamp_seconds", model=model)
                ),
                answered_at=_to_datetime(
                    metrics.value("bedplate_traffic_canary_last_answer_timestamp_seconds", model=model)
                ),
                seconds=metrics.value("bedplate_traffic_canary_seconds", model=model),
            )


def _freeze_labels(labels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def _to_datetime(seconds: float | None) -> datetime | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def to_int(value: float | None) -> int | None:
    """Cut a number to an integer; None stays None."""
    return None if value is None else int(value)
