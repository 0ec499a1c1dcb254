"""What LiteLLM costs: LiteLLM alone, the gateway through LiteLLM, and the gateway's direct lane."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

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


async def _run(
    engine_url: str, model: str, *, slots: int, at_once: int, long_tokens: int, seconds: float, result: Result
) -> None:
    rates: dict[str, tuple[float, float]] = {}
    for name in LANES:
        say(f"lanes: {name}")
        with setup(name, engine_url, model, slots) as lane:
            measure = partial(drive, lane.server, lane.key, lane.model, duration=seconds, others=lane.behind)
            alone = (await measure(tokens=SHORT_TOKENS, stream=False, at_once=1))[2]
            short, cpu, _ = await measure(tokens=SHORT_TOKENS, stream=False, at_once=at_once)
            long, stream_cpu, _ = await measure(tokens=long_tokens, stream=True, at_once=at_once)
            rates[name] = short, long
            result.rows.append(
                (
                    name,
                    f"{short:.1f}/s",
                    " + ".join(f"{each * 1000:.2f} ms" for each in cpu),
                    ms(percentile(alone, 0.5)),
                    ms(percentile(alone, 0.99)),
                    f"{long:.1f}/s ({long * long_tokens:.0f} tokens/s)",
                    " + ".join(f"{each * 1000 / long_tokens:.3f} ms" for each in stream_cpu),
                    " + ".join(f"{each.rss_mib():.0f} MiB" for each in (lane.server, *lane.behind)),
                )
            )
    shares = [ours / alone for ours, alone in zip(rates[LANES[1]], rates[LANES[0]], strict=True)]
    result.ok = min(shares) >= AIM
    result.notes.append(
        f"Through LiteLLM the gateway does {shares[0]:.2f} x the short answers and {shares[1]:.2f} x the "
        "streams of LiteLLM alone. A sum is of the gateway and LiteLLM."
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
            seconds=2.0 if quick else 10.0,
            result=result,
        )
    return result


async def run_real(*, quick: bool) -> Result:
    """Compare the lanes on the real engine."""
    result = _result("What LiteLLM costs on the real engine", 2, "Streams have 64 tokens.")
    with real_engine(2) as url:
        await _run(
            url, REAL_MODEL, slots=2, at_once=2, long_tokens=64, seconds=5.0 if quick else 20.0, result=result
        )
    return result
