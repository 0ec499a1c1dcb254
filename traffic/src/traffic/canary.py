"""`traffic canary`: one tiny question now and then, so that Prometheus knows whether a model answers.

A question renews the time for which an engine keeps a model loaded, and one for a model that is not loaded
would push out another. So it asks only while the model is loaded, and only when somebody else was answered by
it since the last question: then the model stays for at most one such time longer than its users keep it.
"""

import argparse
import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from traffic.client import Client, Question, Reply
from traffic.options import EXIT_OK, Parser, positive
from traffic.target import CannotStartError, checked_key, checked_url

Result = Literal["answered", "failed", "not_loaded", "not_used"]
METRICS_SECONDS = 10.0
LOADED, REQUESTS = "bedplate_gateway_engine_loaded", "bedplate_gateway_requests_total"
PROMPT, MAX_TOKENS = "Say yes.", 1


@dataclass(frozen=True)
class State:
    """What is kept from one run to the next. Times are seconds, moments Unix time."""

    uses: float = 0.0
    """Answers to others, as the gateway had counted them at the last question."""
    failed: bool = False
    """Whether the last question failed: then it is asked again without waiting for others."""
    answered_at: float | None = None
    seconds: float | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True)
class Gateway:
    """What the gateway's metrics say about a model."""

    loaded: bool
    uses: float
    """Requests of others that were answered, since the gateway's process began."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="traffic canary",
        description="Ask one tiny question, if the model is loaded and others have used it since the last.",
        epilog="Exit status: 0 there is a result, also that the question failed; 2 there is none.",
    )
    parser.add_argument("--url", required=True, metavar="U", help="the gateway's endpoint, ends with /v1")
    parser.add_argument("--metrics-url", required=True, metavar="U", help="the gateway's metrics")
    parser.add_argument("--model", required=True, metavar="M", help="model to ask")
    parser.add_argument("--alias", default="canary", metavar="A", help="the key's alias (default: canary)")
    parser.add_argument("--key-file", type=Path, required=True, metavar="FILE", help="file with the key")
    parser.add_argument("--state", type=Path, required=True, metavar="FILE", help="kept between the runs")
    parser.add_argument(
        "--textfile", type=Path, required=True, metavar="FILE", help="metrics for the node exporter; *.prom"
    )
    parser.add_argument(
        "--timeout", type=positive(float), default=60.0, metavar="S", help="seconds to wait (default: 60)"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Look, perhaps ask, write the metrics, and return the exit status."""
    url = checked_url(options.url, allow_public=False)
    try:
        key = checked_key(options.key_file.read_text(encoding="utf-8").strip(), str(options.key_file))
    except OSError as error:
        raise CannotStartError(f"The key {options.key_file} cannot be read ({error.strerror}).") from None
    result, state, words = asyncio.run(_look(url, key, options, _kept(options.state)))
    try:
        write_to_textfile(str(options.textfile), _metrics(options.model, result, state))
        _keep(options.state, state)
    except OSError as error:
        raise CannotStartError(f"{error.filename} cannot be written ({error.strerror}).") from None
    print(f"{options.model}: {words}")
    return EXIT_OK


async def _look(url: str, key: str, options: argparse.Namespace, state: State) -> tuple[Result, State, str]:
    """Return the result, what is to be kept, and a line for the journal."""
    try:
        timeout = ClientTimeout(total=METRICS_SECONDS)
        async with ClientSession(timeout=timeout) as session, session.get(options.metrics_url) as response:
            response.raise_for_status()
            text = await response.text()
        gateway = read(text_string_to_metric_families(text), options.model, options.alias)
    except (ClientError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        words = f"failed, {options.metrics_url} says nothing ({reason})"
        return "failed", replace(state, failed=True), words
    reason_not_to = not_asked(gateway, state)
    if reason_not_to == "not_loaded":
        return reason_not_to, replace(state, failed=False), "not loaded, not asked"
    if reason_not_to == "not_used":
        return reason_not_to, state, "not used by others since the last question, not asked"
    async with Client(url, key, options.timeout) as client:
        reply = await client.ask(Reply(Question(options.model, PROMPT, MAX_TOKENS)))
    if reply.error is not None or reply.ended is None or reply.sent is None:
        return "failed", replace(state, uses=gateway.uses, failed=True), f"failed, {reply.error}"
    seconds = reply.ended - reply.sent
    first = None if reply.first_token is None else reply.first_token - reply.sent
    kept = State(gateway.uses, False, time.time(), seconds, first)
    return "answered", kept, f"answered in {seconds:.2f} s"


def not_asked(gateway: Gateway, state: State) -> Literal["not_loaded", "not_used"] | None:
    """Say why the question is not asked, None where it is."""
    if not gateway.loaded:
        return "not_loaded"
    # A gateway that was started anew counts from 0: any other number than the kept one was made by others.
    if not state.failed and gateway.uses in {0.0, state.uses}:
        return "not_used"
    return None


def read(families: Iterable[Metric], model: str, alias: str) -> Gateway:
    """Return what the gateway's metrics say about `model`; requests with the key `alias` are our own."""
    loaded, uses = False, 0.0
    for family in families:
        for sample in family.samples:
            labels = sample.labels
            if labels.get("model") != model:
                continue
            if sample.name == LOADED:
                loaded = loaded or sample.value == 1
            elif sample.name == REQUESTS:
                counts = labels.get("status") == "200" and labels.get("alias") != alias
                uses += sample.value if counts else 0.0
    return Gateway(loaded, uses)


def _metrics(model: str, result: Result, state: State) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, words: str, value: float | None) -> None:
        if value is not None:
            Gauge(name, words, ["model"], registry=registry).labels(model).set(value)

    gauge("bedplate_traffic_canary_success", "0 if the last look at the model failed.", result != "failed")
    gauge("bedplate_traffic_canary_last_run_timestamp_seconds", "When it last looked.", time.time())
    gauge(
        "bedplate_traffic_canary_last_answer_timestamp_seconds",
        "When it was last answered.",
        state.answered_at,
    )
    gauge("bedplate_traffic_canary_seconds", "Time of its last answer.", state.seconds)
    gauge(
        "bedplate_traffic_canary_first_token_seconds",
        "Time to the first token of its last answer.",
        state.first_token_seconds,
    )
    results = Gauge(
        "bedplate_traffic_canary_result",
        "1 for what the last look gave.",
        ["model", "result"],
        registry=registry,
    )
    for name in get_args(Result):
        results.labels(model, name).set(name == result)
    return registry


def _kept(path: Path) -> State:
    """Return what the last run kept; nothing where that cannot be read."""
    with suppress(OSError, ValueError, TypeError):
        return State(**orjson.loads(path.read_bytes()))
    return State()


def _keep(path: Path, state: State) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(orjson.dumps(asdict(state)))
    new.replace(path)
