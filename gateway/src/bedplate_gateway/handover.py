"""A reload: the new process takes over from the old one without a gap, over a socket in the state directory.

1. The new process connects; the old one sends its listening sockets and one end of a pair of sockets.
2. The new one starts up to its end, while the old one serves. If it fails, nothing has happened.
3. It sends `take`. The old one stops to accept, names it to systemd as the main process, and sends the
   windows of the limits, the leases and the waiting requests. From here on the new one decides about them.
4. The old one sees its requests to their end. It asks for slots and reports usage in lines of JSON, each
   an object whose `do` is submit, cancel, touch, charge, release or count there, and grant or refuse back.
   Its idle connections go through the pair of sockets to the new one.

If the old one dies, the new one frees all that was its. If the new one dies, systemd starts the service anew,
and the old one tells those who still wait to ask again.
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

from bedplate_gateway.admission import Admission, Ask, Lease, LocalAdmission, Waiting
from bedplate_gateway.errors import ApiError
from bedplate_gateway.keys import Key
from bedplate_gateway.notify import notify
from bedplate_gateway.record import Record
from bedplate_gateway.scheduler import Slot
from bedplate_gateway.server import RESTARTING, Door, StartError
from bedplate_gateway.settings import Engine

log = logging.getLogger(__name__)

SOCKET = "handover.socket"
VERSION = "1"
"""Of what is said here, raised with every change: no release takes over from one that it misunderstands."""
TAKE = b"take\n"
LONGEST_LINE = 256 * 1024 * 1024
"""Bounds the snapshot: many thousand waiting requests, in bytes."""
ANSWER_SECONDS = 10.0
"""How long the old process may take to answer a new one that begins."""
TOUCH_SECONDS = 5.0
"""How often at most a running request is reported alive."""

Message = dict[str, Any]


class AppLike(Protocol):
    """What is handed over of the app."""

    admission: Admission
    """Whom each request asks now."""

    local: LocalAdmission
    """The decisions of this process."""

    count: Callable[[Record], None]
    """Counts a request that has ended in the metrics."""


# The old process


class Offer:
    """Lets a new process take over from this one."""

    def __init__(self, state_dir: Path, app: AppLike, doors: Iterable[Door]) -> None:
        """Nothing is offered before `open`."""
        self._path = state_dir / SOCKET
        self._app = app
        self._doors = list(doors)
        self._server: asyncio.AbstractServer | None = None
        self._listening: asyncio.Task[None] | None = None
        self.taken = asyncio.Event()
        """Set once another process decides."""

    async def open(self) -> None:
        """Wait for a new process."""
        self._server = await asyncio.start_unix_server(self._meet, self._path, limit=LONGEST_LINE)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # A copy, since asyncio's own socket sends no descriptors; so early it cannot be full.
        with theirs, socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as channel:
            sent = [*(door.listener for door in self._doors), theirs]
            greeting = " ".join([VERSION, *(door.name for door in self._doors)])
            socket.send_fds(channel, [greeting.encode()], [each.fileno() for each in sent])
            pid = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        if await reader.readline() == TAKE and not self.taken.is_set():
            self._hand_over(reader, writer, ours, pid)
        else:
            ours.close()
            writer.close()

    def _hand_over(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connections: socket.socket, pid: int
    ) -> None:
        self.taken.set()
        if self._server is not None:
            self._server.close()
        snapshot = self._app.local.export()
        successor = Successor(writer)
        successor.begin(*self._app.local.hand_over(successor))
        self._app.admission = successor
        self._app.count = successor.count
        notify(f"MAINPID={pid}")
        _send(writer, snapshot)
        for door in self._doors:
            door.leave(partial(_pass_on, connections, door.name))
        log.info("Process %d has taken over; this one sees its requests to their ends.", pid)
        self._listening = asyncio.create_task(successor.listen(reader))


def _pass_on(connections: socket.socket, name: str, descriptor: int) -> bool:
    try:
        socket.send_fds(connections, [name.encode()], [descriptor])
    except OSError:  # the new process died, or has no room at the moment
        return False
    return True


class Successor:
    """The admission of the new process, as the old one asks it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        """`writer` leads to the new process."""
        self._writer = writer
        self._gone = False

    def begin(self, waiting: dict[int, Waiting], leases: dict[int, Lease]) -> None:
        """Go on with what the new process learnt from the snapshot, by the numbers in there."""
        self._waiting = waiting
        self._leases = leases
        self._numbers = itertools.count(1 + max((*waiting, *leases), default=0))

    def submit(
        self, ask: Ask, on_grant: Callable[[Lease], None], on_refuse: Callable[[ApiError], None]
    ) -> Waiting:
        """Ask there; the answer comes later."""
        waiting = Waiting(self, next(self._numbers), ask, on_grant, on_refuse, time.monotonic())
        if self._gone:
            on_refuse(RESTARTING)
            return waiting
        self._waiting[waiting.number] = waiting
        _send(self._writer, {"do": "submit", "number": waiting.number, **ask.describe()})
        return waiting

    def cancel(self, waiting: Waiting) -> None:
        """Take a request out of the queue there."""
        if self._waiting.pop(waiting.number, None):
            _send(self._writer, {"do": "cancel", "number": waiting.number})

    def touch(self, lease: Lease) -> None:
        """Report a request alive, now and then."""
        now = time.monotonic()
        if now - lease.touched > TOUCH_SECONDS:
            lease.touched = now
            _send(self._writer, {"do": "touch", "number": lease.number})

    def charge(self, lease: Lease, tokens: int) -> None:
        """Report used tokens."""
        _send(self._writer, {"do": "charge", "number": lease.number, "tokens": tokens})

    def swap(self, lease: Lease) -> bool:  # noqa: ARG002 - the interface's
        """Say no: the answer of the other process could not be waited for."""
        return False

    def release(self, lease: Lease) -> None:
        """Give the slot back there."""
        if self._leases.pop(lease.number, None):
            _send(self._writer, {"do": "release", "number": lease.number})

    def count(self, record: Record) -> None:
        """Have a request that has ended counted there."""
        _send(self._writer, {"do": "count", "record": asdict(record)})

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Pass on what is granted and refused until the new process ends."""
        async for line in reader:
            message = json.loads(line)
            # It may have been cancelled while the answer was under way; the cancellation frees the slot.
            if waiting := self._waiting.pop(message["number"], None):
                if message["do"] == "grant":
                    waiting.on_grant(self._lease(waiting, message))
                else:
                    waiting.on_refuse(ApiError(**message["error"]))
        self._gone = True
        for waiting in list(self._waiting.values()):
            waiting.on_refuse(RESTARTING)
        self._waiting.clear()

    def _lease(self, waiting: Waiting, message: Message) -> Lease:
        # The engine as the new process knows it: it may be new.
        engine = Engine.model_validate(message["engine"])
        model = next(model for model in engine.models if model.name == waiting.ask.model)
        now = time.monotonic()
        number, ask = waiting.number, waiting.ask
        slot = Slot(ask.key, model, engine)
        lease = Lease(self, number, ask, slot, message["waited"], message["headers"], now, now)
        self._leases[number] = lease
        return lease


# The new process


@dataclass
class Inheritance:
    """What a new process gets before it takes over: the listening sockets by name, and the channels."""

    listeners: dict[str, socket.socket]
    connections: socket.socket
    channel: socket.socket


def fetch(state_dir: Path) -> Inheritance:
    """Return what the running process hands to a new one; raises StartError where none runs."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.settimeout(ANSWER_SECONDS)
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
    *listeners, connections = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for inherited in (*listeners, connections):
        inherited.setblocking(False)
    return Inheritance(dict(zip(names, listeners, strict=True)), connections, channel)


