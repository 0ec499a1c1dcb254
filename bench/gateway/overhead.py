"""What admission adds: in the process against an app that does nothing, and end to end on a real engine."""

import json
import random
import subprocess
from pathlib import Path

from bench.gateway.load import ask, percentile, session
from bench.gateway.report import Result, ms
from tests.support.servers import (
    REAL_MODEL,
    STOCK_KEY,
    Server,
    engine,
    environment,
    gateway,
    real_engine,
    say,
    stock,
)

KEYS = [{"alias": "any", "rpm": 900_000, "tpm": 900_000_000}]


def _p99(values: list[tuple[float, float]]) -> float:
    return percentile([wall for wall, _ in values], 0.99)


async def run(*, quick: bool) -> Result:
    """Time the app itself, one call after the other."""
    count = 1000 if quick else 8000
    result = Result(
        "What admission adds, in the process",
        "p50 under 0.2 ms, p99 under 0.5 ms more than a no-op ASGI app",
        ("app", "p50", "p99", "p99.9", "more than the no-op app: p50", "p99", "CPU time p50", "p99"),
        notes=[
            f"{count:,} calls each, one after the other, the quietest of five rounds: key, body, limits with "
            "their usage log on disk, queue, slot, headers, metrics and journal line; a stub is the engine."
        ],
    )
    say("what admission adds in the process")
    done = subprocess.run(
        [environment("gateway"), Path(__file__).with_name("in_process.py"), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rounds: dict[str, list[list[tuple[float, float]]]] = json.loads(done.stdout)
    times = {name: min(each, key=_p99) for name, each in rounds.items()}
    base = {share: percentile([wall for wall, _ in times["no-op app"]], share) for share in (0.5, 0.99)}
    for name, values in times.items():
        wall = [one for one, _ in values]
        cpu = [one for _, one in values]
        p50, p99, p999 = (percentile(wall, share) for share in (0.5, 0.99, 0.999))
        more = (p50 - base[0.5], p99 - base[0.99])
        spent = (percentile(cpu, 0.5), percentile(cpu, 0.99))
        result.rows.append((name, *(f"{value * 1000:.3f} ms" for value in (p50, p99, p999, *more, *spent))))
        if name == "gateway":
            result.ok = more[0] < 0.0002 and more[1] < 0.0005
    return result


async def run_real(*, quick: bool) -> Result:
    """Ask the real engine by every way in turn, so that its moods meet all of them alike."""
    count = 20 if quick else 60
    result = Result(
        "What the way adds, end to end on the real engine",
        "reported",
        ("way", "first token p50", "p95", "whole answer p50", "p95", "more than the engine itself, p50"),
        notes=[f"{count} streamed answers of 8 tokens each way, one at a time, the ways in turn."],
    )
    say("end to end on the real engine")
    with (
        real_engine(2) as url,
        gateway([engine(url, REAL_MODEL, 2)], KEYS) as ours,
        stock(url, REAL_MODEL) as theirs,
    ):
        ways = {
            "engine itself": (Server(url), "", REAL_MODEL),
            "gateway": (ours, ours.keys["any"], REAL_MODEL),
            "stock openai/": (theirs, STOCK_KEY, "openai"),
            "stock ollama_chat/": (theirs, STOCK_KEY, "ollama_chat"),
        }
        first: dict[str, list[float]] = {name: [] for name in ways}
        whole: dict[str, list[float]] = {name: [] for name in ways}
        chance = random.Random(5)  # noqa: S311 - no secret
        async with session() as client:
            for turn in range(count + 2):
                for name in chance.sample(list(ways), len(ways)):
                    server, key, model = ways[name]
                    answer = await ask(
                        client, server.url, key, model, "Say hello.", stream=True, max_tokens=8, temperature=0
                    )
                    # The first two turns warm everybody up.
                    if turn >= 2 and answer.status == 200 and answer.first:
                        first[name].append(answer.first - answer.sent)
                        whole[name].append(answer.seconds)
    base = percentile(whole["engine itself"], 0.5)
    for name in ways:
        values = [percentile(found[name], share) for found in (first, whole) for share in (0.5, 0.95)]
        result.rows.append((name, *map(ms, values), ms(values[2] - base)))
    return result
