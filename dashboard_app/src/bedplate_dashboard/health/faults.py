"""The faults of one poll: each is a clause with the command to type next and the host to type it on."""

from collections.abc import Iterator

from bedplate_dashboard.health import facts
from bedplate_dashboard.health.facts import add_default_tag
from bedplate_dashboard.health.model import Fault, Machine, ModelStatus, Queue, Refusals
from bedplate_dashboard.settings import InferenceHost, Settings
from bedplate_dashboard.sources.collect import HostAnswer, Observation

LONG_WAIT_SECONDS = 30.0
"""How long the oldest request of a class may wait; class `low` may wait without limit."""

UNLIMITED_WAIT_CLASS = "low"
SERVER_REFUSALS = frozenset({"queue_full", "queue_timeout"})
"""Refusals that the client did not cause and that no other fault explains."""

GPU_RATIO = 0.99
"""The share of a loaded model that must be on the GPU of a host that has one."""

CONTROL_MACHINE = "the control machine"
GATEWAY_HOST = "the gateway host"
MONITORING_HOST = "the monitoring host"


def find_faults(
    settings: Settings,
    observation: Observation,
    *,
    models: tuple[ModelStatus, ...],
    machines: tuple[Machine, ...],
    queue: Queue | None,
    refusals: tuple[Refusals, ...],
) -> Iterator[Fault]:
    """Iterate over all faults, the most important first; `refusals` are those of the last seconds."""
    yield from _find_gateway_faults(settings, observation, models)
    for host, answer in zip(settings.inference_hosts, observation.hosts, strict=True):
        yield from find_host_faults(host, answer, observation)
    yield from _find_failed_requests(observation, models)
    yield from find_queue_faults(queue, refusals)
    yield from _find_machine_faults(settings, observation, machines)
    yield from _find_monitoring_faults(settings, observation)


