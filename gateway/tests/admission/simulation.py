"""A simulation of admission with its faults; one seed gives one history.

Limits, scheduler, usage log and handover are the gateway's own code. Clock, engines, disk, processes and the
channel between them are simulated.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast
from unittest.mock import patch

from bedplate_gateway.access_log import AccessRecord
from bedplate_gateway.admission.interface import Admission, AdmissionRequest, Lease, QueuedRequest
from bedplate_gateway.admission.limits import WINDOW_SECONDS
from bedplate_gateway.admission.local import LocalAdmission
from bedplate_gateway.admission.usage_log import UsageLog
from bedplate_gateway.engines.drains import Drain
from bedplate_gateway.errors import ApiError
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.reload.handover import Predecessor, Successor
from bedplate_gateway.settings import PRIORITY_CLASSES, Engine, PriorityClass, Settings

KEYS = Keys(
    tuple(
        Key.model_validate({"secrets": [], **key})
        for key in (
            {"alias": "free"},
            {"alias": "other"},
            {"alias": "rpm", "rpm": 4},
            {"alias": "rpm-tpm", "rpm": 6, "tpm": 300},
            {"alias": "tpm", "tpm": 200},
            {"alias": "parallel", "max_parallel": 2},
        )
    )
)
SLOTS = {"one": {"a": 2, "b": 1}, "two": {"a": 1}}
DRAIN = Drain(engine="any", who="kim", since=datetime(2026, 3, 1, tzinfo=UTC))
SHARE = 4
STEPS = 150
REAL_WRITE = os.write

Event = Literal[
    "submitted",
    "granted",
    "moved",
    "charged",
    # How a request ends; "lost" without an answer, since its process was killed.
    "refused",
    "cancelled",
    "ended",
    "lost",
    # A process decides that has another before it; one that has none; all messages are read; usage is lost.
    "took over",
    "alone",
    "delivered",
    "forgot",
    # An engine gets no new request, or does again.
    "drained",
    "undrained",
]


@dataclass(frozen=True)
class Entry:
    """One event at a time; the request that it concerns, the engine of a granted one, the tokens charged.

    The decision about a late one is older: another process made it, whose message was under way.
    """

    at: float
    event: Event
    request: int = 0
    engine: str = ""
    tokens: int = 0
    late: bool = False


@dataclass(eq=False)
class Request:
    """One request, as its client and the engine see it; its client is connected to `sender`."""

    number: int
    key: Key
    priority_class: PriorityClass
    model: str
    sender: int
    queued: QueuedRequest | None = None
    lease: Lease | None = None


@dataclass
class History:
    """What happened, in order."""

    entries: list[Entry] = field(default_factory=list)
    requests: dict[int, Request] = field(default_factory=dict)


class SimulatedChannel:
    """The lines that one process has sent and the other has not read yet."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.closed = False

    def write(self, line: bytes) -> None:
        self.lines.append(line)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def take(self) -> list[bytes]:
        lines, self.lines = self.lines, []
        return lines


class Process:
    """One gateway process; after a handover `predecessor` is its link to the process before."""

    def __init__(self, number: int, local: LocalAdmission) -> None:
        self.number = number
        self.local = local
        self.admission: Admission = local
        self.predecessor: Link | None = None
        self.count: Callable[[AccessRecord], None] = lambda _: None


@dataclass(eq=False)
class Link:
    """Both ends of a handover's channel."""

    old: Process
    to_new: SimulatedChannel
    to_old: SimulatedChannel
    held: Predecessor
    reader: asyncio.StreamReader
    listening: asyncio.Task[None]


