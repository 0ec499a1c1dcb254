"""An hour of mixed load through LiteLLM: does memory stay where it is."""

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from bench.gateway.load import ask, percentile, session
from bench.gateway.report import Result
from tests.support.servers import engine, fake_engine, gateway, get, litellm, say

KEYS: list[dict[str, Any]] = [
    {"alias": "high", "class": "high"},
    {"alias": "normal", "rpm": 300, "tpm": 20_000, "max_parallel": 4},
    {"alias": "low", "class": "low", "max_parallel": 3},
    {"alias": "expired", "expires": "2020-01-01T00:00:00Z"},
]
A_SECOND = 12.0
FLAT_MIB = 3.0


async def run(*, quick: bool) -> Result:
    """Send what clients send, invalid requests included, and sample the process every ten seconds."""
    duration = 60.0 if quick else 3600.0
    result = Result(
        "Mixed load for an hour" if not quick else "Mixed load for a minute",
        f"flat memory: the last quarter's medians at most {FLAT_MIB:.0f} MiB over the second quarter's",
        ("minutes", "gateway, median", "most", "LiteLLM, median", "most", "series", "scrape"),
    )
    chance = random.Random(4)  # noqa: S311 - no secret
    statuses: Counter[int | str] = Counter()
    samples: list[tuple[float, float, float]] = []
    scrapes: list[tuple[float, int, int]] = []
    faults = ["error=0.02", "cut=0.01", "garbage=0.01", "stall=0.002"]
    with (
        fake_engine(
            concurrency=8, prompt_seconds=0.05, seconds_per_token=0.005, tokens=40, fault=faults
        ) as fake,
        litellm(fake.url) as proxy,
        gateway(
            [engine(fake.url, slots=8)],
            KEYS,
            first_byte_seconds=10,
            litellm={"url": proxy.url, "key_file": str(proxy.key_file)},
        ) as server,
    ):
        start = time.monotonic()
        async with session() as client:

            async def one(number: int) -> None:
                alias = chance.choices(["high", "normal", "low", "expired", "wrong"], [2, 5, 5, 0.3, 0.3])[0]
                path = chance.choices(
                    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"],
                    [8, 1, 1, 1],
                )[0]
                text = "word " * chance.choice([3, 30, 300, 6000 if number % 50 == 0 else 3])
                fields = {"prompt": text} if path == "/v1/completions" else {"input": text}
                with suppress(TimeoutError):
                    async with asyncio.timeout(chance.uniform(0.05, 1.0) if chance.random() < 0.1 else 60):
                        answer = await ask(
                            client,
                            server.url,
                            server.keys.get(alias, "sk-wrong"),
                            chance.choices(["fake", f"bogus-{number}"], [30, 1])[0],
                            text,
                            stream=chance.random() < 0.5 and path != "/v1/embeddings",
                            path=path,
                            **fields,
                        )
                        statuses[answer.status] += 1
                        return
                statuses["left"] += 1

            running: set[asyncio.Task[None]] = set()
            number = 0
            next_sample = start
            while (now := time.monotonic()) - start < duration:
                task = asyncio.create_task(one(number))
                running.add(task)
                task.add_done_callback(running.discard)
                number += 1
                if now >= next_sample:
                    samples.append((now - start, server.rss_mib(), proxy.rss_mib()))
                    text = await asyncio.to_thread(get, server.metrics_url)
                    scrapes.append((now - start, text[1].count("\n"), len(text[1])))
                    if len(samples) % 30 == 1:
                        at, mine, its = samples[-1]
                        say(f"soak: {at / 60:.0f} min, {mine:.1f} + {its:.1f} MiB, {dict(statuses)}")
                    next_sample += 10 if not quick else 2
                await asyncio.sleep(max(0.0, start + number / A_SECOND - time.monotonic()))
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    quarter = duration / 4
    medians: list[tuple[float, float]] = []
    for part in range(4):
        inside = [sample for sample in samples if part * quarter <= sample[0] < (part + 1) * quarter]
        ours, litellms = [sample[1] for sample in inside], [sample[2] for sample in inside]
        inside_scrapes = [scrape for scrape in scrapes if part * quarter <= scrape[0] < (part + 1) * quarter]
        medians.append((percentile(ours, 0.5), percentile(litellms, 0.5)))
        result.rows.append(
            (
                f"{part * quarter / 60:.0f} to {(part + 1) * quarter / 60:.0f}",
                f"{medians[-1][0]:.1f} MiB",
                f"{max(ours):.1f} MiB",
                f"{medians[-1][1]:.1f} MiB",
                f"{max(litellms):.1f} MiB",
                str(inside_scrapes[-1][1]),
                f"{inside_scrapes[-1][2]:,} bytes",
            )
        )
    result.ok = all(last - second <= FLAT_MIB for second, last in zip(medians[1], medians[3], strict=True))
    by_status = ", ".join(
        f"{count:,} x {status}" for status, count in sorted(statuses.items(), key=lambda one: -one[1])
    )
    result.notes.append(
        f"{number:,} requests, {A_SECOND:.0f} a second, on four paths, streams and not, from five keys (one "
        "expired, one wrong), with bogus models, prompts over the context, one in ten leaving early, and an "
        f"engine that fails ({', '.join(faults)}). "
        f"Answers: {by_status} (0: the connection broke)."
    )
    return result
