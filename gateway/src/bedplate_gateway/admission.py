"""Who may start, and when: limits, queue and slots behind one small interface.

`Admission` is what the app and a predecessor's channel see. `LocalAdmission` decides in this process; after a
reload the old process asks the new one through `bedplate_gateway.handover`, with the same interface.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from bedplate_gateway.errors import ApiError, ClientLeft
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.ledger import Ledger
from bedplate_gateway.limits import Limits, Over, Use
from bedplate_gateway.scheduler import Scheduler, Slot, Ticket
from bedplate_gateway.settings import Class, Engine, EngineModel, Settings

log = logging.getLogger(__name__)

ENGINE_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 60.0


class EngineStates(Protocol):
    """What admission asks about engines."""

    def serves(self, engine: Engine, model: str) -> bool:
        """Say whether the engine is up and holds the model."""

    def loaded(self, engine: Engine, model: str) -> bool:
        """Say whether the model is in the engine's memory."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for: by whom, in which class, which model, how many bytes of prompt."""

    key: Key
    priority_class: Class
    model: str
    prompt_bytes: int

    def describe(self) -> dict[str, Any]:
        """Return it for JSON, the key by its alias."""
        return {
            "alias": self.key.alias,
            "class": self.priority_class,
            "model": self.model,
            "prompt_bytes": self.prompt_bytes,
        }


class Admission(Protocol):
    """The decisions; each answer to `submit` comes by one of its callbacks, perhaps before it returns."""

    def submit(
        self, ask: Ask, on_grant: Callable[["Lease"], None], on_refuse: Callable[[ApiError], None]
    ) -> "Waiting":
        """Ask to start."""

    def cancel(self, waiting: "Waiting") -> None:
        """Take a request out of the queue."""

    def touch(self, lease: "Lease") -> None:
        """Note that the request lives."""

    def charge(self, lease: "Lease", tokens: int) -> None:
        """Count tokens."""

    def swap(self, lease: "Lease") -> bool:
        """Move the lease to another engine."""

    def release(self, lease: "Lease") -> None:
        """End the lease."""


@dataclass(eq=False, slots=True)
class Waiting:
    """A request that waits; `number` names it between processes, `taken_at` is when it was counted."""

    admission: Admission
    number: int
    ask: Ask
    on_grant: Callable[["Lease"], None]
    on_refuse: Callable[[ApiError], None]
    taken_at: float
    ticket: Ticket | None = None

    def cancel(self) -> None:
        """Leave the queue; what it counted is given back. Once granted or refused, nothing happens."""
        self.admission.cancel(self)


