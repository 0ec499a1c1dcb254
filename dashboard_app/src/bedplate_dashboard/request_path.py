"""The way of a request, hop by hop."""

from __future__ import annotations

from collections.abc import Iterator

from . import parts
from .collect import HostAnswer, Observation
from .faults import gpu_faults, slow_or_refused
from .settings import Settings
from .status import Health, Hop, HostStatus, ModelStatus, Queue, Traffic


def hops(
    settings: Settings,
    seen: Observation,
    *,
    models: tuple[ModelStatus, ...],
    hosts: tuple[HostStatus, ...],
    queue: Queue | None,
    traffic: Traffic | None,
) -> Iterator[Hop]:
    """Iterate from the clients to the GPUs."""
    yield _clients_hop(settings, traffic)
    yield _gateway_hop(settings, seen, models)
    yield _queue_hop(queue)
    yield from _host_hops(seen, hosts)


def _clients_hop(settings: Settings, traffic: Traffic | None) -> Hop:
    if traffic is None:
        return Hop("clients", "clients", "unknown", f"at {settings.public_gateway_url}")
    return Hop(
        "clients",
        "clients",
        "ok",
        f"{traffic.requests} request{'' if traffic.requests == 1 else 's'} in the last minute",
    )


def _gateway_hop(settings: Settings, seen: Observation, models: tuple[ModelStatus, ...]) -> Hop:
    contact = seen.gateway.contact
    version = parts.gateway_version(seen)
    listed = sum(model.listed is True for model in models)
    detail = f"lists {listed} of {len(models)} models" if contact.ok else f"at {settings.gateway_url}"
    state: Health = "bad"
    if contact.ok:
        state = "ok" if listed == len(models) else "warn"
    elif contact.outcome == "refused":
        state = "warn"
    return Hop("gateway", "gateway", state, detail, version, contact.seconds, contact.error)


def _queue_hop(queue: Queue | None) -> Hop:
    if queue is None:
        return Hop("queue", "queue", "unknown", "not seen")
    waiting = sum(waits.waiting for waits in queue.classes)
    oldest = max((waits.oldest_seconds for waits in queue.classes if waits.waiting), default=0.0)
    words = (
        f"{waiting} wait{'s' if waiting == 1 else ''}, the oldest for {oldest:.0f} s"
        if waiting
        else "nobody waits"
    )
    slow = list(slow_or_refused(queue, ()))
    return Hop(
        "queue",
        "queue",
        "warn" if slow else "ok",
        f"{words}; {queue.slots_busy} of {queue.slots} slots busy",
        error=slow[0].what if slow else None,
    )


def _host_hops(seen: Observation, hosts: tuple[HostStatus, ...]) -> Iterator[Hop]:
    for told, answer in zip(hosts, seen.hosts, strict=True):
        state = answer.state
        if state is None:
            health: Health = "bad" if answer.contact.outcome == "unreachable" else "unknown"
            yield Hop("host", told.name, health, "its exporter does not answer", error=answer.contact.error)
            yield Hop("gpu", told.name, "unknown", "not seen")
            continue
        engine = state.engine
        if not engine.up:
            yield Hop("host", told.name, "bad", "the engine does not answer", error=engine.error)
        else:
            lacks = (told.models_present or 0) < told.models_declared
            yield Hop(
                "host",
                told.name,
                "bad" if lacks else "ok",
                f"has {told.models_present} of {told.models_declared} models, {told.models_loaded} loaded",
                engine.version,
                engine.latency_seconds,
                "a model is missing" if lacks else None,
            )
        yield _gpu_hop(told.name, answer)


def _gpu_hop(name: str, answer: HostAnswer) -> Hop:
    state = answer.state
    count = len(state.gpus) if state else 0
    version = next((driver.version for driver in state.drivers if driver.version), None) if state else None
    detail = f"{count} GPU{'' if count == 1 else 's'}" if count else "no GPU"
    faults = list(gpu_faults(name, answer))
    slowed = [gpu for gpu in state.gpus if gpu.throttling] if state else []
    if faults:
        return Hop("gpu", name, "bad", detail, version, error=faults[0].what)
    if slowed:
        return Hop("gpu", name, "warn", detail, version, error=f"slows itself down ({slowed[0].throttling})")
    return Hop("gpu", name, "ok", detail, version)
