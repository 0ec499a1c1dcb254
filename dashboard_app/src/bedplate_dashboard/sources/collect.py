"""Poll every part of the stack once, in parallel, each with a deadline.

Nothing here judges: an `Observation` holds what each part answered, and `health` decides what that means.
"""

import asyncio
import errno
import math
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlencode

import httpx
from pydantic import BaseModel, ValidationError

from bedplate_dashboard.settings import VERSION, InferenceHost, NodeExporter, Settings
from bedplate_dashboard.sources import prometheus_text
from bedplate_dashboard.sources.metric_names import (
    GATEWAY_METRICS,
    LITELLM_METRICS,
    NODE_COLLECTORS,
    NODE_METRICS,
)
from bedplate_dashboard.sources.payloads import (
    ActiveAlert,
    AlertList,
    BuildInfo,
    EngineState,
    ModelList,
    QueryResult,
    Report,
    clean,
)
from bedplate_dashboard.sources.prometheus_text import Samples

ANSWER_SECONDS = 1.5
"""Longer than the exporter waits for its engine (1 s): a hung engine is not a hung exporter."""

CONNECT_SECONDS = 1.2

NEWEST_SAMPLE = urlencode({"query": "time() - max(timestamp(up))"})

BODY_BYTES = 1024 * 1024
METRICS_BYTES = 4 * 1024 * 1024
NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)

Answer = TypeVar("Answer")
Document = TypeVar("Document", bound=BaseModel)


@dataclass(frozen=True)
class Contact:
    """The outcome of one request to a service.

    `outcome`: answered; refused (it refused our key, or a limit was reached); failed (reached, but without a
    usable answer); unreachable (its host did not respond). `seconds` runs to the answer or the failure.
    """

    outcome: Literal["answered", "refused", "failed", "unreachable"]
    seconds: float
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a usable answer."""
        return self.outcome == "answered"


@dataclass(frozen=True, kw_only=True)
class GatewayAnswer:
    """The gateway's model list, read with the dashboard's key, and its metrics; empty unless it answered."""

    contact: Contact
    models: frozenset[str]
    metrics_contact: Contact
    metrics: Samples


@dataclass(frozen=True)
class HostAnswer:
    """One inference host's exporter; `state` is None unless it answered."""

    name: str
    contact: Contact
    state: EngineState | None = None


@dataclass(frozen=True)
class MachineAnswer:
    """One host's node exporter; empty metrics unless it answered."""

    name: str
    contact: Contact
    metrics: Samples


@dataclass(frozen=True, kw_only=True)
class PrometheusAnswer:
    """Whether Prometheus is ready, its alerts and its version (None unless it answered).

    `newest_seconds` is the age of the newest sample that it has stored: infinite beyond five minutes, None
    unless it answered.
    """

    contact: Contact
    alerts: tuple[ActiveAlert, ...] | None
    version: str | None
    newest_seconds: float | None = None


@dataclass(frozen=True)
class ReportFile:
    """A report that a playbook wrote; `report` and `error` are both None if it has not run yet."""

    report: Report | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One poll of the whole stack, in the order of the settings; it took `seconds`."""

    at: datetime
    seconds: float
    gateway: GatewayAnswer
    hosts: tuple[HostAnswer, ...]
    machines: tuple[MachineAnswer, ...]
    prometheus: PrometheusAnswer
    verify: ReportFile
    smoke: ReportFile


def new_client(settings: Settings) -> httpx.AsyncClient:
    """Return a new HTTP client that trusts the gateway's certificate."""
    return httpx.AsyncClient(
        verify=ssl.create_default_context(cadata=settings.gateway_ca),
        # The environment's proxies are for downloads, not for the stack.
        trust_env=False,
        # No connection is reused: one that its server has closed meanwhile would look like a fault.
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"User-Agent": f"bedplate-dashboard/{VERSION}", "Accept-Encoding": "identity"},
    )


async def collect(client: httpx.AsyncClient, settings: Settings, key: str) -> Observation:
    """Poll all services at the same time; takes at most `ANSWER_SECONDS`."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        listing = group.create_task(_fetch_models(client, settings.gateway_url, key))
        scrape = group.create_task(
            _fetch_metrics(client, f"{settings.gateway_metrics_url}/metrics", GATEWAY_METRICS)
        )
        prometheus = group.create_task(_fetch_prometheus(client, settings.prometheus_url))
        hosts = [group.create_task(_fetch_host(client, host)) for host in settings.inference_hosts]
        machines = [group.create_task(_fetch_machine(client, node)) for node in settings.node_exporters]
    gateway_contact, models = listing.result()
    metrics_contact, metrics = scrape.result()
    return Observation(
        at=datetime.now(UTC),
        seconds=time.monotonic() - began,
        gateway=GatewayAnswer(
            contact=gateway_contact, models=models, metrics_contact=metrics_contact, metrics=metrics
        ),
        hosts=tuple(host.result() for host in hosts),
        machines=tuple(machine.result() for machine in machines),
        prometheus=prometheus.result(),
        verify=read_report(settings.verify_report, "verify.yml"),
        smoke=read_report(settings.smoke_report, "smoke.yml"),
    )


async def fetch_litellm(client: httpx.AsyncClient, settings: Settings) -> Samples | None:
    """Return LiteLLM's own metrics, which the gateway reads for us; None without a usable answer."""
    contact, metrics = await _fetch_metrics(
        client, f"{settings.gateway_metrics_url}/metrics/litellm", LITELLM_METRICS
    )
    return metrics if contact.ok else None


