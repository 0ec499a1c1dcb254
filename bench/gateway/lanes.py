"""What LiteLLM costs: LiteLLM alone, the gateway through LiteLLM, and the gateway's direct lane."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from bench.gateway.load import percentile
from bench.gateway.report import Result, ms
from bench.gateway.throughput import AT_ONCE, LONG_TOKENS, SHORT_TOKENS, SLOTS, drive
from tests.support.servers import (
    REAL_MODEL,
    STOCK_KEY,
    Server,
    engine,
    fake_engine,
    gateway,
    litellm,
    real_engine,
    say,
)

KEYS = [{"alias": "any", "rpm": 900_000, "tpm": 900_000_000}]
LANES = ("LiteLLM alone", "gateway through LiteLLM", "gateway, direct lane")
AIM = 0.95
ROUNDS = 3
COLUMNS = ("short answers", "CPU each", "alone: p50", "p99", "streams", "CPU a token", "memory")


@dataclass(frozen=True)
class Setup:
    """The server that gets a lane's requests, its key and model, and what works behind it."""

    server: Server
    key: str
    model: str
    behind: tuple[Server, ...] = ()


@contextmanager
def setup(lane: str, engine_url: str, model: str, slots: int) -> Iterator[Setup]:
    """Start what a lane needs."""
    with ExitStack() as stack:
        if lane == LANES[2]:
            ours = stack.enter_context(gateway([engine(engine_url, model, slots)], KEYS))
            yield Setup(ours, ours.keys["any"], model)
            return
        proxy = stack.enter_context(litellm(engine_url, model))
        if lane == LANES[0]:
            yield Setup(proxy, STOCK_KEY, f"one/{model}")
            return
        through = {"url": proxy.url, "key_file": str(proxy.key_file)}
        ours = stack.enter_context(gateway([engine(engine_url, model, slots)], KEYS, litellm=through))
        yield Setup(ours, ours.keys["any"], model, (proxy,))


@dataclass
class Measured:
    """The rounds of one lane: requests a second, CPU seconds a request of each server, seconds alone."""

    alone: list[float] = field(default_factory=list)
    short: list[float] = field(default_factory=list)
    short_cpu: list[list[float]] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    long_cpu: list[list[float]] = field(default_factory=list)


def _cpu(rounds: list[list[float]], tokens: int, digits: int) -> str:
    return " + ".join(
        f"{median(server) * 1000 / tokens:.{digits}f} ms" for server in zip(*rounds, strict=True)
    )


def _row(name: str, lane: Setup, measured: Measured, long_tokens: int) -> tuple[str, ...]:
    long = median(measured.long)
    return (
        name,
        f"{median(measured.short):.1f}/s",
        _cpu(measured.short_cpu, 1, 2),
        ms(percentile(measured.alone, 0.5)),
        ms(percentile(measured.alone, 0.99)),
        f"{long:.1f}/s ({long * long_tokens:.0f} tokens/s)",
        _cpu(measured.long_cpu, long_tokens, 3),
        " + ".join(f"{each.rss_mib():.0f} MiB" for each in (lane.server, *lane.behind)),
    )


async def _run(
    engine_url: str, model: str, *, slots: int, at_once: int, long_tokens: int, seconds: float, result: Result
) -> None:
    found = {name: Measured() for name in LANES}
    with ExitStack() as stack:
        lanes = {name: stack.enter_context(setup(name, engine_url, model, slots)) for name in LANES}
        # In turns, because the speed of a shared machine changes within minutes.
        for number in range(ROUNDS):
            for name, lane in lanes.items():
                say(f"lanes: {name}, round {number + 1}")
                one = found[name]
                measure = partial(
                    drive, lane.server, lane.key, lane.model, duration=seconds, others=lane.behind
                )
                one.alone += (await measure(tokens=SHORT_TOKENS, stream=False, at_once=1))[2]
                short, cpu, _ = await measure(tokens=SHORT_TOKENS, stream=False, at_once=at_once)
                one.short.append(short)
                one.short_cpu.append(cpu)
                long, cpu, _ = await measure(tokens=long_tokens, stream=True, at_once=at_once)
                one.long.append(long)
                one.long_cpu.append(cpu)
        result.rows += [_row(name, lanes[name], found[name], long_tokens) for name in LANES]
    alone, through = found[LANES[0]], found[LANES[1]]
    shares = [
        median(ours / theirs for ours, theirs in zip(*pairs, strict=True))
        for pairs in ((through.short, alone.short), (through.long, alone.long))
    ]
    result.ok = min(shares) >= AIM
    result.notes.append(
        f"Median of {ROUNDS} rounds, in which the lanes take turns. Through LiteLLM the gateway does "
        f"{shares[0]:.2f} x the short answers and {shares[1]:.2f} x the streams of LiteLLM alone in the same "
        "round. A sum is of the gateway and LiteLLM."
    )


def _result(title: str, at_once: int, note: str) -> Result:
    return Result(
        title,
        f"through LiteLLM at least {AIM} x LiteLLM alone",
        ("lane", *COLUMNS),
        notes=[
            f"{at_once} requests at a time; short answers have {SHORT_TOKENS} tokens. {note} "
            "LiteLLM is that of requirements/litellm.txt."
        ],
    )


async def run(*, quick: bool) -> Result:
    """Compare the lanes on the fake engine, which answers at once."""
    result = _result("What LiteLLM costs", AT_ONCE, f"Streams have {LONG_TOKENS} tokens.")
    with fake_engine(concurrency=SLOTS, tokens=LONG_TOKENS) as fake:
        await _run(
            fake.url,
            "fake",
            slots=SLOTS,
            at_once=AT_ONCE,
            long_tokens=LONG_TOKENS,
            seconds=1.0 if quick else 4.0,
            result=result,
        )
    return result


async def run_real(*, quick: bool) -> Result:
    """Compare the lanes on the real engine."""
    result = _result("What LiteLLM costs on the real engine", 2, "Streams have 64 tokens.")
    with real_engine(2) as url:
        await _run(
            url, REAL_MODEL, slots=2, at_once=2, long_tokens=64, seconds=2.0 if quick else 8.0, result=result
        )
    return result
