"""Who is next: slots of the engines, three classes, turns between keys, and a share against starvation.

A pure state machine: it is told what happens and calls back, it knows no clock, no network and no asyncio.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from bedplate_gateway.keys import Key
from bedplate_gateway.settings import CLASSES, Class, Engine, EngineModel

PATIENCE_SECONDS = 10.0
"""How long requests for the loaded model go before those of their class that need another one loaded."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that waits; `arrived` and `deadline` are times of the monotonic clock, in seconds."""

    key: Key
    priority_class: Class
    model: str
    arrived: float
    deadline: float
    on_grant: Callable[["Slot"], None]


@dataclass(eq=False, slots=True)
class Slot:
    """A place on an engine that a request holds."""

    key: Key
    model: EngineModel
    engine: Engine


@dataclass(eq=False, slots=True)
class Seats:
    """One engine and who runs on it; `passed_over` counts the free slots that lower classes saw go by."""

    engine: Engine
    models: Mapping[str, EngineModel]
    running: dict[str, int] = field(default_factory=dict)
    passed_over: int = 0

    def free(self, model: str) -> bool:
        """Say whether a slot for this model is free, the limit of loaded models aside."""
        return self.running.get(model, 0) < self.models[model].slots

    def must_unload_for(self, model: str) -> bool:
        """Say whether the model has to wait until another one has nothing to do."""
        at_once = self.engine.models_at_once
        return at_once is not None and model not in self.running and len(self.running) >= at_once

    def load(self) -> float:
        """Return how busy it is, from 0 to the number of its models."""
        return sum(count / self.models[model].slots for model, count in self.running.items())


Lane = OrderedDict[str, deque[Ticket]]
"""The waiting requests for one model in one class: by key alias, the key whose turn it is first."""


