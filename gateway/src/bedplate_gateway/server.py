"""The HTTP server: uvicorn's protocol with limits for slow clients, and doors that lose no request."""

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from bedplate_gateway.errors import ApiError, bad_request

App = Callable[[Any, Any, Any], Awaitable[None]]

BACKLOG = 4096
TICK = 1.0
"""How often the limits are looked at, in seconds."""
PICKUP = 2.0
"""How long a client that was refused may take to read why, in seconds."""
TIDY_UP = 3.0
"""How long requests that were cut off may take to tidy up, in seconds."""
RESTARTING = ApiError(503, "restarting", "The gateway restarts: ask again.", "server_error", retry_after=1)


@dataclass(frozen=True)
class ClientLimits:
    """What a client may take: times in seconds, sizes in bytes."""

    header: float = 10.0
    """From its first byte (on a new connection: from its start) to the end of the header."""
    body: float = 30.0
    """From the header's end to the body's; what comes prolongs it, so that `body_rate` is always enough."""
    body_rate: float = 64 * 1024
    """Bytes a second."""
    idle: float = 75.0
    """Between two requests."""
    reader: float = 60.0
    """Without taking a byte of what waits for it."""
    header_size: int = 64 * 1024
    leaving: float = 6.0
    """Between two requests while the server ends: more than OpenAI's clients keep a connection, 5 s."""


class StartError(Exception):
    """This process cannot start now; the message is one sentence with the remedy."""


def listen(address: str, port: int, limits: ClientLimits | None = None) -> socket.socket:
    """Return a new listening TCP socket; raises StartError. Its options hold for its connections too."""
    reader = (limits or ClientLimits()).reader
    try:
        family, *_, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Finds clients whose machine vanished while they wait in the queue.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(reader))
        # The kernel ends a connection whose peer takes nothing for so long, be it gone or just not reading.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(reader * 1000))
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        raise StartError(
            f"{address} port {port} cannot be listened on ({error.strerror}): "
            f"see with ss -ltnp 'sport = {port}' who has it, or mend the address."
        ) from None
    return listener


def is_at(listener: socket.socket, address: str, port: int) -> bool:
    """Say whether a listening socket is at an address and port."""
    where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][4]
    return bool(listener.getsockname() == where)


class Door(ServerState):
    """One listening socket, the app behind it and its connections."""

    def __init__(
        self, name: str, app: App, listener: socket.socket, limits: ClientLimits | None = None
    ) -> None:
        """`name` is what systemd and a successor know it by."""
        super().__init__()
        self.name = name
        self.listener = listener
        self.limits = limits or ClientLimits()
        self.leaving = False
        self.heir: Callable[[int], bool] | None = None
        """Takes an idle connection, by its descriptor, into another process; says False where it cannot."""
        self._app = app
        self.config = Config(
            self._answer,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            # Connection.tick comes first: uvicorn's own timer forgets a body that comes after its answer.
            timeout_keep_alive=2 * math.ceil(self.limits.idle),
        )
        self.config.load()
        self._server: asyncio.AbstractServer | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to accept."""
        self._ticking = asyncio.create_task(self._tick())
        self._server = await asyncio.get_running_loop().create_server(
            self._connection, sock=self.listener, backlog=BACKLOG
        )

    async def adopt(self, connection: socket.socket) -> None:
        """Go on with an idle connection that another process accepted."""
        await asyncio.get_running_loop().connect_accepted_socket(self._connection, connection)

    def leave(self, heir: Callable[[int], bool] | None = None) -> None:
        """Accept no more, and see every connection off: idle ones to the heir or after a grace time."""
        self.leaving = True
        self.heir = heir
        if self._server is not None:
            # What the kernel has accepted and we have not waits for the next process.
            self._server.close()
        for connection in self._connections():
            connection.see_off()

    async def empty(self, *, of_tasks: bool) -> None:
        """Return when no connection is left and, if asked, no task that tidies up after one."""
        while self.connections or (of_tasks and self.tasks):
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End what is left."""
        if self._ticking is not None:
            self._ticking.cancel()
        for connection in self._connections():
            connection.refuse(RESTARTING)
            connection.transport.close()
        # Their apps see clients that have left; who still waits for something then is cancelled.
        if tasks := list(self.tasks):
            _, late = await asyncio.wait(tasks, timeout=TIDY_UP)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        # uvicorn would log a cancelled request as a failure, with a traceback.
        with suppress(asyncio.CancelledError):
            await self._app(scope, receive, send)

    def _connection(self) -> "Connection":
        return Connection(self.config, self, {})

    def _connections(self) -> "list[Connection]":
        return cast("list[Connection]", list(self.connections))

    async def _tick(self) -> None:
        while True:
            self.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            for connection in self._connections():
                connection.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(TICK)


