"""Admission in this process: limits, queue and slots."""

import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from bedplate_gateway import errors
from bedplate_gateway.admission.interface import Admission, AdmissionRequest, Lease, QueuedRequest
from bedplate_gateway.admission.limits import ExceededLimit, Limits, Unit, Usage
from bedplate_gateway.admission.scheduler import Scheduler, Slot, Ticket
from bedplate_gateway.admission.usage_log import UsageLog
from bedplate_gateway.engines.drains import Drain
from bedplate_gateway.errors import ApiError
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.settings import Engine, Settings

log = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 60.0
UNITS: tuple[Unit, ...] = ("requests", "tokens")


class EngineStates(Protocol):
    """What admission needs to know about engines."""

    def serves(self, engine: Engine, model: str) -> bool:
        """Return whether the engine may get a request for the model."""

    def drain(self, engine: Engine) -> Drain | None:
        """Return who drained the engine, since when and why; None where it is not drained."""

    def loaded(self, engine: Engine, model: str) -> bool:
        """Return whether the model is in the engine's memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an admitted request is: `position` counts those that wait for its model from 1, 0 is running."""

    model: str
    position: int
    waiting: int
    waited: float


@dataclass
class LocalAdmission:
    """Decides in this process. `clock` is in seconds and continues across restarts (time.monotonic)."""

    settings: Settings
    keys: Keys
    engines: EngineStates
    clock: Callable[[], float]
    usage_log: UsageLog | None = None
    limits: Limits = field(init=False)
    scheduler: Scheduler = field(init=False)
    lost_leases: int = 0
    service_seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.limits = Limits(self.keys.by_alias.values(), self.settings.models, self._on_use)
        self.scheduler = Scheduler(
            self.settings.engines,
            self.settings.share,
            self.engines.serves,
            self.engines.loaded,
            self._may_start,
        )
        self._numbers = itertools.count(1)
        self._queued: dict[Ticket, QueuedRequest] = {}
        self._leases: dict[int, Lease] = {}
        # By key and its client's id; of two with the same id, the one that moved last.
        self._by_id: dict[tuple[str, str], Ticket | Lease] = {}
        longest = max(self.settings.first_byte_seconds, self.settings.load_seconds)
        self._lease_seconds = longest * (self.settings.retries + 1) + 60

    def _on_use(self, usage: Usage) -> None:
        if self.usage_log:
            self.usage_log.append(usage)

    # Admission

    def submit(
        self,
        request: AdmissionRequest,
        on_grant: Callable[[Lease], None],
        on_refuse: Callable[[ApiError], None],
    ) -> QueuedRequest:
        """Count and queue the request, or refuse it, which costs nothing."""
        now = self.clock()
        queued = QueuedRequest(self, next(self._numbers), request, on_grant, on_refuse, now)
        if error := self._refusal(request, now):
            on_refuse(error)
            return queued
        self.limits.count_request(request.key.alias, request.model, now)
        self._enqueue(queued, now, now + self._queue_seconds(request))
        self.scheduler.dispatch(now)
        return queued

    def cancel(self, queued: QueuedRequest) -> None:
        """Remove a request from the queue and refund its count."""
        if queued.ticket and self._queued.pop(queued.ticket, None):
            self._untrack(queued.request, queued.ticket)
            self.scheduler.remove(queued.ticket)
            self.limits.refund_request(queued.request.key.alias, queued.request.model, queued.counted_at)

    def charge(self, lease: Lease, tokens: int) -> None:
        """Count tokens for the key and the model."""
        now = lease.touched = self.clock()
        self.limits.charge_tokens(lease.request.key.alias, lease.request.model, tokens, now)

    def touch(self, lease: Lease) -> None:
        """Note that the request is alive."""
        lease.touched = self.clock()

    def swap(self, lease: Lease) -> bool:
        """Move a lease to another engine."""
        now = self.clock()
        if not self.scheduler.swap(lease.slot, now):
            return False
        self.scheduler.dispatch(now)
        return True

    def requeue(
        self,
        lease: Lease,
        on_grant: Callable[[Lease], None],
        on_refuse: Callable[[ApiError], None],
    ) -> QueuedRequest:
        """Queue a request again that is counted already: neither a limit nor a full queue refuses it."""
        now = self.clock()
        if self._leases.pop(lease.number, None) is not None:
            self.scheduler.release(lease.slot, now)
        request, counted_at = lease.request, lease.started - lease.waited
        queued = QueuedRequest(self, next(self._numbers), request, on_grant, on_refuse, counted_at)
        # Only its time in the queue counts as waiting, not that at the engine.
        self._enqueue(queued, now - lease.waited, now + self._queue_seconds(request))
        self.scheduler.dispatch(now)
        return queued

    def release(self, lease: Lease) -> None:
        """Free the slot and give it to the next request."""
        if self._leases.pop(lease.number, None) is None:
            return
        if lease.request.id:
            self._untrack(lease.request, lease)
        now = self.clock()
        self.scheduler.release(lease.slot, now)
        self._learn(lease, now)
        self.scheduler.dispatch(now)

    def can_be_served(self, model: str) -> bool:
        """Return whether an engine serves the model now, or will when it is no longer drained."""
        return self.scheduler.can_be_served(model) or any(
            model in slots.models and self.engines.drain(slots.engine) is not None
            for slots in self.scheduler.engine_slots()
        )

    def place(self, alias: str, request_id: str) -> Place | None:
        """Return where the key's request with the id that its client chose is; None where there is none."""
        held = self._by_id.get((alias, request_id))
        if held is None:
            return None
        if isinstance(held, Lease):
            model = held.request.model
            return Place(model, 0, self.scheduler.waiting(model), held.waited)
        now = self.clock()
        position = self.scheduler.ahead(held, now) + 1
        return Place(held.model, position, self.scheduler.waiting(held.model), now - held.arrived)

    def check_limits(self, key: Key) -> None:
        """Raise ApiError 429 where the key's own limits refuse any request, whatever its body is."""
        now = self.clock()
        for unit in UNITS:
            if limit := self.limits.exceeded(key.alias, "", unit, now):
                raise self._limited(limit, key.alias, "", now)

    # Timers and reload

    def tick(self) -> None:
        """End requests that waited too long, and lost leases; call it a few times per second."""
        now = self.clock()
        for ticket in [ticket for ticket in self.scheduler.queued() if ticket.deadline <= now]:
            queued = self._queued[ticket]
            self.cancel(queued)
            queued.on_refuse(self._timed_out(queued.request, now))
        for lease in list(self._leases.values()):
            if now - lease.touched > self._lease_seconds:
                self.lost_leases += 1
                log.error(
                    "A slot of engine %s was never released by a request of key %s; it is freed now.",
                    lease.engine.name,
                    lease.request.key.alias,
                )
                self.release(lease)
        self.scheduler.dispatch(now)

    def engines_changed(self) -> None:
        """Start what can start now, since an engine came up or went down."""
        self.scheduler.dispatch(self.clock())

    def export(self) -> dict[str, Any]:
        """Return everything that a successor needs, for JSON."""
        return {
            "uses": self.limits.export(),
            "leases": [
                {
                    **lease.request.to_dict(),
                    "number": lease.number,
                    "engine": lease.engine.name,
                    "charged": lease.charged,
                }
                for lease in self._leases.values()
            ],
            "waiting": [
                {
                    **queued.request.to_dict(),
                    "number": queued.number,
                    "taken_at": queued.counted_at,
                    "deadline": ticket.deadline,
                }
                for ticket, queued in self._queued.items()
            ],
        }

    def hand_over(self, to: Admission) -> tuple[dict[int, QueuedRequest], dict[int, Lease]]:
        """Move every queued request and lease to another admission; return both by number, keep nothing."""
        if self.usage_log:
            self.usage_log.close()
        queued = {each.number: each for each in self._queued.values()}
        leases = dict(self._leases)
        for ticket in self._queued:
            self.scheduler.remove(ticket)
        for each in queued.values():
            each.admission = to
        for lease in leases.values():
            lease.admission = to
        self._queued.clear()
        self._leases.clear()
        self._by_id.clear()
        return queued, leases

    def open_usage_log(self) -> None:
        """Restore the usage from the log, where there is no predecessor, and append to it from here on."""
        if self.usage_log:
            self.replay(self.usage_log.read())

    def replay(self, usages: Iterable[Iterable[Any]]) -> None:
        """Restore the usage of an earlier process, and append to the log from here on."""
        self.limits.replay((Usage(*usage) for usage in usages), self.clock())
        if self.usage_log:
            self.usage_log.export = self.limits.export
            self.usage_log.rewrite()

    def restore_lease(self, request: AdmissionRequest, engine_name: str, charged: int) -> Lease | None:
        """Return a lease that a predecessor already holds; None where its engine or model is gone."""
        slot = self.scheduler.restore(request.key, request.model, engine_name, self.clock())
        if slot is None:
            return None
        lease = self._new_lease(next(self._numbers), request, slot, 0.0)
        lease.charged = charged
        return lease

    def restore_queued(
        self,
        request: AdmissionRequest,
        on_grant: Callable[[Lease], None],
        on_refuse: Callable[[ApiError], None],
        counted_at: float,
        deadline: float,
    ) -> QueuedRequest:
        """Queue a request that a predecessor has counted already; `engines_changed` may start it."""
        queued = QueuedRequest(self, next(self._numbers), request, on_grant, on_refuse, counted_at)
        self._enqueue(queued, counted_at, deadline)
        return queued

    # Decisions

    def _enqueue(self, queued: QueuedRequest, arrived: float, deadline: float) -> None:
        request = queued.request

        def grant(slot: Slot) -> None:
            del self._queued[ticket]
            queued.on_grant(self._new_lease(queued.number, request, slot, self.clock() - arrived))

        ticket = Ticket(request.key, request.priority_class, request.model, arrived, deadline, grant)
        queued.ticket = ticket
        self._queued[ticket] = queued
        if request.id:
            self._by_id[request.key.alias, request.id] = ticket
        self.scheduler.enqueue(ticket)

    def _new_lease(self, number: int, request: AdmissionRequest, slot: Slot, waited: float) -> Lease:
        now = self.clock()
        headers = self.limits.headers(request.key.alias, request.model, now)
        lease = Lease(self, number, request, slot, waited, headers, now, now)
        self._leases[number] = lease
        if request.id:
            self._by_id[request.key.alias, request.id] = lease
        return lease

    def _untrack(self, request: AdmissionRequest, held: Ticket | Lease) -> None:
        name = request.key.alias, request.id
        if self._by_id.get(name) is held:
            del self._by_id[name]

    def _may_start(self, ticket: Ticket) -> bool:
        return self.limits.exceeded(ticket.key.alias, ticket.model, "tokens", self.clock()) is None

    def _refusal(self, request: AdmissionRequest, now: float) -> ApiError | None:
        if not self.scheduler.can_be_served(request.model) and not self._may_wait(request):
            return errors.engine_unavailable(request.model)
        for unit in UNITS:
            if limit := self.limits.exceeded(request.key.alias, request.model, unit, now):
                return self._limited(limit, request.key.alias, request.model, now)
        return self._queue_full(request)

    def _may_wait(self, request: AdmissionRequest) -> bool:
        """Return whether to wait for an engine that no longer is drained; a fallback answers at once."""
        fallbacks = self.settings.fallbacks.get(request.model, ())
        return self.can_be_served(request.model) and not any(map(request.key.may_use, fallbacks))

    def _queue_full(self, request: AdmissionRequest) -> ApiError | None:
        name, queue = request.priority_class, self.settings.queue(request.priority_class)
        if self.scheduler.depth(name) >= queue.size:
            fact = f"The queue of class {name} is full ({queue.size} requests wait)"
        elif self.scheduler.depth(name, request.key.alias) >= queue.size_per_key:
            fact = f"{queue.size_per_key} requests of your key already wait in class {name}"
        else:
            return None
        # It takes no place: a fallback's free slot can be used while others wait for another model.
        starts = self.scheduler.starts_at_once(request.key, request.model)
        return None if starts else errors.queue_full(fact, self._seconds_to_start(request))

    def _limited(self, exceeded: ExceededLimit, alias: str, model: str, now: float) -> ApiError:
        headers = self.limits.headers(alias, model, now)
        return errors.rate_limit_exceeded(**exceeded._asdict(), headers=headers)

    def _timed_out(self, request: AdmissionRequest, now: float) -> ApiError:
        if not self.scheduler.can_be_served(request.model):
            return errors.engine_unavailable(request.model)
        if limit := self.limits.exceeded(request.key.alias, request.model, "tokens", now):
            return self._limited(limit, request.key.alias, request.model, now)
        waited, seconds = self._queue_seconds(request), self._seconds_to_start(request)
        return errors.queue_timeout(request.model, waited, seconds)

    def _queue_seconds(self, request: AdmissionRequest) -> float:
        return self.settings.queue(request.priority_class).seconds

    def _seconds_to_start(self, request: AdmissionRequest) -> float:
        """Estimate how long a request that arrives now would wait, in seconds."""
        slots = sum(
            engine.models[request.model].slots
            for engine in self.scheduler.engine_slots()
            if request.model in engine.models
        )
        ahead = sum(ticket.model == request.model for ticket in self.scheduler.queued())
        service = self.service_seconds.get(request.model, 1.0)
        return min(max(1.0, ahead * service / max(slots, 1)), MAX_RETRY_SECONDS)

    def _learn(self, lease: Lease, now: float) -> None:
        seconds = now - lease.started
        average = self.service_seconds.get(lease.request.model, seconds)
        self.service_seconds[lease.request.model] = average + (seconds - average) / 8
