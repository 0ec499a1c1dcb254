"""Which request gets the next free slot: priority classes, round-robin of keys, a share for lower classes.

A pure state machine: the caller reports events and gets callbacks. It uses no clock, network or asyncio.
"""

import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bedplate_gateway.keys import Key
from bedplate_gateway.settings import PRIORITY_CLASSES, Engine, EngineModel, PriorityClass

PATIENCE_SECONDS = 10.0
"""How long requests for a loaded model go before those of their class that need another model loaded."""

USAGE_SECONDS = 60.0
"""How fast it is forgotten what a key has used: after this time a third of it counts."""
FORGET_SECONDS = 5 * USAGE_SECONDS
GREEDY_RATIO = 1.5
"""A key that held so many times its fair part of the busy slots goes after the others of its class."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A queued request; `arrived` and `deadline` are times of the monotonic clock, in seconds."""

    key: Key
    priority_class: PriorityClass
    model: str
    arrived: float
    deadline: float
    on_grant: Callable[["Slot"], None]


@dataclass(eq=False, slots=True)
class Slot:
    """A slot of an engine that a request holds."""

    key: Key
    model: EngineModel
    engine: Engine


@dataclass(eq=False, slots=True)
class SlotUsage:
    """The slots that are held, and how many were held lately, as a mean that forgets."""

    running: int = 0
    mean: float = 0.0
    at: float = 0.0

    def held(self, now: float) -> float:
        """Return the mean number of slots held, the last seconds counting most."""
        return self.running + (self.mean - self.running) * math.exp((self.at - now) / USAGE_SECONDS)

    def change(self, slots: int, now: float) -> None:
        """Hold more slots from now on, or fewer."""
        self.mean, self.at = self.held(now), now
        self.running += slots


@dataclass(eq=False, slots=True)
class EngineSlots:
    """One engine and its busy slots; `skipped_grants` counts the slots granted while a lower class waited."""

    engine: Engine
    models: Mapping[str, EngineModel]
    running: dict[str, int] = field(default_factory=dict)
    skipped_grants: int = 0

    def has_free_slot(self, model: str) -> bool:
        """Return whether a slot of the model is free, regardless of the limit of loaded models."""
        return self.running.get(model, 0) < self.models[model].slots

    def must_unload_for(self, model: str) -> bool:
        """Return whether the model has to wait until another one is idle."""
        at_once = self.engine.models_at_once
        return at_once is not None and model not in self.running and len(self.running) >= at_once

    def load(self) -> float:
        """Return the load, from 0 to the number of the engine's models."""
        return sum(count / self.models[model].slots for model, count in self.running.items())


Lane = OrderedDict[str, deque[Ticket]]
"""The queued requests for one model in one class: by key alias, the next key first."""


