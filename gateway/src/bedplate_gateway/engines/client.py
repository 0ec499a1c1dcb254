"""The HTTP client for the engines: one session without hidden queues or state, and how its calls fail."""

import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import aiohttp

from bedplate_gateway.api.schema import RESPONSES, Request
from bedplate_gateway.engines import errors
from bedplate_gateway.settings import Engine, EngineModel

CONNECT_SECONDS = 4.0
"""Shorter than a poll, which so notices that nothing answers; a lost packet is sent again after 1 and 3 s."""
PROBES = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 3, socket.TCP_KEEPCNT: 5}
"""TCP's probes of a connection without traffic, in seconds, and how many may be lost: a host that has
restarted answers the first with a reset. A hung engine's kernel answers them, so they end no slow answer.
"""
KEEP_ALIVE_SECONDS = 4.0
"""Below the 5 s after which uvicorn, which vLLM uses, closes an idle connection."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
CONNECTION_REFUSED = "refuses connections"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class EngineHealth(Protocol):
    """The engines' session, and how a request reports what it found out about an engine."""

    session: aiohttp.ClientSession

    def context(self, engine: Engine, model: EngineModel) -> int | None:
        """Return the context in tokens that a request gets."""

    def report_failure(self, engine_name: str, error: str) -> None:
        """Count an engine as down until the next successful poll."""

    def report_missing(self, engine_name: str, model: str) -> None:
        """Count a model as missing on an engine until the next poll."""


class LeaseLike(Protocol):
    """What a request to an engine needs of a lease; the caller releases the slot."""

    @property
    def engine(self) -> Engine:
        """Return the engine of the current slot."""

    @property
    def model(self) -> EngineModel:
        """Return the model as declared on that engine."""

    def touch(self) -> None:
        """Report that the request is alive."""

    def charge(self, tokens: int) -> None:
        """Count tokens as they flow, which also reports that the request is alive."""

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Correct what was charged to the final usage."""

    def swap(self) -> bool:
        """Move to a slot of another engine; False where there is none."""


def new_session() -> aiohttp.ClientSession:
    """Return a session; responses have no time limit but those that the caller sets."""
    return aiohttp.ClientSession(
        # No limit: admission counts, and a second queue in here would hide from it.
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, socket_factory=probed_socket
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "bedplate-gateway", "Accept-Encoding": "identity"},
    )


def probed_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an address of getaddrinfo, with TCP's probes."""
    family, kind, protocol = address[:3]
    probed = socket.socket(family, kind, protocol)
    probed.setblocking(False)
    probed.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in PROBES.items():
        probed.setsockopt(socket.IPPROTO_TCP, option, value)
    return probed


async def send(
    session: aiohttp.ClientSession,
    engine: Engine,
    path: str,
    body: bytes | None = None,
    more_headers: Mapping[str, str] = NO_HEADERS,
) -> aiohttp.ClientResponse:
    """Return an engine's response once its header has arrived: POST where there is a body, else GET."""
    headers = {"Content-Type": "application/json", **more_headers} if body is not None else {}
    if engine.api_key:
        headers["Authorization"] = f"Bearer {engine.api_key}"
    return await session.request(
        "GET" if body is None else "POST",
        engine.url.rstrip("/") + path,
        data=body,
        headers=headers,
        allow_redirects=False,
    )


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return a whole body; raises ValueError over `max_bytes`, after closing the connection."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            abort(response)
            raise ValueError(f"more than {max_bytes} bytes")
    return b"".join(parts)


def abort(response: aiohttp.ClientResponse) -> None:
    """Close the connection of a response that was not read to its end; a pending read gets a ClientError.

    Left to itself, aiohttp raises one and the same exception each time, whose traceback then holds every
    request that was ever closed so.
    """
    if response.content.exception() is None:
        response.content.set_exception(aiohttp.ClientConnectionError("The connection was closed here."))
    response.close()


async def post(
    health: EngineHealth,
    lease: LeaseLike,
    request: Request,
    path: str,
    body: bytes,
    *,
    headers: Mapping[str, str] = NO_HEADERS,
) -> aiohttp.ClientResponse:
    """Return the 200 of the lease's engine, its body not read yet; raises EngineError."""
    engine, model = lease.engine, lease.model
    try:
        response = await send(health.session, engine, path, body, headers)
        if response.status == 200:
            return response
        async with response:
            error_body = await response.content.read(MAX_ERROR_BYTES)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        health.report_failure(engine.name, CONNECTION_REFUSED)
        raise errors.unreachable(request.model) from None
    except (aiohttp.ClientError, OSError):
        raise errors.failed("it closed the connection before it answered", again=True) from None
    if response.status == 404:
        text = errors.error_text(error_body, engine)
        if path == RESPONSES and not errors.names_model(text):
            raise errors.no_responses(request.model)
        health.report_missing(engine.name, model.name)
    raise errors.from_response(response.status, error_body, request, engine, health.context(engine, model))


async def read_answer(response: aiohttp.ClientResponse) -> bytes:
    """Return a whole answer; raises EngineError."""
    try:
        async with response:
            return await read_body(response, MAX_ANSWER_BYTES)
    except (aiohttp.ClientError, OSError):
        raise errors.failed("it closed the connection in the middle of the answer") from None
    except ValueError:
        raise errors.failed(f"its answer exceeds {MAX_ANSWER_BYTES} bytes") from None
