"""Requests a second of one process, what each costs in CPU time, and where the gateway's goes."""

import asyncio
import json
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import aiohttp

from bench.gateway.load import percentile, session
from bench.gateway.report import Result, ms
from tests.support.servers import (
    STOCK_KEY,
    Server,
    engine,
    environment,
    fake_engine,
    gateway,
    library,
    say,
    stock,
)

KEYS = [{"alias": "any", "rpm": 900_000, "tpm": 900_000_000}]
SHORT_TOKENS, LONG_TOKENS = 16, 300
AT_ONCE = 16
SLOTS = 64


async def drive(
    server: Server,
    key: str,
    model: str,
    *,
    tokens: int,
    stream: bool,
    at_once: int,
    duration: float,
    others: tuple[Server, ...] = (),
) -> tuple[float, list[float], list[float]]:
    """Return requests per second, CPU seconds per request of each server, and the latencies in seconds."""
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "one two three"}],
            "max_tokens": tokens,
            "stream": stream,
        }
    ).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    url = f"{server.url}/v1/chat/completions"
    latencies: list[float] = []

    trusted = {"ssl": server.trusted} if server.trusted else {}
    async with session(**trusted) as client:

        async def loop(until: float) -> None:
            while (sent := time.monotonic()) < until:
                async with client.post(url, data=body, headers=headers) as response:
                    await response.read()
                    if response.status != 200:
                        raise aiohttp.ClientError(f"{server.url} answered {response.status}")
                latencies.append(time.monotonic() - sent)

        async def run(length: float) -> float:
            start = time.monotonic()
            await asyncio.gather(*[loop(start + length) for _ in range(at_once)])
            return time.monotonic() - start

        await run(min(2.0, duration / 2))
        latencies.clear()
        servers = (server, *others)
        before = [each.cpu_seconds() for each in servers]
        took = await run(duration)
        used = [each.cpu_seconds() - start for each, start in zip(servers, before, strict=True)]
    return len(latencies) / took, [each / len(latencies) for each in used], latencies


async def run(*, quick: bool) -> Result:
    """Measure short answers, one and 16 at a time, and streams of 300 chunks."""
    duration = 2.0 if quick else 5.0
    result = Result(
        "Requests a second of one process",
        "at least 2 x stock `ollama_chat/`",
        (
            *("system", f"short answers, {AT_ONCE} at a time", "CPU each", "alone: p50", "p99"),
            *(f"{LONG_TOKENS}-chunk streams, {AT_ONCE} at a time", "CPU each", "memory"),
        ),
        notes=[
            f"Short: {SHORT_TOKENS} tokens, not streamed. The engine answers at once. `CPU each` "
            "is the server's alone; 1 s divided by it is what one core could do: load and engine share the "
            "machine's cores. `LiteLLM library` is an app that only has `litellm.acompletion` call the "
            "engine (`library_app.py`), without key, limit and queue: the best that one over LiteLLM can do."
        ],
    )
    rates: dict[str, tuple[float, float]] = {}
    with fake_engine(concurrency=SLOTS, tokens=LONG_TOKENS) as fake:
        for name in ("engine itself", "gateway", "LiteLLM library", "stock openai/", "stock ollama_chat/"):
            say(f"requests a second: {name}")
            with ExitStack() as stack:
                key, model = STOCK_KEY, "fake"
                if name == "engine itself":
                    server = fake
                elif name == "gateway":
                    server = stack.enter_context(gateway([engine(fake.url, slots=SLOTS)], KEYS))
                    key = server.keys["any"]
                elif name == "LiteLLM library":
                    server = stack.enter_context(library(fake.url))
                else:
                    server = stack.enter_context(stock(fake.url))
                    model = name.removeprefix("stock ").rstrip("/")
                asked = {"server": server, "key": key, "model": model, "duration": duration}
                alone = await drive(**asked, tokens=SHORT_TOKENS, stream=False, at_once=1)  # type: ignore[arg-type]
                short = await drive(**asked, tokens=SHORT_TOKENS, stream=False, at_once=AT_ONCE)  # type: ignore[arg-type]
                long = await drive(**asked, tokens=LONG_TOKENS, stream=True, at_once=AT_ONCE)  # type: ignore[arg-type]
                rates[name] = short[0], long[0]
                result.rows.append(
                    (
                        name,
                        f"{short[0]:.0f}/s",
                        f"{short[1][0] * 1000:.2f} ms",
                        ms(percentile(alone[2], 0.5)),
                        ms(percentile(alone[2], 0.99)),
                        f"{long[0]:.1f}/s ({long[0] * LONG_TOKENS:.0f} tokens/s)",
                        f"{long[1][0] * 1000:.1f} ms",
                        f"{server.rss_mib():.0f} MiB",
                    )
                )
    times = [
        ours / theirs for ours, theirs in zip(rates["gateway"], rates["stock ollama_chat/"], strict=True)
    ]
    result.ok = min(times) >= 2
    result.notes.append(
        f"The gateway does {times[0]:.1f} x the short answers and {times[1]:.1f} x the streams of stock "
        "`ollama_chat/`."
    )
    return result