class Simulation:
    """One history: random steps of clients, engines, disk and processes."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.now = 1000.0
        self.history = History()
        self.down: set[str] = set()
        self.drained: set[str] = set()
        self.full = False
        self.last_full = -WINDOW_SECONDS
        self.path = folder / "usage"
        engines = [
            {
                "name": name,
                "kind": "ollama",
                "url": f"http://{name}",
                "models": [{"name": model, "slots": slots} for model, slots in models.items()],
            }
            for name, models in SLOTS.items()
        ]
        place = {"address": "127.0.0.1", "port": 0}
        document = {"api": place, "metrics": place, "keys_file": "/none", "state_dir": str(folder)}
        self.settings = Settings.model_validate(document | {"engines": engines, "share": SHARE})
        self.links: list[Link] = []
        self._numbers = 0
        self._usage_logs: list[UsageLog] = []
        self.process = self._new_process()
        self.process.local.open_usage_log()

    # What the gateway asks

    def serves(self, engine: Engine, model: str) -> bool:  # noqa: ARG002 - the interface's
        return engine.name not in self.down and engine.name not in self.drained

    def drain(self, engine: Engine) -> Drain | None:
        return DRAIN if engine.name in self.drained else None

    def loaded(self, engine: Engine, model: str) -> bool:  # noqa: ARG002 - the interface's
        return True

    def write(self, descriptor: int, content: bytes) -> int:
        """Write as the system call does, unless the disk is full."""
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return REAL_WRITE(descriptor, content)

    # The run

    async def run(self) -> History:
        """Make all steps, then let everything end."""
        steps: list[tuple[Callable[[], object], int]] = [
            (self.submit, 40),
            (self.end, 25),
            (self.wait, 25),
            (self.cancel, 5),
            (self.swap, 3),
            (self.change_engine, 3),
            (self.change_drain, 4),
            (self.change_disk, 2),
            (self.hand_over, 3),
            (self.kill, 2),
            (self.kill_predecessor, 2),
        ]
        choices, weights = zip(*steps, strict=True)
        module = "bedplate_gateway.admission.usage_log"
        with patch(f"{module}.os.write", self.write), patch(f"{module}.ROTATE_BYTES", 100):
            for step in self.random.choices(choices, weights, k=STEPS):
                # Messages may be late beside other events, but take no time.
                if step == self.wait or self.random.random() < 0.8:
                    await self.deliver()
                step()
            await self._settle()
        for usage_log in self._usage_logs:
            usage_log.close()
        return self.history

    async def deliver(self) -> None:
        """Let each process read what the others have sent."""
        moved = True
        while moved:
            moved = False
            for link in self.links:
                for line in link.to_new.take():
                    link.held._handle(json.loads(line))
                    moved = True
                for line in link.to_old.take():
                    link.reader.feed_data(line)
                    moved = True
            # One turn for a line to reach the reader's task, one for its answer.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        self._note("delivered")

    async def _settle(self) -> None:
        """Let all requests end; nothing is left in any process."""
        self.down.clear()
        for engine in sorted(self.drained):
            self._undrain(engine)
        self.full = False
        for _ in range(60):
            self.now += 1.0
            self.process.local.tick()
            await self.deliver()
            for request in self._running():
                self._end(request)
            await self.deliver()
            if not self._running() and not self._queued():
                break
            self.now += 4.0
        for link in self.links:
            link.listening.cancel()
        assert not self._queued(), "a request waits for ever"
        assert not any(slots.running for slots in self.process.local.scheduler.engine_slots()), (
            "a slot is lost"
        )
        assert not list(self.process.local.scheduler.queued()), "the queue has a request that has ended"
        assert self.process.local.lost_leases == 0

    # Clients

    def submit(self) -> None:
        """Send a request, through the newest process or one that has handed over."""
        process = self.random.choice([self.process, self.process, *(link.old for link in self._links())])
        request = Request(
            len(self.history.requests) + 1,
            self.random.choice(list(KEYS.by_alias.values())),
            self.random.choice(PRIORITY_CLASSES),
            self.random.choice("aab"),
            process.number,
        )
        self.history.requests[request.number] = request
        self._note("submitted", request)

        def grant(lease: Lease) -> None:
            request.queued, request.lease = None, lease
            self._note("granted", request, engine=lease.engine.name, late=process is not self.process)

        def refuse(_: ApiError) -> None:
            request.queued = None
            self._note("refused", request)

        asked = AdmissionRequest(request.key, request.priority_class, request.model, 100)
        queued = process.admission.submit(asked, grant, refuse)
        if self.history.entries[-1] == Entry(self.now, "submitted", request.number):
            request.queued = queued

    def end(self) -> None:
        """End a running request."""
        if running := self._running():
            self._end(self.random.choice(running))

    def _end(self, request: Request) -> None:
        assert request.lease is not None
        lease, request.lease = request.lease, None
        self._note("ended", request)
        if tokens := self.random.randrange(0, 80):
            self._note("charged", request, tokens=tokens)
            lease.charge(tokens)
        lease.release()

    def cancel(self) -> None:
        """Disconnect a client that waits."""
        if queued := self._queued():
            request = self.random.choice(queued)
            waiting, request.queued = request.queued, None
            assert waiting is not None
            self._note("cancelled", request)
            waiting.cancel()

    def swap(self) -> None:
        """Move a running request to another engine."""
        if running := self._running():
            request = self.random.choice(running)
            assert request.lease is not None
            if request.lease.swap():
                self._note("moved", request, engine=request.lease.engine.name)

    # The world

    def wait(self) -> None:
        """Let time pass, sometimes more than a window."""
        self.now += self.random.choice([0.001, 0.05, 0.5, 2.0, 10.0, 61.0])
        self.process.local.tick()
        assert self.process.local.usage_log
        self.process.local.usage_log.retry()
        if link := self.process.predecessor:
            served = any(each.sender == link.old.number for each in [*self._running(), *self._queued()])
            if not served and not link.old.predecessor:
                self._drop_predecessor(link)

    def change_engine(self) -> None:
        """Stop an engine, or start it again."""
        self.down ^= {self.random.choice(list(SLOTS))}
        self.process.local.engines_changed()

    def change_drain(self) -> None:
        """Drain an engine, or give it requests again; every process reads the same file."""
        engine = self.random.choice(list(SLOTS))
        if engine in self.drained:
            self._undrain(engine)
        else:
            self._note("drained", engine=engine)
            self.drained.add(engine)
        self.process.local.engines_changed()

    def _undrain(self, engine: str) -> None:
        self._note("undrained", engine=engine)
        self.drained.remove(engine)

    def change_disk(self) -> None:
        """Fill the disk, or make room."""
        self.full = not self.full
        self.last_full = self.now

    def hand_over(self) -> None:
        """Start a process that takes over from the one that decides."""
        old, new = self.process, self._new_process()
        to_new, to_old = SimulatedChannel(), SimulatedChannel()
        snapshot = json.loads(json.dumps(old.local.export()))
        successor = Successor(cast("asyncio.StreamWriter", to_new))
        successor.adopt(*old.local.hand_over(successor))
        old.admission = successor
        self._note("took over")
        self.process = new
        reader = asyncio.StreamReader()
        held = Predecessor(cast("asyncio.StreamWriter", to_old), new)
        new.predecessor = Link(
            old, to_new, to_old, held, reader, asyncio.create_task(successor.listen(reader))
        )
        self.links.append(new.predecessor)
        held.replay(snapshot)

    def kill(self) -> None:
        """Kill the process that decides, perhaps while it writes a line; systemd starts it again."""
        if self.full or self.now - self.last_full < WINDOW_SECONDS:
            # What was used while the disk was full is not in the file.
            self._note("forgot")
        killed = self.process
        self._lose(killed)
        # Those of processes before it run on; the new process does not know of them.
        if link := killed.predecessor:
            self.links.remove(link)
            link.reader.feed_eof()
            for request in self.history.requests.values():
                if request.lease and request.sender != killed.number:
                    self._note("lost", request)
                    request.lease = None
        if self.random.random() < 0.3 and not self.full:
            with self.path.open("a") as file:
                file.write('["key", "rpm", "req')
        self.process = self._new_process()
        self.process.local.open_usage_log()
        self._note("alone")

    def kill_predecessor(self) -> None:
        """Kill the process before the one that decides, while it finishes its requests."""
        link = self.process.predecessor
        # With three processes the first would lose its channel too, which `kill` shows.
        if link and not link.old.predecessor:
            self._lose(link.old)
            self._drop_predecessor(link)

    def _drop_predecessor(self, link: Link) -> None:
        self.process.predecessor = None
        self.links.remove(link)
        link.listening.cancel()
        for number in list(link.held._held):
            link.held._free(number)
        self._note("alone")

    def _lose(self, process: Process) -> None:
        """Forget the requests whose clients were connected to a process that dies."""
        for request in self.history.requests.values():
            if request.sender == process.number and (request.queued or request.lease):
                self._note("lost", request)
                request.queued = request.lease = None

    def _new_process(self) -> Process:
        self._numbers += 1
        usage_log = UsageLog(self.path)
        self._usage_logs.append(usage_log)
        local = LocalAdmission(self.settings, KEYS, self, lambda: self.now, usage_log)
        return Process(self._numbers, local)

    def _links(self) -> list[Link]:
        links, process = [], self.process
        while link := process.predecessor:
            links.append(link)
            process = link.old
        return links

    def _running(self) -> list[Request]:
        return [request for request in self.history.requests.values() if request.lease]

    def _queued(self) -> list[Request]:
        return [request for request in self.history.requests.values() if request.queued and not request.lease]

    def _note(
        self,
        event: Event,
        request: Request | None = None,
        *,
        engine: str = "",
        tokens: int = 0,
        late: bool = False,
    ) -> None:
        number = request.number if request else 0
        self.history.entries.append(Entry(self.now, event, number, engine, tokens, late))