async def take(inheritance: Inheritance, app: AppLike, doors: Iterable[Door]) -> "Predecessor":
    """Take over all decisions; raises StartError when the old process does not give them."""
    reader, writer = await asyncio.open_unix_connection(sock=inheritance.channel, limit=LONGEST_LINE)
    writer.write(TAKE)
    if not (line := await reader.readline()):
        raise StartError("The old process has ended or was faster taken over by another: try again.")
    predecessor = Predecessor(writer, app)
    predecessor.replay(json.loads(line))
    _adopt_all(inheritance.connections, {door.name: door for door in doors})
    predecessor.listening = asyncio.create_task(predecessor.listen(reader))
    return predecessor


class Predecessor:
    """The requests of the old process, as the new one's admission sees them."""

    def __init__(self, writer: asyncio.StreamWriter, app: AppLike) -> None:
        """`writer` leads to the old process."""
        self._writer = writer
        self._app = app
        self._held: dict[int, Waiting | Lease | None] = {}
        self.listening: asyncio.Task[None] | None = None
        """Ends when the old process has."""

    def replay(self, snapshot: Message) -> None:
        """Go on from what the old process counted, held and let wait."""
        local = self._app.local
        local.replay(snapshot["uses"])
        for lease in snapshot["leases"]:
            self._held[lease["number"]] = local.hold(self._ask(lease), lease["engine"], lease["charged"])
        for waiting in snapshot["waiting"]:
            number = waiting["number"]
            self._held[number] = local.resume(
                self._ask(waiting),
                partial(self._grant, number),
                partial(self._refuse, number),
                waiting["taken_at"],
                waiting["deadline"],
            )
        log.info("Took over %d running and %d waiting.", len(snapshot["leases"]), len(snapshot["waiting"]))
        local.engines_changed()

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Do what the old process asks until it ends, then free what it left."""
        try:
            async for line in reader:
                self._hear(json.loads(line))
        finally:
            # Also after a failure here: the old process must not wait for answers that do not come.
            self._writer.close()
            for number in list(self._held):
                self._free(number)

    def _hear(self, message: Message) -> None:
        if message["do"] == "count":
            self._app.count(Record(**message["record"]))
            return
        number = message["number"]
        held = self._held.get(number)
        match message["do"]:
            case "submit":
                self._submit(number, self._ask(message))
            case "cancel" | "release":
                self._free(number)
            case "touch" if isinstance(held, Lease):
                held.touch()
            case "charge" if isinstance(held, Lease):
                held.charge(message["tokens"])

    def _submit(self, number: int, ask: Ask) -> None:
        # The answer may come before `submit` returns.
        self._held[number] = None
        waiting = self._app.admission.submit(ask, partial(self._grant, number), partial(self._refuse, number))
        if number in self._held:
            self._held[number] = self._held[number] or waiting

    def _free(self, number: int) -> None:
        held = self._held.pop(number, None)
        if isinstance(held, Lease):
            held.release()
        elif held is not None:
            held.cancel()

    def _grant(self, number: int, lease: Lease) -> None:
        self._held[number] = lease
        engine = lease.engine.model_dump(mode="json")
        granted = {"engine": engine, "waited": lease.waited, "headers": lease.headers}
        _send(self._writer, {"do": "grant", "number": number, **granted})

    def _refuse(self, number: int, error: ApiError) -> None:
        del self._held[number]
        _send(self._writer, {"do": "refuse", "number": number, "error": asdict(error)})

    def _ask(self, message: Message) -> Ask:
        # A key that was removed meanwhile: its requests had begun before.
        key = self._app.local.keys.by_alias.get(message["alias"]) or Key(alias=message["alias"], secrets=())
        return Ask(key, message["class"], message["model"], message["prompt_bytes"])


def _adopt_all(connections: socket.socket, doors: dict[str, Door]) -> None:
    """Take over each connection that the old process passes on, until it ends."""
    loop = asyncio.get_running_loop()
    adopting: set[asyncio.Task[None]] = set()

    def take_one() -> None:
        name, descriptors, *_ = socket.recv_fds(connections, 64, 1)
        if not descriptors:
            loop.remove_reader(connections)
            connections.close()
            return
        connection = socket.socket(fileno=descriptors[0])
        connection.setblocking(False)
        task = asyncio.create_task(doors[name.decode()].adopt(connection))
        adopting.add(task)
        task.add_done_callback(adopting.discard)

    loop.add_reader(connections, take_one)


def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    # Nobody is there to hear it where the other process has died.
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")
