"""Exact limits per minute: requests and tokens of a key, and of a model across keys, in a sliding window.

A usage at t counts in the half-open window [t, t + 60). Times are those of `time.monotonic`, which continues
across restarts of the process, so that a window can be written to a file and read back within one boot.
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
"""Tokens of one step share an entry with the time of the step's end: few entries, and none expires early."""

Unit = Literal["requests", "tokens"]
Scope = Literal["key", "model"]


@dataclass(eq=False, slots=True)
class Entry:
    """An amount used at a time."""

    at: float
    amount: int


class Window:
    """The usage in the last 60 s."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._total = 0

    def used(self, now: float) -> int:
        """Return the amount in the window that ends now."""
        while self._entries and now >= self._entries[0].at + WINDOW_SECONDS:
            self._total -= self._entries.popleft().amount
        return self._total

    def add(self, at: float, amount: int) -> None:
        """Count an amount; `at` is not before the newest entry."""
        self._total += amount
        if self._entries and self._entries[-1].at == at:
            self._entries[-1].amount += amount
        else:
            self._entries.append(Entry(at, amount))

    def refund_one(self, at: float) -> None:
        """Subtract one from the amount counted at a time, if that is still in the window."""
        for entry in reversed(self._entries):
            if entry.at == at and entry.amount:
                entry.amount -= 1
                self._total -= 1
                return
            if entry.at < at:
                return

    def reduce(self, amount: int) -> None:
        """Subtract an amount that was overestimated, from the newest entries on."""
        for entry in reversed(self._entries):
            part = min(entry.amount, amount)
            entry.amount -= part
            self._total -= part
            amount -= part
            if not amount:
                return

    def seconds_until_below(self, limit: int, now: float) -> float:
        """Return the seconds until the usage is below `limit`, if nothing is added; 0 where it is now."""
        left = self.used(now)
        seconds = 0.0
        for entry in self._entries:
            if left < limit:
                break
            left -= entry.amount
            seconds = entry.at + WINDOW_SECONDS - now
        return seconds

    def seconds_until_empty(self, now: float) -> float:
        """Return the seconds until the window is empty."""
        return self._entries[-1].at + WINDOW_SECONDS - now if self.used(now) else 0.0

    def entries(self) -> list[tuple[float, int]]:
        """Return time and amount of every entry, oldest first."""
        return [(entry.at, entry.amount) for entry in self._entries if entry.amount]


class Usage(NamedTuple):
    """A change of a budget: an amount at a time; a negative amount is a refund."""

    scope: Scope
    name: str
    unit: Unit
    at: float
    amount: int


class ExceededLimit(NamedTuple):
    """A limit that is used up: the key or model, the unit, the limit, and the seconds until it has room."""

    scope: Scope
    name: str
    unit: Unit
    limit: int
    seconds: float


@dataclass(slots=True)
class Budget:
    """The limits of one key or model and their usage; a unit without a limit is not counted."""

    scope: Scope
    name: str
    limits: dict[Unit, int]
    windows: dict[Unit, Window] = field(init=False)

    def __post_init__(self) -> None:
        self.windows = {unit: Window() for unit in self.limits}

    def apply(self, unit: Unit, at: float, amount: int) -> None:
        """Count an amount; a negative one is a refund."""
        window = self.windows[unit]
        if amount > 0:
            window.add(at, amount)
        elif unit == "requests":
            window.refund_one(at)
        else:
            window.reduce(-amount)

    def exceeded(self, unit: Unit, now: float) -> ExceededLimit | None:
        """Return the limit if it is used up."""
        if (limit := self.limits.get(unit)) is None or self.windows[unit].used(now) < limit:
            return None
        return ExceededLimit(
            self.scope, self.name, unit, limit, self.windows[unit].seconds_until_below(limit, now)
        )

    def headers(self, now: float) -> dict[str, str]:
        """Return OpenAI's x-ratelimit headers for each unit that has a limit."""
        headers = {}
        for unit, limit in self.limits.items():
            window = self.windows[unit]
            headers[f"x-ratelimit-limit-{unit}"] = str(limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, limit - window.used(now)))
            headers[f"x-ratelimit-reset-{unit}"] = duration(window.seconds_until_empty(now))
        return headers


