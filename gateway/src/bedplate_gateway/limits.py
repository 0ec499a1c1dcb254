"""Exact limits a minute: requests and tokens of a key, and of a model across keys, in a sliding window.

What is used at t counts in the half-open window [t, t + 60). Times are those of `time.monotonic`, which
goes on across restarts of the process, so that a window can be written down and read back within one boot.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bedplate_gateway.keys import Key
from bedplate_gateway.settings import ModelLimits

WINDOW_SECONDS = 60.0
TOKEN_STEP_SECONDS = 0.1
"""Tokens of one step share an entry, stamped with the step's end: few entries, and none is freed early."""

Unit = Literal["requests", "tokens"]
Scope = Literal["key", "model"]


@dataclass(eq=False, slots=True)
class Entry:
    """An amount that was used at a time."""

    at: float
    amount: int


class Window:
    """What was used in the last 60 s."""

    def __init__(self) -> None:
        """Start with nothing used."""
        self._entries: deque[Entry] = deque()
        self._total = 0

    def used(self, now: float) -> int:
        """Return the amount in the window that ends now."""
        while self._entries and now >= self._entries[0].at + WINDOW_SECONDS:
            self._total -= self._entries.popleft().amount
        return self._total

    def add(self, at: float, amount: int) -> None:
        """Count an amount at a time that is not before the newest entry's."""
        self._total += amount
        if self._entries and self._entries[-1].at == at:
            self._entries[-1].amount += amount
        else:
            self._entries.append(Entry(at, amount))

    def give_back(self, at: float) -> None:
        """Take one back that was counted at a time, if it is still in the window."""
        for entry in reversed(self._entries):
            if entry.at == at and entry.amount:
                entry.amount -= 1
                self._total -= 1
                return
            if entry.at < at:
                return

    def reduce(self, amount: int) -> None:
        """Take back an amount that was counted too much, from the newest entries on."""
        for entry in reversed(self._entries):
            taken = min(entry.amount, amount)
            entry.amount -= taken
            self._total -= taken
            amount -= taken
            if not amount:
                return

    def seconds_until_below(self, limit: int, now: float) -> float:
        """Return the seconds until less than `limit` is used, if nothing more comes; 0 where it is so now."""
        left = self.used(now)
        seconds = 0.0
        for entry in self._entries:
            if left < limit:
                break
            left -= entry.amount
            seconds = entry.at + WINDOW_SECONDS - now
        return seconds

    def seconds_until_empty(self, now: float) -> float:
        """Return the seconds until nothing counts any more."""
        return self._entries[-1].at + WINDOW_SECONDS - now if self.used(now) else 0.0

    def entries(self) -> list[tuple[float, int]]:
        """Return what counts, oldest first."""
        return [(entry.at, entry.amount) for entry in self._entries if entry.amount]


class Use(NamedTuple):
    """A change of a budget: an amount at a time; a negative one is taken back."""

    scope: Scope
    name: str
    unit: Unit
    at: float
    amount: int


class Over(NamedTuple):
    """A limit that is used up: whose it is, which unit, the limit, and the seconds until it is free."""

    scope: Scope
    name: str
    unit: Unit
    limit: int
    seconds: float


@dataclass(slots=True)
class Budget:
    """The limits of one key or model and what was used of them; a unit without a limit is not counted."""

    scope: Scope
    name: str
    limits: dict[Unit, int]
    windows: dict[Unit, Window] = field(init=False)

    def __post_init__(self) -> None:
        """Start with nothing used."""
        self.windows = {unit: Window() for unit in self.limits}

    def apply(self, unit: Unit, at: float, amount: int) -> None:
        """Count an amount, or take one back."""
        window = self.windows[unit]
        if amount > 0:
            window.add(at, amount)
        elif unit == "requests":
            window.give_back(at)
        else:
            window.reduce(-amount)

    def over(self, unit: Unit, now: float) -> Over | None:
        """Return the limit if nothing more may start now."""
        if (limit := self.limits.get(unit)) is None or self.windows[unit].used(now) < limit:
            return None
        return Over(self.scope, self.name, unit, limit, self.windows[unit].seconds_until_below(limit, now))

    def headers(self, now: float) -> dict[str, str]:
        """Return OpenAI's x-ratelimit headers of each unit that has a limit."""
        headers = {}
        for unit, limit in self.limits.items():
            window = self.windows[unit]
            headers[f"x-ratelimit-limit-{unit}"] = str(limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, limit - window.used(now)))
            headers[f"x-ratelimit-reset-{unit}"] = duration(window.seconds_until_empty(now))
        return headers


