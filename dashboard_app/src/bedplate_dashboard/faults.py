"""What is wrong with one look, each thing in a clause that is true, with what to type where."""

from __future__ import annotations

from collections.abc import Iterator

from . import parts
from .collect import HostAnswer, Observation
from .parts import engine_name
from .settings import InferenceHost, Settings
from .status import Fault, Machine, ModelStatus, Queue, Refusals

LONG_WAIT_SECONDS = 30.0
"""How long the oldest request of a class may wait; low ones may wait, that is what they are for."""

PATIENT_CLASS = "low"
SERVER_REFUSALS = frozenset({"queue_full", "queue_timeout"})
"""Refusals that are no fault of the client, and that no other fault explains."""

GPU_RATIO = 0.99
"""The share of a loaded model that must lie on the GPU, where there is one."""

CONTROL_MACHINE = "the control machine"
GATEWAY_HOST = "the gateway host"
MONITORING_HOST = "the monitoring host"


def find(
    settings: Settings,
    seen: Observation,
    *,
    models: tuple[ModelStatus, ...],
    machines: tuple[Machine, ...],
    queue: Queue | None,
    refusals: tuple[Refusals, ...],
) -> Iterator[Fault]:
    """Iterate over all that is wrong, the most telling first; `refusals` are the last seconds'."""
    yield from _gateway_faults(settings, seen, models)
    for host, answer in zip(settings.inference_hosts, seen.hosts, strict=True):
        yield from host_faults(host, answer, seen)
    yield from _failed_requests(seen, models)
    yield from slow_or_refused(queue, refusals)
    yield from _machine_faults(settings, seen, machines)
    yield from _monitoring_faults(settings, seen)


def _gateway_faults(
    settings: Settings, seen: Observation, models: tuple[ModelStatus, ...]
) -> Iterator[Fault]:
    contact = seen.gateway.contact
    journal = "journalctl -u bedplate-gateway -n 50"
    if contact.outcome == "refused":
        what = f"the gateway refuses the dashboard's key ({contact.error})"
        yield Fault(what, "ansible-playbook site.yml --tags keys", CONTROL_MACHINE, about="key")
    elif not contact.ok:
        unit = _unit(seen, settings.gateway, "bedplate-gateway")
        yield Fault(
            f"the gateway does not work ({unit}{contact.error})", journal, GATEWAY_HOST, about="gateway"
        )
    else:
        # A model whose engines are down or lack it is not listed either; that is said of the engines.
        missing = [
            model.name
            for model in models
            if not model.listed
            and (not model.placements or any(placement.present for placement in model.placements))
        ]
        if missing:
            what = f"the gateway does not list {_names(missing)}"
            yield Fault(what, "ansible-playbook site.yml --tags gateway", CONTROL_MACHINE, about="listed")
        metrics = seen.gateway.metrics_contact
        if not metrics.ok:
            what = (
                f"the gateway does not tell its metrics ({metrics.error}), so traffic and limits are not seen"
            )
            yield Fault(what, journal, GATEWAY_HOST, about="gateway metrics")


def host_faults(host: InferenceHost, answer: HostAnswer, seen: Observation) -> Iterator[Fault]:
    """Iterate over what is wrong with an inference host's engine, models and GPUs."""
    name = host.name
    state = answer.state
    if answer.contact.outcome == "unreachable":
        what = f"the host {name} cannot be reached ({answer.contact.error})"
        yield Fault(what, f"ansible {name} -m ping", CONTROL_MACHINE, about=f"host {name}")
    elif state is None:
        unit = _unit(seen, name, "bedplate-exporter")
        why = f"{unit}{answer.contact.error}"
        what = f"the exporter on {name} does not work ({why}), so its engine cannot be seen"
        yield Fault(what, "journalctl -u bedplate-exporter -n 50", name, about=f"exporter {name}")
    elif not state.engine.up:
        words = {"hung": "hangs", "broken": "answers nonsense"}.get(state.engine.fault or "", "is down")
        what = f"the engine on {name} {words}"
        yield Fault(what, "journalctl -u ollama -n 50", name, about=f"engine {name}")
    else:
        present = {model.name for model in state.models}
        missing = [model for model in host.models if engine_name(model) not in present]
        if missing:
            what = f"the engine on {name} does not have {_names(missing)}"
            again = "ansible-playbook site.yml --tags ollama"
            yield Fault(what, again, CONTROL_MACHINE, about=f"models {name}")
        yield from gpu_faults(name, answer)


