"""Ask every part of the stack once, in parallel, each with a deadline.

Nothing here judges: an `Observation` says what each part answered, `state` says what that means.
Text from other services is hostile input: `clean` makes it printable and short before anybody sees it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import httpx
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from . import __version__
from .settings import MODEL_NAME_LENGTH, InferenceHost, Settings

CONNECT_SECONDS = 1.5
ANSWER_SECONDS = 2.0
# The exporter asks its engine for up to 2 s; without a margin a hung engine would look like a hung exporter.
EXPORTER_SECONDS = 2.5
BODY_BYTES = 1024 * 1024
NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)


def clean(text: object, length: int = 300) -> object:
    """Make text from elsewhere fit to be shown: printable characters only, at most `length` of them."""
    if not isinstance(text, str):
        return text
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text[: length + 1])
    return shown if len(shown) <= length else shown[:length] + "…"


def _clean_name(text: object) -> object:
    return clean(text, MODEL_NAME_LENGTH)


Text = Annotated[str, BeforeValidator(clean)]
Name = Annotated[str, BeforeValidator(_clean_name)]
Bytes = Annotated[int, Field(ge=0)]


class _Foreign(BaseModel):
    """What another service sends: fields we do not know are ignored, so that it may grow."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True)


class Engine(_Foreign):
    """The engine as its exporter saw it."""

    up: bool
    version: Text | None = None
    error: Text | None = None
    latency_seconds: Annotated[float, Field(ge=0)] | None = None


class EngineModel(_Foreign):
    """One model on an engine; sizes in bytes, context in tokens."""

    name: Name
    digest: Text | None = None
    size_bytes: Bytes | None = None
    loaded: bool = False
    memory_bytes: Bytes | None = None
    gpu_memory_bytes: Bytes | None = None
    context_length: Annotated[int, Field(ge=0)] | None = None
    expires_at: AwareDatetime | None = None


class EngineState(_Foreign):
    """The exporter's /state.json."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    at: AwareDatetime
    engine: Engine
    models: tuple[EngineModel, ...]


class Check(_Foreign):
    """One line of the verify report; `ok` is None where it could not be asked."""

    host: Text
    name: Text
    ok: bool | None
    seen: Text = ""
    next: Text | None = None


class VerifyReport(_Foreign):
    """What the verify play left behind."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    ok: bool
    at: AwareDatetime
    checks: tuple[Check, ...]


class _Model(_Foreign):
    id: Name


class _ModelList(_Foreign):
    data: tuple[_Model, ...]


@dataclass(frozen=True)
class Contact:
    """How asking one service went.

    `outcome`: answered; refused (it answered, but not to us: key or limit); failed (reached, but without a
    usable answer); unreachable (its host gave no sign of life). `seconds` runs to the answer or the failure.
    """

    outcome: Literal["answered", "refused", "failed", "unreachable"]
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class GatewayAnswer:
    """The gateway's model list, asked with the dashboard's key; empty unless it answered."""

    contact: Contact
    models: frozenset[str] = frozenset()


@dataclass(frozen=True)
class HostAnswer:
    """One inference host's exporter; `state` is None unless it answered."""

    name: str
    contact: Contact
    state: EngineState | None = None


@dataclass(frozen=True)
class Verify:
    """The last verify report: `report` and `error` are both None when verify has not run yet."""

    report: VerifyReport | None = None
    error: str | None = None


@dataclass(frozen=True)
class Observation:
    """One look at the whole stack; `hosts` in the order of the configuration, `seconds` for all of it."""

    at: datetime
    seconds: float
    gateway: GatewayAnswer
    hosts: tuple[HostAnswer, ...]
    prometheus: Contact
    verify: Verify


def new_client() -> httpx.AsyncClient:
    """Make the HTTP client of the poller; needs no proxy settings and trusts what the machine trusts."""
    return httpx.AsyncClient(
        verify=ssl.create_default_context(),
        trust_env=False,
        timeout=httpx.Timeout(EXPORTER_SECONDS, connect=CONNECT_SECONDS),
        # A new connection each time: a kept one that its server closes meanwhile would look like a fault.
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"User-Agent": f"bedplate-dashboard/{__version__}", "Accept-Encoding": "identity"},
    )


