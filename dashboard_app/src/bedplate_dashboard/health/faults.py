"""The faults of one poll: each is a clause with the command to type next and the host to type it on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bedplate_dashboard.health.facts import (
    DriverProblem,
    Facts,
    GpuFacts,
    HostFacts,
    LitellmFacts,
    MachineFacts,
    ServiceFacts,
)
from bedplate_dashboard.health.model import Drain, Fault, ModelStatus, QueueClass, Refusals

CONTROL_MACHINE = "the control machine"
GATEWAY_HOST = "the gateway host"
MONITORING_HOST = "the monitoring host"
GATEWAY_JOURNAL = "journalctl -u bedplate-gateway -n 50"

POLLED_SERVICES = frozenset(
    {
        "bedplate-gateway",
        "litellm",
        "ollama",
        "prometheus",
        "bedplate-exporter",
        "bedplate-dashboard",
        "node-exporter",
    }
)
"""Services that are judged by their answer, which shows more than the state of their unit."""

ENGINE_SERVICES = frozenset({"ollama-preload", "gpu-devices"})
"""Services that may fail while somebody works on a drained engine."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults of one poll, the most important first.

    `counted` decides about the state. `gpus` has those of each host's GPUs, which count only while its engine
    is up, and `waits` those of the queue.
    """

    counted: tuple[Fault, ...]
    gpus: Mapping[str, tuple[Fault, ...]]
    waits: tuple[Fault, ...]


def find_faults(facts: Facts, models: tuple[ModelStatus, ...]) -> Faults:
    """Return all faults of one poll."""
    gpus = {host.name: tuple(_find_gpu_faults(host.name, host.gpu)) for host in facts.hosts}
    waits = tuple(map(_describe_wait, facts.long_waits))
    return Faults(
        counted=(
            *_find_gateway_faults(facts, models),
            *_find_waiting_models(facts, models),
            *(fault for host in facts.hosts for fault in _find_host_faults(host, gpus[host.name])),
            *_find_failed_requests(facts, models),
            *_find_refusals(facts.server_refusals),
            *waits,
            *_find_litellm_faults(facts.litellm),
            *(
                fault
                for machine in facts.machines
                for fault in _find_machine_faults(machine, _list_polled(machine.machine.name, facts.litellm))
            ),
            *_find_prometheus_faults(facts.prometheus, facts.prometheus_stores),
        ),
        gpus=gpus,
        waits=waits,
    )


def _find_gateway_faults(facts: Facts, models: tuple[ModelStatus, ...]) -> Iterator[Fault]:
    contact = facts.gateway.contact
    if contact.outcome == "refused":
        yield Fault(
            what=f"the gateway refuses the dashboard's key ({contact.error})",
            next="ansible-playbook site.yml --tags keys",
            next_on=CONTROL_MACHINE,
            about="key",
        )
    elif not contact.ok and facts.gateway_metrics.ok:
        # The metrics do not pass the edge.
        yield Fault(
            what=f"bedplate-edge does not pass requests to the gateway ({contact.error})",
            next="journalctl -u bedplate-edge -n 50",
            next_on=GATEWAY_HOST,
            about="edge",
        )
    elif not contact.ok:
        yield Fault(
            what=f"the gateway does not work ({_explain(facts.gateway, 'bedplate-gateway')})",
            next=GATEWAY_JOURNAL,
            next_on=GATEWAY_HOST,
            about="gateway",
        )
    else:
        # A model whose engines are down or lack it is not listed either; that is a fault of the engines.
        missing = [
            model.name
            for model in models
            if not model.listed
            and (not model.placements or any(placement.present for placement in model.placements))
        ]
        if missing:
            yield Fault(
                what=f"the gateway does not list {_join_names(missing)}",
                next="ansible-playbook site.yml --tags gateway",
                next_on=CONTROL_MACHINE,
                about="listed",
            )
        metrics = facts.gateway_metrics
        if not metrics.ok:
            yield Fault(
                what=(
                    f"the gateway does not return its metrics ({metrics.error}), "
                    "so traffic and limits are unknown"
                ),
                next=GATEWAY_JOURNAL,
                next_on=GATEWAY_HOST,
                about="gateway metrics",
            )


def _find_waiting_models(facts: Facts, models: tuple[ModelStatus, ...]) -> Iterator[Fault]:
    """Find the models that only a drained host could serve."""
    for host in facts.hosts:
        waiting = [
            model.name
            for model in models
            if model.can_be_served is False and host.name in [place.host for place in model.placements]
        ]
        if host.drain and waiting:
            yield Fault(
                what=f"requests for {_join_names(waiting)} wait: {host.name} is {describe_drain(host.drain)}",
                next=undrain_command(host.name),
                next_on=CONTROL_MACHINE,
                about=f"drain {host.name}",
            )


def describe_drain(drain: Drain) -> str:
    """Return who drained an engine, since when and why."""
    why = f": {drain.why}" if drain.why else ""
    return f"drained by {drain.who} since {drain.since:%Y-%m-%d %H:%M} UTC{why}"


def undrain_command(host: str) -> str:
    """Return the command that ends a drain."""
    return f"make undrain HOST={host}"


def _find_host_faults(host: HostFacts, gpu_faults: tuple[Fault, ...]) -> Iterator[Fault]:
    name = host.name
    if host.drain:
        return
    if not host.reachable:
        yield Fault(
            what=f"the host {name} cannot be reached ({host.exporter.contact.error})",
            next=f"ansible {name} -m ping",
            next_on=CONTROL_MACHINE,
            about=f"host {name}",
        )
    elif host.engine is None:
        why = _explain(host.exporter, "bedplate-exporter")
        yield Fault(
            what=f"the exporter on {name} does not work ({why}), so its engine's state is unknown",
            next="journalctl -u bedplate-exporter -n 50",
            next_on=name,
            about=f"exporter {name}",
        )
    elif not host.engine.up:
        conditions = {"hung": "hangs", "broken": "returns invalid answers"}
        condition = conditions.get(host.engine.fault or "", "is down")
        yield Fault(
            what=f"the engine on {name} {condition}",
            next="journalctl -u ollama -n 50",
            next_on=name,
            about=f"engine {name}",
        )
    else:
        if host.missing_models:
            yield Fault(
                what=f"the engine on {name} does not have {_join_names(host.missing_models)}",
                next="ansible-playbook site.yml --tags ollama",
                next_on=CONTROL_MACHINE,
                about=f"models {name}",
            )
        yield from gpu_faults


def _find_gpu_faults(name: str, gpu: GpuFacts | None) -> Iterator[Fault]:
    if gpu is None:
        return
    for problem in gpu.problems:
        yield _describe_driver_problem(name, problem)
    if gpu.off_gpu:
        yield Fault(
            what=f"{_join_names(gpu.off_gpu)} on {name} is not entirely on the GPU, so it is slow",
            next="journalctl -u ollama | grep 'inference compute' | tail",
            next_on=name,
            about=f"gpu use {name}",
        )


def _describe_driver_problem(name: str, problem: DriverProblem) -> Fault:
    driver = problem.driver
    match problem.kind:
        case "mismatch":
            versions = f"{driver.module_version or '?'} and {driver.library_version or '?'}"
            what = f"the GPU driver's module and library on {name} differ ({versions})"
            command = "reboot"
        case "failed":
            what = f"the GPU driver on {name} does not answer"
            command = "nvidia-smi; dmesg | tail -n 50"
        case "missing":
            what = f"{name} has {driver.devices} of {driver.expected} GPUs"
            command = "dmesg | grep -i -e xid -e amdgpu | tail"
    return Fault(what=what, next=command, next_on=name, about=f"{driver.vendor} {name}")


def _find_failed_requests(facts: Facts, models: tuple[ModelStatus, ...]) -> Iterator[Fault]:
    if not facts.gateway.contact.ok:
        return
    for model in models:
        if model.can_be_served is None and model.answered and not model.answered.ok:
            yield Fault(
                what=f"the last request for {model.name} failed",
                next="journalctl -u ollama -n 50",
                next_on=next((place.host for place in model.placements if place.present), GATEWAY_HOST),
                about=f"answer {model.name}",
            )


def _find_refusals(refusals: tuple[Refusals, ...]) -> Iterator[Fault]:
    if refusals:
        count = sum(refusal.count for refusal in refusals)
        reasons = ", ".join(sorted({refusal.reason for refusal in refusals}))
        yield Fault(
            what=f"{count} request{'s were' if count > 1 else ' was'} just refused ({reasons})",
            next=GATEWAY_JOURNAL,
            next_on=GATEWAY_HOST,
            about="refusals",
        )


def _describe_wait(waiting: QueueClass) -> Fault:
    return Fault(
        what=f"requests of class {waiting.name} wait {waiting.oldest_seconds:.0f} s for a slot",
        next=GATEWAY_JOURNAL,
        next_on=GATEWAY_HOST,
        about=f"wait {waiting.name}",
    )


def _find_litellm_faults(litellm: LitellmFacts | None) -> Iterator[Fault]:
    if litellm is None:
        return
    what = None
    if litellm.status.up is False and litellm.needed:
        state = litellm.unit_state
        why = "" if state in (None, "active") else f" (litellm is {state})"
        what = f"LiteLLM does not answer{why}, so requests go directly to the engines meanwhile"
    elif litellm.bypassed:
        count = litellm.bypassed
        requests = f"{count} request{'' if count == 1 else 's'}"
        what = f"LiteLLM did not answer, so {requests} just went directly to the engines"
    if what:
        yield Fault(what=what, next="journalctl -u litellm -n 50", next_on=GATEWAY_HOST, about="litellm")


def _list_polled(host: str, litellm: LitellmFacts | None) -> frozenset[str]:
    """Return the polled services; LiteLLM is one only where a gateway reports whether it answers."""
    reported = litellm is not None and litellm.host == host and litellm.status.up is not None
    return POLLED_SERVICES if reported else POLLED_SERVICES - {"litellm"}


def _find_machine_faults(facts: MachineFacts, polled: frozenset[str]) -> Iterator[Fault]:
    name = facts.machine.name
    if not facts.contact.ok:
        # An unreachable inference host is a fault of its own.
        if facts.reachable and not facts.drained:
            yield Fault(
                what=(
                    f"the node exporter on {name} does not work ({facts.contact.error}), "
                    "so the state of its disks and services is unknown"
                ),
                next="journalctl -u node-exporter -n 50",
                next_on=name,
                about=f"node exporter {name}",
            )
        return
    for disk in facts.full_disks:
        yield Fault(
            what=f"{disk.mountpoint} on {name} is full ({disk.available_bytes / 1e9:.1f} GB left)",
            next=f"du -xh --max-depth 2 {disk.mountpoint} | sort -h | tail",
            next_on=name,
            about=f"disk {name} {disk.mountpoint}",
        )
    for service in facts.bad_services:
        if service.name not in polled and not (facts.drained and service.name in ENGINE_SERVICES):
            yield Fault(
                what=f"{service.name} on {name} is {service.state}",
                next=f"journalctl -u {service.name} -n 50",
                next_on=name,
                about=f"{service.name} {name}",
            )


def _find_prometheus_faults(prometheus: ServiceFacts, stores: bool) -> Iterator[Fault]:
    if not prometheus.contact.ok:
        why = _explain(prometheus, "prometheus")
        yield Fault(
            what=f"Prometheus does not answer ({why}), so no history is recorded",
            next="journalctl -u prometheus -n 50",
            next_on=MONITORING_HOST,
            about="prometheus",
        )
    elif not stores:
        yield Fault(
            what="Prometheus stores no samples, so no history is recorded and no alert is right",
            next="journalctl -u prometheus -n 50",
            next_on=MONITORING_HOST,
            about="prometheus",
        )


def _explain(service: ServiceFacts, unit: str) -> str:
    """Return the error of a service, after the state of its unit if that is known and not active."""
    error = str(service.contact.error)
    return error if service.unit_state in (None, "active") else f"{unit} is {service.unit_state}, {error}"


def _join_names(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
