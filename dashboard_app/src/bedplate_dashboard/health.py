"""What "healthy" means. The only module that judges: pure functions from an `Observation` to a `Status`.

healthy   every declared model can be served, nobody is refused or kept waiting for long, and every part
          that watches the stack answers.
down      no declared model can be served.
degraded  anything else, and whenever the last look is too old to tell.

"Can be served" has three values: yes, no, and unknown (None), for instance when only the exporter is missing.
Alerts are shown and never judged: Prometheus knows of a repair only at its next scrape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from . import chain, faults, parts
from .collect import ANSWER_SECONDS, Observation
from .faults import MONITORING_HOST
from .parts import DaysLeft
from .settings import Settings
from .status import (
    Answered,
    Fault,
    Hop,
    LastError,
    ModelStatus,
    State,
    Status,
    Verdict,
)
from .traffic import Lately

POLL_SECONDS = 2.0
STALE_SECONDS = 2 * POLL_SECONDS + ANSWER_SECONDS  # two missed polls and the time-out of one
FAILURE_SECONDS = 300.0
"""How long a failed request counts, where nobody has asked since."""

BLAME_SECONDS = 10.0
"""A request that failed within this time before a fault was seen failed for that fault."""


@dataclass(frozen=True)
class Memory:
    """What earlier looks leave behind: when a model was last seen unable, a fault first, an error last."""

    unable: Mapping[str, datetime] = field(default_factory=dict)
    faults: Mapping[str, datetime] = field(default_factory=dict)
    errors: Mapping[str, LastError] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """The last look: its verdict, when it ended (by both clocks), its length, since when its state holds."""

    verdict: Verdict
    at: datetime
    monotonic: float
    seconds: float
    since: datetime
    memory: Memory
    number: int


def judge(
    settings: Settings, seen: Observation, lately: Lately, days_left: DaysLeft, memory: Memory
) -> Verdict:
    """Decide what one observation means."""
    models = tuple(_models(settings, seen, lately.tokens_per_second, memory))
    counted = seen.gateway.metrics_contact.ok
    queue = parts.queue(seen.gateway.metrics) if counted else None
    traffic = lately.traffic if counted else None
    machines = tuple(parts.machine(answer, days_left) for answer in seen.machines)
    hosts = tuple(
        parts.host_status(host, answer, ok=not list(faults.host_faults(host, answer, seen)))
        for host, answer in zip(settings.inference_hosts, seen.hosts, strict=True)
    )
    found = tuple(
        replace(fault, since=memory.faults.get(fault.about, seen.at))
        for fault in faults.find(
            settings, seen, models=models, machines=machines, queue=queue, refusals=lately.refusals
        )
    )
    state: State = "healthy"
    if models and all(model.can_be_served is False for model in models):
        state = "down"
    elif found:
        state = "degraded"
    operations = parts.operations(settings, seen)
    return Verdict(
        state=state,
        reason=_reason(models, found, len(operations.alerts or ())),
        faults=found,
        gateway=parts.part(seen.gateway.contact),
        prometheus=parts.part(seen.prometheus.contact),
        hosts=hosts,
        models=models,
        chain=tuple(
            _with_last_error(hop, seen, memory)
            for hop in chain.hops(settings, seen, models=models, hosts=hosts, queue=queue, traffic=traffic)
        ),
        gpus=parts.gpus(seen),
        traffic=traffic,
        limits=parts.limits(seen.gateway.metrics) if counted else None,
        queue=queue,
        machines=machines,
        operations=operations,
    )


def advance(previous: Snapshot | None, verdict: Verdict, seen: Observation, now: float) -> Snapshot:
    """Put a new look in the place of the previous one; `now` is the monotonic time at which it ended."""
    since = seen.at
    if previous is not None:
        shown: State = "degraded" if is_stale(previous, now) else previous.verdict.state
        if shown == verdict.state:
            since = previous.since
    memory = previous.memory if previous else Memory()
    unable = {
        model.name: seen.at for model in verdict.models if model.can_be_served is False or not model.listed
    }
    errors = {f"{hop.kind} {hop.name}": hop.last_error for hop in verdict.chain if hop.last_error}
    return Snapshot(
        verdict=verdict,
        at=seen.at,
        monotonic=now,
        seconds=seen.seconds,
        since=since,
        memory=Memory(
            unable={**memory.unable, **unable},
            faults={fault.about: fault.since or seen.at for fault in verdict.faults},
            errors=errors,
        ),
        number=previous.number + 1 if previous else 1,
    )


def is_stale(last: Snapshot, now: float) -> bool:
    """Is the last look too old at `now` (monotonic seconds) to tell the state?"""
    return now - last.monotonic > STALE_SECONDS


def current(last: Snapshot | None, now: float, started: datetime, started_monotonic: float) -> Status:
    """Tell the state as of `now` (monotonic seconds): a look that is too old is never healthy.

    `started`, by both clocks, is when the dashboard started: all there is to tell before its first look.
    """
    if last is None:
        age = max(0.0, now - started_monotonic)
        stuck = age > STALE_SECONDS
        reason = "The dashboard has just started and has not asked the stack yet."
        if stuck:
            reason = f"The dashboard started {age:.0f} s ago and has not managed to ask the stack."
        return Status(
            state="degraded",
            reason=reason,
            next=_RESTART.next if stuck else None,
            next_on=_RESTART.next_on if stuck else None,
            since=started,
            stale=True,
            at=None,
            age_seconds=age,
            seconds=None,
            verdict=None,
        )
    verdict = last.verdict
    first = verdict.faults[0] if verdict.faults else None
    fresh = Status(
        state=verdict.state,
        reason=verdict.reason,
        next=first.next if first else None,
        next_on=first.next_on if first else None,
        since=last.since,
        stale=False,
        at=last.at,
        age_seconds=max(0.0, now - last.monotonic),
        seconds=last.seconds,
        verdict=verdict,
        poll_number=last.number,
    )
    if not is_stale(last, now):
        return fresh
    return replace(
        fresh,
        state="degraded",
        reason=f"The state is unknown: the last look found it {verdict.state}.",
        next=_RESTART.next,
        next_on=_RESTART.next_on,
        since=last.at + timedelta(seconds=STALE_SECONDS) if verdict.state != "degraded" else last.since,
        stale=True,
    )


_RESTART = Fault("the dashboard does not ask", "systemctl restart bedplate-dashboard", MONITORING_HOST)


def _with_last_error(hop: Hop, seen: Observation, memory: Memory) -> Hop:
    error = LastError(hop.error, seen.at) if hop.error else memory.errors.get(f"{hop.kind} {hop.name}")
    return replace(hop, last_error=error)


def _models(
    settings: Settings, seen: Observation, pace: Mapping[str, float], memory: Memory
) -> Iterator[ModelStatus]:
    for name in settings.declared_models:
        listed = _listed(name, seen)
        placements = []
        chances: list[bool | None] = []
        for host, answer in zip(settings.inference_hosts, seen.hosts, strict=True):
            if name not in host.models:
                continue
            placement = parts.placement(name, answer)
            placements.append(placement)
            if answer.contact.outcome == "unreachable" or (answer.state and not answer.state.engine.up):
                chances.append(False)
            else:
                chances.append(placement.present)
        # The gateway lists what an engine serves, so its word counts where the exporter's is missing.
        on_an_engine = True if True in chances else listed if None in chances or not chances else False
        known = (listed, on_an_engine)
        can_be_served = False if False in known else None if None in known else True
        answered = parts.answered(name, seen)
        if can_be_served and answered and _unexplained(answered, memory.unable.get(name)):
            can_be_served = None
        metrics = seen.gateway.metrics
        yield ModelStatus(
            name=name,
            can_be_served=can_be_served,
            listed=listed if seen.gateway.contact.ok else None,
            placements=tuple(placements),
            answered=answered,
            tokens_per_second=pace.get(name)
            or metrics.value("bedplate_gateway_last_answer_tokens_per_second", model=name),
        )


def _listed(model: str, seen: Observation) -> bool | None:
    """Does the gateway offer it? None: it answered, but not to the dashboard, and its metrics do not tell."""
    match seen.gateway.contact.outcome:
        case "answered":
            return model in seen.gateway.models
        case "refused":
            serves = list(seen.gateway.metrics.having("bedplate_gateway_engine_serves", model=model))
            return any(sample.value == 1 for sample in serves) if serves else None
        case _:
            return False


def _unexplained(answered: Answered, unable: datetime | None) -> bool:
    """Did the last request fail, not long ago, for a reason that no look has found?"""
    if answered.ok or answered.age_seconds > FAILURE_SECONDS:
        return False
    return unable is None or unable < answered.at - timedelta(seconds=BLAME_SECONDS)


def _reason(models: tuple[ModelStatus, ...], found: tuple[Fault, ...], alerts: int) -> str:
    """Say in one sentence what can be served and, if anything is wrong, the most telling fault."""
    lead = _served(models)
    if not found:
        if not alerts:
            return f"{lead}."
        return f"{lead}; {alerts} alert{'s are' if alerts > 1 else ' is'} active."
    more = len(found) - 1
    tail = "" if not more else f", and {more} more fault{'s' if more > 1 else ''}"
    everything = bool(models) and all(model.can_be_served for model in models)
    return f"{lead}{', but' if everything else ':'} {found[0].what}{tail}."


def _served(models: tuple[ModelStatus, ...]) -> str:
    if not models:
        return "No model is declared"
    total = len(models)
    served = sum(model.can_be_served is True for model in models)
    lost = sum(model.can_be_served is False for model in models)
    if served == total:
        return f"{models[0].name if total == 1 else f'All {total} declared models'} can be served"
    if lost == total:
        nothing = f"{models[0].name} cannot" if total == 1 else f"None of {total} declared models can"
        return f"{nothing} be served"
    if not served:
        return f"It is unknown whether {models[0].name if total == 1 else 'models'} can be served"
    return f"{served} of {total} declared models can be served"
