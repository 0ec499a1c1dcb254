"""The HTTP server: uvicorn's protocol with limits for slow clients, and a shutdown that drops no request."""

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any, Never, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from bedplate_gateway import background, errors
from bedplate_gateway.errors import ApiError

App = Callable[[Any, Any, Any], Awaitable[None]]

BACKLOG = 4096
TICK_SECONDS = 1.0
"""How often the limits are checked."""
LINGER_SECONDS = 2.0
"""How long a refused client may take to read the response."""
CLEANUP_SECONDS = 3.0
"""How long requests may take to clean up after their connections were closed."""


@dataclass(frozen=True)
class ClientLimits:
    """Limits of a connection: times in seconds, sizes in bytes."""

    header: float = 10.0
    """From the first byte (on a new connection: from its start) to the end of the header."""
    body: float = 30.0
    """From the end of the header to the end of the body; every received chunk extends it by `body_rate`."""
    body_rate: float = 64 * 1024
    """Bytes per second that are always fast enough."""
    idle: float = 75.0
    """Between two requests."""
    reader: float = 60.0
    """Without reading a byte of a pending response."""
    header_size: int = 64 * 1024
    """Also of all trailers together."""


class StartError(Exception):
    """This process cannot start now; the message is one sentence with the remedy."""


def listen(address: str, port: int, limits: ClientLimits | None = None) -> socket.socket:
    """Return a new listening TCP socket; raises StartError. Its connections inherit its options."""
    reader = (limits or ClientLimits()).reader
    try:
        family, *_, socket_address = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Detects clients whose machine vanished while they wait in the queue.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(reader))
        # The kernel closes a connection whose peer acknowledges nothing for so long, dead or not reading.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(reader * 1000))
        listener.bind(socket_address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise StartError(
            f"Cannot listen on {address} port {port} ({error.strerror}): "
            f"find the process that uses it with ss -ltnp 'sport = {port}', or correct the address."
        ) from None
    return listener


def listen_unix(path: Path) -> socket.socket:
    """Return a new listening Unix socket for its user and group, replacing an old file; raises StartError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(
            f"Cannot listen on {path} ({error.strerror}): "
            "start the service with systemctl, which creates the directory."
        ) from None
    return listener


def is_reachable(path: Path) -> bool:
    """Return whether a client that connects to a Unix socket's file reaches a process that listens."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            client.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError:
        # Its queue is full, or this process has no free descriptor: that says nothing of the file.
        return True
    return True


class HttpServer(ServerState):
    """One listening socket, its app and its connections; systemd and a handover identify it by `name`."""

    def __init__(
        self, name: str, app: App, listener: socket.socket, limits: ClientLimits | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.listener = listener
        self.limits = limits or ClientLimits()
        self.draining = False
        self._app = app
        self.config = Config(
            self._run_app,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            # Connection.tick comes first: uvicorn's own timer ignores a body that arrives after its response.
            timeout_keep_alive=2 * math.ceil(self.limits.idle),
        )
        self.config.load()
        self._server: asyncio.AbstractServer | None = None
        self._ticking: asyncio.Task[Never] | None = None

    async def open(self) -> None:
        """Start to accept connections."""
        self._ticking = background.start(f"timer of {self.name}", self._tick())
        self._server = await self._accept()

    async def move_to(self, listener: socket.socket) -> None:
        """Accept connections at another socket in place of the one so far; open connections stay."""
        old_listener, old_server = self.listener, self._server
        self.listener = listener
        self._server = await self._accept()
        # Also for those who have copies of it: systemd then drops its own.
        old_listener.shutdown(socket.SHUT_RDWR)
        if old_server is not None:
            old_server.close()

    async def _accept(self) -> asyncio.AbstractServer:
        return await asyncio.get_running_loop().create_server(
            self._new_connection, sock=self.listener, backlog=BACKLOG
        )

    def drain(self) -> None:
        """Stop accepting, and drain every connection."""
        self.draining = True
        if self._server is not None:
            # A connection that the kernel has accepted and we have not stays queued for the next process.
            self._server.close()
        for connection in self._open_connections():
            connection.drain()

    async def wait_drained(self, *, with_tasks: bool) -> None:
        """Return when no connection is left and, `with_tasks`, no task that cleans up after one."""
        while self.connections or (with_tasks and self.tasks):
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Close every connection that is left, and cancel requests that do not end by themselves."""
        if self._ticking is not None:
            self._ticking.cancel()
        for connection in self._open_connections():
            connection.refuse(errors.restarting())
            connection.transport.close()
        # To the app these clients have disconnected; requests that still wait then are cancelled.
        if tasks := list(self.tasks):
            _, late = await asyncio.wait(tasks, timeout=CLEANUP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run_app(self, scope: Any, receive: Any, send: Any) -> None:
        # uvicorn would log a cancelled request as a failure, with a traceback.
        with suppress(asyncio.CancelledError):
            await self._app(scope, receive, send)

    def _new_connection(self) -> "Connection":
        return Connection(self.config, self, {})

    def _open_connections(self) -> "list[Connection]":
        return cast("list[Connection]", list(self.connections))

    async def _tick(self) -> Never:
        while True:
            self.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            for connection in self._open_connections():
                connection.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(TICK_SECONDS)


class Connection(HttpToolsProtocol):
    """A client's connection: uvicorn's, with limits and with errors in OpenAI's shape."""

    server_state: HttpServer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Start the time for the first header."""
        super().connection_made(transport)
        self.limits = self.server_state.limits
        self.used = False
        self.in_header = False
        self.receiving = False
        self.upgrading = False
        self.refused = False
        self.header_size = self.trailer_size = 0
        self._set_timeout(self.limits.header)

    def data_received(self, data: bytes) -> None:
        """Parse the data, unless the client was refused already."""
        if self.refused:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.refuse(errors.invalid_http())
        if self.in_header:
            self.header_size += len(data)
            self._check_header_size(self.header_size)

    def on_message_begin(self) -> None:
        """Start the time for the header."""
        if self.refused:
            return
        if not self.idle:
            # Pipelined requests are not served: uvicorn reports a disconnect to the last of them only.
            self.refused = True
            self.cycle.keep_alive = False
            return
        super().on_message_begin()
        self.used = self.in_header = self.receiving = True
        self.upgrading = False
        self.header_size = self.trailer_size = 0
        self._set_timeout(self.limits.header)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the header; a trailer is dropped, since it could name another client's key."""
        if self.in_header:
            super().on_header(name, value)
        else:
            self.trailer_size += len(name) + len(value) + 4
            self._check_header_size(self.trailer_size)

    def on_headers_complete(self) -> None:
        """Start the app and the time for the body."""
        self.in_header = False
        fields = sum([len(name) + len(value) + 4 for name, value in self.headers])
        self._check_header_size(len(self.url) + fields)
        upgrade = dict(self.headers).get(b"upgrade", b"").lower()
        if upgrade == b"websocket":
            self.refuse(errors.websockets_unsupported())
        self.upgrading = bool(upgrade) and self.parser.should_upgrade()
        if self.refused or self.upgrading:
            return
        super().on_headers_complete()
        self._set_timeout(self.limits.body)
        if self.server_state.draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Pass a chunk of the body on, and extend the time for the rest."""
        if not self.refused and not self.upgrading:
            super().on_body(body)
            self.deadline += len(body) / self.limits.body_rate

    def on_message_complete(self) -> None:
        """Stop the timer while the app works on the response."""
        if self.refused or self.upgrading:
            return
        super().on_message_complete()
        self.receiving = False
        self._set_timeout(self.limits.idle if self.idle else None)

    def on_response_complete(self) -> None:
        """Start the idle time, or drain the connection where its server drains."""
        super().on_response_complete()
        if self.idle and not self.transport.is_closing():
            self._set_timeout(self.limits.idle)
            if self.server_state.draining:
                self.drain()

    @property
    def idle(self) -> bool:
        """Whether every request that began has its complete response."""
        return not self.receiving and (self.cycle is None or self.cycle.response_complete)

    def drain(self) -> None:
        """Close the connection when it has answered what began; one without a request yet may send it."""
        if self.transport.is_closing():
            return
        if self.idle and self.used:
            self.transport.close()
        elif self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def tick(self, now: float) -> None:
        """Close the connection when its time is over."""
        if now < self.deadline:
            return
        if self.receiving and not self.refused:
            self.refuse(errors.request_timeout("header" if self.in_header else "body"))
        else:
            self.transport.close()

    def refuse(self, error: ApiError) -> None:
        """Answer the current request with an error and close; just close where a response has begun."""
        cycle = None if self.cycle is None or self.cycle.response_complete else self.cycle
        if self.refused or self.transport.is_closing():
            return
        self.refused = True
        if cycle is not None:
            # To the app the client has disconnected; what it still sends is dropped.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        body = error.body()
        headers = error.all_headers() | {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        # Closing while the client still sends would reset the connection and lose the response.
        self.transport.write_eof()
        self._set_timeout(LINGER_SECONDS)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parse a request that offers HTTP/2, as Java's clients do, again without the offer."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.receiving = False
        self.data_received(b"".join([*lines, b"\r\n", rest]))

    def _check_header_size(self, size: int) -> None:
        if size > self.limits.header_size:
            self.refuse(errors.header_too_large(self.limits.header_size))

    def _set_timeout(self, seconds: float | None) -> None:
        self.deadline = float("inf") if seconds is None else self.loop.time() + seconds