@dataclass(eq=False, slots=True)
class Lease:
    """The right to run on an engine. `waited` is in seconds, `headers` are the x-ratelimit ones then."""

    admission: Admission
    number: int
    ask: Ask
    slot: Slot
    waited: float
    headers: dict[str, str]
    started: float
    touched: float
    charged: int = 0

    @property
    def engine(self) -> Engine:
        """The engine whose slot it is now."""
        return self.slot.engine

    @property
    def model(self) -> EngineModel:
        """The model as it is on that engine."""
        return self.slot.model

    def touch(self) -> None:
        """Say that the request lives, so that the sweeper leaves it alone."""
        self.admission.touch(self)

    def charge(self, tokens: int) -> None:
        """Count tokens as they flow."""
        self.charged += tokens
        self.admission.charge(self, tokens)

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Correct what was charged to the real usage."""
        self.charge(prompt_tokens + completion_tokens - self.charged)

    def swap(self) -> bool:
        """Move to a free slot of another engine with the model; False where there is none."""
        return self.admission.swap(self)

    def release(self) -> None:
        """End it; a second time does nothing."""
        self.admission.release(self)


async def acquire(admission: Admission, ask: Ask, when_left: Callable[[Callable[[], None]], None]) -> Lease:
    """Wait for the lease; raises ApiError when it is refused and ClientLeft when the client went away.

    `when_left` is given what to call when the client goes. Neither place nor lease is left behind.
    """
    answer: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()

    def grant(lease: Lease) -> None:
        # A client can leave in the same turn of the loop.
        if answer.done():
            lease.release()
        else:
            answer.set_result(lease)

    def fail(error: ApiError | ClientLeft) -> None:
        if not answer.done():
            answer.set_exception(error)

    waiting = admission.submit(ask, grant, fail)
    if answer.done():
        return answer.result()
    when_left(lambda: fail(ClientLeft()))
    try:
        return await answer
    except ClientLeft:
        waiting.cancel()
        raise
    except asyncio.CancelledError:
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            answer.result().release()
        else:
            waiting.cancel()
        raise


@dataclass
class LocalAdmission:
    """Decides in this process. `clock` is in seconds and goes on across restarts (time.monotonic)."""

    settings: Settings
    keys: Keys
    engines: EngineStates
    clock: Callable[[], float]
    ledger: Ledger | None = None
    limits: Limits = field(init=False)
    scheduler: Scheduler = field(init=False)
    lost_leases: int = 0
    service_seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start with nothing used, held or waiting."""
        self.limits = Limits(self.keys.by_alias.values(), self.settings.models, self._on_use)
        self.scheduler = Scheduler(
            self.settings.engines,
            self.settings.share,
            self.engines.serves,
            self.engines.loaded,
            self._may_start,
        )
        self._numbers = itertools.count(1)
        self._waiting: dict[Ticket, Waiting] = {}
        self._leases: dict[int, Lease] = {}
        longest = max(self.settings.first_byte_seconds, self.settings.load_seconds)
        self._lease_seconds = longest * (self.settings.retries + 1) + 60

    def _on_use(self, use: Use) -> None:
        if self.ledger:
            self.ledger.append(use)

    # Admission

    def submit(
        self, ask: Ask, on_grant: Callable[[Lease], None], on_refuse: Callable[[ApiError], None]
    ) -> Waiting:
        """Count the request and let it wait, or refuse it, which costs nothing."""
        now = self.clock()
        waiting = Waiting(self, next(self._numbers), ask, on_grant, on_refuse, now)
        if error := self._refusal(ask, now):
            on_refuse(error)
            return waiting
        self.limits.take_request(ask.key.alias, ask.model, now)
        self._enter(waiting, now, now + self._queue_seconds(ask))
        self.scheduler.dispatch(now)
        return waiting

    def cancel(self, waiting: Waiting) -> None:
        """Take a request out of the queue and give its place in the minute back."""
        if waiting.ticket and self._waiting.pop(waiting.ticket, None):
            self.scheduler.leave(waiting.ticket)
            self.limits.give_request_back(waiting.ask.key.alias, waiting.ask.model, waiting.taken_at)

    def charge(self, lease: Lease, tokens: int) -> None:
        """Count tokens for the key and the model."""
        now = lease.touched = self.clock()
        self.limits.charge_tokens(lease.ask.key.alias, lease.ask.model, tokens, now)

    def touch(self, lease: Lease) -> None:
        """Note that the request lives."""
        lease.touched = self.clock()

    def swap(self, lease: Lease) -> bool:
        """Move a lease to another engine."""
        if not self.scheduler.swap(lease.slot):
            return False
        self.scheduler.dispatch(self.clock())
        return True

    def release(self, lease: Lease) -> None:
        """Free the slot and give it to whose turn it is."""
        if self._leases.pop(lease.number, None) is None:
            return
        now = self.clock()
        self.scheduler.free(lease.slot)
        self._learn(lease, now)
        self.scheduler.dispatch(now)

    # What time and others bring

    def tick(self) -> None:
        """End what waited too long and leases that nobody holds any more; call it a few times a second."""
        now = self.clock()
        for ticket in [ticket for ticket in self.scheduler.waiting() if ticket.deadline <= now]:
            waiting = self._waiting[ticket]
            self.cancel(waiting)
            waiting.on_refuse(self._timed_out(waiting.ask, now))
        for lease in list(self._leases.values()):
            if now - lease.touched > self._lease_seconds:
                self.lost_leases += 1
                log.error(
                    "A lease of %s on %s was never given back and is ended.",
                    lease.ask.key.alias,
                    lease.engine.name,
                )
                self.release(lease)
        self.scheduler.dispatch(now)

    def engines_changed(self) -> None:
        """Look again for whose turn it is, since an engine came or went."""
        self.scheduler.dispatch(self.clock())

    def export(self) -> dict[str, Any]:
        """Return all that a successor needs, for JSON."""
        return {
            "uses": self.limits.export(),
            "leases": [
                {
                    **lease.ask.describe(),
                    "number": lease.number,
                    "engine": lease.engine.name,
                    "charged": lease.charged,
                }
                for lease in self._leases.values()
            ],
            "waiting": [
                {
                    **waiting.ask.describe(),
                    "number": waiting.number,
                    "taken_at": waiting.taken_at,
                    "deadline": ticket.deadline,
                }
                for ticket, waiting in self._waiting.items()
            ],
        }

    def hand_over(self, to: Admission) -> tuple[dict[int, Waiting], dict[int, Lease]]:
        """Let another admission decide about all that waits and runs; return both by number, keep nothing."""
        if self.ledger:
            self.ledger.close()
        waiting = {each.number: each for each in self._waiting.values()}
        leases = dict(self._leases)
        for ticket in self._waiting:
            self.scheduler.leave(ticket)
        for held in waiting.values():
            held.admission = to
        for lease in leases.values():
            lease.admission = to
        self._waiting.clear()
        self._leases.clear()
        return waiting, leases

    def open_ledger(self) -> None:
        """Go on from what the ledger holds, where there is no predecessor, and write it from here on."""
        if self.ledger:
            self.replay(self.ledger.read())

    def replay(self, uses: Iterable[Iterable[Any]]) -> None:
        """Go on from the uses of an earlier process, and write the ledger from here on."""
        self.limits.replay((Use(*use) for use in uses), self.clock())
        if self.ledger:
            self.ledger.export = self.limits.export
            self.ledger.rewrite()

    def hold(self, ask: Ask, engine_name: str, charged: int) -> Lease | None:
        """Return a lease that a predecessor already holds; None where its engine or model is gone."""
        slot = self.scheduler.hold(ask.key, ask.model, engine_name)
        if slot is None:
            return None
        lease = self._lease(next(self._numbers), ask, slot, 0.0)
        lease.charged = charged
        return lease

    def resume(
        self,
        ask: Ask,
        on_grant: Callable[[Lease], None],
        on_refuse: Callable[[ApiError], None],
        taken_at: float,
        deadline: float,
    ) -> Waiting:
        """Let a predecessor's request, counted there, go on waiting; `engines_changed` may start it."""
        waiting = Waiting(self, next(self._numbers), ask, on_grant, on_refuse, taken_at)
        self._enter(waiting, taken_at, deadline)
        return waiting

    # How it decides

    def _enter(self, waiting: Waiting, arrived: float, deadline: float) -> None:
        ask = waiting.ask

        def grant(slot: Slot) -> None:
            del self._waiting[ticket]
            waiting.on_grant(self._lease(waiting.number, ask, slot, self.clock() - arrived))

        ticket = Ticket(ask.key, ask.priority_class, ask.model, arrived, deadline, grant)
        waiting.ticket = ticket
        self._waiting[ticket] = waiting
        self.scheduler.enter(ticket)

    def _lease(self, number: int, ask: Ask, slot: Slot, waited: float) -> Lease:
        now = self.clock()
        headers = self.limits.headers(ask.key.alias, ask.model, now)
        lease = Lease(self, number, ask, slot, waited, headers, now, now)
        self._leases[number] = lease
        return lease

    def _may_start(self, ticket: Ticket) -> bool:
        return self.limits.over(ticket.key.alias, ticket.model, "tokens", self.clock()) is None

    def _refusal(self, ask: Ask, now: float) -> ApiError | None:
        if not self.scheduler.can_be_served(ask.model):
            return engine_unavailable(ask.model)
        for unit in ("requests", "tokens"):
            if over := self.limits.over(ask.key.alias, ask.model, unit, now):
                return self._limited(over, ask, now)
        return self._queue_full(ask)

    def _queue_full(self, ask: Ask) -> ApiError | None:
        queue = self.settings.queue(ask.priority_class)
        if self.scheduler.depth(ask.priority_class) >= queue.size:
            what = f"The queue of class {ask.priority_class} is full ({queue.size} requests wait)"
        elif self.scheduler.depth(ask.priority_class, ask.key.alias) >= queue.size_per_key:
            what = f"{queue.size_per_key} requests of your key already wait in class {ask.priority_class}"
        else:
            return None
        seconds = self._seconds_to_start(ask)
        return ApiError(
            429,
            "queue_full",
            f"{what}: try again in {seconds:.0f} s, or send fewer at a time.",
            type="requests",
            retry_after=seconds,
        )

    def _limited(self, over: Over, ask: Ask, now: float) -> ApiError:
        whose = "your key" if over.scope == "key" else f"all keys together on the model {over.name!r}"
        # The rate limit headers go with a refusal as they go with an answer.
        return ApiError(
            429,
            "rate_limit_exceeded",
            f"The limit of {over.limit} {over.unit} a minute of {whose} is used up: "
            f"try again in {over.seconds:.1f} s.",
            type=over.unit,
            retry_after=over.seconds,
            headers=self.limits.headers(ask.key.alias, ask.model, now),
            reason=f"{over.scope}_{over.unit}",
        )

    def _timed_out(self, ask: Ask, now: float) -> ApiError:
        if not self.scheduler.can_be_served(ask.model):
            return engine_unavailable(ask.model)
        if over := self.limits.over(ask.key.alias, ask.model, "tokens", now):
            return self._limited(over, ask, now)
        seconds = self._seconds_to_start(ask)
        return ApiError(
            503,
            "queue_timeout",
            f"No slot became free for {ask.model!r} in {self._queue_seconds(ask):.0f} s: "
            f"try again in {seconds:.0f} s, or ask for a key of a higher class.",
            type="server_error",
            retry_after=seconds,
        )

    def _queue_seconds(self, ask: Ask) -> float:
        return self.settings.queue(ask.priority_class).seconds

    def _seconds_to_start(self, ask: Ask) -> float:
        """Estimate how long a request that comes now would wait, in seconds."""
        slots = sum(
            seats.models[ask.model].slots for seats in self.scheduler.seats() if ask.model in seats.models
        )
        ahead = sum(ticket.model == ask.model for ticket in self.scheduler.waiting())
        each = self.service_seconds.get(ask.model, 1.0)
        return min(max(1.0, ahead * each / max(slots, 1)), LONGEST_RETRY_SECONDS)

    def _learn(self, lease: Lease, now: float) -> None:
        took = now - lease.started
        known = self.service_seconds.get(lease.ask.model, took)
        self.service_seconds[lease.ask.model] = known + (took - known) / 8


def engine_unavailable(model: str) -> ApiError:
    """Return the 503 for a declared model that no engine serves at this moment."""
    return ApiError(
        503,
        "engine_unavailable",
        f"No engine serves the model {model!r} at the moment: try again in {ENGINE_RETRY_SECONDS:.0f} s; "
        "the operator sees why with: make health",
        type="server_error",
        retry_after=ENGINE_RETRY_SECONDS,
    )
