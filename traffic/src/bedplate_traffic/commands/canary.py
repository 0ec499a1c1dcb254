"""`traffic canary`: sends one tiny request, so that Prometheus knows whether a model answers.

A request renews the time for which an engine keeps a model loaded, and a request for a model that is not
loaded may evict another model. The canary therefore sends one only while the model is loaded, and only when
other clients were answered by it since the canary's last request: the model then stays loaded for at most one
such period longer than its users keep it.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bedplate_traffic.arguments import EXIT_OK, Parser, positive
from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.load.client import ChatRequest, Client, Exchange
from bedplate_traffic.load.endpoint import check_url, read_key_file

Result = Literal["answered", "failed", "not_loaded", "not_used"]
METRICS_SECONDS = 10.0
LOADED, REQUESTS = "bedplate_gateway_engine_loaded", "bedplate_gateway_requests_total"
PROMPT, MAX_TOKENS = "Say yes.", 1


@dataclass(frozen=True, kw_only=True)
class CanaryOptions:
    """The command line."""

    url: str
    metrics_url: str
    model: str
    alias: str
    """The alias of the canary's own key, whose requests are not other clients'."""
    key_file: Path
    state_file: Path
    textfile: Path
    timeout_seconds: float


@dataclass(frozen=True, kw_only=True)
class State:
    """What one run keeps for the next. Times are seconds, moments Unix time."""

    uses: float = 0.0
    """Answers to other clients, as the gateway had counted them at the last request."""
    failed: bool = False
    """Whether the last check failed: then the next one does not wait for other clients."""
    answered_at: float | None = None
    seconds: float | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True)
class ModelUse:
    """A model's state in the gateway's metrics."""

    loaded: bool
    uses: float
    """Answers to other clients since the gateway's process started."""


def parse(arguments: Sequence[str]) -> CanaryOptions:
    """Return the command's options; exits with a message where they are wrong."""
    parser = Parser(
        prog="traffic canary",
        description="Send one tiny request, if the model is loaded and other clients used it since the last.",
        epilog="Exit status: 0 there is a result, even if the request failed; 2 there is none.",
    )
    parser.add_argument("--url", required=True, metavar="U", help="the gateway's endpoint, ends with /v1")
    parser.add_argument("--metrics-url", required=True, metavar="U", help="the gateway's metrics")
    parser.add_argument("--model", required=True, metavar="M", help="model to check")
    parser.add_argument("--alias", default="canary", metavar="A", help="the key's alias (default: canary)")
    parser.add_argument("--key-file", type=Path, required=True, metavar="FILE", help="file with the key")
    parser.add_argument(
        "--state", type=Path, required=True, metavar="FILE", help="state kept between the runs"
    )
    parser.add_argument(
        "--textfile", type=Path, required=True, metavar="FILE", help="metrics for the node exporter; *.prom"
    )
    parser.add_argument(
        "--timeout", type=positive(float), default=60.0, metavar="S", help="seconds to wait (default: 60)"
    )
    values = parser.parse_args(arguments)
    return CanaryOptions(
        url=values.url,
        metrics_url=values.metrics_url,
        model=values.model,
        alias=values.alias,
        key_file=values.key_file,
        state_file=values.state,
        textfile=values.textfile,
        timeout_seconds=values.timeout,
    )


def run(options: CanaryOptions) -> int:
    """Check the model, write the metrics and the state, and return the exit status."""
    url = check_url(options.url, allow_public=False)
    key = read_key_file(options.key_file)
    result, state, message = asyncio.run(_check(url, key, options, _read_state(options.state_file)))
    try:
        write_to_textfile(str(options.textfile), _build_metrics(options.model, result, state))
        _write_state(options.state_file, state)
    except OSError as error:
        raise CannotStartError(f"{error.filename} cannot be written ({error.strerror}).") from None
    print(f"{options.model}: {message}")
    return EXIT_OK


async def _check(url: str, key: str, options: CanaryOptions, state: State) -> tuple[Result, State, str]:
    """Return the result, the next state, and a message for the journal."""
    try:
        timeout = ClientTimeout(total=METRICS_SECONDS)
        async with ClientSession(timeout=timeout) as session, session.get(options.metrics_url) as response:
            response.raise_for_status()
            text = await response.text()
        use = read_model_use(text_string_to_metric_families(text), options.model, options.alias)
    except (ClientError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"failed: {options.metrics_url} returns no metrics ({reason})"
        return "failed", replace(state, failed=True), message
    skipped = find_skip_reason(use, state)
    if skipped == "not_loaded":
        return skipped, replace(state, failed=False), "skipped: the model is not loaded"
    if skipped == "not_used":
        return skipped, state, "skipped: no other client has used the model since the last request"
    request = ChatRequest(options.model, PROMPT, MAX_TOKENS)
    async with Client(url, key, options.timeout_seconds) as client:
        exchange = await client.send(Exchange(request))
    if exchange.error is not None or exchange.ended is None or exchange.sent is None:
        return "failed", replace(state, uses=use.uses, failed=True), f"failed: {exchange.error}"
    seconds = exchange.ended - exchange.sent
    first = None if exchange.first_token is None else exchange.first_token - exchange.sent
    answered = State(uses=use.uses, answered_at=time.time(), seconds=seconds, first_token_seconds=first)
    return "answered", answered, f"answered in {seconds:.2f} s"


def find_skip_reason(use: ModelUse, state: State) -> Literal["not_loaded", "not_used"] | None:
    """Return why no request is sent, None where one is."""
    if not use.loaded:
        return "not_loaded"
    # A restarted gateway counts from 0: any other number than the kept one was caused by other clients.
    if not state.failed and use.uses in {0.0, state.uses}:
        return "not_used"
    return None


def read_model_use(families: Iterable[Metric], model: str, alias: str) -> ModelUse:
    """Return a model's state in the gateway's metrics; requests with the key `alias` are the canary's own."""
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
    return ModelUse(loaded, uses)


def _build_metrics(model: str, result: Result, state: State) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, description: str, value: float | None) -> None:
        if value is not None:
            Gauge(name, description, ["model"], registry=registry).labels(model).set(value)

    gauge("bedplate_traffic_canary_success", "0 if the last check of the model failed.", result != "failed")
    gauge("bedplate_traffic_canary_last_run_timestamp_seconds", "Unix time of the last check.", time.time())
    gauge(
        "bedplate_traffic_canary_last_answer_timestamp_seconds",
        "Unix time of the last answer.",
        state.answered_at,
    )
    gauge("bedplate_traffic_canary_seconds", "Duration of the last answered request.", state.seconds)
    gauge(
        "bedplate_traffic_canary_first_token_seconds",
        "Time to the first token of the last answered request.",
        state.first_token_seconds,
    )
    results = Gauge(
        "bedplate_traffic_canary_result",
        "1 for the result of the last check.",
        ["model", "result"],
        registry=registry,
    )
    for name in get_args(Result):
        results.labels(model, name).set(name == result)
    return registry


def _read_state(path: Path) -> State:
    """Return what the last run kept, the defaults where that cannot be read."""
    with suppress(OSError, ValueError, TypeError):
        return State(**orjson.loads(path.read_bytes()))
    return State()


def _write_state(path: Path, state: State) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(orjson.dumps(asdict(state)))
    new.replace(path)