# What a frame of a stack belongs to; the innermost one that is known counts. Without a match: Python itself.
GROUPS = (
    ("bedplate_gateway/api", "gateway: checking and rebuilding the body"),
    ("pydantic", "gateway: checking and rebuilding the body"),
    ("bedplate_gateway/metrics", "gateway: metrics and journal line"),
    ("bedplate_gateway/access_log", "gateway: metrics and journal line"),
    ("prometheus_client", "gateway: metrics and journal line"),
    ("logging/", "gateway: metrics and journal line"),
    ("bedplate_gateway/admission", "gateway: keys, limits, queue, slots"),
    ("bedplate_gateway/keys", "gateway: keys, limits, queue, slots"),
    ("bedplate_gateway/app", "gateway: the app and its protocol class"),
    ("bedplate_gateway/http", "gateway: the app and its protocol class"),
    ("bedplate_gateway/", "gateway: calling the engine and relaying its answer"),
    ("uvicorn", "uvicorn and httptools, towards the client"),
    ("httptools", "uvicorn and httptools, towards the client"),
    ("aiohttp", "aiohttp, towards the engine"),
    ("yarl", "aiohttp, towards the engine"),
    ("multidict", "aiohttp, towards the engine"),
    ("json/", "JSON"),
    ("_json.c", "JSON"),
    ("loop.c", "event loop, sockets and kernel"),
    ("asyncio", "event loop, sockets and kernel"),
    ("uv_", "event loop, sockets and kernel"),
    ("uv__", "event loop, sockets and kernel"),
)


def _group(stack: str) -> str:
    for frame in reversed(stack.split(";")):
        for part, name in GROUPS:
            if part in frame:
                return name
    return "the rest"


async def _sampled(
    server: Server, folder: Path, *, tokens: int, stream: bool, duration: int
) -> dict[str, float]:
    """Return each group's share of the samples that py-spy takes of the busy server."""
    file = folder / "stacks"
    spy = await asyncio.create_subprocess_exec(
        *(str(environment("bench").parent / "py-spy"), "record", "--native", "--format", "raw"),
        *("--pid", str(server.pid), "--rate", "100", "--duration", str(duration), "--output", str(file)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    key = server.keys["any"]
    load = {"tokens": tokens, "stream": stream, "at_once": AT_ONCE, "duration": duration + 2.0}
    await drive(server, key, "fake", **load)  # type: ignore[arg-type]
    await spy.wait()
    total: dict[str, float] = defaultdict(float)
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        total[_group(stack)] += int(count)
    return {group: count / sum(total.values()) for group, count in total.items()}


async def run_profile(*, quick: bool) -> Result:
    """Sample the gateway's stacks 100 times a second while it is busy with short answers and streams."""
    result = Result(
        "Where the gateway's CPU time goes",
        "reported",
        ("part", "short answers", f"{LONG_TOKENS}-chunk streams"),
        notes=["By py-spy, native frames included; the innermost frame that belongs to a part counts."],
    )
    shares: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        fake_engine(concurrency=SLOTS, tokens=LONG_TOKENS) as fake,
        gateway([engine(fake.url, slots=SLOTS)], KEYS) as server,
    ):
        for tokens, stream in ((SHORT_TOKENS, False), (LONG_TOKENS, True)):
            say(f"profile of the gateway: {'streams' if stream else 'short answers'}")
            duration = 4 if quick else 10
            shares.append(
                await _sampled(server, Path(folder), tokens=tokens, stream=stream, duration=duration)
            )
    groups = {group for share in shares for group in share}
    for group in sorted(groups, key=lambda name: -max(share.get(name, 0.0) for share in shares)):
        result.rows.append((group, *(f"{share.get(group, 0.0):.0%}" for share in shares)))
    return result
