"""A reload: the new process takes over from the old one without a gap, over a socket in the state directory.

1. The new process connects; the old one sends its listening sockets.
2. The new one starts completely while the old one serves. If the start fails, nothing has changed.
3. The new one sends `take`. The old one stops accepting, names the new one to systemd as the main process,
   and sends the usage of the limits, the leases and the queued requests. Now the new one decides about them.
4. The old one finishes its requests. It submits them and reports their usage in lines of JSON, objects whose
   `do` is submit, cancel, touch, charge, release or count; the replies are grant and refuse.

If the old process dies, the new one frees everything that the old one held. If the new one dies, systemd
starts the service anew, and the old one refuses its queued requests with `restarting`.
"""

import asyncio
import itertools
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bedplate_gateway import errors
from bedplate_gateway.access_log import AccessRecord
from bedplate_gateway.admission.interface import Admission, AdmissionRequest, Lease, QueuedRequest
from bedplate_gateway.admission.local import LocalAdmission
from bedplate_gateway.admission.scheduler import Slot
from bedplate_gateway.errors import ApiError
from bedplate_gateway.http.server import HttpServer, StartError
from bedplate_gateway.keys import Key
from bedplate_gateway.reload.sd_notify import notify
from bedplate_gateway.settings import Engine

log = logging.getLogger(__name__)

SOCKET = "handover.socket"
VERSION = "4"
"""Of this protocol, raised with every change: no release takes over from one with another version."""
TAKE = b"take\n"
MAX_LINE_BYTES = 256 * 1024 * 1024
"""Limits the snapshot: many thousand queued requests."""
CONNECT_SECONDS = 10.0
"""How long the old process may take to answer a new one that connects."""
TOUCH_SECONDS = 5.0
"""The shortest interval in which a running request is reported alive."""

Message = dict[str, Any]


class AppLike(Protocol):
    """The parts of the app that a handover replaces."""

    admission: Admission
    """Decides about every new request."""

    local: LocalAdmission
    """The decisions of this process."""

    count: Callable[[AccessRecord], None]
    """Counts a request that has ended in the metrics."""


# The old process


class Offer:
    """Lets a new process take over from this one, after `open`."""

    def __init__(self, state_dir: Path, app: AppLike, servers: Iterable[HttpServer]) -> None:
        self._path = state_dir / SOCKET
        self._app = app
        self._servers = list(servers)
        self._server: asyncio.AbstractServer | None = None
        self._listening: asyncio.Task[None] | None = None
        self.taken = asyncio.Event()
        """Set once another process decides."""

    async def open(self) -> None:
        """Wait for a new process in the background."""
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=MAX_LINE_BYTES)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A copy, since asyncio's own socket cannot send descriptors; its buffer cannot be full yet.
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as channel:
            greeting = " ".join([VERSION, *(server.name for server in self._servers)])
            sockets = [server.listener.fileno() for server in self._servers]
            socket.send_fds(channel, [greeting.encode()], sockets)
            pid = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        if await reader.readline() == TAKE and not self.taken.is_set():
            self._hand_over(reader, writer, pid)
        else:
            writer.close()

    def _hand_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pid: int) -> None:
        self.taken.set()
        if self._server is not None:
            self._server.close()
        snapshot = self._app.local.export()
        successor = Successor(writer)
        successor.adopt(*self._app.local.hand_over(successor))
        self._app.admission = successor
        self._app.count = successor.count
        notify(f"MAINPID={pid}")
        _send(writer, snapshot)
        for server in self._servers:
            server.drain()
        log.info("Process %d has taken over; this process finishes its running requests.", pid)
        self._listening = asyncio.create_task(successor.listen(reader))


