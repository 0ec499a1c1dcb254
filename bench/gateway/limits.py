"""Whether limits are exact: requests a minute at the worst moments, and tokens a minute, streamed and not."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp

from bench.gateway.load import Answer, ask, most_in_window, session
from bench.gateway.report import Result
from tests.support.servers import (
    LANES,
    STOCK_KEY,
    fake_engine,
    gateway_in_lane,
    say,
    stock,
)

RPM = 100
TPM = 1000
PARALLEL = 4
ANSWER_TOKENS = 50
ENFORCED = {"optional_pre_call_checks": ["enforce_model_rate_limits"], "num_retries": 0}
# A request's way to the counter takes a moment, so that two that pass a minute apart can come a bit closer.
JITTER = 0.1


def _passed(answers: Iterable[Answer]) -> list[float]:
    return [answer.sent for answer in answers if answer.status == 200]


async def _evenly(
    client: aiohttp.ClientSession, url: str, key: str, model: str, *, count: int, duration: float
) -> list[Answer]:
    start = time.monotonic()

    async def later(number: int) -> Answer:
        await asyncio.sleep(start + number * duration / count - time.monotonic())
        return await ask(client, url, key, model, "even", max_tokens=1)

    return await asyncio.gather(*[later(number) for number in range(count)])


async def _burst(client: aiohttp.ClientSession, url: str, key: str, model: str) -> list[Answer]:
    return await asyncio.gather(*[ask(client, url, key, model, "edge", max_tokens=1) for _ in range(RPM)])


@dataclass(frozen=True)
class Edge:
    """What became of 100 at second 59 of a minute, 100 at second 61, one after Retry-After, 100 more."""

    first: list[Answer]
    second: list[Answer]
    retry_after: int | None
    """The shortest Retry-After of the second hundred, in seconds: the boldest promise."""
    after_wait: Answer | None
    third: list[Answer]

    def passed(self) -> list[float]:
        """Return when those that passed were sent."""
        return _passed([*self.first, *self.second, *filter(None, [self.after_wait]), *self.third])

    def wait_words(self) -> str:
        """Return what the wait was and whether it was enough."""
        return f"{self.retry_after} s, then {self.after_wait.status}" if self.after_wait else "none"


async def _around_the_minute(client: aiohttp.ClientSession, url: str, key: str, model: str) -> Edge:
    await asyncio.sleep((59 - time.time()) % 60)
    start = time.monotonic()
    first = await _burst(client, url, key, model)
    await asyncio.sleep(start + 2 - time.monotonic())
    second = await _burst(client, url, key, model)
    waits = [int(value) for answer in second if (value := answer.headers.get("retry-after"))]
    again = None
    if waits:
        await asyncio.sleep(min(waits))
        again = await ask(client, url, key, model, "again", max_tokens=1)
    # By now the whole first burst has left the window.
    await asyncio.sleep(max(0.0, start + 61 - time.monotonic()))
    third = await _burst(client, url, key, model)
    return Edge(first, second, min(waits, default=None), again, third)


async def run_rpm(*, quick: bool) -> Result:
    """Measure a limit of 100 requests a minute; the quick form leaves out three minutes of steady load."""
    result = Result(
        "Requests a minute",
        f"exactly {RPM}, never more than {RPM} in any 60 s, a Retry-After that is enough",
        (
            *("system", "150 in a minute", "most in any 60 s of 3 minutes at 150 a minute, passed of 450"),
            *(
                "100 at second 59, 100 at second 61, 100 a minute after the first",
                "most in any 60 s",
                "one more after Retry-After",
            ),
        ),
        notes=[
            "Stock LiteLLM: `rpm: 100` with `enforce_model_rate_limits`, its own limit for a model without a "
            "database; its refusals carry no Retry-After. The one more takes a place of the last hundred."
        ],
    )
    keys = [{"alias": name, "rpm": RPM} for name in ("minute", "edge", "steady")]
    with (
        fake_engine(concurrency=64) as fake,
        gateway_in_lane(LANES[0], fake.url, keys, slots=64) as through,
        gateway_in_lane(LANES[1], fake.url, keys, slots=64) as direct,
        stock(fake.url, model_info={"rpm": RPM}, router=ENFORCED) as theirs,
    ):
        say("requests a minute: six minutes, quick two")
        async with session() as client:
            systems = [
                (LANES[0], through.url, through.keys, ("fake", "fake")),
                (LANES[1], direct.url, direct.keys, ("fake", "fake")),
                ("stock LiteLLM", theirs.url, {}, ("openai", "ollama_chat")),
            ]

            async def measure(name: str, url: str, known: dict[str, str], models: tuple[str, str]) -> None:
                def key(alias: str) -> str:
                    return known.get(alias, STOCK_KEY)

                minute, edge = await asyncio.gather(
                    _evenly(client, url, key("minute"), models[0], count=150, duration=55.0),
                    _around_the_minute(client, url, key("edge"), models[1]),
                )
                steady: list[Answer] = []
                if not quick:
                    # Stock counts by model: let its minute end first.
                    await asyncio.sleep(0 if known else 61)
                    steady = await _evenly(client, url, key("steady"), models[0], count=450, duration=180.0)
                bursts = [len(_passed(answers)) for answers in (edge.first, edge.second, edge.third)]
                most = most_in_window(edge.passed(), 60 - JITTER)
                most_steady = most_in_window(_passed(steady), 60 - JITTER)
                result.rows.append(
                    (
                        name,
                        str(len(_passed(minute))),
                        f"{most_steady}, {len(_passed(steady))}" if steady else "left out",
                        ", ".join(map(str, bursts)),
                        str(most),
                        edge.wait_words(),
                    )
                )
                if known:
                    result.ok = (
                        result.ok is not False
                        and len(_passed(minute)) == RPM
                        and bursts == [RPM, 0, RPM - 1]
                        and most == RPM
                        and edge.wait_words().endswith("then 200")
                        and (quick or (most_steady == RPM and len(_passed(steady)) >= 3 * RPM))
                    )

            await asyncio.gather(*[measure(*system) for system in systems])
    result.rows.sort()
    return result


def _most_tokens(answers: Iterable[Answer], window: float) -> int:
    ordered = sorted((answer for answer in answers if answer.tokens), key=lambda one: one.ended)
    most = start = total = 0
    for end in ordered:
        total += end.tokens
        while end.ended - ordered[start].ended >= window:
            total -= ordered[start].tokens
            start += 1
        most = max(most, total)
    return most


async def run_tpm(*, quick: bool) -> Result:
    """Measure a limit of 1,000 tokens a minute under eight clients that never give up."""
    duration = 20.0 if quick else 130.0
    service = 0.5
    answer = ANSWER_TOKENS + 3
    bound = TPM + PARALLEL * answer
    result = Result(
        "Tokens a minute",
        f"at most {TPM} and the answers in flight: {TPM} + {PARALLEL} x {answer} = {bound}",
        ("system", "answers", "most tokens in any 60 s", "over the limit", "answered", "refused"),
        ok=True,
        notes=[
            f"Eight clients for {duration:.0f} s, {answer} tokens an answer, {service} s each, "
            f"`max_parallel` {PARALLEL} on the gateway's keys. Who is refused asks again after a second. "
            "Stock LiteLLM: `tpm: 1000` with `enforce_model_rate_limits`."
        ],
    )
    keys = [{"alias": name, "tpm": TPM, "max_parallel": PARALLEL} for name in ("plain", "streamed")]
    with (
        fake_engine(concurrency=64, tokens=ANSWER_TOKENS, seconds_per_token=service / ANSWER_TOKENS) as fake,
        gateway_in_lane(LANES[0], fake.url, keys, slots=64) as through,
        gateway_in_lane(LANES[1], fake.url, keys, slots=64) as direct,
        stock(fake.url, model_info={"tpm": TPM}, router=ENFORCED) as theirs,
    ):
        say(f"tokens a minute: {duration:.0f} s")
        async with session() as client:

            async def measure(name: str, url: str, key: str, model: str, stream: bool) -> None:
                end = time.monotonic() + duration
                answers: list[Answer] = []

                async def one() -> None:
                    while time.monotonic() < end:
                        answers.append(await ask(client, url, key, model, "one two three", stream=stream))
                        if answers[-1].status != 200:
                            await asyncio.sleep(1)

                await asyncio.gather(*[one() for _ in range(8)])
                # Tokens are charged while they flow: an answer ends up to its length later than its charge.
                most = _most_tokens(answers, 60 - 2 * service)
                refused = [one for one in answers if one.status == 429]
                result.rows.append(
                    (
                        name,
                        "streamed" if stream else "not streamed",
                        str(most),
                        str(max(0, most - TPM)),
                        str(len([one for one in answers if one.status == 200])),
                        str(len(refused)),
                    )
                )
                if name in LANES:
                    result.ok = bool(result.ok and TPM <= most <= bound and refused)

            await asyncio.gather(
                *[
                    measure(lane, server.url, server.keys[alias], "fake", alias == "streamed")
                    for lane, server in zip(LANES, (through, direct), strict=True)
                    for alias in ("plain", "streamed")
                ],
                *[
                    measure(f"stock {way}/", theirs.url, STOCK_KEY, way, stream)
                    # A way's tokens count together, so each way has one kind of answer.
                    for way, stream in (("openai", False), ("ollama_chat", True))
                ],
            )
    result.rows.sort()
    return result
