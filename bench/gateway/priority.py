"""How long the high class waits while low-class clients keep a backlog in front of the engine."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.gateway.load import Answer, ask, percentile, session
from bench.gateway.report import Result, seconds
from tests.support.servers import (
    LANES,
    REAL_MODEL,
    STOCK_KEY,
    Server,
    engine,
    fake_engine,
    gateway,
    gateway_in_lane,
    real_engine,
    say,
    stock,
)

SLOTS = 2
PROMPT_SECONDS, SECONDS_PER_TOKEN, TOKENS = 0.1, 0.02, 10
SERVICE = PROMPT_SECONDS + SECONDS_PER_TOKEN * TOKENS
HIGH_EVERY = 0.8
KEYS = [{"alias": "high", "class": "high"}, {"alias": "low", "class": "low"}]
QUEUES = {"low": {"size": 2000, "size_per_key": 2000, "seconds": 600}}

Asker = Callable[[aiohttp.ClientSession, str, str], Awaitable[Answer]]


@dataclass(frozen=True)
class High:
    """One high-class request: queue wait in seconds, and how many later low ones began before it."""

    answer: Answer
    wait: float
    overtaken_by: int


def gateway_asker(server: Server, model: str, **fields: Any) -> Asker:
    """Return how a class asks the gateway: with its own key."""

    async def one(client: aiohttp.ClientSession, name: str, text: str) -> Answer:
        return await ask(client, server.url, server.keys[name], model, text, **fields)

    return one


def stock_asker(server: Server, way: str, **fields: Any) -> Asker:
    """Return how a class asks stock LiteLLM: with its own field `priority` in the body, lower is sooner."""

    async def one(client: aiohttp.ClientSession, name: str, text: str) -> Answer:
        priority = {"high": 0, "low": 100}[name]
        return await ask(client, server.url, STOCK_KEY, way, text, priority=priority, **fields)

    return one


async def _saturated(asker: Asker, backlog: int, duration: float) -> tuple[list[Answer], list[Answer]]:
    """Keep `backlog` low clients asking, add high requests; returns the answers, high and low."""
    chance = random.Random(1)  # noqa: S311 - no secret
    high: list[Answer] = []
    low: list[Answer] = []
    async with session() as client:

        async def client_of_low(number: int) -> None:
            await asyncio.sleep(number * 0.002)
            turn = 0
            while True:
                low.append(await asker(client, "low", f"low-{number}-{turn} text"))
                turn += 1

        async def one_high(number: int) -> None:
            high.append(await asker(client, "high", f"high-{number} text"))

        tasks = [asyncio.create_task(client_of_low(number)) for number in range(backlog)]
        await asyncio.sleep(2 + backlog * 0.004)
        low.clear()
        start = time.monotonic()
        singles = []
        number = 0
        while time.monotonic() - start < duration:
            singles.append(asyncio.create_task(one_high(number)))
            number += 1
            await asyncio.sleep(HIGH_EVERY * chance.uniform(0.7, 1.3))
        # A backlog of 1,000 takes minutes to work off where nobody overtakes: what came by then counts.
        _, late = await asyncio.wait(singles, timeout=duration)
        for task in [*late, *tasks]:
            task.cancel()
        for task in [*late, *tasks]:
            with suppress(asyncio.CancelledError):
                await task
        ended = time.monotonic()
        high += [Answer(0, start, ended) for _ in late]
    return high, low


async def _waits(engine_url: str, high: list[Answer]) -> list[High]:
    """Read at the engine when each high request began, and who came later and began before it."""
    async with session() as client, client.get(f"{engine_url}/fake/stats") as response:
        arrivals = (await response.json())["arrivals"]
    starts = {arrival["marker"]: arrival["started"] for arrival in arrivals if arrival["started"]}
    low = [
        (arrival["arrived"], arrival["started"])
        for arrival in arrivals
        if arrival["marker"].startswith("low") and arrival["started"]
    ]
    found = []
    for number, answer in enumerate(sorted(high, key=lambda one: one.sent)):
        began = starts.get(f"high-{number}")
        if answer.status != 200 or began is None:
            found.append(High(answer, answer.seconds, 0))
            continue
        passed = sum(answer.sent + 0.01 < arrived and started < began for arrived, started in low)
        found.append(High(answer, began - answer.sent, passed))
    return found


def _row(name: str, backlog: int, found: list[High], low: list[Answer]) -> tuple[str, ...]:
    missing = sum(one.answer.status != 200 for one in found)
    plain = [one.wait for one in found if not one.overtaken_by]
    ends = [one.ended for one in low if one.status == 200]
    rate = len(ends) / (max(ends) - min(ends)) if len(ends) > 1 else 0.0
    return (
        name,
        str(backlog),
        f"{len(found)}" + (f", {missing} without an answer in time" if missing else ""),
        seconds(percentile([one.wait for one in found], 0.5)),
        seconds(percentile([one.wait for one in found], 0.95)),
        seconds(percentile(plain, 0.95)) + f" ({len(plain)})",
        f"{rate:.1f}/s",
    )


async def run(*, quick: bool) -> Result:
    """Measure on the fake engine: both lanes of the gateway compared with both of stock LiteLLM's ways."""
    result = Result(
        "Priority on the fake engine",
        "p95 of the high class's wait at most 1.5 x one service time at any backlog, 2.5 x with those that "
        "met the share's slot",
        (
            *("system", "low clients", "high requests", "wait p50", "wait p95, all"),
            *("wait p95 of those the share did not pass over", "low answers"),
        ),
        ok=True,
        notes=[
            f"Service time {SERVICE:.1f} s, {SLOTS} slots; the wait is from sending to the engine's start. "
            "Stock LiteLLM was given its own field `priority` (0 and 100); a high request that had no answer "
            "when as much time again had gone counts with the time it had waited."
        ],
    )
    for backlog in (20, 200) if quick else (20, 200, 1000):
        for name in (*LANES, "stock openai/", "stock ollama_chat/"):
            with fake_engine(
                concurrency=SLOTS,
                prompt_seconds=PROMPT_SECONDS,
                seconds_per_token=SECONDS_PER_TOKEN,
                tokens=TOKENS,
            ) as fake:
                say(f"priority: {name}, {backlog} low clients")
                duration = 10.0 if quick or name not in LANES else 25.0
                if name in LANES:
                    with gateway_in_lane(name, fake.url, KEYS, slots=SLOTS, queues=QUEUES) as server:
                        high, low = await _saturated(gateway_asker(server, "fake"), backlog, duration)
                else:
                    way = name.removeprefix("stock ").rstrip("/")
                    with stock(fake.url) as server:
                        high, low = await _saturated(stock_asker(server, way), backlog, duration)
                found = await _waits(fake.url, high)
            result.rows.append(_row(name, backlog, found, low))
            if name in LANES:
                every = percentile([one.wait for one in found], 0.95)
                plain = percentile([one.wait for one in found if not one.overtaken_by], 0.95)
                result.ok = bool(result.ok and plain <= 1.5 * SERVICE and every <= 2.5 * SERVICE)
                result.ok = result.ok and all(one.answer.status == 200 for one in found)
    return result


