"""What "healthy" means. The only module that judges: pure functions from an `Observation` to a `Status`.

healthy   the gateway lists every declared model, every inference host answers with its engine up and holds
          its declared models, and Prometheus answers.
down      no declared model can be served.
degraded  anything else, and whenever the last look is too old to tell.

"Can be served" has three values: yes, no, and unknown (None), for instance when only the exporter is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from .collect import EXPORTER_SECONDS, Contact, EngineModel, HostAnswer, Observation
from .settings import InferenceHost, Settings

POLL_SECONDS = 2.0
STALE_SECONDS = 2 * POLL_SECONDS + EXPORTER_SECONDS  # two missed polls and the time-out of one

State = Literal["healthy", "degraded", "down"]

CONTROL_MACHINE = "the control machine"
GATEWAY_HOST = "the gateway host"
MONITORING_HOST = "the monitoring host"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong (a clause without a full stop) and what to type where."""

    what: str
    next: str
    next_on: str


@dataclass(frozen=True)
class Part:
    """One hop, asked directly: `ok`, the time to its answer, and why not."""

    ok: bool
    latency_seconds: float
    error: str | None


@dataclass(frozen=True)
class EngineStatus:
    """An engine as its exporter saw it at the last look."""

    up: bool
    version: str | None
    latency_seconds: float | None
    error: str | None


@dataclass(frozen=True)
class HostStatus:
    """One inference host; `engine` is None when its exporter gave no answer. Memory in bytes."""

    name: str
    ok: bool
    exporter: Part
    engine: EngineStatus | None
    models_declared: int
    models_present: int | None
    models_loaded: int | None
    memory_bytes: int | None
    undeclared: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """One declared model on one host; None where unknown. Bytes, tokens, seconds until it is unloaded."""

    host: str
    present: bool | None
    loaded: bool | None = None
    digest: str | None = None
    size_bytes: int | None = None
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    context_length: int | None = None
    unload_seconds: float | None = None


@dataclass(frozen=True)
class ModelStatus:
    """One declared model: listed by the gateway, present on its engines, and so able to be served or not."""

    name: str
    can_be_served: bool | None
    listed: bool | None
    placements: tuple[Placement, ...]


@dataclass(frozen=True)
class CheckStatus:
    """One line of the verify report; `ok` is None where it could not be asked."""

    host: str
    name: str
    ok: bool | None
    seen: str
    next: str | None


