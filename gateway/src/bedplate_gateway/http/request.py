"""One ASGI request and its response."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from bedplate_gateway import errors
from bedplate_gateway.errors import ClientDisconnected
from bedplate_gateway.traces import Trace

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DISCARD_SECONDS = 2.0
"""How long the rest of a refused request's body is read."""


class ClientRequest:
    """One ASGI request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not decoded: a proxy's rules for a path see it so.
        self.path: str = scope["raw_path"].decode("latin-1")
        self.method: str = scope["method"]
        self.query: bytes = scope.get("query_string", b"")
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send
        self._on_disconnect: Callable[[], None] = lambda: None
        self._body_ended = False
        self.disconnected = asyncio.Event()
        self.started = False
        self.extra_headers: dict[str, str] = {}
        self.trace: Trace | None = None
        self.own_id = ""
        """The client's own id of the request, where it sent one that can be logged."""

    def header(self, name: str) -> str | None:
        """Return a request header, the first where it was sent twice."""
        lower = name.encode()
        return next((value.decode("latin-1") for key, value in self._headers if key == lower), None)

    async def body(self, max_bytes: int, grow: Callable[[int], None] = lambda _: None) -> bytes:
        """Return the body; raises ApiError 413 over `max_bytes`, ClientDisconnected, or what `grow` raises.

        `grow` gets the body's size as far as it is known, before it is read where the client says it.
        """

        def check(size: int) -> None:
            if size > max_bytes:
                raise errors.request_too_large(max_bytes)
            grow(size)

        length = self.header("content-length") or ""
        if length.isdecimal():
            # Python refuses to read a number of thousands of digits.
            check(int(length.lstrip("0")[:20] or "0"))
        parts: list[bytes] = []
        size = 0
        while not self._body_ended:
            parts.append(await self._receive_body())
            size += len(parts[-1])
            check(size)
        body = b"".join(parts)
        if len(parts) > 1:
            # Others get a turn before a large body is parsed, and its parts need no memory meanwhile.
            parts.clear()
            await asyncio.sleep(0)
        return body

    async def discard_body(self) -> None:
        """Read the rest of the body: a proxy that still sends it may not read the answer before it is closed.

        A client that waits for `100 Continue` is not asked for it.
        """
        if self.header("expect") is None:
            with suppress(TimeoutError, ClientDisconnected):
                async with asyncio.timeout(DISCARD_SECONDS):
                    while not self._body_ended:
                        await self._receive_body()

    async def _receive_body(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        self._body_ended = not message.get("more_body")
        body: bytes = message.get("body", b"")
        return body

    async def watch(self) -> None:
        """Wait until the client disconnects, and report it; read the body before."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()
        self._on_disconnect()

    def on_disconnect(self, call: Callable[[], None]) -> None:
        """Call something when the client disconnects, in place of an earlier callback."""
        self._on_disconnect = call
        if self.disconnected.is_set():
            call()

    async def start(self, status: int, headers: dict[str, str]) -> None:
        """Send status and headers of the response."""
        self.started = True
        pairs = [
            (name.encode(), value.encode("latin-1", "replace"))
            for name, value in (headers | self.extra_headers).items()
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def write(self, chunk: bytes, *, more: bool = True) -> None:
        """Send a chunk of the response."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def respond(
        self, status: int, body: bytes, headers: dict[str, str], content_type: str = "application/json"
    ) -> None:
        """Send a whole response."""
        fixed = {"content-type": content_type, "content-length": str(len(body))}
        await self.start(status, headers | fixed)
        await self.write(body, more=False)
