"""Whether clients can make the metrics grow: bad keys, models, paths, methods, agents and users."""

import asyncio
import random
import re
from collections.abc import Iterable

import aiohttp

from bench.gateway.load import session
from bench.gateway.report import Result
from tests.support.servers import (
    LANES,
    STOCK_KEY,
    Server,
    fake_engine,
    gateway_in_lane,
    get,
    say,
    stock,
)

KEYS = [{"alias": "any"}]
MODEL = "fake"


def scrape(urls: Iterable[str]) -> str:
    """Return what Prometheus would read from these URLs."""
    return "\n".join(get(url, STOCK_KEY)[1] for url in urls)


def series(text: str) -> set[str]:
    """Return the names and labels of all series of a scrape."""
    found = {line.rpartition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}
    return {re.sub(r'le="[^"]*",?', "", line) if "_bucket" in line else line for line in found}


async def _hostile(url: str, key: str, model: str, count: int) -> None:
    chance = random.Random(3)  # noqa: S311 - no secret

    def word() -> str:
        return "".join(chance.choices("abcdefghij0123456789{}\\'äß-", k=12)).encode().decode("latin-1")

    async with session() as client:
        gate = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            headers = {"User-Agent": f"agent-{word()}", "X-Forwarded-For": f"192.0.2.{number % 250}"}
            secret, path, method = key, "/v1/chat/completions", "POST"
            kind = number % 6
            if kind == 0:
                secret = f"sk-{number}-{chance.random()}"
            elif kind == 1:
                body["model"] = word()
            elif kind == 2:
                path = f"/v1/{chance.randrange(10**9)}/{number}"
            elif kind == 3:
                method = f"M{chance.randrange(10**6)}"
            elif kind == 4:
                body["user"] = word()
                body["metadata"] = {word(): word()}
            else:
                body["max_tokens"] = -1
            async with gate:
                try:
                    async with client.request(
                        method,
                        url + path,
                        json=body,
                        headers=headers | {"Authorization": f"Bearer {secret}"},
                    ) as response:
                        await response.read()
                except aiohttp.ClientError:
                    pass

        await asyncio.gather(*[one(number) for number in range(count)])


async def run(*, quick: bool) -> Result:
    """Count series before and after; one of each kind is sent before the first count."""
    result = Result(
        "Hostile labels",
        "series unchanged but for a known few",
        ("system", "requests", "series before", "after", "size of a scrape before", "after"),
        notes=[
            "A histogram's buckets count as one series. Six kinds in turn: keys, models, paths, methods, "
            "users, bad values."
        ],
    )
    for name in (*LANES, "stock LiteLLM"):
        count = 10_000 if name == LANES[1] and not quick else 1200
        say(f"hostile labels: {name}, {count} requests")
        with fake_engine(concurrency=64) as fake:
            if name in LANES:
                with gateway_in_lane(name, fake.url, KEYS, slots=64) as server:
                    row, new = await _count(name, server, server.keys["any"], MODEL, count)
                result.ok = result.ok is not False and not new
                if new:
                    result.notes.append(f"New: {', '.join(sorted(new)[:10])}.")
            else:
                with stock(fake.url, prometheus=True) as server:
                    row, _ = await _count(name, server, STOCK_KEY, "openai", count)
        result.rows.append(row)
    return result


async def _count(
    name: str, server: Server, key: str, model: str, count: int
) -> tuple[tuple[str, ...], set[str]]:
    urls = [server.metrics_url]
    if name == LANES[0]:
        # The gateway also shows LiteLLM's own metrics.
        urls.append(f"{server.metrics_url}/litellm")
    await _hostile(server.url, key, model, 12)
    await asyncio.sleep(2)
    small = scrape(urls)
    await _hostile(server.url, key, model, count)
    await asyncio.sleep(2)
    large = scrape(urls)
    before, after = series(small), series(large)
    row = (
        name,
        f"{count:,}",
        *map(str, (len(before), len(after))),
        f"{len(small):,} bytes",
        f"{len(large):,} bytes",
    )
    return row, after - before
