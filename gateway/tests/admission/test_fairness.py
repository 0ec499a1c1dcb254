"""One key that asks a hundred times as often as the others does not make them wait."""

import heapq
import itertools
import random
import statistics
from collections.abc import Callable

from bedplate_gateway.admission.interface import AdmissionRequest, Lease
from bedplate_gateway.admission.local import LocalAdmission
from bedplate_gateway.errors import ApiError
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.settings import Engine, Settings

SLOTS = 4
HONEST = 10
BUSY = 0.7
"""The share of the slots that the honest keys use; a request takes 1 s on average."""
SECONDS = 3000.0


class Up:
    def serves(self, engine: Engine, model: str) -> bool:  # noqa: ARG002 - the interface's
        return True

    def loaded(self, engine: Engine, model: str) -> bool:  # noqa: ARG002 - the interface's
        return True

    def drain(self, engine: Engine) -> None:  # noqa: ARG002 - the interface's
        return None


class Traffic:
    """Requests of several keys at random times, and what became of them; one seed, one result."""

    def __init__(self, rates: dict[str, float], folder: str) -> None:
        self.random = random.Random(1)  # noqa: S311 - repeatable, not secret
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.waits: dict[str, list[float]] = {alias: [] for alias in rates}
        self.refused = dict.fromkeys(rates, 0)
        engine = {
            "name": "one",
            "kind": "ollama",
            "url": "http://one",
            "models": [{"name": "m", "slots": SLOTS}],
        }
        place = {"address": "127.0.0.1", "port": 0}
        document = {"api": place, "metrics": place, "keys_file": "/none", "state_dir": folder}
        self.keys = Keys(tuple(Key(alias=alias, secrets=()) for alias in rates))
        self.admission = LocalAdmission(
            Settings.model_validate(document | {"engines": [engine]}), self.keys, Up(), lambda: self.now
        )
        for alias, rate in rates.items():
            self._ask_later(alias, rate)

    def run(self) -> None:
        while self.events and self.events[0][0] < SECONDS:
            self.now, _, act = heapq.heappop(self.events)
            self.admission.tick()
            act()

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), act))

    def _ask_later(self, alias: str, rate: float) -> None:
        self._later(self.random.expovariate(rate), lambda: self._ask(alias, rate))

    def _ask(self, alias: str, rate: float) -> None:
        self._ask_later(alias, rate)

        def grant(lease: Lease) -> None:
            self.waits[alias].append(lease.waited)
            self._later(self.random.expovariate(1.0), lease.release)

        def refuse(_: ApiError) -> None:
            self.refused[alias] += 1

        request = AdmissionRequest(self.keys.by_alias[alias], "normal", "m", 100)
        self.admission.submit(request, grant, refuse)


def p99(traffic: Traffic, aliases: list[str]) -> float:
    waits = [wait for alias in aliases for wait in traffic.waits[alias]]
    return statistics.quantiles(waits, n=100)[98]


def test_a_hostile_key_does_not_double_the_wait_of_the_others() -> None:
    honest = [f"honest-{number}" for number in range(HONEST)]
    rate = BUSY * SLOTS / HONEST
    alone = Traffic(dict.fromkeys(honest, rate), "/none")
    alone.run()
    attacked = Traffic({**dict.fromkeys(honest, rate), "hostile": 100 * rate}, "/none")
    attacked.run()
    before, after = p99(alone, honest), p99(attacked, honest)
    print(f"\np99 of the honest keys' wait: {before:.2f} s alone, {after:.2f} s beside a hostile key")
    assert after < 2 * before
    assert [attacked.refused[alias] for alias in honest] == [0] * HONEST
    # It was an attack: what exceeds the hostile key's part of the queue is refused.
    assert attacked.refused["hostile"] > 10_000
