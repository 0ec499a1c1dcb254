"""What "healthy" means: pure functions from an `Observation` to a `Status`.

healthy   every declared model can be served, no request is refused or waits too long, and every
          monitoring service answers.
down      no declared model can be served.
degraded  anything else, and whenever the last poll is too old.

"Can be served" has three values: yes, no, and unknown (None), for instance when only the exporter is missing.
Alerts are shown and not judged: Prometheus notices a fix only at its next scrape.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from bedplate_dashboard.health import parts
from bedplate_dashboard.health.facts import Facts, derive_facts
from bedplate_dashboard.health.faults import CONTROL_MACHINE, MONITORING_HOST, find_faults, undrain_command
from bedplate_dashboard.health.model import (
    Answered,
    Fault,
    Hop,
    LastError,
    ModelStatus,
    State,
    Status,
    Verdict,
)
from bedplate_dashboard.health.request_path import trace_request
from bedplate_dashboard.health.thresholds import BLAME_SECONDS, FAILURE_SECONDS, STALE_SECONDS
from bedplate_dashboard.health.traffic_window import RecentTraffic
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import Observation
from bedplate_dashboard.sources.history import DaysLeft


@dataclass(frozen=True)
class Memory:
    """What earlier polls found: when a model was last unable, when a fault began, the last errors."""

    unable: Mapping[str, datetime] = field(default_factory=dict)
    faults: Mapping[str, datetime] = field(default_factory=dict)
    errors: Mapping[str, LastError] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """The last poll: its verdict, end (by both clocks) and duration, and since when its state holds."""

    verdict: Verdict
    at: datetime
    monotonic: float
    seconds: float
    since: datetime
    memory: Memory
    number: int


def judge(
    settings: Settings, observation: Observation, recent: RecentTraffic, days_left: DaysLeft, memory: Memory
) -> Verdict:
    """Judge one observation."""
    facts = derive_facts(settings, observation, recent, days_left)
    models = tuple(_judge_models(settings, observation, facts, recent.tokens_per_second, memory))
    faults = find_faults(facts, models)
    counted = tuple(
        replace(fault, since=memory.faults.get(fault.about, observation.at)) for fault in faults.counted
    )
    state: State = "healthy"
    if models and all(model.can_be_served is False for model in models):
        state = "down"
    elif counted:
        state = "degraded"
    metrics = observation.gateway.metrics
    operations = parts.describe_operations(settings, observation)
    return Verdict(
        state=state,
        reason=_write_reason(models, counted, _list_drained(facts), len(operations.alerts or ())),
        faults=counted,
        gateway=parts.describe_contact(observation.gateway.contact),
        prometheus=parts.describe_contact(observation.prometheus.contact),
        hosts=tuple(host.status for host in facts.hosts),
        models=models,
        chain=tuple(
            _add_last_error(hop, observation, memory)
            for hop in trace_request(settings, facts, models, faults)
        ),
        gpus=parts.list_gpus(observation),
        traffic=facts.traffic,
        limits=parts.list_limits(metrics) if observation.gateway.metrics_contact.ok else None,
        queue=facts.queue,
        machines=tuple(answer.machine for answer in facts.machines),
        operations=operations,
        litellm=facts.litellm.status if facts.litellm else None,
    )


def advance(previous: Snapshot | None, verdict: Verdict, observation: Observation, now: float) -> Snapshot:
    """Return the snapshot of a new poll that ended at `now` (monotonic seconds)."""
    since = observation.at
    if previous is not None:
        shown: State = "degraded" if is_stale(previous, now) else previous.verdict.state
        if shown == verdict.state:
            since = previous.since
    memory = previous.memory if previous else Memory()
    unable = {
        model.name: observation.at
        for model in verdict.models
        if model.can_be_served is False or not model.listed
    }
    errors = {f"{hop.kind} {hop.name}": hop.last_error for hop in verdict.chain if hop.last_error}
    return Snapshot(
        verdict=verdict,
        at=observation.at,
        monotonic=now,
        seconds=observation.seconds,
        since=since,
        memory=Memory(
            unable={**memory.unable, **unable},
            faults={fault.about: fault.since or observation.at for fault in verdict.faults},
            errors=errors,
        ),
        number=previous.number + 1 if previous else 1,
    )


def is_stale(last: Snapshot, now: float) -> bool:
    """Return whether the last poll is too old at `now` (monotonic seconds) to show the state."""
    return now - last.monotonic > STALE_SECONDS


def describe_now(last: Snapshot | None, now: float, started: datetime, started_monotonic: float) -> Status:
    """Return the status as of `now` (monotonic seconds): a poll that is too old is never healthy.

    `started`, by both clocks, is when the dashboard started; it counts until the first poll.
    """
    if last is None:
        age = max(0.0, now - started_monotonic)
        stuck = age > STALE_SECONDS
        reason = "The dashboard has just started and has not polled the stack yet."
        if stuck:
            reason = f"The dashboard started {age:.0f} s ago and could not poll the stack."
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
    drained = (_undrain(host.name) for host in verdict.hosts if host.drained)
    first = verdict.faults[0] if verdict.faults else next(drained, None)
    latest = Status(
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
        return latest
    return replace(
        latest,
        state="degraded",
        reason=f"The state is unknown: the last poll reported {verdict.state}.",
        next=_RESTART.next,
        next_on=_RESTART.next_on,
        since=last.at + timedelta(seconds=STALE_SECONDS) if verdict.state != "degraded" else last.since,
        stale=True,
    )


def _undrain(host: str) -> Fault:
    """Return what to type for a drained host, which is no fault."""
    return Fault(what=f"{host} is drained", next=undrain_command(host), next_on=CONTROL_MACHINE)


_RESTART = Fault(
    what="the dashboard does not poll the stack",
    next="systemctl restart bedplate-dashboard",
    next_on=MONITORING_HOST,
)


def _add_last_error(hop: Hop, observation: Observation, memory: Memory) -> Hop:
    error = (
        LastError(text=hop.error, at=observation.at)
        if hop.error
        else memory.errors.get(f"{hop.kind} {hop.name}")
    )
    return replace(hop, last_error=error)


def _judge_models(
    settings: Settings,
    observation: Observation,
    facts: Facts,
    token_rates: Mapping[str, float],
    memory: Memory,
) -> Iterator[ModelStatus]:
    for name in settings.declared_models:
        listed = _is_listed(name, observation)
        placements = []
        chances: list[bool | None] = []
        for host, answer, host_facts in zip(
            settings.inference_hosts, observation.hosts, facts.hosts, strict=True
        ):
            if name in host.models:
                placement = parts.describe_placement(name, answer)
                placements.append(placement)
                chances.append(False if host_facts.cannot_serve else placement.present)
        # The gateway lists what an engine serves, so it decides where the exporter does not answer.
        on_an_engine = True if True in chances else listed if None in chances or not chances else False
        known = (listed, on_an_engine)
        can_be_served = False if False in known else None if None in known else True
        answered = parts.find_last_answer(name, observation)
        if can_be_served and answered and _failed_without_cause(answered, memory.unable.get(name)):
            can_be_served = None
        metrics = observation.gateway.metrics
        yield ModelStatus(
            name=name,
            can_be_served=can_be_served,
            listed=listed if observation.gateway.contact.ok else None,
            placements=tuple(placements),
            answered=answered,
            tokens_per_second=token_rates.get(name)
            or metrics.value("bedplate_gateway_last_answer_tokens_per_second", model=name),
        )


def _is_listed(model: str, observation: Observation) -> bool | None:
    """Return whether the gateway lists a model; None if it refuses our key and its metrics do not show it."""
    match observation.gateway.contact.outcome:
        case "answered":
            return model in observation.gateway.models
        case "refused":
            serves = list(observation.gateway.metrics.select("bedplate_gateway_engine_serves", model=model))
            return any(sample.value == 1 for sample in serves) if serves else None
        case _:
            return False


def _failed_without_cause(answered: Answered, unable: datetime | None) -> bool:
    """Return whether the last request failed recently while no poll found a fault of the model."""
    if answered.ok or answered.age_seconds > FAILURE_SECONDS:
        return False
    return unable is None or unable < answered.at - timedelta(seconds=BLAME_SECONDS)


def _list_drained(facts: Facts) -> list[str]:
    return [host.name for host in facts.hosts if host.drain]


def _write_reason(
    models: tuple[ModelStatus, ...], current_faults: tuple[Fault, ...], drained: list[str], alerts: int
) -> str:
    """Return one sentence: what can be served and, if there are faults, the first of them."""
    served = _describe_served_models(models)
    if not current_faults:
        if drained:
            served += f"; {', '.join(drained)} {'are' if len(drained) > 1 else 'is'} drained"
        if not alerts:
            return f"{served}."
        return f"{served}; {alerts} alert{'s are' if alerts > 1 else ' is'} active."
    more = len(current_faults) - 1
    others = "" if not more else f", and {more} more fault{'s' if more > 1 else ''}"
    everything = bool(models) and all(model.can_be_served for model in models)
    return f"{served}{', but' if everything else ':'} {current_faults[0].what}{others}."


def _describe_served_models(models: tuple[ModelStatus, ...]) -> str:
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
