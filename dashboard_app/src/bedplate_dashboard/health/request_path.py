"""The request path, hop by hop: clients, gateway, queue, LiteLLM, and each host with its GPUs."""

from collections.abc import Iterator

from bedplate_dashboard.health.facts import Facts, HostFacts, LitellmFacts
from bedplate_dashboard.health.faults import Faults, describe_drain, undrain_command
from bedplate_dashboard.health.model import Fault, Health, Hop, Litellm, ModelStatus, Queue, Traffic
from bedplate_dashboard.settings import Settings


def trace_request(
    settings: Settings, facts: Facts, models: tuple[ModelStatus, ...], faults: Faults
) -> Iterator[Hop]:
    """Iterate over the hops from the clients to the GPUs."""
    yield _describe_clients(settings, facts.traffic)
    yield _describe_gateway(settings, facts, models)
    yield _describe_queue(facts.queue, faults.waits)
    if facts.litellm:
        yield _describe_litellm(facts.litellm)
    for host in facts.hosts:
        yield _describe_host(host)
        yield _describe_gpu(host, faults.gpus[host.name])


def _describe_clients(settings: Settings, traffic: Traffic | None) -> Hop:
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


def _describe_gateway(settings: Settings, facts: Facts, models: tuple[ModelStatus, ...]) -> Hop:
    contact = facts.gateway.contact
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
        version=facts.gateway_version,
        latency_seconds=contact.seconds,
        error=contact.error,
    )


def _describe_queue(queue: Queue | None, waits: tuple[Fault, ...]) -> Hop:
    if queue is None:
        return Hop(kind="queue", name="queue", state="unknown", detail="unknown")
    waiting = sum(group.waiting for group in queue.classes)
    oldest = max((group.oldest_seconds for group in queue.classes if group.waiting), default=0.0)
    summary = (
        f"{waiting} request{' waits' if waiting == 1 else 's wait'}, the oldest for {oldest:.0f} s"
        if waiting
        else "no request waits"
    )
    return Hop(
        kind="queue",
        name="queue",
        state="warn" if waits else "ok",
        detail=f"{summary}; {queue.slots_busy} of {queue.slots} slots busy",
        error=waits[0].what if waits else None,
    )


def _describe_litellm(litellm: LitellmFacts) -> Hop:
    status = litellm.status
    bypassed = status.requests.bypass if status.requests else 0
    state: Health = "ok"
    error = None
    if status.up is None:
        state = "unknown"
    elif not status.up and litellm.needed:
        state, error = "warn", "does not answer, so requests go directly to the engines"
    elif bypassed:
        requests = "1 request" if bypassed == 1 else f"{bypassed} requests"
        state, error = "warn", f"{requests} went directly to the engines"
    elif not status.up:
        state, error = "unknown", "does not answer, but no request needs it"
    return Hop(
        kind="litellm",
        name="litellm",
        state=state,
        detail="; ".join(_list_litellm_details(status)) or "unknown",
        version=litellm.version,
        error=error,
    )


def _list_litellm_details(status: Litellm) -> Iterator[str]:
    lanes = status.requests
    if lanes:
        others = ((lanes.bypass, "around it"), (lanes.direct, "direct"))
        requests = f"{lanes.litellm} request{'' if lanes.litellm == 1 else 's'} in the last minute"
        yield ", ".join([requests, *(f"{count} {way}" for count, way in others if count)])
    if status.added_seconds is not None:
        yield f"adds {1000 * status.added_seconds:.0f} ms"
    if status.memory_bytes is not None:
        yield f"{status.memory_bytes / 1e6:.0f} MB"


def _describe_host(host: HostFacts) -> Hop:
    status = host.status
    if host.drain:
        # What fails here meanwhile is no error.
        return Hop(
            kind="host",
            name=host.name,
            state="warn",
            detail=f"{describe_drain(host.drain)}; next: {undrain_command(host.name)}",
            version=host.engine.version if host.engine else None,
        )
    if host.engine is None:
        return Hop(
            kind="host",
            name=host.name,
            state="unknown" if host.reachable else "bad",
            detail="its exporter does not answer",
            error=host.exporter.contact.error,
        )
    if not host.engine.up:
        return Hop(
            kind="host",
            name=host.name,
            state="bad",
            detail="the engine does not answer",
            error=host.engine.error,
        )
    return Hop(
        kind="host",
        name=host.name,
        state="bad" if host.missing_models else "ok",
        detail=(
            f"has {status.models_present} of {status.models_declared} models, {status.models_loaded} loaded"
        ),
        version=host.engine.version,
        latency_seconds=host.engine.latency_seconds,
        error="a model is missing" if host.missing_models else None,
    )


def _describe_gpu(host: HostFacts, faults: tuple[Fault, ...]) -> Hop:
    name, gpu = host.name, host.gpu
    if gpu is None:
        return Hop(kind="gpu", name=name, state="unknown", detail="unknown")
    state: Health = "ok"
    error = None
    if faults:
        state, error = "warn" if host.drain else "bad", faults[0].what
    elif gpu.throttling:
        state, error = "warn", f"throttled ({gpu.throttling})"
    return Hop(
        kind="gpu",
        name=name,
        state=state,
        detail=f"{gpu.count} GPU{'' if gpu.count == 1 else 's'}" if gpu.count else "no GPU",
        version=gpu.driver_version,
        error=error,
    )
