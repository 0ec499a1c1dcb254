"""The facts that decide about health, derived once a poll; faults and request path only read them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bedplate_dashboard.health import parts
from bedplate_dashboard.health.model import (
    Disk,
    Drain,
    EngineStatus,
    Health,
    HostStatus,
    Litellm,
    Machine,
    Queue,
    QueueClass,
    Refusals,
    Service,
    Traffic,
)
from bedplate_dashboard.health.thresholds import (
    BAD_UNIT_STATES,
    FULL_RATIO,
    GPU_RATIO,
    LONG_WAIT_SECONDS,
    MISSED_SCRAPES,
    SERVER_REFUSALS,
    UNLIMITED_WAIT_CLASS,
)
from bedplate_dashboard.health.traffic_window import RecentTraffic
from bedplate_dashboard.settings import InferenceHost, Settings
from bedplate_dashboard.sources.collect import Contact, HostAnswer, MachineAnswer, Observation
from bedplate_dashboard.sources.history import DaysLeft
from bedplate_dashboard.sources.payloads import Engine, GpuDriver, clean_label
from bedplate_dashboard.sources.prometheus_text import Samples

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})

UnitStates = dict[tuple[str, str], str]
"""systemd's ActiveState by host and unit, without units that a node exporter does not report."""


@dataclass(frozen=True, kw_only=True)
class ServiceFacts:
    """A service that is polled directly; `unit_state` is None if no node exporter reports it."""

    contact: Contact
    unit_state: str | None


@dataclass(frozen=True, kw_only=True)
class DriverProblem:
    """Why a GPU driver cannot be used: versions differ, it does not answer, or GPUs are missing."""

    kind: Literal["mismatch", "failed", "missing"]
    driver: GpuDriver


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """The GPUs of one host; `off_gpu` names loaded models that are not entirely on them."""

    count: int
    driver_version: str | None
    problems: tuple[DriverProblem, ...]
    off_gpu: tuple[str, ...]
    throttling: str | None


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """One inference host; `engine` and `gpu` are None if its exporter does not answer.

    What fails on a drained host is no fault: somebody works on it.
    """

    name: str
    exporter: ServiceFacts
    engine: Engine | None
    missing_models: tuple[str, ...]
    gpu: GpuFacts | None
    status: HostStatus

    @property
    def drain(self) -> Drain | None:
        """Who drained its engine, if anybody did."""
        return self.status.drained

    @property
    def reachable(self) -> bool:
        """Whether the host responds at all."""
        return self.exporter.contact.outcome != "unreachable"

    @property
    def cannot_serve(self) -> bool:
        """Whether it is known that no model can be served here."""
        return (
            self.drain is not None or not self.reachable or (self.engine is not None and not self.engine.up)
        )


