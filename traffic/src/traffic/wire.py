"""HTTP/1.1 to one address: kept connections, the parser of httptools, and each byte's time as it comes in.

This costs less than half the processor time of aiohttp and a fifth of httpx's (bench/traffic.md).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

import httptools

from traffic.target import Target

MAX_ANSWER_BYTES = 64 * 1024 * 1024
# Servers close idle connections, the first of them after 5 s: an older one may be gone when it is used.
MAX_IDLE_SECONDS = 3.0
MAX_REASON_CHARACTERS = 100


class WireError(Exception):
    """A request failed below HTTP; the message is one line for the report."""


class Exchange:
    """One request and its answer as it comes in. Times are seconds of the monotonic clock."""

    __slots__ = ("_on_body", "headers", "sent", "size", "status")

    def __init__(self, on_body: Callable[["Exchange", bytes], str | None]) -> None:
        """`on_body` takes each piece; what it returns, unless None, is why the answer is read no further."""
        self._on_body = on_body
        self.sent: float | None = None
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        """Names are in lower case."""
        self.size = 0

    def take(self, piece: bytes) -> str | None:
        """Take a piece of the body; the return value, unless None, says why to stop."""
        self.size += len(piece)
        if self.size > MAX_ANSWER_BYTES:
            return f"the answer is longer than {MAX_ANSWER_BYTES} bytes"
        return self._on_body(self, piece)


class _Connection(asyncio.Protocol):
    """A connection that carries one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.usable = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.usable = True

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        exchange = self._exchange
        if exchange is None:
            return
        if error is None and exchange.status is not None and not _tells_its_end(exchange):
            self._finish(None)
        else:
            self._finish(WireError(f"the connection broke ({error or 'the server closed it'})"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
            self.abort()
            self._finish(WireError(f"the connection broke (the answer is no HTTP: {reason})"))

    async def run(self, request: bytes, exchange: Exchange) -> None:
        """Send a request and read its answer to the end."""
        assert self._transport is not None  # noqa: S101 - connection_made came first
        self._exchange = exchange
        self._done = asyncio.get_running_loop().create_future()
        exchange.sent = time.monotonic()
        self._transport.write(request)
        try:
            await self._done
        finally:
            if self._exchange is not None:
                # Nobody waits any more: the server is told by the connection's end.
                self._exchange = None
                self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            self._exchange.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None and (reason := self._exchange.take(body)) is not None:
            self.abort()
            self._finish(WireError(reason))

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or exchange.status is None or exchange.status < 200:
            return
        if not self._parser.should_keep_alive():
            self.abort()
        self._finish(None)

    def _finish(self, error: WireError | None) -> None:
        done, self._exchange = self._done, None
        if done is None or done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _tells_its_end(exchange: Exchange) -> bool:
    return b"content-length" in exchange.headers or b"transfer-encoding" in exchange.headers


class Pool:
    """Connections to one target, opened as they are needed and kept."""

    def __init__(self, target: Target) -> None:
        """`target` is asked; nothing is opened yet."""
        self._target = target
        self._idle: deque[_Connection] = deque()

    async def run(self, request: bytes, exchange: Exchange) -> None:
        """Carry out one exchange; raises WireError when it ends early, TimeoutError never."""
        connection = self._kept() or await self._opened()
        await connection.run(request, exchange)
        if connection.usable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().abort()

    def _kept(self) -> _Connection | None:
        youngest = time.monotonic() - MAX_IDLE_SECONDS
        while self._idle and (self._idle[0].idle_since < youngest or not self._idle[0].usable):
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _opened(self) -> _Connection:
        target = self._target
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                _Connection,
                target.address,
                target.port,
                ssl=target.tls,
                server_hostname=target.host if target.tls else None,
            )
        except OSError as error:
            raise WireError(f"no server answers there ({error})") from None
        return connection
