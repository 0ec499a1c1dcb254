"""One look, part by part, as readers get it. Nothing here says whether the whole is healthy: `state` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal

from . import __version__
from .collect import Contact, HostAnswer, MachineAnswer, Observation, ReportFile
from .exposition import Exposition
from .foreign import EngineModel, word
from .settings import InferenceHost, Settings
from .status import (
    Alert,
    Answered,
    Canary,
    CheckStatus,
    Disk,
    EngineStatus,
    Gpu,
    HostStatus,
    Limit,
    Machine,
    Operations,
    Part,
    Placement,
    Queue,
    QueueClass,
    ReportStatus,
    Service,
    Slots,
    Version,
)

FULL_RATIO = 0.05
"""What is left of a disk or of the memory when it counts as full."""

CANARY_ALIAS = "canary"
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
BAD_UNIT_STATES = frozenset({"inactive", "failed"})

DaysLeft = Mapping[tuple[str, str], float]
"""By host and mountpoint."""


def engine_name(model: str) -> str:
    """Name a model as Ollama lists it: without a tag it is `latest`."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def part(contact: Contact) -> Part:
    """Tell how asking went."""
    return Part(contact.ok, contact.seconds, contact.error)


def host_status(host: InferenceHost, answer: HostAnswer, ok: bool) -> HostStatus:
    """Tell one inference host; whether it is `ok` is decided elsewhere."""
    state = answer.state
    if state is None:
        return HostStatus(
            host.name, ok, part(answer.contact), None, len(host.models), None, None, None, undeclared=()
        )
    engine = EngineStatus(
        state.engine.up, state.engine.version, state.engine.latency_seconds, state.engine.error
    )
    declared = {engine_name(model) for model in host.models}
    loaded: list[EngineModel] = [model for model in state.models if model.loaded]
    return HostStatus(
        name=host.name,
        ok=ok,
        exporter=part(answer.contact),
        engine=engine,
        models_declared=len(host.models),
        models_present=len(declared & {model.name for model in state.models}) if engine.up else None,
        models_loaded=len(loaded) if engine.up else None,
        memory_bytes=sum(model.memory_bytes or 0 for model in loaded) if engine.up else None,
        undeclared=tuple(model.name for model in state.models if model.name not in declared),
    )


def placement(name: str, answer: HostAnswer) -> Placement:
    """Tell a declared model on one of its hosts."""
    state = answer.state
    if state is None or not state.engine.up:
        return Placement(answer.name, present=None)
    found = next((model for model in state.models if model.name == engine_name(name)), None)
    if found is None:
        return Placement(answer.name, present=False)
    # Both times are of the exporter's clock, so a wrong clock on either machine changes nothing.
    unload = (found.expires_at - state.at).total_seconds() if found.loaded and found.expires_at else None
    return Placement(
        host=answer.name,
        present=True,
        loaded=found.loaded,
        digest=found.digest,
        size_bytes=found.size_bytes,
        memory_bytes=found.memory_bytes,
        gpu_memory_bytes=found.gpu_memory_bytes,
        context_length=found.context_length,
        unload_seconds=unload,
    )


def answered(name: str, seen: Observation) -> Answered | None:
    """Tell when a model was last asked; what the canary wrote outlives the gateway's count."""
    times: list[tuple[float, Literal["request", "canary"], bool]] = [
        (
            sample.value,
            "canary" if sample.labels.get("alias") == CANARY_ALIAS else "request",
            sample.labels.get("result") == "answered",
        )
        for sample in seen.gateway.metrics.having(
            "bedplate_gateway_last_request_timestamp_seconds", model=name
        )
    ]
    times += [
        (sample.value, "canary", True)
        for machine in seen.machines
        for sample in machine.metrics.having(
            "bedplate_traffic_canary_last_answer_timestamp_seconds", model=name
        )
    ]
    if not times:
        return None
    seconds, by, ok = max(times)
    at = _moment(seconds)
    return Answered(at, max(0.0, (seen.at - at).total_seconds()), by, ok) if at else None