@dataclass(frozen=True, kw_only=True)
class LitellmFacts:
    """LiteLLM on the gateway's host; `version` is the pinned one, because LiteLLM's metrics have none.

    `needed` is False while every request goes directly to the engines because of a setting. `bypassed` counts
    requests that went around it just now.
    """

    host: str
    unit_state: str | None
    version: str | None
    needed: bool
    bypassed: int
    status: Litellm


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """One host as its node exporter reports it; `reachable` is False for an unreachable inference host."""

    contact: Contact
    reachable: bool
    drained: bool
    machine: Machine
    full_disks: tuple[Disk, ...]
    bad_services: tuple[Service, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All facts of one poll; `queue` and `traffic` are None if the gateway returns no metrics.

    `litellm` is None for a gateway without LiteLLM.
    """

    gateway: ServiceFacts
    gateway_metrics: Contact
    gateway_version: str | None
    litellm: LitellmFacts | None
    hosts: tuple[HostFacts, ...]
    machines: tuple[MachineFacts, ...]
    prometheus: ServiceFacts
    prometheus_stores: bool
    queue: Queue | None
    traffic: Traffic | None
    long_waits: tuple[QueueClass, ...]
    server_refusals: tuple[Refusals, ...]


def derive_facts(
    settings: Settings, observation: Observation, recent: RecentTraffic, days_left: DaysLeft
) -> Facts:
    """Derive every fact of one poll."""
    gateway, prometheus = observation.gateway, observation.prometheus
    described = [_describe_machine(answer, days_left) for answer in observation.machines]
    units: UnitStates = {
        (machine.name, service.name): service.state for machine in described for service in machine.services
    }
    drains = parts.find_drains(gateway.metrics) if gateway.metrics_contact.ok else {}
    hosts = tuple(
        _derive_host(host, answer, units.get((host.name, "bedplate-exporter")), drains.get(host.name))
        for host, answer in zip(settings.inference_hosts, observation.hosts, strict=True)
    )
    unreachable = {host.name for host in hosts if not host.reachable}
    queue = parts.describe_queue(gateway.metrics) if gateway.metrics_contact.ok else None
    return Facts(
        gateway=ServiceFacts(
            contact=gateway.contact, unit_state=units.get((settings.gateway, "bedplate-gateway"))
        ),
        gateway_metrics=gateway.metrics_contact,
        gateway_version=parts.find_gateway_version(observation),
        litellm=_derive_litellm(settings, observation, recent, units.get((settings.gateway, "litellm"))),
        hosts=hosts,
        machines=tuple(
            _derive_machine(
                answer.contact, machine, machine.name not in unreachable, drained=machine.name in drains
            )
            for answer, machine in zip(observation.machines, described, strict=True)
        ),
        prometheus=ServiceFacts(
            contact=prometheus.contact, unit_state=units.get((settings.monitoring, "prometheus"))
        ),
        prometheus_stores=(prometheus.newest_seconds or 0) <= MISSED_SCRAPES * settings.scrape_seconds,
        queue=queue,
        traffic=recent.traffic if gateway.metrics_contact.ok else None,
        long_waits=tuple(filter(_waits_too_long, queue.classes)) if queue else (),
        server_refusals=tuple(refusal for refusal in recent.refusals if refusal.reason in SERVER_REFUSALS),
    )


def _derive_litellm(
    settings: Settings, observation: Observation, recent: RecentTraffic, unit_state: str | None
) -> LitellmFacts | None:
    version = next((pin.version for pin in settings.pinned_versions if pin.component == "LiteLLM"), None)
    metrics = observation.gateway.metrics
    known = observation.gateway.metrics_contact.ok
    up = metrics.value("bedplate_gateway_litellm_up") if known else None
    # An earlier gateway answers without this metric; one that does not answer may have it.
    if up is None and (known or version is None):
        return None
    total = {
        sample.labels.get("lane"): sample.value for sample in metrics["bedplate_gateway_lane_requests_total"]
    }
    return LitellmFacts(
        host=settings.gateway,
        unit_state=unit_state,
        version=version,
        needed=any(total.get(lane) for lane in ("litellm", "bypass")) or not total.get("direct"),
        bypassed=recent.bypassed if known else 0,
        status=Litellm(
            up=None if up is None else up == 1,
            requests=recent.lanes if known else None,
            added_seconds=recent.litellm_added_seconds if up else None,
            memory_bytes=parts.to_int(recent.litellm_memory_bytes) if up else None,
        ),
    )


def _derive_host(
    host: InferenceHost, answer: HostAnswer, unit_state: str | None, drain: Drain | None
) -> HostFacts:
    exporter = ServiceFacts(contact=answer.contact, unit_state=unit_state)
    state = answer.state
    if state is None:
        return HostFacts(
            name=host.name,
            exporter=exporter,
            engine=None,
            missing_models=(),
            gpu=None,
            status=HostStatus(
                name=host.name,
                ok=False,
                exporter=parts.describe_contact(answer.contact),
                engine=None,
                models_declared=len(host.models),
                models_present=None,
                models_loaded=None,
                memory_bytes=None,
                undeclared=(),
                drained=drain,
            ),
        )
    engine, gpu = state.engine, _derive_gpu(answer)
    present = {model.name for model in state.models}
    absent = tuple(model for model in host.models if parts.add_default_tag(model) not in present)
    missing = absent if engine.up else ()
    declared = {parts.add_default_tag(model) for model in host.models}
    loaded = [model for model in state.models if model.loaded]
    return HostFacts(
        name=host.name,
        exporter=exporter,
        engine=engine,
        missing_models=missing,
        gpu=gpu,
        status=HostStatus(
            name=host.name,
            ok=engine.up and not missing and not (gpu and (gpu.problems or gpu.off_gpu)),
            exporter=parts.describe_contact(answer.contact),
            engine=EngineStatus(
                up=engine.up,
                version=engine.version,
                latency_seconds=engine.latency_seconds,
                error=engine.error,
            ),
            models_declared=len(host.models),
            models_present=len(declared & present) if engine.up else None,
            models_loaded=len(loaded) if engine.up else None,
            memory_bytes=sum(model.memory_bytes or 0 for model in loaded) if engine.up else None,
            undeclared=tuple(model.name for model in state.models if model.name not in declared),
            drained=drain,
            pull=parts.describe_pull(state),
        ),
    )


def _derive_gpu(answer: HostAnswer) -> GpuFacts | None:
    state = answer.state
    if state is None:
        return None
    return GpuFacts(
        count=len(state.gpus),
        driver_version=next((driver.version for driver in state.drivers if driver.version), None),
        problems=tuple(filter(None, map(_judge_driver, state.drivers))),
        off_gpu=tuple(
            model.name
            for model in state.models
            if model.loaded and (model.gpu_memory_bytes or 0) < GPU_RATIO * (model.memory_bytes or 0)
        )
        if any(driver.expected for driver in state.drivers)
        else (),
        throttling=next((gpu.throttling for gpu in state.gpus if gpu.throttling), None),
    )


def _judge_driver(driver: GpuDriver) -> DriverProblem | None:
    if driver.driver_matches is False:
        return DriverProblem(kind="mismatch", driver=driver)
    if driver.failed:
        return DriverProblem(kind="failed", driver=driver)
    if driver.devices < driver.expected:
        return DriverProblem(kind="missing", driver=driver)
    return None


def _waits_too_long(waiting: QueueClass) -> bool:
    return (
        waiting.name != UNLIMITED_WAIT_CLASS
        and waiting.waiting > 0
        and waiting.oldest_seconds > LONG_WAIT_SECONDS
    )


def _derive_machine(contact: Contact, machine: Machine, reachable: bool, *, drained: bool) -> MachineFacts:
    return MachineFacts(
        contact=contact,
        reachable=reachable,
        drained=drained,
        machine=machine,
        full_disks=tuple(filter(_is_full, machine.disks)),
        bad_services=tuple(filter(_is_bad, machine.services)),
    )


def _describe_machine(answer: MachineAnswer, days_left: DaysLeft) -> Machine:
    if not answer.contact.ok:
        return Machine(name=answer.name, state="unknown", error=answer.contact.error)
    metrics = answer.metrics
    disks = tuple(_list_disks(answer, days_left))
    total = parts.to_int(metrics.value("node_memory_MemTotal_bytes"))
    available = parts.to_int(metrics.value("node_memory_MemAvailable_bytes"))
    services = tuple(list_services(metrics))
    reboot = metrics.value("bedplate_host_reboot_required")
    bad = any(map(_is_full, disks)) or any(map(_is_bad, services))
    short = bool(total and available is not None and available < FULL_RATIO * total)
    state: Health = "bad" if bad else "warn" if short or reboot else "ok"
    return Machine(
        name=answer.name,
        state=state,
        error=None,
        disks=disks,
        memory_bytes=total,
        memory_available_bytes=available,
        services=services,
        reboot_required=None if reboot is None else bool(reboot),
        drift=parts.find_drift(metrics),
    )


def _is_full(disk: Disk) -> bool:
    return disk.available_bytes < FULL_RATIO * disk.size_bytes


def _is_bad(service: Service) -> bool:
    return service.state in BAD_UNIT_STATES


def _list_disks(answer: MachineAnswer, days_left: DaysLeft) -> Iterator[Disk]:
    sizes = {
        sample.labels.get("mountpoint"): sample for sample in answer.metrics["node_filesystem_size_bytes"]
    }
    for sample in answer.metrics["node_filesystem_avail_bytes"]:
        mountpoint = sample.labels.get("mountpoint", "")
        size = sizes.get(mountpoint)
        if size is None or size.value <= 0:
            continue
        disk = Disk(
            mountpoint=clean_label(mountpoint),
            size_bytes=int(size.value),
            available_bytes=int(sample.value),
            days_left=days_left.get((answer.name, mountpoint)),
        )
        if sample.labels.get("fstype") not in MEMORY_FILE_SYSTEMS or _is_full(disk):
            yield disk


def list_services(metrics: Samples) -> Iterator[Service]:
    """Iterate over the units that a node exporter reports, without one-shot ones that have not failed."""
    restarts = {
        sample.labels.get("name"): round(sample.value)
        for sample in metrics["node_systemd_service_restart_total"]
    }
    for sample in metrics["node_systemd_unit_state"]:
        name = sample.labels.get("name", "")
        state = sample.labels.get("state", "")
        if sample.value != 1 or not name.endswith(".service"):
            continue
        # A one-shot service is normally inactive.
        if sample.labels.get("type") != "oneshot" or state == "failed":
            yield Service(
                name=clean_label(name.removesuffix(".service")),
                state=clean_label(state),
                restarts=restarts.get(name),
            )
