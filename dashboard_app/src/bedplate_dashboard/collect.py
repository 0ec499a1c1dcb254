"""Ask every part of the stack once, in parallel, each with a deadline.

Nothing here judges: an `Observation` says what each part answered, `state` says what that means.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from . import __version__, exposition
from .exposition import Exposition
from .foreign import ActiveAlert, AlertList, BuildInfo, EngineState, ModelList, Report, clean
from .settings import InferenceHost, NodeExporter, Secrets, Settings
from .traffic import COUNTERS

ANSWER_SECONDS = 1.5
"""The exporter gives its engine 1 s, so that a hung engine does not look like a hung exporter."""

CONNECT_SECONDS = 1.2

PROMETHEUS_USER = "bedplate"
BODY_BYTES = 1024 * 1024
METRICS_BYTES = 4 * 1024 * 1024
NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)

GATEWAY_METRICS = frozenset(
    {
        "process_start_time_seconds",
        *COUNTERS,
        "bedplate_gateway_info",
        "bedplate_gateway_last_request_timestamp_seconds",
        "bedplate_gateway_last_answer_tokens_per_second",
        "bedplate_gateway_engine_serves",
        "bedplate_gateway_slots",
        "bedplate_gateway_slots_busy",
        "bedplate_gateway_queue_requests",
        "bedplate_gateway_queue_oldest_wait_seconds",
        "bedplate_gateway_limit",
        "bedplate_gateway_limit_used",
    }
)
NODE_METRICS = frozenset(
    {
        "node_exporter_build_info",
        "node_filesystem_avail_bytes",
        "node_filesystem_size_bytes",
        "node_memory_MemAvailable_bytes",
        "node_memory_MemTotal_bytes",
        "node_systemd_unit_state",
        "node_systemd_service_restart_total",
        "bedplate_host_reboot_required",
        "bedplate_traffic_canary_success",
        "bedplate_traffic_canary_result",
        "bedplate_traffic_canary_last_run_timestamp_seconds",
        "bedplate_traffic_canary_last_answer_timestamp_seconds",
        "bedplate_traffic_canary_seconds",
    }
)
NODE_COLLECTORS = ("filesystem", "meminfo", "systemd", "textfile")

Answer = TypeVar("Answer")
Document = TypeVar("Document", bound=BaseModel)


@dataclass(frozen=True)
class Contact:
    """How asking one service went.

    `outcome`: answered; refused (it answered, but not to us: key or limit); failed (reached, but without a
    usable answer); unreachable (its host gave no sign of life). `seconds` runs to the answer or the failure.
    """

    outcome: Literal["answered", "refused", "failed", "unreachable"]
    seconds: float
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is an answer to use."""
        return self.outcome == "answered"


@dataclass(frozen=True)
class GatewayAnswer:
    """The gateway's model list, asked with the dashboard's key, and its metrics; empty unless they came."""

    contact: Contact
    models: frozenset[str]
    metrics_contact: Contact
    metrics: Exposition


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
    metrics: Exposition


@dataclass(frozen=True)
class PrometheusAnswer:
    """Whether Prometheus is ready, its alerts (None unless it tells them) and its version."""

    contact: Contact
    alerts: tuple[ActiveAlert, ...] | None
    version: str | None


@dataclass(frozen=True)
class ReportFile:
    """A report that a playbook left: `report` and `error` are both None when it has not run yet."""

    report: Report | None = None
    error: str | None = None


@dataclass(frozen=True)
class Observation:
    """One look at the whole stack, in the order of the settings; it took `seconds`."""

    at: datetime
    seconds: float
    gateway: GatewayAnswer
    hosts: tuple[HostAnswer, ...]
    machines: tuple[MachineAnswer, ...]
    prometheus: PrometheusAnswer
    verify: ReportFile
    smoke: ReportFile


@dataclass(frozen=True)
class Clients:
    """The HTTP clients of one event loop: Prometheus may have an authority and a password of its own."""

    stack: httpx.AsyncClient
    prometheus: httpx.AsyncClient


@asynccontextmanager
async def new_clients(secrets: Secrets) -> AsyncIterator[Clients]:
    """Open the HTTP clients, and close them at the end."""
    trusted = ssl.create_default_context()
    password = secrets.prometheus_password
    async with (
        _new_client(trusted, None) as stack,
        _new_client(
            ssl.create_default_context(cafile=secrets.prometheus_ca) if secrets.prometheus_ca else trusted,
            httpx.BasicAuth(PROMETHEUS_USER, password) if password else None,
        ) as prometheus,
    ):
        yield Clients(stack, prometheus)


def _new_client(trusted: ssl.SSLContext, auth: httpx.BasicAuth | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=trusted,
        auth=auth,
        # The machine's proxy settings are for downloads.
        trust_env=False,
        # A new connection each time: a kept one that its server closes meanwhile would look like a fault.
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"User-Agent": f"bedplate-dashboard/{__version__}", "Accept-Encoding": "identity"},
    )