class Scheduler:
    """Gives each free slot to the next request.

    `serves` and `loaded` report whether an engine serves a model and has it loaded, `may_start` whether the
    limits let a request start.
    """

    def __init__(
        self,
        engines: tuple[Engine, ...],
        share: int,
        serves: Callable[[Engine, str], bool],
        loaded: Callable[[Engine, str], bool],
        may_start: Callable[[Ticket], bool],
    ) -> None:
        self._slots = {
            engine.name: EngineSlots(engine, {model.name: model for model in engine.models})
            for engine in engines
        }
        self._share = share
        self._serves = serves
        self._loaded = loaded
        self._may_start = may_start
        self._lanes: dict[PriorityClass, dict[str, Lane]] = {name: {} for name in PRIORITY_CLASSES}
        self._usage: OrderedDict[str, SlotUsage] = OrderedDict()
        self._usage_of_all = SlotUsage()
        self._dispatching = False

    # Events

    def enqueue(self, ticket: Ticket) -> None:
        """Add a request to the queue; `dispatch` may start it."""
        lane = self._lanes[ticket.priority_class].setdefault(ticket.model, OrderedDict())
        lane.setdefault(ticket.key.alias, deque()).append(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Remove a request from the queue; does nothing where it is not queued."""
        lanes = self._lanes[ticket.priority_class]
        lane = lanes.get(ticket.model, OrderedDict())
        queued = lane.get(ticket.key.alias)
        if queued is None or ticket not in queued:
            return
        queued.remove(ticket)
        if not queued:
            del lane[ticket.key.alias]
        if not lane:
            del lanes[ticket.model]

    def restore(self, key: Key, model: str, engine_name: str, now: float) -> Slot | None:
        """Return a slot that a predecessor held, even where that is one too many; None where it is gone."""
        slots = self._slots.get(engine_name)
        if slots is None or model not in slots.models:
            return None
        return self._occupy(key, model, slots, now)

    def release(self, slot: Slot, now: float) -> None:
        """Free a slot; call it once."""
        running = self._slots[slot.engine.name].running
        running[slot.model.name] -= 1
        if not running[slot.model.name]:
            del running[slot.model.name]
        self._use(slot.key, -1, now)

    def swap(self, slot: Slot, now: float) -> bool:
        """Move to a free slot of the model on another engine; False where there is none."""
        model = slot.model.name
        for slots in sorted(self._slots.values(), key=EngineSlots.load):
            if slots.engine is not slot.engine and self._can_start(slots, model):
                self.release(slot, now)
                new = self._occupy(slot.key, model, slots, now)
                slot.engine, slot.model = new.engine, new.model
                return True
        return False

    def dispatch(self, now: float) -> None:
        """Give every free slot to the next request."""
        # A granted request may end at once and call this again; the running loop handles what it left.
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while any(self._lanes.values()) and self._grant_next(now):
                pass
        finally:
            self._dispatching = False

    # Queries

    def queued(self, priority_class: PriorityClass | None = None) -> Iterator[Ticket]:
        """Iterate over the queued requests, of one class or all."""
        for name in PRIORITY_CLASSES if priority_class is None else (priority_class,):
            for lane in self._lanes[name].values():
                yield from itertools.chain.from_iterable(lane.values())

    def depth(self, priority_class: PriorityClass, alias: str | None = None) -> int:
        """Return the number of queued requests of a class, of one key or all."""
        lanes = self._lanes[priority_class].values()
        if alias is not None:
            return sum(len(lane.get(alias, ())) for lane in lanes)
        return sum(len(queued) for lane in lanes for queued in lane.values())

    def waiting(self, model: str) -> int:
        """Return the number of queued requests for a model."""
        lanes = (lanes.get(model, OrderedDict()) for lanes in self._lanes.values())
        return sum(len(queued) for lane in lanes for queued in lane.values())

    def ahead(self, ticket: Ticket, now: float) -> int:
        """Return how many queued requests for its model go before a queued one, in the order of this moment.

        The share of lower classes and limits that block some of them are left out.
        """
        higher = PRIORITY_CLASSES[: PRIORITY_CLASSES.index(ticket.priority_class)]
        lanes = (self._lanes[name].get(ticket.model, OrderedDict()) for name in higher)
        ahead = sum(len(queued) for lane in lanes for queued in lane.values())
        lane, own = self._lanes[ticket.priority_class][ticket.model], ticket.key.alias
        turn = lane[own].index(ticket)
        greedy = self._greedy(lane, now)
        passed = False
        for alias, queued in lane.items():
            if alias == own:
                ahead += turn
                passed = True
            elif (alias in greedy) == (own in greedy):
                ahead += min(len(queued), turn if passed else turn + 1)
            elif own in greedy:
                ahead += len(queued)
        return ahead

    def engine_slots(self) -> Iterator[EngineSlots]:
        """Iterate over the engines and their slots."""
        return iter(self._slots.values())

    def can_be_served(self, model: str) -> bool:
        """Return whether any engine serves the model now."""
        return any(
            model in slots.models and self._serves(slots.engine, model) for slots in self._slots.values()
        )

    # The choice of the next request

    def starts_at_once(self, key: Key, model: str) -> bool:
        """Return whether a request would get a free slot for which no other one waits."""
        return (
            any(self._can_start(slots, model) for slots in self._slots.values())
            and not self._at_max_parallel(key)
            and all(ticket.model != model for ticket in self.queued())
        )

    def _grant_next(self, now: float) -> bool:
        for slots in sorted(self._slots.values(), key=EngineSlots.load):
            if (ticket := self._next_for(slots, now)) is None:
                continue
            best = self._best_engine(ticket.model)
            self.remove(ticket)
            lane = self._lanes[ticket.priority_class].get(ticket.model)
            if lane and ticket.key.alias in lane:
                lane.move_to_end(ticket.key.alias)
            ticket.on_grant(self._occupy(ticket.key, ticket.model, best, now))
            return True
        return False

    def _next_for(self, slots: EngineSlots, now: float) -> Ticket | None:
        """Return the request for this engine's free slot, and count it where a lower class is skipped."""
        first = next(self._candidates(slots, PRIORITY_CLASSES, now), None)
        if first is None:
            return None
        below = PRIORITY_CLASSES[PRIORITY_CLASSES.index(first.priority_class) + 1 :]
        skipped = min(self._candidates(slots, below, now), key=lambda ticket: ticket.arrived, default=None)
        if skipped is None:
            return first if self._may_load(slots, first) else None
        if slots.skipped_grants + 1 >= self._share and self._may_load(slots, skipped):
            slots.skipped_grants = 0
            return skipped
        if not self._may_load(slots, first):
            return None
        slots.skipped_grants += 1
        return first

    def _may_load(self, slots: EngineSlots, ticket: Ticket) -> bool:
        # Where not, slots stay free until the other model is idle: if they were filled, it never would be.
        return not slots.must_unload_for(ticket.model)

    def _candidates(
        self, slots: EngineSlots, classes: tuple[PriorityClass, ...], now: float
    ) -> Iterator[Ticket]:
        """Iterate over the requests that may start on this engine: by class, then round-robin of keys."""
        for name in classes:
            lanes = [
                (self._rank(slots, model, lane, now), model, lane)
                for model, lane in self._lanes[name].items()
                if model in slots.models and slots.has_free_slot(model) and self._serves(slots.engine, model)
            ]
            for _, _, lane in sorted(lanes, key=lambda entry: entry[0]):
                for queued in self._in_turn(lane, now):
                    if self._may_start(queued[0]) and not self._at_max_parallel(queued[0].key):
                        yield queued[0]

    def _rank(self, slots: EngineSlots, model: str, lane: Lane, now: float) -> tuple[bool, float]:
        """Order the lanes of a class: first those whose model is loaded, for a while; then by age."""
        oldest = min(queued[0].arrived for queued in lane.values())
        patient = slots.engine.models_at_once is not None and now - oldest < PATIENCE_SECONDS
        needs_loading = patient and not (model in slots.running or self._loaded(slots.engine, model))
        return needs_loading, oldest

    def _best_engine(self, model: str) -> EngineSlots:
        candidates = [slots for slots in self._slots.values() if self._can_start(slots, model)]
        return min(candidates, key=lambda slots: (not self._loaded(slots.engine, model), slots.load()))

    def _can_start(self, slots: EngineSlots, model: str) -> bool:
        return (
            model in slots.models
            and slots.has_free_slot(model)
            and not slots.must_unload_for(model)
            and self._serves(slots.engine, model)
        )

    def _in_turn(self, lane: Lane, now: float) -> Iterable[deque[Ticket]]:
        """Return the requests by key: keys take turns, but those that held more than their part go last."""
        greedy = self._greedy(lane, now)
        # The sort is stable, and a lane has the key that was served last at its end.
        return sorted(lane.values(), key=lambda queued: queued[0].key.alias in greedy)

    def _greedy(self, lane: Lane, now: float) -> set[str]:
        """Return the keys of a lane that held more than their part; a key alone in its lane takes nothing."""
        if len(lane) == 1:
            return set()
        most = GREEDY_RATIO * self._usage_of_all.held(now) / max(len(self._usage), 1)
        return {alias for alias in lane if (usage := self._usage.get(alias)) and usage.held(now) > most}

    def _use(self, key: Key, slots: int, now: float) -> None:
        self._usage.setdefault(key.alias, SlotUsage()).change(slots, now)
        self._usage_of_all.change(slots, now)
        self._usage.move_to_end(key.alias)
        oldest, usage = next(iter(self._usage.items()))
        if not usage.running and now - usage.at > FORGET_SECONDS:
            del self._usage[oldest]

    def _at_max_parallel(self, key: Key) -> bool:
        usage = self._usage.get(key.alias)
        return key.max_parallel is not None and usage is not None and usage.running >= key.max_parallel

    def _occupy(self, key: Key, model: str, slots: EngineSlots, now: float) -> Slot:
        slots.running[model] = slots.running.get(model, 0) + 1
        self._use(key, 1, now)
        return Slot(key, slots.models[model], slots.engine)