class Scheduler:
    """Gives each free slot to the request whose turn it is."""

    def __init__(
        self,
        engines: tuple[Engine, ...],
        share: int,
        serves: Callable[[Engine, str], bool],
        loaded: Callable[[Engine, str], bool],
        may_start: Callable[[Ticket], bool],
    ) -> None:
        """Take whom to ask: does an engine serve a model, has it loaded it, do the limits let it start."""
        self._seats = {
            engine.name: Seats(engine, {model.name: model for model in engine.models}) for engine in engines
        }
        self._share = share
        self._serves = serves
        self._loaded = loaded
        self._may_start = may_start
        self._lanes: dict[Class, dict[str, Lane]] = {name: {} for name in CLASSES}
        self._running_of_key: dict[str, int] = {}
        self._dispatching = False

    # What happens

    def enter(self, ticket: Ticket) -> None:
        """Let a request wait for its turn; `dispatch` gives it one."""
        lane = self._lanes[ticket.priority_class].setdefault(ticket.model, OrderedDict())
        lane.setdefault(ticket.key.alias, deque()).append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Forget a waiting request; nothing happens where it does not wait."""
        lanes = self._lanes[ticket.priority_class]
        lane = lanes.get(ticket.model, OrderedDict())
        waiting = lane.get(ticket.key.alias)
        if waiting is None or ticket not in waiting:
            return
        waiting.remove(ticket)
        if not waiting:
            del lane[ticket.key.alias]
        if not lane:
            del lanes[ticket.model]

    def hold(self, key: Key, model: str, engine_name: str) -> Slot | None:
        """Return a slot that is held from before, even where that is one too many; None where it is gone."""
        seats = self._seats.get(engine_name)
        if seats is None or model not in seats.models:
            return None
        return self._take(key, model, seats)

    def free(self, slot: Slot) -> None:
        """Give a slot back, once."""
        running = self._seats[slot.engine.name].running
        running[slot.model.name] -= 1
        if not running[slot.model.name]:
            del running[slot.model.name]
        self._running_of_key[slot.key.alias] -= 1
        if not self._running_of_key[slot.key.alias]:
            del self._running_of_key[slot.key.alias]

    def swap(self, slot: Slot) -> bool:
        """Move a slot to another engine that has one free for its model; False where there is none."""
        model = slot.model.name
        for seats in sorted(self._seats.values(), key=Seats.load):
            if seats.engine is not slot.engine and self._open(seats, model):
                self.free(slot)
                new = self._take(slot.key, model, seats)
                slot.engine, slot.model = new.engine, new.model
                return True
        return False

    def dispatch(self, now: float) -> None:
        """Give every free slot to whose turn it is."""
        # A grant may end at once and call this again; the loop that runs sees what it left.
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while self._grant_one(now):
                pass
        finally:
            self._dispatching = False

    # What is so

    def waiting(self, priority_class: Class | None = None) -> Iterator[Ticket]:
        """Iterate over the waiting requests, of one class or all."""
        for name in CLASSES if priority_class is None else (priority_class,):
            for lane in self._lanes[name].values():
                yield from itertools.chain.from_iterable(lane.values())

    def depth(self, priority_class: Class, alias: str | None = None) -> int:
        """Return how many requests of a class wait, of one key or all."""
        lanes = self._lanes[priority_class].values()
        if alias is not None:
            return sum(len(lane.get(alias, ())) for lane in lanes)
        return sum(len(waiting) for lane in lanes for waiting in lane.values())

    def seats(self) -> Iterator[Seats]:
        """Iterate over the engines and who runs there."""
        return iter(self._seats.values())

    def can_be_served(self, model: str) -> bool:
        """Say whether any engine serves the model now."""
        return any(
            model in seats.models and self._serves(seats.engine, model) for seats in self._seats.values()
        )

    # Whose turn it is

    def _grant_one(self, now: float) -> bool:
        for seats in sorted(self._seats.values(), key=Seats.load):
            if (ticket := self._next_for(seats, now)) is None:
                continue
            best = self._best_engine(ticket.model)
            self.leave(ticket)
            lane = self._lanes[ticket.priority_class].get(ticket.model)
            if lane and ticket.key.alias in lane:
                lane.move_to_end(ticket.key.alias)
            ticket.on_grant(self._take(ticket.key, ticket.model, best))
            return True
        return False

    def _next_for(self, seats: Seats, now: float) -> Ticket | None:
        """Return whom this engine's free slot goes to, and count the slots that lower classes saw go by."""
        first = next(self._candidates(seats, CLASSES, now), None)
        if first is None:
            return None
        below = CLASSES[CLASSES.index(first.priority_class) + 1 :]
        passed = min(self._candidates(seats, below, now), key=lambda ticket: ticket.arrived, default=None)
        if passed is None:
            return first if self._may_load(seats, first) else None
        if seats.passed_over + 1 >= self._share and self._may_load(seats, passed):
            seats.passed_over = 0
            return passed
        if not self._may_load(seats, first):
            return None
        seats.passed_over += 1
        return first

    def _may_load(self, seats: Seats, ticket: Ticket) -> bool:
        # Where not, slots stay free until the model in the way has nothing to do: else that never ends.
        return not seats.must_unload_for(ticket.model)

    def _candidates(self, seats: Seats, classes: tuple[Class, ...], now: float) -> Iterator[Ticket]:
        """Iterate over the requests that may start on this engine, class by class, keys in turn."""
        for name in classes:
            lanes = [
                (self._rank(seats, model, lane, now), model, lane)
                for model, lane in self._lanes[name].items()
                if model in seats.models and seats.free(model) and self._serves(seats.engine, model)
            ]
            for _, _, lane in sorted(lanes, key=lambda entry: entry[0]):
                for waiting in lane.values():
                    if self._may_start(waiting[0]) and not self._full(waiting[0].key):
                        yield waiting[0]

    def _rank(self, seats: Seats, model: str, lane: Lane, now: float) -> tuple[bool, float]:
        """Order the lanes of a class: who needs no other model loaded, for a while; then by age."""
        oldest = min(waiting[0].arrived for waiting in lane.values())
        patient = seats.engine.models_at_once is not None and now - oldest < PATIENCE_SECONDS
        needs_loading = patient and not (model in seats.running or self._loaded(seats.engine, model))
        return needs_loading, oldest

    def _best_engine(self, model: str) -> Seats:
        open_ones = [seats for seats in self._seats.values() if self._open(seats, model)]
        return min(open_ones, key=lambda seats: (not self._loaded(seats.engine, model), seats.load()))

    def _open(self, seats: Seats, model: str) -> bool:
        return (
            model in seats.models
            and seats.free(model)
            and not seats.must_unload_for(model)
            and self._serves(seats.engine, model)
        )

    def _full(self, key: Key) -> bool:
        return key.max_parallel is not None and self._running_of_key.get(key.alias, 0) >= key.max_parallel

    def _take(self, key: Key, model: str, seats: Seats) -> Slot:
        seats.running[model] = seats.running.get(model, 0) + 1
        self._running_of_key[key.alias] = self._running_of_key.get(key.alias, 0) + 1
        return Slot(key, seats.models[model], seats.engine)
