"""The request path, hop by hop: clients, gateway, queue, and each host with its GPUs."""

from collections.abc import Iterator

from bedplate_dashboard.health import facts
from bedplate_dashboard.health.faults import find_gpu_faults, find_queue_faults
from bedplate_dashboard.health.model import Health, Hop, HostStatus, ModelStatus, Queue, Traffic
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import HostAnswer, Observation


def trace_request(
    settings: Settings,
    observation: Observation,
    *,
    models: tuple[ModelStatus, ...],
    hosts: tuple[HostStatus, ...],
    queue: Queue | None,
    traffic: Traffic | None,
) -> Iterator[Hop]:
    """Iterate over the hops from the clients to the GPUs."""
    yield _clients_hop(settings, traffic)
    yield _gateway_hop(settings, observation, models)
    yield _queue_hop(queue)
    yield from _host_hops(observation, hosts)


def _clients_hop(settings: Settings, traffic: Traffic | None) -> Hop:
    if traffic is None:
        return Hop(
            kind="clients", name="clients", state="unknown", detail=f"at {settings.public_gateway_url}"
        )
    return Hop(
        kind="clients",
        name="clients",
        state="ok",
        detail=f"{traffic.requests} request{'' if traffic.requests == 1 else 's'} in the last minute",
    )


def _gateway_hop(settings: Settings, observation: Observation, models: tuple[ModelStatus, ...]) -> Hop:
    contact = observation.gateway.contact
    version = facts.find_gateway_version(observation)
    listed = sum(model.listed is True for model in models)
    detail = f"lists {listed} of {len(models)} models" if contact.ok else f"at {settings.gateway_url}"
    state: Health = "bad"
    if contact.ok:
        state = "ok" if listed == len(models) else "warn"
    elif contact.outcome == "refused":
        state = "warn"
    return Hop(
        kind="gateway",
        name="gateway",
        state=state,
        detail=detail,
        version=version,
        latency_seconds=contact.seconds,
        error=contact.error,
    )


def _queue_hop(queue: Queue | None) -> Hop:
    if queue is None:
        return Hop(kind="queue", name="queue", state="unknown", detail="unknown")
    waiting = sum(waits.waiting for waits in queue.classes)
    oldest = max((waits.oldest_seconds for waits in queue.classes if waits.waiting), default=0.0)
    summary = (
        f"{waiting} request{' waits' if waiting == 1 else 's wait'}, the oldest for {oldest:.0f} s"
        if waiting
        else "no request waits"
    )
    slow = list(find_queue_faults(queue, ()))
    return Hop(
        kind="queue",
        name="queue",
        state="warn" if slow else "ok",
        detail=f"{summary}; {queue.slots_busy} of {queue.slots} slots busy",
        error=slow[0].what if slow else None,
    )


def _host_hops(observation: Observation, hosts: tuple[HostStatus, ...]) -> Iterator[Hop]:
    for host, answer in zip(hosts, observation.hosts, strict=True):
        state = answer.state
        if state is None:
            health: Health = "bad" if answer.contact.outcome == "unreachable" else "unknown"
            yield Hop(
                kind="host",
                name=host.name,
                state=health,
                detail="its exporter does not answer",
                error=answer.contact.error,
            )
            yield Hop(kind="gpu", name=host.name, state="unknown", detail="unknown")
            continue
        engine = state.engine
        if not engine.up:
            yield Hop(
                kind="host",
                name=host.name,
                state="bad",
                detail="the engine does not answer",
                error=engine.error,
            )
        else:
            lacks = (host.models_present or 0) < host.models_declared
            yield Hop(
                kind="host",
                name=host.name,
                state="bad" if lacks else "ok",
                detail=(
                    f"has {host.models_present} of {host.models_declared} models, {host.models_loaded} loaded"
                ),
                version=engine.version,
                latency_seconds=engine.latency_seconds,
                error="a model is missing" if lacks else None,
            )
        yield _gpu_hop(host.name, answer)


def _gpu_hop(name: str, answer: HostAnswer) -> Hop:
    state = answer.state
    count = len(state.gpus) if state else 0
    version = next((driver.version for driver in state.drivers if driver.version), None) if state else None
    detail = f"{count} GPU{'' if count == 1 else 's'}" if count else "no GPU"
    faults = list(find_gpu_faults(name, answer))
    throttled = [gpu for gpu in state.gpus if gpu.throttling] if state else []
    if faults:
        return Hop(kind="gpu", name=name, state="bad", detail=detail, version=version, error=faults[0].what)
    if throttled:
        return Hop(
            kind="gpu",
            name=name,
            state="warn",
            detail=detail,
            version=version,
            error=f"throttled ({throttled[0].throttling})",
        )
    return Hop(kind="gpu", name=name, state="ok", detail=detail, version=version)