def _find_gateway_faults(
    settings: Settings, observation: Observation, models: tuple[ModelStatus, ...]
) -> Iterator[Fault]:
    contact = observation.gateway.contact
    journal = "journalctl -u bedplate-gateway -n 50"
    if contact.outcome == "refused":
        what = f"the gateway refuses the dashboard's key ({contact.error})"
        yield Fault(
            what=what, next="ansible-playbook site.yml --tags keys", next_on=CONTROL_MACHINE, about="key"
        )
    elif not contact.ok:
        unit = _describe_unit(observation, settings.gateway, "bedplate-gateway")
        yield Fault(
            what=f"the gateway does not work ({unit}{contact.error})",
            next=journal,
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
            what = f"the gateway does not list {_join_names(missing)}"
            yield Fault(
                what=what,
                next="ansible-playbook site.yml --tags gateway",
                next_on=CONTROL_MACHINE,
                about="listed",
            )
        metrics = observation.gateway.metrics_contact
        if not metrics.ok:
            what = (
                f"the gateway does not return its metrics ({metrics.error}), "
                "so traffic and limits are unknown"
            )
            yield Fault(what=what, next=journal, next_on=GATEWAY_HOST, about="gateway metrics")


def find_host_faults(host: InferenceHost, answer: HostAnswer, observation: Observation) -> Iterator[Fault]:
    """Iterate over the faults of an inference host's engine, models and GPUs."""
    name = host.name
    state = answer.state
    if answer.contact.outcome == "unreachable":
        what = f"the host {name} cannot be reached ({answer.contact.error})"
        yield Fault(what=what, next=f"ansible {name} -m ping", next_on=CONTROL_MACHINE, about=f"host {name}")
    elif state is None:
        unit = _describe_unit(observation, name, "bedplate-exporter")
        why = f"{unit}{answer.contact.error}"
        what = f"the exporter on {name} does not work ({why}), so its engine's state is unknown"
        yield Fault(
            what=what, next="journalctl -u bedplate-exporter -n 50", next_on=name, about=f"exporter {name}"
        )
    elif not state.engine.up:
        condition = {"hung": "hangs", "broken": "returns invalid answers"}.get(
            state.engine.fault or "", "is down"
        )
        what = f"the engine on {name} {condition}"
        yield Fault(what=what, next="journalctl -u ollama -n 50", next_on=name, about=f"engine {name}")
    else:
        present = {model.name for model in state.models}
        missing = [model for model in host.models if add_default_tag(model) not in present]
        if missing:
            what = f"the engine on {name} does not have {_join_names(missing)}"
            command = "ansible-playbook site.yml --tags ollama"
            yield Fault(what=what, next=command, next_on=CONTROL_MACHINE, about=f"models {name}")
        yield from find_gpu_faults(name, answer)


def find_gpu_faults(name: str, answer: HostAnswer) -> Iterator[Fault]:
    """Iterate over the faults of an inference host's GPUs."""
    drivers = answer.state.drivers if answer.state else ()
    for driver in drivers:
        about = f"{driver.vendor} {name}"
        if driver.driver_matches is False:
            versions = f"{driver.module_version or '?'} and {driver.library_version or '?'}"
            what = f"the GPU driver's module and library on {name} differ ({versions})"
            yield Fault(what=what, next="reboot", next_on=name, about=about)
        elif driver.failed:
            what = f"the GPU driver on {name} does not answer"
            yield Fault(what=what, next="nvidia-smi; dmesg | tail -n 50", next_on=name, about=about)
        elif driver.devices < driver.expected:
            what = f"{name} has {driver.devices} of {driver.expected} GPUs"
            yield Fault(what=what, next="dmesg | grep -i -e xid -e amdgpu | tail", next_on=name, about=about)
    if answer.state and any(driver.expected for driver in drivers):
        partly_on_cpu = [
            model.name
            for model in answer.state.models
            if model.loaded and (model.gpu_memory_bytes or 0) < GPU_RATIO * (model.memory_bytes or 0)
        ]
        if partly_on_cpu:
            what = f"{_join_names(partly_on_cpu)} on {name} is not entirely on the GPU, so it is slow"
            next_step = "journalctl -u ollama | grep 'inference compute' | tail"
            yield Fault(what=what, next=next_step, next_on=name, about=f"gpu use {name}")


def _find_failed_requests(observation: Observation, models: tuple[ModelStatus, ...]) -> Iterator[Fault]:
    for model in models:
        if model.can_be_served is None and model.answered and not model.answered.ok:
            host = next((place.host for place in model.placements if place.present), GATEWAY_HOST)
            if observation.gateway.contact.ok:
                what = f"the last request for {model.name} failed"
                yield Fault(
                    what=what, next="journalctl -u ollama -n 50", next_on=host, about=f"answer {model.name}"
                )


def find_queue_faults(queue: Queue | None, refusals: tuple[Refusals, ...]) -> Iterator[Fault]:
    """Iterate over faults that clients notice while every service runs: refusals and long waits."""
    reasons = sorted({refusal.reason for refusal in refusals if refusal.reason in SERVER_REFUSALS})
    if reasons:
        count = sum(refusal.count for refusal in refusals if refusal.reason in reasons)
        what = f"{count} request{'s were' if count > 1 else ' was'} just refused ({', '.join(reasons)})"
        yield Fault(
            what=what, next="journalctl -u bedplate-gateway -n 50", next_on=GATEWAY_HOST, about="refusals"
        )
    for waiting in queue.classes if queue else ():
        if (
            waiting.name != UNLIMITED_WAIT_CLASS
            and waiting.waiting
            and waiting.oldest_seconds > LONG_WAIT_SECONDS
        ):
            what = f"requests of class {waiting.name} wait {waiting.oldest_seconds:.0f} s for a slot"
            yield Fault(
                what=what,
                next="journalctl -u bedplate-gateway -n 50",
                next_on=GATEWAY_HOST,
                about=f"wait {waiting.name}",
            )


def _find_machine_faults(
    settings: Settings, observation: Observation, machines: tuple[Machine, ...]
) -> Iterator[Fault]:
    polled = {
        "bedplate-gateway",
        "ollama",
        "prometheus",
        "bedplate-exporter",
        "bedplate-dashboard",
        "node-exporter",
    }
    for answer, machine in zip(observation.machines, machines, strict=True):
        name = answer.name
        if not answer.contact.ok:
            if not _is_unreachable(name, settings, observation):
                what = (
                    f"the node exporter on {name} does not work ({answer.contact.error}), "
                    "so the state of its disks and services is unknown"
                )
                yield Fault(
                    what=what,
                    next="journalctl -u node-exporter -n 50",
                    next_on=name,
                    about=f"node exporter {name}",
                )
            continue
        for disk in filter(facts.is_full, machine.disks):
            what = f"{disk.mountpoint} on {name} is full ({disk.available_bytes / 1e9:.1f} GB left)"
            command = f"du -xh --max-depth 2 {disk.mountpoint} | sort -h | tail"
            yield Fault(what=what, next=command, next_on=name, about=f"disk {name} {disk.mountpoint}")
        for service in machine.services:
            # Services in `polled` are judged by their answer, which shows more than their process.
            if service.name not in polled and service.state in facts.BAD_UNIT_STATES:
                what = f"{service.name} on {name} is {service.state}"
                yield Fault(
                    what=what,
                    next=f"journalctl -u {service.name} -n 50",
                    next_on=name,
                    about=f"{service.name} {name}",
                )


def _is_unreachable(name: str, settings: Settings, observation: Observation) -> bool:
    """Return whether the host is unreachable, which is a fault of its own."""
    return any(
        host.name == name and answer.contact.outcome == "unreachable"
        for host, answer in zip(settings.inference_hosts, observation.hosts, strict=True)
    )


def _find_monitoring_faults(settings: Settings, observation: Observation) -> Iterator[Fault]:
    contact = observation.prometheus.contact
    if not contact.ok:
        unit = _describe_unit(observation, settings.monitoring, "prometheus")
        what = f"Prometheus does not answer ({unit}{contact.error}), so no history is recorded"
        yield Fault(
            what=what, next="journalctl -u prometheus -n 50", next_on=MONITORING_HOST, about="prometheus"
        )


def _describe_unit(observation: Observation, host: str, unit: str) -> str:
    """Return "UNIT is STATE, " for a unit that should be active and is not, else an empty text."""
    state = facts.find_unit_state(observation, host, unit)
    return "" if state in (None, "active") else f"{unit} is {state}, "


def _join_names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