def duration(seconds: float) -> str:
    """Return seconds as OpenAI writes them: 120ms, 7s, 6m0s; rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"


class Limits:
    """The budgets of all keys and models. The caller passes the time, in seconds of one monotonic clock.

    `on_use` gets every change, for a file that outlives the process.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        models: Mapping[str, ModelLimits],
        on_use: Callable[[Usage], None] = lambda _: None,
    ) -> None:
        self._on_use = on_use
        self._budgets = [_budget("key", key.alias, key.rpm, key.tpm) for key in keys]
        self._budgets += [_budget("model", name, limits.rpm, limits.tpm) for name, limits in models.items()]
        self._by_name = {(budget.scope, budget.name): budget for budget in self._budgets if budget.limits}

    def exceeded(self, alias: str, model: str, unit: Unit, now: float) -> ExceededLimit | None:
        """Return the limit that keeps a request from starting now, the one with the longest wait."""
        exceeded = [limit for budget in self._of(alias, model) if (limit := budget.exceeded(unit, now))]
        return max(exceeded, key=lambda limit: limit.seconds, default=None)

    def count_request(self, alias: str, model: str, now: float) -> None:
        """Count one request."""
        self._use(alias, model, "requests", now, 1)

    def refund_request(self, alias: str, model: str, counted_at: float) -> None:
        """Refund a request that was never served."""
        self._use(alias, model, "requests", counted_at, -1)

    def charge_tokens(self, alias: str, model: str, tokens: int, now: float) -> None:
        """Count tokens; a negative number corrects an estimate."""
        self._use(alias, model, "tokens", math.ceil(now / TOKEN_STEP_SECONDS) * TOKEN_STEP_SECONDS, tokens)

    def headers(self, alias: str, model: str, now: float) -> dict[str, str]:
        """Return the x-ratelimit headers: the key's limits, or the model's where the key has none."""
        headers: dict[str, str] = {}
        for budget in reversed(self._of(alias, model)):
            headers |= budget.headers(now)
        return headers

    def budgets(self) -> Iterable[Budget]:
        """Return every budget that has a limit."""
        return self._by_name.values()

    def export(self) -> list[Usage]:
        """Return the usage that counts now, oldest first within a budget."""
        return [
            Usage(budget.scope, budget.name, unit, at, amount)
            for budget in self._by_name.values()
            for unit, window in budget.windows.items()
            for at, amount in window.entries()
        ]

    def replay(self, usages: Iterable[Usage], now: float) -> None:
        """Count earlier usage; usage without a limit now, or in the future, is dropped."""
        for usage in usages:
            budget = self._by_name.get((usage.scope, usage.name))
            if budget and usage.unit in budget.windows and usage.at <= now + TOKEN_STEP_SECONDS:
                budget.apply(usage.unit, usage.at, usage.amount)

    def _use(self, alias: str, model: str, unit: Unit, at: float, amount: int) -> None:
        for budget in self._of(alias, model):
            if amount and unit in budget.windows:
                budget.apply(unit, at, amount)
                self._on_use(Usage(budget.scope, budget.name, unit, at, amount))

    def _of(self, alias: str, model: str) -> list[Budget]:
        budgets = (self._by_name.get(("key", alias)), self._by_name.get(("model", model)))
        return [budget for budget in budgets if budget]


def _budget(scope: Scope, name: str, rpm: int | None, tpm: int | None) -> Budget:
    limits: dict[Unit, int] = {}
    if rpm is not None:
        limits["requests"] = rpm
    if tpm is not None:
        limits["tokens"] = tpm
    return Budget(scope, name, limits)
