"""Sends the requests of a profile on schedule and collects their results."""

import asyncio
import gc
import math
import time
from array import array
from collections.abc import Mapping

from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.load.client import Client, Exchange
from bedplate_traffic.load.profile import Closed, Profile, TrafficClass
from bedplate_traffic.load.prompts import build_request, should_cancel
from bedplate_traffic.load.schedule import make_schedule
from bedplate_traffic.load.stats import ClassStats, RequestEnd
from bedplate_traffic.report.model import Outcome

# Between building the schedule and its first moment.
LEAD_SECONDS = 0.1
LIMIT_WINDOW_SECONDS = 60.0
DEFAULT_RETRY_SECONDS = 1.0


class Run:
    """One run of a profile; `clients` is by a key's alias, `models` by a class's name.

    `classes` may be read at any time, to show the progress.
    """

    def __init__(
        self, profile: Profile, clients: Mapping[str | None, Client], models: Mapping[str, str]
    ) -> None:
        self.profile = profile
        self.classes = [
            ClassStats(
                traffic_class,
                models[traffic_class.name],
                array("d")
                if isinstance(traffic_class.load, Closed)
                else make_schedule(traffic_class, profile.seed),
            )
            for traffic_class in profile.classes
        ]
        self.start = 0.0
        """The moment 0 of all schedules, on the monotonic clock."""
        self.seconds = 0.0
        """The length of the run, set when it has ended."""
        self.interrupted = False
        self._clients = clients
        self._requests_left = profile.max_requests
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """End the run now; requests in flight count as unfinished."""
        self.interrupted = True
        self._stop.set()

    async def prepare(self) -> None:
        """Wait for the conditions in the profile's `before`; raises CannotStartError if they can't be met."""
        before = self.profile.before
        if before.idle_seconds:
            await self._sleep_unless_stopped(before.idle_seconds)
        if before.whole_limit is not None:
            for alias in {traffic_class.key for traffic_class in self.profile.classes}:
                await self._wait_for_whole_limit(alias, before.whole_limit)

    async def execute(self) -> None:
        """Send everything; returns when all is answered, the time is over, or `stop` was called."""
        # Objects made so far live to the end: keep the collector from scanning them in the middle of the run.
        gc.collect()
        gc.freeze()
        self.start = time.monotonic() + LEAD_SECONDS
        loops = [asyncio.create_task(self._run_class(stats)) for stats in self.classes]
        stopped = asyncio.create_task(self._stop.wait())
        ended = asyncio.create_task(_wait_for_all(loops))
        await asyncio.wait(
            {ended, stopped},
            timeout=self.profile.max_seconds + LEAD_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in loops:
            task.cancel()
        stopped.cancel()
        await ended
        self.seconds = max(time.monotonic() - self.start, 1e-6)

    async def _run_class(self, stats: ClassStats) -> None:
        load = stats.traffic_class.load
        if isinstance(load, Closed):
            await self._run_closed_loop(stats, load)
        else:
            await self._run_open_loop(stats)

    async def _run_closed_loop(self, stats: ClassStats, load: Closed) -> None:
        moments = stats.planned
        assert isinstance(moments, array)  # noqa: S101 - a closed loop's schedule is filled here
        await _sleep_until(self.start + stats.traffic_class.start_after_seconds)
        end = math.inf if load.seconds is None else time.monotonic() + load.seconds
        max_requests = math.inf if load.requests is None else load.requests

        async def worker() -> None:
            while time.monotonic() < end and len(moments) < max_requests and self._take_request(stats):
                number, now = len(moments), time.monotonic()
                moments.append(now - self.start)
                stats.in_flight += 1
                await self._send_request(stats, number, now)

        async with asyncio.TaskGroup() as group:
            for _ in range(load.concurrency):
                group.create_task(worker())

    async def _run_open_loop(self, stats: ClassStats) -> None:
        async with asyncio.TaskGroup() as group:
            for number, moment in enumerate(stats.planned):
                intended = self.start + moment
                await _sleep_until(intended)
                if stats.in_flight >= stats.traffic_class.max_in_flight:
                    stats.missed += 1
                    continue
                if not self._take_request(stats):
                    return
                stats.in_flight += 1
                group.create_task(self._send_request(stats, number, intended))

    def _take_request(self, stats: ClassStats) -> bool:
        """Take one of the run's remaining requests; returns whether the class may send it."""
        if self._requests_left <= 0 or (stats.refused_once and stats.traffic_class.stop_at_refusal):
            return False
        self._requests_left -= 1
        return True

    async def _send_request(self, stats: ClassStats, number: int, intended: float) -> None:
        """Send one request, retry it where it is refused for a while, and record its outcome."""
        traffic_class = stats.traffic_class
        client = self._clients[traffic_class.key]
        request = build_request(traffic_class, stats.model, self.profile.seed, number)
        cancelling = should_cancel(traffic_class, self.profile.seed, number)
        first_sent: float | None = None
        retries = 0
        outcome: Outcome = "unfinished"
        exchange = Exchange(request)
        try:
            while True:
                cancelled = cancelling and await _send_and_cancel(client, exchange, traffic_class)
                if not cancelling:
                    await client.send(exchange)
                first_sent = exchange.sent if first_sent is None else first_sent
                outcome = "cancelled" if cancelled else _classify(exchange)
                if outcome != "refused":
                    break
                stats.refused_once = True
                wait = _retry_after(exchange)
                stats.retry_seen += wait is not None
                if retries >= traffic_class.retries:
                    break
                await asyncio.sleep(DEFAULT_RETRY_SECONDS if wait is None else wait)
                retries += 1
                stats.retry_obeyed += wait is not None
                exchange = Exchange(request)
            stats.retry_answered += retries > 0 and outcome == "answered"
        except asyncio.CancelledError:
            outcome = "unfinished"
            raise
        finally:
            stats.in_flight -= 1
            ended = time.monotonic() if exchange.ended is None else exchange.ended
            first_sent = exchange.sent if first_sent is None else first_sent
            end = RequestEnd(outcome=outcome, at=ended, first_sent=first_sent, retries=retries)
            stats.add(number, intended, self.start, exchange, end)

    async def _wait_for_whole_limit(self, alias: str | None, unit: str) -> None:
        """Wait until a key's whole limit is available: then the last minute's requests count no more."""
        client = self._clients[alias]
        name = f"key {alias!r}" if alias else "key"
        deadline = time.monotonic() + LIMIT_WINDOW_SECONDS + 5
        while not self._stop.is_set():
            models = await client.list_models()
            limit = models.header_number(f"x-ratelimit-limit-{unit}")
            if limit is None:
                raise CannotStartError(
                    f"The {name} has no limit of {unit}: this profile needs a key with one."
                )
            if models.header_number(f"x-ratelimit-remaining-{unit}") == limit:
                return
            if time.monotonic() > deadline:
                raise CannotStartError(
                    f"The limit of the {name} was never whole within a minute: "
                    "stop the other clients that use this key."
                )
            await self._sleep_unless_stopped(1.0)

    async def _sleep_unless_stopped(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return


async def _wait_for_all(loops: list[asyncio.Task[None]]) -> None:
    """Wait for all tasks; a cancelled task is no failure, any other exception is raised."""
    for result in await asyncio.gather(*loops, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def _send_and_cancel(client: Client, exchange: Exchange, traffic_class: TrafficClass) -> bool:
    """Send a request and disconnect; returns whether the client disconnected before the answer's end."""
    cancel = traffic_class.cancel
    assert cancel is not None  # noqa: S101 - should_cancel is true only for such a class
    task = asyncio.create_task(client.send(exchange))
    try:
        if cancel.after == "first_token":
            first = asyncio.Event()
            exchange.completion.on_first_token = first.set
            waiting = asyncio.create_task(first.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        await asyncio.wait({task}, timeout=cancel.after_seconds)
    finally:
        cancelled = not task.done()
        task.cancel()
    return cancelled


async def _sleep_until(moment: float) -> None:
    """Sleep to a moment of the monotonic clock; yields to other tasks even when it has passed."""
    # The event loop's timers have millisecond steps: spin through the rest, yielding to other tasks.
    await asyncio.sleep(math.floor((moment - time.monotonic()) * 1000) / 1000)
    while time.monotonic() < moment:
        await asyncio.sleep(0)


def _classify(exchange: Exchange) -> Outcome:
    if exchange.error is None:
        return "answered"
    if exchange.status == 429 or (exchange.status == 503 and _retry_after(exchange) is not None):
        return "refused"
    return "failed"


def _retry_after(exchange: Exchange) -> float | None:
    """Return the seconds after which a refused client may retry, None where the response names none."""
    milliseconds = exchange.header_number("retry-after-ms")
    seconds = exchange.header_number("retry-after") if milliseconds is None else milliseconds / 1000
    return None if seconds is None or not 0 <= seconds <= 3600 else seconds