@dataclass(frozen=True)
class VerifyStatus:
    """The last verify report; `ok` is None when it has not run yet or cannot be read (see `error`)."""

    ok: bool | None
    at: datetime | None = None
    passed: int = 0
    failed: int = 0
    not_asked: int = 0
    problems: tuple[CheckStatus, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What one look at the stack means, whatever its age."""

    state: State
    reason: str
    faults: tuple[Fault, ...]
    gateway: Part
    prometheus: Part
    hosts: tuple[HostStatus, ...]
    models: tuple[ModelStatus, ...]
    verify: VerifyStatus


@dataclass(frozen=True)
class Snapshot:
    """The last look: its verdict, when it ended (by both clocks), its length, since when its state holds."""

    verdict: Verdict
    at: datetime
    monotonic: float
    seconds: float
    since: datetime


@dataclass(frozen=True)
class Status:
    """What every reader gets: page, text, API and metrics. `age_seconds` is the age of the last look."""

    state: State
    reason: str
    next: str | None
    next_on: str | None
    since: datetime
    stale: bool
    at: datetime | None
    age_seconds: float
    seconds: float | None
    verdict: Verdict | None


def judge(settings: Settings, seen: Observation) -> Verdict:
    """Decide what one observation means."""
    listed = _listed(settings, seen)
    models = tuple(
        _model(name, listed[name], settings.inference_hosts, seen) for name in settings.declared_models
    )
    faults = tuple(_faults(settings, seen, models))
    state: State = "healthy"
    if models and all(model.can_be_served is False for model in models):
        state = "down"
    elif faults:
        state = "degraded"
    return Verdict(
        state=state,
        reason=_reason(models, faults),
        faults=faults,
        gateway=_part(seen.gateway.contact),
        prometheus=_part(seen.prometheus),
        hosts=tuple(map(_host, settings.inference_hosts, seen.hosts)),
        models=models,
        verify=_verify(seen),
    )


def advance(previous: Snapshot | None, verdict: Verdict, seen: Observation, now: float) -> Snapshot:
    """Put a new look in the place of the previous one; `now` is the monotonic time at which it ended."""
    since = seen.at
    if previous is not None:
        shown: State = "degraded" if is_stale(previous, now) else previous.verdict.state
        if shown == verdict.state:
            since = previous.since
    return Snapshot(verdict, seen.at, now, seen.seconds, since)


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
    age = max(0.0, now - last.monotonic)
    verdict = last.verdict
    if not is_stale(last, now):
        first = verdict.faults[0] if verdict.faults else None
        return Status(
            state=verdict.state,
            reason=verdict.reason,
            next=first.next if first else None,
            next_on=first.next_on if first else None,
            since=last.since,
            stale=False,
            at=last.at,
            age_seconds=age,
            seconds=last.seconds,
            verdict=verdict,
        )
    return Status(
        state="degraded",
        reason=f"The state is unknown: the last look, {age:.0f} s ago, found it {verdict.state}.",
        next=_RESTART.next,
        next_on=_RESTART.next_on,
        since=last.at + timedelta(seconds=STALE_SECONDS) if verdict.state != "degraded" else last.since,
        stale=True,
        at=last.at,
        age_seconds=age,
        seconds=last.seconds,
        verdict=verdict,
    )


_RESTART = Fault("the dashboard does not ask", "systemctl restart bedplate-dashboard", MONITORING_HOST)


def engine_name(model: str) -> str:
    """Name a model as Ollama lists it: without a tag it is `latest`."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _listed(settings: Settings, seen: Observation) -> dict[str, bool | None]:
    """For each declared model: does the gateway offer it? None: it answered, but not to the dashboard."""
    match seen.gateway.contact.outcome:
        case "answered":
            return {name: name in seen.gateway.models for name in settings.declared_models}
        case "refused":
            return dict.fromkeys(settings.declared_models, None)
        case _:
            return dict.fromkeys(settings.declared_models, False)


def _model(
    name: str, listed: bool | None, hosts: tuple[InferenceHost, ...], seen: Observation
) -> ModelStatus:
    placements = []
    chances: list[bool | None] = []
    for host, answer in zip(hosts, seen.hosts, strict=True):
        if name not in host.models:
            continue
        placement = _placement(name, answer)
        placements.append(placement)
        if answer.contact.outcome == "unreachable" or (answer.state and not answer.state.engine.up):
            chances.append(False)
        else:
            chances.append(placement.present)
    # The gateway lists what an engine serves, so its word counts where the exporter's is missing.
    on_an_engine = True if True in chances else listed if None in chances else False
    known = (listed, on_an_engine)
    can_be_served = False if False in known else None if None in known else True
    shown = listed if seen.gateway.contact.outcome == "answered" else None
    return ModelStatus(name, can_be_served, shown, tuple(placements))


def _placement(name: str, answer: HostAnswer) -> Placement:
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


def _faults(settings: Settings, seen: Observation, models: tuple[ModelStatus, ...]) -> list[Fault]:
    """Everything that is wrong, the most telling first."""
    gateway: list[Fault] = []
    hosts: list[Fault] = []
    contact = seen.gateway.contact
    if contact.outcome == "refused":
        what = f"the gateway refuses the dashboard's key ({contact.error})"
        gateway.append(Fault(what, "ansible-playbook site.yml --tags keys", CONTROL_MACHINE))
    elif contact.outcome != "answered":
        what = f"the gateway does not work ({contact.error})"
        gateway.append(Fault(what, "journalctl -u litellm -n 50", GATEWAY_HOST))
    else:
        # A model whose engines are down or lack it is not listed either; that is said of the engines.
        missing = [
            model.name
            for model in models
            if not model.listed and any(placement.present for placement in model.placements)
        ]
        if missing:
            what = f"the gateway does not list {_names(missing)}"
            gateway.append(Fault(what, "ansible-playbook site.yml --tags litellm", CONTROL_MACHINE))
    for host, answer in zip(settings.inference_hosts, seen.hosts, strict=True):
        hosts += _host_faults(host, answer)
    faults = gateway + hosts
    if seen.prometheus.outcome != "answered":
        what = f"Prometheus does not answer ({seen.prometheus.error}), so no history is kept"
        faults.append(Fault(what, "journalctl -u prometheus -n 50", MONITORING_HOST))
    return faults


def _host_faults(host: InferenceHost, answer: HostAnswer) -> list[Fault]:
    name = host.name
    if answer.contact.outcome == "unreachable":
        what = f"the host {name} cannot be reached ({answer.contact.error})"
        return [Fault(what, f"ansible {name} -m ping", CONTROL_MACHINE)]
    if answer.state is None:
        what = f"the exporter on {name} does not work ({answer.contact.error}), so its engine cannot be seen"
        return [Fault(what, "journalctl -u bedplate-exporter -n 50", name)]
    if not answer.state.engine.up:
        return [Fault(f"the engine on {name} is down", "journalctl -u ollama -n 50", name)]
    present = {model.name for model in answer.state.models}
    missing = [model for model in host.models if engine_name(model) not in present]
    if missing:
        what = f"the engine on {name} does not have {_names(missing)}"
        return [Fault(what, "ansible-playbook site.yml --tags ollama", CONTROL_MACHINE)]
    return []


def _reason(models: tuple[ModelStatus, ...], faults: tuple[Fault, ...]) -> str:
    """Say in one sentence what can be served and, if anything is wrong, the most telling fault."""
    if not models:
        return "No model is declared." if not faults else f"No model is declared: {faults[0].what}."
    total = len(models)
    served = [model for model in models if model.can_be_served]
    lost = [model for model in models if model.can_be_served is False]
    everything = models[0].name if total == 1 else f"All {total} declared models"
    nothing = f"{models[0].name} cannot" if total == 1 else f"None of {total} declared models can"
    if len(served) == total:
        lead = f"{everything} can be served"
    elif len(lost) == total:
        lead = f"{nothing} be served"
    elif not served:
        lead = "It is unknown whether models can be served"
    else:
        lead = f"{len(served)} of {total} declared models can be served"
    if not faults:
        return f"{lead}."
    more = len(faults) - 1
    tail = "" if not more else f", and {more} more fault{'s' if more > 1 else ''}"
    joint = ", but" if len(served) == total else ":"
    return f"{lead}{joint} {faults[0].what}{tail}."


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _part(contact: Contact) -> Part:
    return Part(contact.outcome == "answered", contact.seconds, contact.error)


def _host(host: InferenceHost, answer: HostAnswer) -> HostStatus:
    ok = not _host_faults(host, answer)
    state = answer.state
    if state is None:
        return HostStatus(
            host.name, ok, _part(answer.contact), None, len(host.models), None, None, None, undeclared=()
        )
    engine = EngineStatus(
        state.engine.up, state.engine.version, state.engine.latency_seconds, state.engine.error
    )
    declared = {engine_name(model) for model in host.models}
    loaded: list[EngineModel] = [model for model in state.models if model.loaded]
    return HostStatus(
        name=host.name,
        ok=ok,
        exporter=_part(answer.contact),
        engine=engine,
        models_declared=len(host.models),
        models_present=len(declared & {model.name for model in state.models}) if engine.up else None,
        models_loaded=len(loaded) if engine.up else None,
        memory_bytes=sum(model.memory_bytes or 0 for model in loaded) if engine.up else None,
        undeclared=tuple(model.name for model in state.models if model.name not in declared),
    )


def _verify(seen: Observation) -> VerifyStatus:
    report = seen.verify.report
    if report is None:
        return VerifyStatus(ok=None, error=seen.verify.error)
    results = [check.ok for check in report.checks]
    failed = results.count(False)
    return VerifyStatus(
        ok=report.ok and not failed,
        at=report.at,
        passed=results.count(True),
        failed=failed,
        not_asked=results.count(None),
        problems=tuple(
            CheckStatus(check.host, check.name, check.ok, check.seen, check.next)
            for check in report.checks
            if check.ok is not True
        ),
    )