async def collect(client: httpx.AsyncClient, settings: Settings, key: str) -> Observation:
    """Ask gateway, exporters and Prometheus at the same time; takes at most `EXPORTER_SECONDS`."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        gateway = group.create_task(_ask_gateway(client, settings.gateway_url, key))
        prometheus = group.create_task(_ask_prometheus(client, settings.prometheus_url))
        hosts = [group.create_task(_ask_host(client, host)) for host in settings.inference_hosts]
    return Observation(
        at=datetime.now(UTC),
        seconds=time.monotonic() - began,
        gateway=gateway.result(),
        hosts=tuple(host.result() for host in hosts),
        prometheus=prometheus.result(),
        verify=read_verify(settings.verify_report),
    )


def read_verify(path: Path) -> Verify:
    """Read the last verify report; a missing one is no error."""
    try:
        with path.open("rb") as file:
            text = file.read(BODY_BYTES + 1)
    except FileNotFoundError:
        return Verify()
    except OSError as error:
        return Verify(error=f"the report cannot be read ({error.strerror})")
    if len(text) > BODY_BYTES:
        return Verify(error="the report is larger than 1 MiB")
    try:
        return Verify(report=VerifyReport.model_validate_json(text))
    except ValidationError:
        return Verify(error="the report is not in the form that the verify play writes")


async def _ask_gateway(client: httpx.AsyncClient, url: str, key: str) -> GatewayAnswer:
    contact, body = await _get(
        client, f"{url}/v1/models", ANSWER_SECONDS, headers={"Authorization": f"Bearer {key}"}
    )
    if contact.outcome != "answered":
        return GatewayAnswer(contact)
    try:
        listed = _ModelList.model_validate_json(body)
    except ValidationError:
        return GatewayAnswer(Contact("failed", contact.seconds, "answered without a model list"))
    return GatewayAnswer(contact, frozenset(model.id for model in listed.data))


async def _ask_prometheus(client: httpx.AsyncClient, url: str) -> Contact:
    contact, _ = await _get(client, f"{url}/-/ready", ANSWER_SECONDS)
    return contact


async def _ask_host(client: httpx.AsyncClient, host: InferenceHost) -> HostAnswer:
    contact, body = await _get(client, f"{host.exporter_url}/state.json", EXPORTER_SECONDS)
    if contact.outcome != "answered":
        return HostAnswer(host.name, contact)
    try:
        return HostAnswer(host.name, contact, EngineState.model_validate_json(body))
    except ValidationError:
        contact = Contact("failed", contact.seconds, "answered without the engine's state")
        return HostAnswer(host.name, contact)


async def _get(
    client: httpx.AsyncClient, url: str, limit: float, headers: dict[str, str] | None = None
) -> tuple[Contact, bytes]:
    """GET one address within `limit` seconds in all, however slowly the bytes drip."""
    began = time.monotonic()
    body = bytearray()
    status = 0
    try:
        async with asyncio.timeout(limit), client.stream("GET", url, headers=headers) as response:
            status = response.status_code
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > BODY_BYTES:
                    break
    except (httpx.HTTPError, OSError) as error:
        outcome, text = _explain(error, limit)
        return Contact(outcome, time.monotonic() - began, text), b""
    seconds = time.monotonic() - began
    if status in (401, 403, 429):
        return Contact("refused", seconds, f"HTTP {status}"), b""
    if status != 200:
        return Contact("failed", seconds, f"HTTP {status}"), b""
    if len(body) > BODY_BYTES:
        return Contact("failed", seconds, "answered with more than 1 MiB"), b""
    return Contact("answered", seconds), bytes(body)


def _explain(error: Exception, limit: float) -> tuple[Literal["failed", "unreachable"], str]:
    """Tell a dead service (refused, or kept waiting) from a host that gives no sign of life."""
    if isinstance(error, httpx.ConnectTimeout):
        return "unreachable", f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return "failed", f"no answer within {limit:g} s"
    if isinstance(error, httpx.RemoteProtocolError):
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