class Successor:
    """The admission of the new process, as the old one uses it; `writer` leads to the new process."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._gone = False

    def adopt(self, queued: dict[int, QueuedRequest], leases: dict[int, Lease]) -> None:
        """Continue with the requests in the snapshot, by the numbers in there."""
        self._queued = queued
        self._leases = leases
        self._numbers = itertools.count(1 + max((*queued, *leases), default=0))

    def submit(
        self,
        request: AdmissionRequest,
        on_grant: Callable[[Lease], None],
        on_refuse: Callable[[ApiError], None],
    ) -> QueuedRequest:
        """Submit a request there; the result comes later."""
        queued = QueuedRequest(self, next(self._numbers), request, on_grant, on_refuse, time.monotonic())
        if self._gone:
            on_refuse(errors.restarting())
            return queued
        self._queued[queued.number] = queued
        _send(self._writer, {"do": "submit", "number": queued.number, **request.to_dict()})
        return queued

    def cancel(self, queued: QueuedRequest) -> None:
        """Remove a request from the queue there."""
        if self._queued.pop(queued.number, None):
            _send(self._writer, {"do": "cancel", "number": queued.number})

    def touch(self, lease: Lease) -> None:
        """Report a request alive, at most every few seconds."""
        now = time.monotonic()
        if now - lease.touched > TOUCH_SECONDS:
            lease.touched = now
            _send(self._writer, {"do": "touch", "number": lease.number})

    def charge(self, lease: Lease, tokens: int) -> None:
        """Report used tokens."""
        _send(self._writer, {"do": "charge", "number": lease.number, "tokens": tokens})

    def swap(self, lease: Lease) -> bool:  # noqa: ARG002 - the interface's
        """Return False: this call cannot wait for a reply of the other process."""
        return False

    def requeue(
        self,
        lease: Lease,
        on_grant: Callable[[Lease], None],
        on_refuse: Callable[[ApiError], None],
    ) -> QueuedRequest:
        """Submit the request of a lease there again, which counts it once more."""
        self.release(lease)
        return self.submit(lease.request, on_grant, on_refuse)

    def release(self, lease: Lease) -> None:
        """Free the slot there."""
        if self._leases.pop(lease.number, None):
            _send(self._writer, {"do": "release", "number": lease.number})

    def count(self, record: AccessRecord) -> None:
        """Count a request that has ended in the metrics there."""
        _send(self._writer, {"do": "count", "record": asdict(record)})

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Pass grants and refusals on until the new process ends."""
        try:
            async for line in reader:
                self._handle(json.loads(line))
        except Exception:
            log.exception("A message of the process that took over cannot be handled.")
        self._gone = True
        for queued in list(self._queued.values()):
            queued.on_refuse(errors.restarting())
        self._queued.clear()

    def _handle(self, message: Message) -> None:
        # It may have been cancelled while the reply was on its way; the cancellation frees the slot.
        if queued := self._queued.get(message["number"]):
            if message["do"] == "grant":
                lease = self._lease(queued, message)
                del self._queued[message["number"]]
                queued.on_grant(lease)
            else:
                error = ApiError(**message["error"])
                del self._queued[message["number"]]
                queued.on_refuse(error)

    def _lease(self, queued: QueuedRequest, message: Message) -> Lease:
        # The settings of the new process describe the engine: it may be new.
        engine = Engine.model_validate(message["engine"])
        model = next(model for model in engine.models if model.name == queued.request.model)
        now = time.monotonic()
        number, request = queued.number, queued.request
        slot = Slot(request.key, model, engine)
        lease = Lease(self, number, request, slot, message["waited"], message["headers"], now, now)
        self._leases[number] = lease
        return lease


# The new process


@dataclass
class InheritedSockets:
    """What a new process gets before it takes over: the listening sockets by name, and the channel."""

    listeners: dict[str, socket.socket]
    channel: socket.socket