async def run_real(*, quick: bool) -> Result:
    """Measure on the real Ollama, with streams, so that the time to the first token shows."""
    result = Result(
        "Priority on the real engine",
        "reported",
        (
            *("system", "high requests", "high, first token p50", "p95", "high, whole answer p50", "p95"),
            *("low, whole answer p50", "low answers"),
        ),
        notes=[
            f"20 low clients, 24 tokens each, {SLOTS} slots, streams, a high one every {HIGH_EVERY} s or so."
        ],
    )
    duration = 10.0 if quick else 15.0
    with real_engine(SLOTS) as url:
        for name in ("gateway", "stock openai/", "stock ollama_chat/"):
            say(f"priority on the real engine: {name}")
            fields = {"stream": True, "max_tokens": 24}
            if name == "gateway":
                with gateway([engine(url, REAL_MODEL, SLOTS)], KEYS, queues=QUEUES) as server:
                    high, low = await _saturated(gateway_asker(server, REAL_MODEL, **fields), 20, duration)
            else:
                with stock(url, REAL_MODEL) as server:
                    way = name.removeprefix("stock ").rstrip("/")
                    high, low = await _saturated(stock_asker(server, way, **fields), 20, duration)
            good = [one for one in high if one.status == 200 and one.first]
            first = [one.first - one.sent for one in good if one.first]
            whole = [one.seconds for one in good]
            answered = [one.seconds for one in low if one.status == 200]
            result.rows.append(
                (
                    name,
                    f"{len(good)} of {len(high)}",
                    *(
                        seconds(percentile(values, share))
                        for values in (first, whole)
                        for share in (0.5, 0.95)
                    ),
                    seconds(percentile(answered, 0.5)),
                    str(len(answered)),
                )
            )
    return result