def duration(seconds: float) -> str:
    """Write seconds as OpenAI does: 120ms, 7s, 6m0s; rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"


class Limits:
    """The budgets of all keys and models. The caller gives the time, in seconds of one monotonic clock."""

    def __init__(
        self,
        keys: Iterable[Key],
        models: Mapping[str, ModelLimits],
        on_use: Callable[[Use], None] = lambda _: None,
    ) -> None:
        """Start with nothing used; `on_use` hears of every change, for a file that outlives the process."""
        self._on_use = on_use
        self._budgets = [_budget("key", key.alias, key.rpm, key.tpm) for key in keys]
        self._budgets += [_budget("model", name, limits.rpm, limits.tpm) for name, limits in models.items()]
        self._by_name = {(budget.scope, budget.name): budget for budget in self._budgets if budget.limits}

    def over(self, alias: str, model: str, unit: Unit, now: float) -> Over | None:
        """Return the limit that keeps a request from starting now, the one that holds longest."""
        found = [over for budget in self._of(alias, model) if (over := budget.over(unit, now))]
        return max(found, key=lambda over: over.seconds, default=None)

    def take_request(self, alias: str, model: str, now: float) -> None:
        """Count one request."""
        self._use(alias, model, "requests", now, 1)

    def give_request_back(self, alias: str, model: str, taken_at: float) -> None:
        """Take a request back that was never served."""
        self._use(alias, model, "requests", taken_at, -1)

    def charge_tokens(self, alias: str, model: str, tokens: int, now: float) -> None:
        """Count tokens; a negative number takes back what an estimate counted too much."""
        self._use(alias, model, "tokens", math.ceil(now / TOKEN_STEP_SECONDS) * TOKEN_STEP_SECONDS, tokens)

    def headers(self, alias: str, model: str, now: float) -> dict[str, str]:
        """Return the x-ratelimit headers: the key's limits, the model's where the key has none."""
        headers: dict[str, str] = {}
        for budget in reversed(self._of(alias, model)):
            headers |= budget.headers(now)
        return headers

    def budgets(self) -> Iterable[Budget]:
        """Return every budget that has a limit."""
        return self._by_name.values()

    def export(self) -> list[Use]:
        """Return what counts now, oldest first within a budget."""
        return [
            Use(budget.scope, budget.name, unit, at, amount)
            for budget in self._by_name.values()
            for unit, window in budget.windows.items()
            for at, amount in window.entries()
        ]

    def replay(self, uses: Iterable[Use], now: float) -> None:
        """Count what was used before; what has no limit any more is dropped, as is a time still to come."""
        for use in uses:
            budget = self._by_name.get((use.scope, use.name))
            if budget and use.unit in budget.windows and use.at <= now + TOKEN_STEP_SECONDS:
                budget.apply(use.unit, use.at, use.amount)

    def _use(self, alias: str, model: str, unit: Unit, at: float, amount: int) -> None:
        for budget in self._of(alias, model):
            if amount and unit in budget.windows:
                budget.apply(unit, at, amount)
                self._on_use(Use(budget.scope, budget.name, unit, at, amount))

    def _of(self, alias: str, model: str) -> list[Budget]:
        found = (self._by_name.get(("key", alias)), self._by_name.get(("model", model)))
        return [budget for budget in found if budget]


def _budget(scope: Scope, name: str, rpm: int | None, tpm: int | None) -> Budget:
    limits: dict[Unit, int] = {}
    if rpm is not None:
        limits["requests"] = rpm
    if tpm is not None:
        limits["tokens"] = tpm
    return Budget(scope, name, limits)