def connect(state_dir: Path) -> InheritedSockets:
    """Return the sockets of the running process; raises StartError where none runs."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.settimeout(CONNECT_SECONDS)
        channel.connect(str(state_dir / SOCKET))
        greeting, descriptors, *_ = socket.recv_fds(channel, 4096, 16)
    except OSError as error:
        channel.close()
        raise StartError(
            f"No running process answers on {state_dir / SOCKET} ({error}): "
            "systemctl restart bedplate-gateway"
        ) from None
    version, *names = greeting.decode().split() or [""]
    if version != VERSION:
        raise StartError(
            "The running process cannot hand over to this release: systemctl restart bedplate-gateway"
        )
    listeners = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for listener in listeners:
        listener.setblocking(False)
    return InheritedSockets(dict(zip(names, listeners, strict=True)), channel)


async def take_over(channel: socket.socket, app: AppLike) -> "Predecessor":
    """Take over all decisions; raises StartError where the old process does not hand them over."""
    reader, writer = await asyncio.open_unix_connection(sock=channel, limit=MAX_LINE_BYTES)
    writer.write(TAKE)
    if not (line := await reader.readline()):
        raise StartError("The old process has ended, or another process took over first: try again.")
    predecessor = Predecessor(writer, app)
    predecessor.replay(json.loads(line))
    predecessor.listening = asyncio.create_task(predecessor.listen(reader))
    return predecessor


class Predecessor:
    """The requests of the old process, as the new one holds them; `writer` leads to the old process."""

    def __init__(self, writer: asyncio.StreamWriter, app: AppLike) -> None:
        self._writer = writer
        self._app = app
        self._held: dict[int, QueuedRequest | Lease | None] = {}
        self.listening: asyncio.Task[None] | None = None
        """Ends when the old process has ended."""

    def replay(self, snapshot: Message) -> None:
        """Restore what the old process had counted, leased and queued."""
        local = self._app.local
        local.replay(snapshot["uses"])
        for lease in snapshot["leases"]:
            request = self._request(lease)
            self._held[lease["number"]] = local.restore_lease(request, lease["engine"], lease["charged"])
        for queued in snapshot["waiting"]:
            number = queued["number"]
            self._held[number] = local.restore_queued(
                self._request(queued),
                partial(self._grant, number),
                partial(self._refuse, number),
                queued["taken_at"],
                queued["deadline"],
            )
        log.info(
            "Took over %d running and %d queued requests.", len(snapshot["leases"]), len(snapshot["waiting"])
        )
        local.engines_changed()

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Handle the messages of the old process until it ends, then free what it left."""
        try:
            async for line in reader:
                self._handle(json.loads(line))
        except Exception:
            log.exception("A message of the process before cannot be handled.")
        finally:
            # The old process must not wait for replies that never come.
            self._writer.close()
            for number in list(self._held):
                self._free(number)

    def _handle(self, message: Message) -> None:
        if message["do"] == "count":
            self._app.count(AccessRecord(**message["record"]))
            return
        number = message["number"]
        held = self._held.get(number)
        match message["do"]:
            case "submit":
                self._submit(number, self._request(message))
            case "cancel" | "release":
                self._free(number)
            case "touch" if isinstance(held, Lease):
                held.touch()
            case "charge" if isinstance(held, Lease):
                held.charge(message["tokens"])

    def _submit(self, number: int, request: AdmissionRequest) -> None:
        # The result may come before `submit` returns.
        self._held[number] = None
        grant, refuse = partial(self._grant, number), partial(self._refuse, number)
        queued = self._app.admission.submit(request, grant, refuse)
        if number in self._held:
            self._held[number] = self._held[number] or queued

    def _free(self, number: int) -> None:
        held = self._held.pop(number, None)
        if isinstance(held, Lease):
            held.release()
        elif held is not None:
            held.cancel()

    def _grant(self, number: int, lease: Lease) -> None:
        self._held[number] = lease
        engine = lease.engine.model_dump(mode="json")
        fields = {"engine": engine, "waited": lease.waited, "headers": lease.headers}
        _send(self._writer, {"do": "grant", "number": number, **fields})

    def _refuse(self, number: int, error: ApiError) -> None:
        del self._held[number]
        _send(self._writer, {"do": "refuse", "number": number, "error": asdict(error)})

    def _request(self, message: Message) -> AdmissionRequest:
        # The key may have been removed meanwhile: its requests had begun before.
        key = self._app.local.keys.by_alias.get(message["alias"]) or Key(alias=message["alias"], secrets=())
        return AdmissionRequest(
            key, message["class"], message["model"], message["prompt_bytes"], message["id"]
        )


def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    # Where the other process has died, nobody reads it.
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")
