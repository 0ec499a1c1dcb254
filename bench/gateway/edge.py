"""What the edge adds: HAProxy before the gateway, without and with TLS."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.gateway.load import percentile
from bench.gateway.report import Result, ms
from bench.gateway.throughput import AT_ONCE, KEYS, LONG_TOKENS, SHORT_TOKENS, SLOTS, drive
from tests.support.servers import Server, edge, engine, fake_engine, gateway, say

WAYS = ("gateway", "edge without TLS", "edge with TLS")


async def run(*, quick: bool) -> Result:
    """Measure short answers, one and 16 at a time, and streams of 300 chunks, by each way."""
    duration = 2.0 if quick else 10.0
    result = Result(
        "What the edge adds",
        "reported",
        (
            *("way", f"short answers, {AT_ONCE} at a time", "CPU of gateway and HAProxy each", "alone: p50"),
            *("p99", f"{LONG_TOKENS}-chunk streams, {AT_ONCE} at a time", "CPU each", "memory of HAProxy"),
        ),
        notes=[
            f"Short: {SHORT_TOKENS} tokens, not streamed, on kept connections. The fake engine answers "
            "at once. Load, gateway, HAProxy and engine share the machine's cores."
        ],
    )
    with fake_engine(concurrency=SLOTS, tokens=LONG_TOKENS) as fake:
        for way in WAYS:
            say(f"what the edge adds: {way}")
            with ExitStack() as stack:
                engines = [engine(fake.url, slots=SLOTS)]
                proxies: tuple[Server, ...] = ()
                if way == WAYS[0]:
                    server = ours = stack.enter_context(gateway(engines, KEYS))
                else:
                    path = (
                        Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))) / "http.sock"
                    )
                    ours = stack.enter_context(gateway(engines, KEYS, path))
                    server = stack.enter_context(edge(path, tls=way == WAYS[2]))
                    proxies = (ours,)
                key = ours.keys["any"]

                async def times(
                    tokens: int,
                    *,
                    stream: bool,
                    at_once: int,
                    server: Server = server,
                    key: str = key,
                    proxies: tuple[Server, ...] = proxies,
                ) -> tuple[float, float, list[float]]:
                    rate, used, latencies = await drive(
                        server,
                        key,
                        "fake",
                        tokens=tokens,
                        stream=stream,
                        at_once=at_once,
                        duration=duration,
                        others=proxies,
                    )
                    return rate, sum(used), latencies

                alone = await times(SHORT_TOKENS, stream=False, at_once=1)
                short = await times(SHORT_TOKENS, stream=False, at_once=AT_ONCE)
                long = await times(LONG_TOKENS, stream=True, at_once=AT_ONCE)
                result.rows.append(
                    (
                        way,
                        f"{short[0]:.0f}/s",
                        f"{short[1] * 1000:.2f} ms",
                        ms(percentile(alone[2], 0.5)),
                        ms(percentile(alone[2], 0.99)),
                        f"{long[0]:.1f}/s ({long[0] * LONG_TOKENS:.0f} tokens/s)",
                        f"{long[1] * 1000:.1f} ms",
                        f"{server.rss_mib():.0f} MiB" if proxies else "",
                    )
                )
    return result
