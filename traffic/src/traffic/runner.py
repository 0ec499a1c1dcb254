"""Sends what a profile says, when it says, and collects what becomes of it."""

import asyncio
import gc
import math
import time
from array import array
from collections.abc import Mapping

from traffic.client import Client, Reply
from traffic.measure import Collected, End
from traffic.profile import Closed, Profile, TrafficClass
from traffic.prompts import leaves, question
from traffic.report import Outcome
from traffic.schedule import schedule
from traffic.target import CannotStartError

# Between the making of the schedule and its first moment.
LEAD_SECONDS = 0.1
LIMIT_WINDOW_SECONDS = 60.0
UNKNOWN_RETRY_SECONDS = 1.0


class Run:
    """One run of a profile. `classes` may be read at any time, to show how far it is."""

    def __init__(
        self, profile: Profile, clients: Mapping[str | None, Client], models: Mapping[str, str]
    ) -> None:
        """`clients` by a key's alias, `models` by a class's name."""
        self.profile = profile
        self.classes = [
            Collected(
                one,
                models[one.name],
                array("d") if isinstance(one.load, Closed) else schedule(one, profile.seed),
            )
            for one in profile.classes
        ]
        self.start = 0.0
        """The moment 0 of all schedules, on the monotonic clock."""
        self.seconds = 0.0
        """How long it took, once it has ended."""
        self.interrupted = False
        self._clients = clients
        self._left = profile.max_requests
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """End it now; what is unanswered counts as unfinished."""
        self.interrupted = True
        self._stop.set()

    async def prepare(self) -> None:
        """Wait for what the profile wants to be so before; raises CannotStartError when it cannot be."""
        before = self.profile.before
        if before.idle_seconds:
            await self._unless_stopped(before.idle_seconds)
        if before.whole_limit is not None:
            for alias in {one.key for one in self.profile.classes}:
                await self._whole_limit(alias, before.whole_limit)

    async def go(self) -> None:
        """Send everything; returns when all is answered, the time is over, or `stop` was called."""
        # What was made up to now is here to stay: the collector need not look at it in the middle of the run.
        gc.collect()
        gc.freeze()
        self.start = time.monotonic() + LEAD_SECONDS
        loops = [asyncio.create_task(self._loop(one)) for one in self.classes]
        stopped = asyncio.create_task(self._stop.wait())
        ended = asyncio.create_task(_all_of(loops))
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

    async def _loop(self, collected: Collected) -> None:
        load = collected.traffic_class.load
        if not isinstance(load, Closed):
            await self._open(collected)
            return
        moments = collected.planned
        assert isinstance(moments, array)  # noqa: S101 - a closed loop's is filled here
        await _until(self.start + collected.traffic_class.start_after_seconds)
        end = math.inf if load.seconds is None else time.monotonic() + load.seconds
        most = math.inf if load.requests is None else load.requests

        async def worker() -> None:
            while time.monotonic() < end and len(moments) < most and self._may_send(collected):
                number, now = len(moments), time.monotonic()
                moments.append(now - self.start)
                collected.in_flight += 1
                await self._one(collected, number, now)

        async with asyncio.TaskGroup() as group:
            for _ in range(load.concurrency):
                group.create_task(worker())

    async def _open(self, collected: Collected) -> None:
        async with asyncio.TaskGroup() as group:
            for number, moment in enumerate(collected.planned):
                intended = self.start + moment
                await _until(intended)
                if collected.in_flight >= collected.traffic_class.max_in_flight:
                    collected.missed += 1
                    continue
                if not self._may_send(collected):
                    return
                collected.in_flight += 1
                group.create_task(self._one(collected, number, intended))

    def _may_send(self, collected: Collected) -> bool:
        """Take one of the requests that are left, where there is one."""
        if self._left <= 0 or (collected.refused_once and collected.traffic_class.stop_at_refusal):
            return False
        self._left -= 1
        return True

    async def _one(self, collected: Collected, number: int, intended: float) -> None:
        """Ask one question, again where it is refused for a while, and take down what became of it."""
        traffic_class = collected.traffic_class
        client = self._clients[traffic_class.key]
        asked = question(traffic_class, collected.model, self.profile.seed, number)
        leaving = leaves(traffic_class, self.profile.seed, number)
        first_sent: float | None = None
        retries = 0
        outcome: Outcome = "unfinished"
        reply = Reply(asked)
        try:
            while True:
                left = leaving and await _ask_and_leave(client, reply, traffic_class)
                if not leaving:
                    await client.ask(reply)
                first_sent = reply.sent if first_sent is None else first_sent
                outcome = "cancelled" if left else _outcome(reply)
                if outcome != "refused":
                    break
                collected.refused_once = True
                wait = _retry_after(reply)
                collected.retry_seen += wait is not None
                if retries >= traffic_class.retries:
                    break
                await asyncio.sleep(UNKNOWN_RETRY_SECONDS if wait is None else wait)
                retries += 1
                collected.retry_obeyed += wait is not None
                reply = Reply(asked)
            collected.retry_answered += retries > 0 and outcome == "answered"
        except asyncio.CancelledError:
            outcome = "unfinished"
            raise
        finally:
            collected.in_flight -= 1
            ended = time.monotonic() if reply.ended is None else reply.ended
            first_sent = reply.sent if first_sent is None else first_sent
            end = End(outcome, ended, first_sent, retries)
            collected.add(number, intended, self.start, reply, end)

    async def _whole_limit(self, alias: str | None, unit: str) -> None:
        """Wait until a key's limit is whole: then nothing of the last minute counts."""
        client = self._clients[alias]
        name = f"key {alias!r}" if alias else "key"
        deadline = time.monotonic() + LIMIT_WINDOW_SECONDS + 5
        while not self._stop.is_set():
            listing = await client.models()
            limit = listing.number(f"x-ratelimit-limit-{unit}")
            if limit is None:
                raise CannotStartError(f"The {name} has no limit of {unit}: this profile needs one that has.")
            if listing.number(f"x-ratelimit-remaining-{unit}") == limit:
                return
            if time.monotonic() > deadline:
                raise CannotStartError(f"Somebody else uses the {name}: its limit is not whole for a minute.")
            await self._unless_stopped(1.0)

    async def _unless_stopped(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return


async def _all_of(loops: list[asyncio.Task[None]]) -> None:
    """Wait for all; a loop that was cancelled is no failure, any other exception is."""
    for result in await asyncio.gather(*loops, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def _ask_and_leave(client: Client, reply: Reply, traffic_class: TrafficClass) -> bool:
    """Ask and leave; says whether the client left before it was answered."""
    cancel = traffic_class.cancel
    assert cancel is not None  # noqa: S101 - only such a class leaves
    task = asyncio.create_task(client.ask(reply))
    try:
        if cancel.after == "first_token":
            first = asyncio.Event()
            reply.answer.on_first_token = first.set
            waiting = asyncio.create_task(first.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        await asyncio.wait({task}, timeout=cancel.after_seconds)
    finally:
        left = not task.done()
        task.cancel()
    return left


async def _until(moment: float) -> None:
    """Sleep to a moment of the monotonic clock; lets others run also when it is over."""
    # The loop's timers count whole milliseconds: the rest of one is spent awake, and others run meanwhile.
    await asyncio.sleep(math.floor((moment - time.monotonic()) * 1000) / 1000)
    while time.monotonic() < moment:
        await asyncio.sleep(0)


def _outcome(reply: Reply) -> Outcome:
    if reply.error is None:
        return "answered"
    if reply.status == 429 or (reply.status == 503 and _retry_after(reply) is not None):
        return "refused"
    return "failed"


def _retry_after(reply: Reply) -> float | None:
    """Return the seconds that a refusal asks to wait, None where it does not."""
    milliseconds = reply.number("retry-after-ms")
    seconds = reply.number("retry-after") if milliseconds is None else milliseconds / 1000
    return None if seconds is None or not 0 <= seconds <= 3600 else seconds
