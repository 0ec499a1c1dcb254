"""One background thread asks the stack every two seconds; any number of readers share its last look."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import httpx

from . import collect, state
from .settings import Settings

Collect = Callable[[httpx.AsyncClient, Settings, str], Awaitable[collect.Observation]]

log = logging.getLogger(__name__)


class Poller:
    """Owns the last look at the stack. Reading never waits for a poll."""

    def __init__(self, settings: Settings, key: str, ask: Collect = collect.collect) -> None:
        """Prepare only; `start` begins to ask."""
        self.settings = settings
        self.polls = 0
        self._key = key
        self._ask = ask
        self._last: state.Snapshot | None = None
        self._started = datetime.now(UTC)
        self._started_monotonic = time.monotonic()

    def start(self) -> None:
        """Start the thread; call it once, in the process that answers requests."""
        threading.Thread(target=lambda: asyncio.run(self._run()), name="poller", daemon=True).start()

    def status(self) -> state.Status:
        """Tell the state as of now, from the last look and its age."""
        return state.current(self._last, time.monotonic(), self._started, self._started_monotonic)

    async def _run(self) -> None:
        async with collect.new_client() as client:
            while True:
                began = time.monotonic()
                try:
                    self._take(await self._ask(client, self.settings, self._key))
                except Exception:
                    # A defect of ours must not end the polling; readers see the last look grow stale.
                    log.exception("a poll failed")
                await asyncio.sleep(max(0.0, began + state.POLL_SECONDS - time.monotonic()))

    def _take(self, seen: collect.Observation) -> None:
        verdict = state.judge(self.settings, seen)
        before = self._last.verdict if self._last else None
        self._last = state.advance(self._last, verdict, seen, time.monotonic())
        self.polls += 1
        if before is None or (before.state, before.faults) != (verdict.state, verdict.faults):
            log.info("%s: %s", verdict.state, verdict.reason)