def gpus(seen: Observation) -> tuple[Gpu, ...]:
    """Tell every GPU of every inference host."""
    return tuple(
        Gpu(
            host=answer.name,
            vendor=gpu.vendor,
            number=gpu.number,
            name=gpu.name,
            utilization_ratio=gpu.utilization_ratio,
            memory_used_bytes=_whole(gpu.memory_used_bytes),
            memory_bytes=_whole(gpu.memory_bytes),
            temperature_celsius=gpu.temperature_celsius,
            power_watts=gpu.power_watts,
            throttling=gpu.throttling,
        )
        for answer in seen.hosts
        if answer.state
        for gpu in answer.state.gpus
    )


def limits(metrics: Exposition) -> tuple[Limit, ...]:
    """Tell what is used of each limit, the fullest first."""
    used = {_labels(sample.labels): sample.value for sample in metrics["bedplate_gateway_limit_used"]}
    found = [
        Limit(
            scope="model" if sample.labels.get("scope") == "model" else "key",
            name=word(sample.labels.get("name", "")),
            unit=word(sample.labels.get("unit", "")),
            used=used.get(_labels(sample.labels), 0.0),
            limit=sample.value,
        )
        for sample in metrics["bedplate_gateway_limit"]
    ]
    return tuple(sorted(found, key=lambda limit: (-limit.used / max(limit.limit, 1), limit.name, limit.unit)))


def queue(metrics: Exposition) -> Queue:
    """Tell who waits and what runs."""
    oldest = {
        sample.labels.get("class"): sample.value
        for sample in metrics["bedplate_gateway_queue_oldest_wait_seconds"]
    }
    classes = tuple(
        QueueClass(
            word(sample.labels.get("class", "")),
            round(sample.value),
            oldest.get(sample.labels.get("class"), 0.0),
        )
        for sample in metrics["bedplate_gateway_queue_requests"]
    )
    busy = {_labels(sample.labels): sample.value for sample in metrics["bedplate_gateway_slots_busy"]}
    engines = tuple(
        Slots(
            word(sample.labels.get("engine", "")),
            word(sample.labels.get("model", "")),
            round(busy.get(_labels(sample.labels), 0.0)),
            round(sample.value),
        )
        for sample in metrics["bedplate_gateway_slots"]
    )
    return Queue(
        classes, sum(slots.busy for slots in engines), sum(slots.slots for slots in engines), engines
    )


def machine(answer: MachineAnswer, days_left: DaysLeft) -> Machine:
    """Tell one host."""
    if not answer.contact.ok:
        return Machine(answer.name, "unknown", answer.contact.error)
    metrics = answer.metrics
    disks = tuple(_disks(answer, days_left))
    total = _whole(metrics.value("node_memory_MemTotal_bytes"))
    available = _whole(metrics.value("node_memory_MemAvailable_bytes"))
    services = tuple(_services(metrics))
    reboot = metrics.value("bedplate_host_reboot_required")
    bad = any(map(is_full, disks)) or any(service.state in BAD_UNIT_STATES for service in services)
    short = bool(total and available is not None and available < FULL_RATIO * total)
    return Machine(
        name=answer.name,
        state="bad" if bad else "warn" if short or reboot else "ok",
        error=None,
        disks=disks,
        memory_bytes=total,
        memory_available_bytes=available,
        services=services,
        reboot_required=None if reboot is None else bool(reboot),
    )


def is_full(disk: Disk) -> bool:
    """Is hardly anything left of it?"""
    return disk.available_bytes < FULL_RATIO * disk.size_bytes


def unit_state(seen: Observation, host: str, unit: str) -> str | None:
    """Tell the ActiveState of one of the stack's units, None where the host's node exporter does not."""
    for answer in seen.machines:
        if answer.name == host:
            return next(
                (service.state for service in _services(answer.metrics) if service.name == unit), None
            )
    return None


def operations(settings: Settings, seen: Observation) -> Operations:
    """Tell reports, canary, versions and alerts."""
    alerts = seen.prometheus.alerts
    return Operations(
        verify=report(seen.verify),
        load_test=report(seen.smoke),
        canary=tuple(_canary(seen)),
        versions=versions(settings, seen),
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
            if alert.state == "firing"
        ),
    )