def gpu_faults(name: str, answer: HostAnswer) -> Iterator[Fault]:
    """Iterate over what is wrong with an inference host's GPUs."""
    drivers = answer.state.drivers if answer.state else ()
    for driver in drivers:
        about = f"{driver.vendor} {name}"
        if driver.driver_matches is False:
            versions = f"{driver.module_version or '?'} and {driver.library_version or '?'}"
            what = f"the GPU driver's module and library on {name} differ ({versions})"
            yield Fault(what, "reboot", name, about=about)
        elif driver.failed:
            what = f"the GPU driver on {name} does not answer"
            yield Fault(what, "nvidia-smi; dmesg | tail -n 50", name, about=about)
        elif driver.devices < driver.expected:
            what = f"{name} has {driver.devices} of {driver.expected} GPUs"
            yield Fault(what, "dmesg | grep -i -e xid -e amdgpu | tail", name, about=about)
    if answer.state and any(driver.expected for driver in drivers):
        beside = [
            model.name
            for model in answer.state.models
            if model.loaded and (model.gpu_memory_bytes or 0) < GPU_RATIO * (model.memory_bytes or 0)
        ]
        if beside:
            what = f"{_names(beside)} on {name} is not wholly on the GPU, so it is slow"
            next_step = "journalctl -u ollama | grep 'inference compute' | tail"
            yield Fault(what, next_step, name, about=f"gpu use {name}")


def _failed_requests(seen: Observation, models: tuple[ModelStatus, ...]) -> Iterator[Fault]:
    for model in models:
        if model.can_be_served is None and model.answered and not model.answered.ok:
            host = next((place.host for place in model.placements if place.present), GATEWAY_HOST)
            if seen.gateway.contact.ok:
                what = f"the last request for {model.name} failed"
                yield Fault(what, "journalctl -u ollama -n 50", host, about=f"answer {model.name}")


def slow_or_refused(queue: Queue | None, refusals: tuple[Refusals, ...]) -> Iterator[Fault]:
    """Iterate over what users suffer from while everything runs."""
    told = sorted({refusal.reason for refusal in refusals if refusal.reason in SERVER_REFUSALS})
    if told:
        count = sum(refusal.count for refusal in refusals if refusal.reason in told)
        what = f"{count} request{'s were' if count > 1 else ' was'} just refused ({', '.join(told)})"
        yield Fault(what, "journalctl -u bedplate-gateway -n 50", GATEWAY_HOST, about="refusals")
    for waiting in queue.classes if queue else ():
        if waiting.name != PATIENT_CLASS and waiting.waiting and waiting.oldest_seconds > LONG_WAIT_SECONDS:
            what = f"requests of class {waiting.name} wait {waiting.oldest_seconds:.0f} s for a slot"
            yield Fault(
                what, "journalctl -u bedplate-gateway -n 50", GATEWAY_HOST, about=f"wait {waiting.name}"
            )


def _machine_faults(settings: Settings, seen: Observation, machines: tuple[Machine, ...]) -> Iterator[Fault]:
    asked = {
        "bedplate-gateway",
        "ollama",
        "prometheus",
        "bedplate-exporter",
        "bedplate-dashboard",
        "node-exporter",
    }
    for answer, told in zip(seen.machines, machines, strict=True):
        name = answer.name
        if not answer.contact.ok:
            if not _is_gone(name, settings, seen):
                what = (
                    f"the node exporter on {name} does not work ({answer.contact.error}), "
                    "so its disks and services cannot be seen"
                )
                yield Fault(what, "journalctl -u node-exporter -n 50", name, about=f"node exporter {name}")
            continue
        for disk in filter(parts.is_full, told.disks):
            what = f"{disk.mountpoint} on {name} is full ({disk.available_bytes / 1e9:.1f} GB left)"
            command = f"du -xh --max-depth 2 {disk.mountpoint} | sort -h | tail"
            yield Fault(what, command, name, about=f"disk {name} {disk.mountpoint}")
        for service in told.services:
            # Those that are asked for more than their process are told by their answer.
            if service.name not in asked and service.state in parts.BAD_UNIT_STATES:
                what = f"{service.name} on {name} is {service.state}"
                yield Fault(what, f"journalctl -u {service.name} -n 50", name, about=f"{service.name} {name}")


def _is_gone(name: str, settings: Settings, seen: Observation) -> bool:
    """Is the whole host away, so that it is said already?"""
    return any(
        host.name == name and answer.contact.outcome == "unreachable"
        for host, answer in zip(settings.inference_hosts, seen.hosts, strict=True)
    )


def _monitoring_faults(settings: Settings, seen: Observation) -> Iterator[Fault]:
    contact = seen.prometheus.contact
    if not contact.ok:
        unit = _unit(seen, settings.monitoring, "prometheus")
        what = f"Prometheus does not answer ({unit}{contact.error}), so no history is kept"
        yield Fault(what, "journalctl -u prometheus -n 50", MONITORING_HOST, about="prometheus")


def _unit(seen: Observation, host: str, unit: str) -> str:
    """Say in what state a unit is that should be active, as the beginning of a list."""
    state = parts.unit_state(seen, host, unit)
    return "" if state in (None, "active") else f"{unit} is {state}, "


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
