"""One background thread asks the stack every two seconds; any number of readers share its last look."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from . import collect, history, state
from .collect import Clients, Observation
from .parts import DaysLeft
from .settings import Secrets, Settings
from .state import Memory, Snapshot
from .status import Status
from .traffic import Window

Collect = Callable[[Clients, Settings, str], Awaitable[Observation]]

DAYS_LEFT_SECONDS = 300.0
"""How often Prometheus is asked how fast disks fill: it looks back six hours."""

log = logging.getLogger(__name__)


class Poller:
    """Owns the last look at the stack. Reading never waits for a poll, unless it asks to."""

    def __init__(self, settings: Settings, secrets: Secrets, ask: Collect = collect.collect) -> None:
        """Prepare only; `start` begins to ask."""
        self.settings = settings
        self._secrets = secrets
        self._ask = ask
        self._last: Snapshot | None = None
        self._news = threading.Condition()
        self._window = Window()
        self._days_left: DaysLeft = {}
        self._started = datetime.now(UTC)
        self._started_monotonic = time.monotonic()

    def start(self) -> None:
        """Start the thread; call it once, in the process that answers requests."""
        threading.Thread(target=lambda: asyncio.run(self._run()), name="poller", daemon=True).start()

    def status(self) -> Status:
        """Tell the state as of now, from the last look and its age."""
        return state.current(self._last, time.monotonic(), self._started, self._started_monotonic)

    def wait(self, number: int, seconds: float) -> int:
        """Wait for a look other than `number`, for `seconds` at most; return the number of the last one."""
        with self._news:
            self._news.wait_for(lambda: self._number() != number, seconds)
            return self._number()

    def _number(self) -> int:
        return self._last.number if self._last else 0

    async def _run(self) -> None:
        async with collect.new_clients(self._secrets) as clients, asyncio.TaskGroup() as group:
            group.create_task(self._look_forever(clients))
            group.create_task(self._ask_history_forever(clients))

    async def _look_forever(self, clients: Clients) -> None:
        while True:
            began = time.monotonic()
            try:
                self.take(await self._ask(clients, self.settings, self._secrets.gateway_key))
            except Exception:
                # A defect of ours must not end the polling; readers see the last look grow stale.
                log.exception("a poll failed")
            await asyncio.sleep(max(0.0, began + state.POLL_SECONDS - time.monotonic()))

    async def _ask_history_forever(self, clients: Clients) -> None:
        while True:
            try:
                self._days_left = await history.days_left(clients, self.settings)
            except Exception:
                log.exception("the disks' days were not told")
            await asyncio.sleep(DAYS_LEFT_SECONDS)

    def take(self, seen: Observation) -> None:
        """Put a look in the place of the last one, and tell those who wait for it."""
        now = time.monotonic()
        if seen.gateway.metrics_contact.ok:
            self._window.add(seen.gateway.metrics, now)
        last = self._last
        verdict = state.judge(
            self.settings,
            seen,
            self._window.lately(now),
            self._days_left,
            last.memory if last else Memory(),
        )
        with self._news:
            self._last = state.advance(last, verdict, seen, now)
            self._news.notify_all()
        if last is None or (last.verdict.state, _words(last)) != (verdict.state, _words(self._last)):
            log.info("%s: %s", verdict.state, verdict.reason)


def _words(look: Snapshot) -> tuple[str, ...]:
    return tuple(fault.about for fault in look.verdict.faults)