def report(file: ReportFile) -> ReportStatus:
    """Sum up a report."""
    if file.report is None:
        return ReportStatus(ok=None, error=file.error)
    checks = tuple(
        CheckStatus(check.host, check.name, check.ok, check.seen, check.next) for check in file.report.checks
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


def gateway_version(seen: Observation) -> str | None:
    """Return the gateway's version; None where its metrics do not have it."""
    info = next(iter(seen.gateway.metrics["bedplate_gateway_info"]), None)
    return word(info.labels.get("version", "")) if info else None


def versions(settings: Settings, seen: Observation) -> tuple[Version, ...]:
    """Tell each part's version as declared and as it runs; distributions pin their own packages."""
    running: dict[tuple[str, str], str | None] = {
        ("Ollama", answer.name): answer.state.engine.version for answer in seen.hosts if answer.state
    }
    if (version := gateway_version(seen)) is not None:
        running["Gateway", settings.gateway] = version
    pinned: dict[tuple[str, str], str] = {
        (pin.component, pin.host): pin.version for pin in settings.pinned_versions
    }
    found = [
        Version(
            component,
            host,
            pinned.get((component, host)),
            version,
            None
            if version is None or (component, host) not in pinned
            else version == pinned[component, host],
        )
        for component, host in dict.fromkeys([*pinned, *running])
        for version in [running.get((component, host))]
    ]
    for answer in seen.machines:
        for sample in answer.metrics["node_exporter_build_info"]:
            version = word(sample.labels.get("version", ""))
            found.append(Version("Node exporter", answer.name, None, version, None))
    here = settings.monitoring
    found.append(Version("Prometheus", here, None, seen.prometheus.version, None))
    found.append(Version("Dashboard", here, None, __version__, None))
    return tuple(found)


def _disks(answer: MachineAnswer, days_left: DaysLeft) -> Iterator[Disk]:
    sizes = {
        sample.labels.get("mountpoint"): sample for sample in answer.metrics["node_filesystem_size_bytes"]
    }
    for sample in answer.metrics["node_filesystem_avail_bytes"]:
        mountpoint = sample.labels.get("mountpoint", "")
        size = sizes.get(mountpoint)
        if size is None or size.value <= 0:
            continue
        disk = Disk(
            word(mountpoint), int(size.value), int(sample.value), days_left.get((answer.name, mountpoint))
        )
        if sample.labels.get("fstype") not in MEMORY_FILE_SYSTEMS or is_full(disk):
            yield disk


def _services(metrics: Exposition) -> Iterator[Service]:
    restarts = {
        sample.labels.get("name"): round(sample.value)
        for sample in metrics["node_systemd_service_restart_total"]
    }
    for sample in metrics["node_systemd_unit_state"]:
        name = sample.labels.get("name", "")
        state = sample.labels.get("state", "")
        if sample.value != 1 or not name.endswith(".service"):
            continue
        # A one-shot service is inactive as a rule.
        if sample.labels.get("type") != "oneshot" or state == "failed":
            yield Service(word(name.removesuffix(".service")), word(state), restarts.get(name))


def _canary(seen: Observation) -> Iterator[Canary]:
    for answer in seen.machines:
        metrics = answer.metrics
        for sample in metrics["bedplate_traffic_canary_success"]:
            model = sample.labels.get("model", "")
            result = next(
                (
                    found.labels.get("result", "")
                    for found in metrics.having("bedplate_traffic_canary_result", model=model)
                    if found.value == 1
                ),
                "",
            )
            yield Canary(
                host=answer.name,
                model=word(model),
                ok=sample.value == 1,
                result=word(result),
                at=_moment(metrics.value("bedplate_traffic_canary_last_run_timestamp_seconds", model=model)),
                answered_at=_moment(
                    metrics.value("bedplate_traffic_canary_last_answer_timestamp_seconds", model=model)
                ),
                seconds=metrics.value("bedplate_traffic_canary_seconds", model=model),
            )


def _labels(labels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def _moment(seconds: float | None) -> datetime | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
