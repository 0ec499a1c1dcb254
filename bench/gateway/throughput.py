"""Requests a second of one process, what each costs in CPU time, and where the gateway's goes."""

import asyncio
import json
import pstats
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import aiohttp
from load import percentile, session
from report import Result, ms
from servers import STOCK_KEY, Server, engine, fake_engine, gateway, library, say, stock

KEYS = [{"alias": "any", "rpm": 900_000, "tpm": 900_000_000}]
SHORT_TOKENS, LONG_TOKENS = 16, 300
AT_ONCE = 16
SLOTS = 64


async def _drive(
    server: Server, key: str, model: str, *, tokens: int, stream: bool, at_once: int, duration: float
) -> tuple[float, float, list[float]]:
    """Return requests a second, CPU seconds of the server a request, and the latencies."""
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

    async with session() as client:

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
        before = server.cpu_seconds()
        took = await run(duration)
        used = server.cpu_seconds() - before
    return len(latencies) / took, used / len(latencies), latencies


async def run(*, quick: bool) -> Result:
    """Measure short answers, one and 16 at a time, and streams of 300 chunks."""
    duration = 2.0 if quick else 8.0
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
                alone = await _drive(**asked, tokens=SHORT_TOKENS, stream=False, at_once=1)  # type: ignore[arg-type]
                short = await _drive(**asked, tokens=SHORT_TOKENS, stream=False, at_once=AT_ONCE)  # type: ignore[arg-type]
                long = await _drive(**asked, tokens=LONG_TOKENS, stream=True, at_once=AT_ONCE)  # type: ignore[arg-type]
                rates[name] = short[0], long[0]
                result.rows.append(
                    (
                        name,
                        f"{short[0]:.0f}/s",
                        f"{short[1] * 1000:.2f} ms",
                        ms(percentile(alone[2], 0.5)),
                        ms(percentile(alone[2], 0.99)),
                        f"{long[0]:.1f}/s ({long[0] * LONG_TOKENS:.0f} tokens/s)",
                        f"{long[1] * 1000:.1f} ms",
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


GROUPS = (
    ("bedplate_gateway/schema", "gateway: checking and rebuilding the body"),
    ("bedplate_gateway/upstream", "gateway: calling the engine"),
    ("bedplate_gateway/transport", "gateway: calling the engine"),
    ("bedplate_gateway/server", "gateway: its HTTP protocol class"),
    ("bedplate_gateway/metrics", "gateway: metrics and journal"),
    ("bedplate_gateway/record", "gateway: metrics and journal"),
    ("prometheus_client", "gateway: metrics and journal"),
    ("/logging/", "gateway: metrics and journal"),
    ("bedplate_gateway/", "gateway: keys, limits, queue, the app"),
    ("uvicorn", "uvicorn and httptools"),
    ("httptools", "uvicorn and httptools"),
    ("aiohttp", "aiohttp, towards the engine"),
    ("yarl", "aiohttp, towards the engine"),
    ("multidict", "aiohttp, towards the engine"),
    ("/json/", "JSON"),
    ("_json", "JSON"),
    ("pydantic", "pydantic"),
    ("uvloop", "event loop and sockets"),
    ("asyncio", "event loop and sockets"),
    ("_asyncio", "event loop and sockets"),
)


def _group(file: str, function: str) -> str:
    where = file if file != "~" else function
    return next((name for part, name in GROUPS if part in where), "the rest (built-ins, standard library)")


async def run_profile(*, quick: bool) -> Result:
    """Run the gateway under Python's profiler with short answers and streams; it slows it down some 2 x."""
    result = Result(
        "Where the gateway's CPU time goes",
        "reported",
        ("part", "short answers", "streams"),
        notes=[
            "By Python's own profiler (time in the functions themselves), which weighs small Python "
            "functions too heavily."
        ],
    )
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for what, tokens, stream in (("short", SHORT_TOKENS, False), ("long", LONG_TOKENS, True)):
        say(f"profile of the gateway: {what}")
        with (
            tempfile.TemporaryDirectory() as folder,
            fake_engine(concurrency=SLOTS, tokens=LONG_TOKENS) as fake,
        ):
            file = Path(folder) / "profile"
            with gateway(
                [engine(fake.url, slots=SLOTS)], KEYS, python_options=["-m", "cProfile", "-o", str(file)]
            ) as server:
                await _drive(
                    server,
                    server.keys["any"],
                    "fake",
                    tokens=tokens,
                    stream=stream,
                    at_once=AT_ONCE,
                    duration=3.0 if quick else 10.0,
                )
            profile = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
        total: dict[str, float] = defaultdict(float)
        for (source, _, function), (_, _, own, _, _) in profile.items():
            # Waiting for the next event is no work; imports happen once.
            if "select.epoll" in function or "importlib" in source or "run_forever" in function:
                continue
            total[_group(source, function)] += own
        every = sum(total.values())
        for group, value in total.items():
            shares[group][what] = value / every
    for group, share in sorted(shares.items(), key=lambda entry: -max(entry[1].values())):
        result.rows.append((group, f"{share.get('short', 0):.0%}", f"{share.get('long', 0):.0%}"))
    return result