class Connection(HttpToolsProtocol):
    """A client's connection: uvicorn's, with limits, and with errors in OpenAI's shape."""

    server_state: Door

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Wait for the first header."""
        super().connection_made(transport)
        self.limits = self.server_state.limits
        self.used = False
        self.in_header = False
        self.receiving = False
        self.upgrading = False
        self.refused = False
        self.header_size = 0
        self._allow(self.limits.header)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the client was refused already."""
        if self.refused:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.refuse(bad_request("This is no valid HTTP/1.1 request: use an HTTP client."))
        if self.in_header:
            self.header_size += len(data)
            self._check_header_size(self.header_size)

    def on_message_begin(self) -> None:
        """Give the header its time."""
        if self.refused:
            return
        if not self.idle:
            # Not served: uvicorn does not tell the first of two such requests when their client leaves.
            self.refused = True
            self.cycle.keep_alive = False
            return
        super().on_message_begin()
        self.used = self.in_header = self.receiving = True
        self.upgrading = False
        self.header_size = 0
        self._allow(self.limits.header)

    def on_headers_complete(self) -> None:
        """Have the request answered, and give its body its time."""
        self.in_header = False
        fields = sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._check_header_size(len(self.url) + fields)
        upgrade = dict(self.headers).get(b"upgrade", b"").lower()
        if upgrade == b"websocket":
            self.refuse(bad_request("WebSockets are not spoken here: use HTTP, with stream for a stream."))
        self.upgrading = bool(upgrade) and self.parser.should_upgrade()
        if self.refused or self.upgrading:
            return
        super().on_headers_complete()
        self._allow(self.limits.body)
        if self.server_state.leaving:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; it prolongs the time for the rest."""
        if not self.refused and not self.upgrading:
            super().on_body(body)
            self.deadline += len(body) / self.limits.body_rate

    def on_message_complete(self) -> None:
        """Let the answer take its time."""
        if self.refused or self.upgrading:
            return
        super().on_message_complete()
        self.receiving = False
        self._allow(self.limits.idle if self.idle else None)

    def on_response_complete(self) -> None:
        """Wait for the next request, or see the connection off where its server ends."""
        super().on_response_complete()
        if self.idle and not self.transport.is_closing():
            self._allow(self.limits.idle)
            if self.server_state.leaving:
                self.see_off()

    @property
    def idle(self) -> bool:
        """Whether no request has begun that is not answered in full."""
        return not self.receiving and (self.cycle is None or self.cycle.response_complete)

    def see_off(self) -> None:
        """Close in time when idle; else let the answer say that it is the last one, if it has not begun."""
        if self.transport.is_closing():
            return
        if self.idle:
            heir = self.server_state.heir
            if heir is not None and self.transport.get_write_buffer_size() == 0:
                self.transport.pause_reading()
                if heir(self.transport.get_extra_info("socket").fileno()):
                    self.transport.close()
                    return
                self.transport.resume_reading()
            if self.used:
                # Counted from when it became idle: who has not used it for so long will not.
                self.deadline -= self.limits.idle - self.limits.leaving
                self.tick(self.loop.time())
            else:
                self._allow(self.limits.leaving)
        elif self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def tick(self, now: float) -> None:
        """End the connection when its time is over."""
        if now < self.deadline:
            return
        if self.receiving and not self.refused:
            what = "header" if self.in_header else "body"
            message = f"The request's {what} did not arrive in time: send it again."
            self.refuse(ApiError(408, "request_timeout", message))
        else:
            self.transport.close()

    def refuse(self, error: ApiError) -> None:
        """Answer the request at hand with an error and close; where an answer is under way, just close."""
        cycle = None if self.cycle is None or self.cycle.response_complete else self.cycle
        if self.refused or self.transport.is_closing():
            return
        self.refused = True
        if cycle is not None:
            # The app sees a client that has left; what it still says goes nowhere.
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
        # To close while the client still sends would reset the connection, and the answer would be lost.
        self.transport.write_eof()
        self._allow(PICKUP)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Have a request that offers HTTP/2, as Java's clients do, read again without the offer."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.receiving = False
        self.data_received(b"".join([*lines, b"\r\n", rest]))

    def _check_header_size(self, size: int) -> None:
        if size > self.limits.header_size:
            message = f"The request's header is over {self.limits.header_size} bytes: send less in it."
            self.refuse(ApiError(431, "header_too_large", message))

    def _allow(self, seconds: float | None) -> None:
        self.deadline = float("inf") if seconds is None else self.loop.time() + seconds
