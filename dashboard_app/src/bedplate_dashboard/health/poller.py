"""One background thread polls the stack every two seconds; any number of readers share the last poll."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import httpx

from bedplate_dashboard.health import judge, restart
from bedplate_dashboard.health.judge import Memory, Snapshot
from bedplate_dashboard.health.model import Status
from bedplate_dashboard.health.thresholds import POLL_SECONDS
from bedplate_dashboard.health.traffic_window import TrafficWindow
from bedplate_dashboard.settings import Secrets, Settings
from bedplate_dashboard.sources import collect, history
from bedplate_dashboard.sources.collect import Observation
from bedplate_dashboard.sources.history import DaysLeft

Collect = Callable[[httpx.AsyncClient, Settings, str], Awaitable[Observation]]

DISK_GROWTH_SECONDS = 300.0
"""How often Prometheus is queried for disk growth, which it derives from six hours."""

LITELLM_SECONDS = 15.0
"""How often LiteLLM's own metrics are read: writing them takes its only thread 5 ms for each model."""

log = logging.getLogger(__name__)


class Poller:
    """Owns the last poll of the stack; `start` begins polling. Only `wait` blocks its caller."""

    def __init__(
        self, settings: Settings, secrets: Secrets, collect_observation: Collect = collect.collect
    ) -> None:
        self.settings = settings
        self.passes = 0
        """How often the stack was polled, also where that failed by a defect of ours."""
        self._secrets = secrets
        self._collect = collect_observation
        self._last: Snapshot | None = None
        self._gateway: restart.LastAnswer | None = None
        self._changed = threading.Condition()
        self._window = TrafficWindow()
        self._days_left: DaysLeft = {}
        self._started = datetime.now(UTC)
        self._started_monotonic = time.monotonic()

    def start(self) -> None:
        """Start the thread; call it once, in the process that answers requests."""
        threading.Thread(target=lambda: asyncio.run(self._run()), name="poller", daemon=True).start()

    def status(self) -> Status:
        """Return the status as of now, from the last poll and its age."""
        return judge.describe_now(self._last, time.monotonic(), self._started, self._started_monotonic)

    def wait(self, number: int, seconds: float) -> int:
        """Wait for a poll other than `number`, at most `seconds`; return the number of the last poll."""
        with self._changed:
            self._changed.wait_for(lambda: self._number() != number, seconds)
            return self._number()

    def update(self, observation: Observation) -> None:
        """Judge an observation, make it the last poll, and wake up every `wait`."""
        now = time.monotonic()
        if observation.gateway.metrics_contact.ok:
            self._window.add(observation.gateway.metrics, now)
        last = self._last
        self._gateway = restart.remember(self.settings, observation, self._gateway)
        verdict = judge.judge(
            self.settings,
            restart.hold(self.settings, observation, self._gateway),
            self._window.summary(now),
            self._days_left,
            last.memory if last else Memory(),
        )
        with self._changed:
            self._last = judge.advance(last, verdict, observation, now)
            self._changed.notify_all()
        if last is None or (last.verdict.state, _list_faults(last)) != (
            verdict.state,
            _list_faults(self._last),
        ):
            log.info("%s: %s", verdict.state, verdict.reason)

    def _number(self) -> int:
        return self._last.number if self._last else 0

    async def _run(self) -> None:
        async with collect.new_client(self.settings) as client, asyncio.TaskGroup() as group:
            group.create_task(self._poll_forever(client))
            group.create_task(self._query_disk_growth_forever(client))
            group.create_task(self._read_litellm_forever(client))

    async def _poll_forever(self, client: httpx.AsyncClient) -> None:
        while True:
            began = time.monotonic()
            try:
                self.update(await self._collect(client, self.settings, self._secrets.gateway_key))
            except Exception:
                # A defect of ours must not end the polling; readers see the last poll become stale.
                log.exception("a poll failed")
            self.passes += 1
            await asyncio.sleep(max(0.0, began + POLL_SECONDS - time.monotonic()))

    async def _query_disk_growth_forever(self, client: httpx.AsyncClient) -> None:
        while True:
            try:
                self._days_left = await history.query_days_left(client, self.settings)
            except Exception:
                log.exception("could not query Prometheus for disk growth")
            await asyncio.sleep(DISK_GROWTH_SECONDS)

    async def _read_litellm_forever(self, client: httpx.AsyncClient) -> None:
        while True:
            try:
                self._window.add_litellm(await collect.fetch_litellm(client, self.settings), time.monotonic())
            except Exception:
                log.exception("could not read LiteLLM's metrics")
            await asyncio.sleep(LITELLM_SECONDS)


def _list_faults(snapshot: Snapshot) -> tuple[str, ...]:
    return tuple(fault.about for fault in snapshot.verdict.faults)