async def collect(clients: Clients, settings: Settings, key: str) -> Observation:
    """Ask everybody at the same time; takes at most `ANSWER_SECONDS`."""
    began = time.monotonic()
    client = clients.stack
    async with asyncio.TaskGroup() as group:
        gateway = group.create_task(_ask_gateway(client, settings.gateway_url, key))
        metrics = group.create_task(
            _ask_metrics(client, f"{settings.gateway_metrics_url}/metrics", GATEWAY_METRICS)
        )
        prometheus = group.create_task(_ask_prometheus(clients.prometheus, settings.prometheus_url))
        hosts = [group.create_task(_ask_host(client, host)) for host in settings.inference_hosts]
        machines = [group.create_task(_ask_machine(client, node)) for node in settings.node_exporters]
    return Observation(
        at=datetime.now(UTC),
        seconds=time.monotonic() - began,
        gateway=GatewayAnswer(*gateway.result(), *metrics.result()),
        hosts=tuple(host.result() for host in hosts),
        machines=tuple(machine.result() for machine in machines),
        prometheus=prometheus.result(),
        verify=read_report(settings.verify_report, "verify.yml"),
        smoke=read_report(settings.smoke_report, "smoke.yml"),
    )


def read_report(path: Path, playbook: str) -> ReportFile:
    """Read what a playbook left; a missing report is no error."""
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
        return ReportFile(error=f"the report is not in the form that {playbook} writes")


async def _ask_gateway(client: httpx.AsyncClient, url: str, key: str) -> tuple[Contact, frozenset[str]]:
    contact, body = await get(client, f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    contact, listed = understand(contact, body, _parse(ModelList), "answered without a model list")
    return contact, frozenset(model.id for model in listed.data) if listed else frozenset()


async def _ask_metrics(
    client: httpx.AsyncClient, url: str, names: frozenset[str]
) -> tuple[Contact, Exposition]:
    contact, body = await get(client, url, most_bytes=METRICS_BYTES)
    contact, metrics = understand(
        contact, body, lambda text: exposition.read(text, names), "answered without metrics"
    )
    return contact, metrics or Exposition()


async def _ask_machine(client: httpx.AsyncClient, node: NodeExporter) -> MachineAnswer:
    query = "&".join(f"collect[]={collector}" for collector in NODE_COLLECTORS)
    return MachineAnswer(node.name, *await _ask_metrics(client, f"{node.url}/metrics?{query}", NODE_METRICS))


async def _ask_host(client: httpx.AsyncClient, host: InferenceHost) -> HostAnswer:
    contact, body = await get(client, f"{host.exporter_url}/state.json")
    return HostAnswer(
        host.name, *understand(contact, body, _parse(EngineState), "answered without the engine's state")
    )


async def _ask_prometheus(client: httpx.AsyncClient, url: str) -> PrometheusAnswer:
    async with asyncio.TaskGroup() as group:
        ready = group.create_task(get(client, f"{url}/-/ready"))
        alerts = group.create_task(get(client, f"{url}/api/v1/alerts"))
        build = group.create_task(get(client, f"{url}/api/v1/status/buildinfo"))
    contact, _ = ready.result()
    _, listed = understand(*alerts.result(), _parse(AlertList), "answered without alerts")
    _, built = understand(*build.result(), _parse(BuildInfo), "answered without a version")
    return PrometheusAnswer(
        contact,
        listed.data.alerts if contact.ok and listed else None,
        built.data.version if built else None,
    )


def _parse(document: type[Document]) -> Callable[[bytes], Document]:
    return document.model_validate_json


def understand(
    contact: Contact, body: bytes, parse: Callable[[bytes], Answer], problem: str
) -> tuple[Contact, Answer | None]:
    """Read an answer; one that cannot be read is a failed contact."""
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
    most_bytes: int = BODY_BYTES,
    headers: dict[str, str] | None = None,
) -> tuple[Contact, bytes]:
    """GET one address within `limit` seconds in all (`ANSWER_SECONDS`), however slowly the bytes drip."""
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
                if len(body) > most_bytes:
                    break
    except (httpx.HTTPError, OSError) as error:
        outcome, text = _explain(error, limit)
        return Contact(outcome, time.monotonic() - began, text), b""
    seconds = time.monotonic() - began
    if status in (401, 403, 429):
        return Contact("refused", seconds, f"HTTP {status}"), b""
    if status != 200:
        return Contact("failed", seconds, f"HTTP {status}"), b""
    if len(body) > most_bytes:
        return Contact("failed", seconds, f"answered with more than {most_bytes // 1024**2} MiB"), b""
    return Contact("answered", seconds), bytes(body)


def _explain(error: Exception, limit: float) -> tuple[Literal["failed", "unreachable"], str]:
    """Tell a dead service (refused, or kept waiting) from a host that gives no sign of life."""
    if isinstance(error, httpx.ConnectTimeout):
        return "unreachable", f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return "failed", f"no answer within {limit:g} s"
    if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):
        return "failed", "closed the connection without an answer"
    return _explain_system(error) or ("failed", str(clean(f"{type(error).__name__}: {error}", 120)))


def _explain_system(error: Exception) -> tuple[Literal["failed", "unreachable"], str] | None:
    """Look for what the operating system said behind the HTTP client's error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "unreachable", "its name is not known"
        if isinstance(cause, ConnectionRefusedError):
            return "failed", "connection refused"
        if isinstance(cause, OSError) and cause.errno in NO_ROUTE:
            return "unreachable", "no route to the host"
        cause = cause.__cause__ or cause.__context__
    return None