def read_report(path: Path, playbook: str) -> ReportFile:
    """Read the report that a playbook wrote; a missing report is no error."""
    try:
        with path.open("rb") as file:
            text = file.read(BODY_BYTES + 1)
    except FileNotFoundError:
        return ReportFile()
    except OSError as error:
        return ReportFile(error=f"the report cannot be read ({error.strerror})")
    if len(text) > BODY_BYTES:
        return ReportFile(error="the report is larger than 1 MiB")
    try:
        return ReportFile(report=Report.model_validate_json(text))
    except ValidationError:
        return ReportFile(error=f"the report does not have the format that {playbook} writes")


async def _fetch_models(client: httpx.AsyncClient, url: str, key: str) -> tuple[Contact, frozenset[str]]:
    contact, body = await get(client, f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    contact, listed = parse_answer(contact, body, _parser_of(ModelList), "answered without a model list")
    return contact, frozenset(model.id for model in listed.data) if listed else frozenset()


async def _fetch_metrics(
    client: httpx.AsyncClient, url: str, names: frozenset[str]
) -> tuple[Contact, Samples]:
    contact, body = await get(client, url, max_bytes=METRICS_BYTES)
    contact, metrics = parse_answer(
        contact, body, lambda text: prometheus_text.parse(text, names), "answered without metrics"
    )
    return contact, metrics or Samples()


async def _fetch_machine(client: httpx.AsyncClient, node: NodeExporter) -> MachineAnswer:
    query = "&".join(f"collect[]={collector}" for collector in NODE_COLLECTORS)
    return MachineAnswer(
        node.name, *await _fetch_metrics(client, f"{node.url}/metrics?{query}", NODE_METRICS)
    )


async def _fetch_host(client: httpx.AsyncClient, host: InferenceHost) -> HostAnswer:
    contact, body = await get(client, f"{host.exporter_url}/state.json")
    return HostAnswer(
        host.name,
        *parse_answer(contact, body, _parser_of(EngineState), "answered without the engine's state"),
    )


async def _fetch_prometheus(client: httpx.AsyncClient, url: str) -> PrometheusAnswer:
    async with asyncio.TaskGroup() as group:
        ready = group.create_task(get(client, f"{url}/-/ready"))
        alerts = group.create_task(get(client, f"{url}/api/v1/alerts"))
        build = group.create_task(get(client, f"{url}/api/v1/status/buildinfo"))
        newest = group.create_task(get(client, f"{url}/api/v1/query?{NEWEST_SAMPLE}"))
    contact, _ = ready.result()
    _, listed = parse_answer(*alerts.result(), _parser_of(AlertList), "answered without alerts")
    _, ages = parse_answer(*newest.result(), _read_age, "answered without a result")
    _, built = parse_answer(*build.result(), _parser_of(BuildInfo), "answered without a version")
    return PrometheusAnswer(
        contact=contact,
        alerts=listed.data.alerts if contact.ok and listed else None,
        version=built.data.version if built else None,
        newest_seconds=ages if contact.ok else None,
    )


def _read_age(body: bytes) -> float:
    result = QueryResult.model_validate_json(body).data.result
    return float(result[0].value[1]) if result and result[0].value else math.inf


def _parser_of(document: type[Document]) -> Callable[[bytes], Document]:
    return document.model_validate_json


def parse_answer(
    contact: Contact, body: bytes, parse: Callable[[bytes], Answer], problem: str
) -> tuple[Contact, Answer | None]:
    """Parse a body; one that cannot be parsed makes the contact `failed`, with `problem` as its error."""
    if not contact.ok:
        return contact, None
    try:
        return contact, parse(body)
    except (ValueError, LookupError):
        return Contact("failed", contact.seconds, problem), None


async def get(
    client: httpx.AsyncClient,
    url: str,
    limit: float | None = None,
    max_bytes: int = BODY_BYTES,
    headers: dict[str, str] | None = None,
) -> tuple[Contact, bytes]:
    """GET `url` within `limit` seconds in total, `ANSWER_SECONDS` if None, however slow the body is."""
    limit = ANSWER_SECONDS if limit is None else limit
    timeout = httpx.Timeout(limit, connect=CONNECT_SECONDS)
    began = time.monotonic()
    body = bytearray()
    status = 0
    try:
        async with (
            asyncio.timeout(limit),
            client.stream("GET", url, headers=headers, timeout=timeout) as response,
        ):
            status = response.status_code
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > max_bytes:
                    break
    except (httpx.HTTPError, OSError) as error:
        outcome, text = _explain(error, limit)
        return Contact(outcome, time.monotonic() - began, text), b""
    seconds = time.monotonic() - began
    if status in (401, 403, 429):
        return Contact("refused", seconds, f"HTTP {status}"), b""
    if status != 200:
        return Contact("failed", seconds, f"HTTP {status}"), b""
    if len(body) > max_bytes:
        return Contact("failed", seconds, f"answered with more than {max_bytes // 1024**2} MiB"), b""
    return Contact("answered", seconds), bytes(body)


def _explain(error: Exception, limit: float) -> tuple[Literal["failed", "unreachable"], str]:
    """Distinguish a dead service (connection refused, or no answer) from a host that does not respond."""
    if isinstance(error, httpx.ConnectTimeout):
        return "unreachable", f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return "failed", f"no answer within {limit:g} s"
    if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):
        return "failed", "closed the connection without an answer"
    return _explain_os_error(error) or ("failed", str(clean(f"{type(error).__name__}: {error}", 120)))


def _explain_os_error(error: Exception) -> tuple[Literal["failed", "unreachable"], str] | None:
    """Find the operating system's error that caused the HTTP client's error, None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "unreachable", "the host name does not resolve"
        if isinstance(cause, ConnectionRefusedError):
            return "failed", "connection refused"
        if isinstance(cause, OSError) and cause.errno in NO_ROUTE:
            return "unreachable", "no route to the host"
        cause = cause.__cause__ or cause.__context__
    return None
