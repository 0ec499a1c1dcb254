"""Clients that disconnect at random moments: does every slot come back, and does the engine stop."""

import asyncio
import random
import re
import time
from contextlib import suppress
from pathlib import Path

from bench.gateway.load import ask, session
from bench.gateway.report import Result, seconds
from tests.support.servers import (
    REAL_MODEL,
    STOCK_KEY,
    Server,
    engine,
    fake_engine,
    gateway,
    get,
    real_engine,
    say,
    stock,
)

SLOTS = 4
PROMPT_SECONDS, SECONDS_PER_TOKEN, TOKENS = 0.05, 0.02, 10
# So that about half of the disconnected clients are in the queue then, half on the engine.
AT_ONCE, LONGEST = 10, 0.7
KEYS = [{"alias": "any"}]
IDLE_SECONDS = 1.0


async def _disconnect_at_random(
    url: str, key: str, models: list[str], *, count: int, at_once: int, longest: float
) -> int:
    """Send requests, half of them streams; clients disconnect within `longest` s. Returns how many did."""
    chance = random.Random(2)  # noqa: S311 - no secret
    gate = asyncio.Semaphore(at_once)
    left = 0
    async with session(force_close=True) as client:

        async def one(number: int) -> None:
            nonlocal left
            async with gate:
                try:
                    async with asyncio.timeout(chance.uniform(0.002, longest)):
                        await ask(
                            client,
                            url,
                            key,
                            models[number // 2 % len(models)],
                            f"disconnects-{number} text",
                            stream=number % 2 == 0,
                            max_tokens=TOKENS * 2,
                        )
                except TimeoutError:
                    left += 1

        await asyncio.gather(*[one(number) for number in range(count)])
    return left


async def _idle_after(engine_url: str, limit: float) -> float | None:
    """Return after how many seconds the fake engine has nothing to do, None when not within the limit."""
    start = time.monotonic()
    async with session() as client:
        while time.monotonic() - start < limit:
            async with client.get(f"{engine_url}/fake/stats") as response:
                now = await response.json()
            if not now["running"] and not now["waiting"]:
                return time.monotonic() - start
            await asyncio.sleep(0.02)
    return None


async def _slots_that_work(url: str, key: str, model: str, engine_url: str) -> int:
    """Send as many requests as there are slots at once; returns how many of them began at the same time."""
    async with session() as client:
        await asyncio.gather(
            *[ask(client, url, key, model, f"after-{number} text") for number in range(SLOTS)]
        )
        async with client.get(f"{engine_url}/fake/stats") as response:
            arrivals = (await response.json())["arrivals"]
    starts = [one["started"] for one in arrivals if one["marker"].startswith("after") and one["started"]]
    service = PROMPT_SECONDS + SECONDS_PER_TOKEN * TOKENS
    return sum(start < min(starts) + service for start in starts)


def metric(server: Server, name: str) -> float:
    """Return the sum of a metric's samples."""
    text = get(server.metrics_url)[1]
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


async def run(*, quick: bool) -> Result:
    """Measure on the fake engine, whose slots and queue can be inspected."""
    count = 200 if quick else 1000
    result = Result(
        f"{count:,} random disconnects",
        f"every slot back, the engine idle within {IDLE_SECONDS:.0f} s",
        (
            *("system", "requests", "left early", "never reached the engine", "cut off there"),
            *(
                "engine idle after",
                f"of {SLOTS} slots work afterwards",
                "slots busy and requests queued at the end",
            ),
        ),
        notes=[
            f"Half are streams; {SLOTS} slots, {AT_ONCE} requests at a time, each client leaves within "
            f"{LONGEST} s. One that leaves during the prompt leaves the engine busy to the prompt's end "
            f"({PROMPT_SECONDS} s here), as Ollama is. Stock LiteLLM has no queue: its requests wait inside "
            "the engine."
        ],
    )
    for name in ("gateway", "stock LiteLLM"):
        say(f"disconnects: {name}")
        with fake_engine(
            concurrency=SLOTS,
            prompt_seconds=PROMPT_SECONDS,
            seconds_per_token=SECONDS_PER_TOKEN,
            tokens=TOKENS,
        ) as fake:
            if name == "gateway":
                with gateway([engine(fake.url, slots=SLOTS)], KEYS) as server:
                    key, models = server.keys["any"], ["fake"]
                    left = await _disconnect_at_random(
                        server.url, key, models, count=count, at_once=AT_ONCE, longest=LONGEST
                    )
                    idle = await _idle_after(fake.url, 30)
                    await asyncio.sleep(1)
                    busy = metric(server, "bedplate_gateway_slots_busy")
                    queued = metric(server, "bedplate_gateway_queue_requests")
                    work = await _slots_that_work(server.url, key, models[0], fake.url)
                    leftover = f"{busy:.0f} and {queued:.0f}"
                    result.ok = (
                        idle is not None
                        and idle <= IDLE_SECONDS
                        and work == SLOTS
                        and not busy
                        and not queued
                    )
            else:
                with stock(fake.url) as server:
                    models = ["openai", "ollama_chat"]
                    left = await _disconnect_at_random(
                        server.url, STOCK_KEY, models, count=count, at_once=AT_ONCE, longest=LONGEST
                    )
                    idle = await _idle_after(fake.url, 30)
                    work = await _slots_that_work(server.url, STOCK_KEY, "openai", fake.url)
                    leftover = "not known"
            async with session() as client, client.get(f"{fake.url}/fake/stats") as response:
                stats = await response.json()
            result.rows.append(
                (
                    name,
                    str(count),
                    str(left),
                    str(count - sum(one["marker"].startswith("disconnects") for one in stats["arrivals"])),
                    str(stats["cancelled"]),
                    "not within 30 s" if idle is None else seconds(idle),
                    str(work),
                    leftover,
                )
            )
    return result


def _engine_cpu_seconds() -> float:
    """Return the CPU seconds of the lab's Ollama and its runners; they are processes of this machine."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            if "/opt/bin/ollama" in (stat.parent / "cmdline").read_text():
                fields = stat.read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / 100
    return total


async def run_real(*, quick: bool) -> Result:
    """Measure on the real Ollama: its own CPU time shows whether it still works for a disconnected client."""
    count = 40 if quick else 200
    result = Result(
        "Random disconnects on the real engine",
        "every slot back, the engine idle within a second",
        ("system", "requests", "left early", "engine idle after", "next answer"),
        notes=["Idle: the engine's processes took less than 20 ms of CPU time in 200 ms."],
    )
    with real_engine(2) as url:
        for name in ("gateway", "stock LiteLLM"):
            say(f"disconnects on the real engine: {name}")
            if name == "gateway":
                with gateway([engine(url, REAL_MODEL, 2)], KEYS) as server:
                    row, idle = await _real(name, server, server.keys["any"], [REAL_MODEL], count)
                    result.ok = idle is not None and idle <= IDLE_SECONDS
            else:
                with stock(url, REAL_MODEL) as server:
                    row, _ = await _real(name, server, STOCK_KEY, ["openai", "ollama_chat"], count)
            result.rows.append(row)
    return result


async def _real(
    name: str, server: Server, key: str, models: list[str], count: int
) -> tuple[tuple[str, ...], float | None]:
    left = await _disconnect_at_random(server.url, key, models, count=count, at_once=8, longest=2.0)
    start = time.monotonic()
    idle = None
    while time.monotonic() - start < 60:
        before, at = _engine_cpu_seconds(), time.monotonic() - start
        await asyncio.sleep(0.2)
        if _engine_cpu_seconds() - before < 0.02:
            idle = at
            break
    async with session() as client:
        answer = await ask(client, server.url, key, models[0], "Say hi", max_tokens=4)
    idle_after = "not within 60 s" if idle is None else seconds(idle)
    return (name, str(count), str(left), idle_after, f"{answer.status} in {answer.seconds:.2f} s"), idle
