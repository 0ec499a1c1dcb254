"""Two and three processes' worth of admission and servers in one process, over the real sockets."""

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import uvloop
from bedplate_gateway.access_log import AccessRecord
from bedplate_gateway.admission.interface import Admission, AdmissionRequest, Lease, acquire, acquire_again
from bedplate_gateway.admission.local import LocalAdmission
from bedplate_gateway.admission.usage_log import UsageLog
from bedplate_gateway.errors import ApiError
from bedplate_gateway.http.server import HttpServer, StartError, listen
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.reload.handover import (
    VERSION,
    InheritedSockets,
    Offer,
    Predecessor,
    Successor,
    take_over,
)
from bedplate_gateway.reload.handover import connect as connect_handover
from bedplate_gateway.settings import Settings


class EnginesUp:
    def serves(self, *_: object) -> bool:
        return True

    def loaded(self, *_: object) -> bool:
        return True

    def drain(self, *_: object) -> None:
        return None


class Process:
    """What one process has; its app gives each request a slot until `finish`, and answers with the name."""

    def __init__(
        self, name: str, state_dir: Path, *, slots: int = 1, keys: tuple[str, ...] = ("a", "b")
    ) -> None:
        self.name = name
        self.state_dir = state_dir
        models = [{"name": "m", "slots": slots}]
        engine = {"name": "one", "kind": "ollama", "url": "http://one", "models": models}
        place = {"address": "127.0.0.1", "port": 0}
        document = {"api": place, "metrics": place, "keys_file": "/none", "state_dir": str(state_dir)}
        self.local = LocalAdmission(
            Settings.model_validate(document | {"engines": [engine]}),
            Keys(tuple(Key(alias=alias, secrets=(), rpm=10, tpm=1000) for alias in keys)),
            EnginesUp(),
            time.monotonic,
            UsageLog(state_dir / "limits"),
        )
        self.admission: Admission = self.local
        self.counted: list[str] = []
        self.count: Callable[[AccessRecord], None] = self._count
        self.running: list[str] = []
        self.finish = asyncio.Event()
        self.servers: list[HttpServer] = []
        self.offer: Offer | None = None
        self.predecessor: Predecessor | None = None
        self.inherited: InheritedSockets | None = None

    def _count(self, record: AccessRecord) -> None:
        self.counted.append(record.id)

    async def begin(self) -> None:
        self.local.open_usage_log()
        self._make_servers({"api": listen("127.0.0.1", 0)})
        await self._open()

    async def take_over(self) -> None:
        # In one process the old one's part runs only while the new one waits.
        self.inherited = await asyncio.to_thread(connect_handover, self.state_dir)
        self._make_servers(self.inherited.listeners)
        self.predecessor = await take_over(self.inherited.channel, self)
        await self._open()

    def cut(self) -> None:
        """End the channel to the predecessor, as the death of either process does."""
        assert self.inherited is not None
        self.inherited.channel.shutdown(socket.SHUT_RDWR)

    def _make_servers(self, listeners: dict[str, Any]) -> None:
        self.servers = [HttpServer(name, self, listener) for name, listener in listeners.items()]

    async def _open(self) -> None:
        for server in self.servers:
            await server.open()
        self.offer = Offer(self.state_dir, self, self.servers)
        await self.offer.open()

    async def ask(
        self, alias: str = "a", on_disconnect: Callable[[Callable[[], None]], None] = lambda _: None
    ) -> Lease:
        key = self.local.keys.by_alias[alias]
        return await acquire(self.admission, AdmissionRequest(key, "normal", "m", 100), on_disconnect)

    async def __call__(self, scope: Any, _: Any, send: Any) -> None:
        status, body = 200, self.name.encode()
        try:
            lease = await self.ask(scope["path"].strip("/"))
        except ApiError as error:
            status, body = error.status, error.body()
        else:
            self.running.append(scope["path"])
            await self.finish.wait()
            lease.settle(10, 5)
            lease.release()
            self.count(AccessRecord(scope["path"], 0.0))
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


class Client:
    """A keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def ask(self, alias: str) -> "asyncio.Task[tuple[int, str]]":
        self._writer.write(f"GET /{alias} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return asyncio.create_task(self._answer())

    async def _answer(self) -> tuple[int, str]:
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 5)).decode().lower()
        size = int(head.partition("content-length: ")[2].split("\r\n")[0])
        return int(head.split()[1]), (await self._reader.readexactly(size)).decode()


async def connect(process: Process) -> Client:
    return Client(*await asyncio.open_connection(*process.servers[0].listener.getsockname()))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    uvloop.run(main())


def used(process: Process, alias: str) -> dict[str, str]:
    return process.local.limits.headers(alias, "m", time.monotonic())


def test_the_protocol_keeps_its_names_within_a_version(tmp_path: Path) -> None:
    """Another release is at the other end: a new name needs another VERSION."""
    assert VERSION == "4"
    local = Process("old", tmp_path).local
    key = local.keys.by_alias["a"]
    for _ in range(2):
        local.submit(AdmissionRequest(key, "normal", "m", 1), lambda _: None, lambda _: None)
    state = local.export()
    assert list(state) == ["uses", "leases", "waiting"]
    request = {"alias", "class", "model", "prompt_bytes", "id", "number"}
    assert set(state["leases"][0]) == request | {"engine", "charged"}
    assert set(state["waiting"][0]) == request | {"taken_at", "deadline"}
    assert set(asdict(ApiError(429, "x", "y"))) == {
        *("status", "code", "message", "type", "param", "retry_after", "headers", "reason")
    }
    assert set(asdict(AccessRecord("req", 0.0))) == {
        *("id", "arrived", "path", "alias", "priority_class", "model", "engine", "stream", "wait"),
        *("first_byte", "service", "seconds", "prompt_tokens", "completion_tokens", "estimated"),
        *("retries", "truncated", "status", "reason", "lane", "requested", "cost"),
    }


def test_a_record_is_counted_in_the_new_process() -> None:
    sent: list[dict[str, Any]] = []
    writer = Mock(spec=asyncio.StreamWriter)
    writer.is_closing.return_value = False
    writer.write.side_effect = lambda line: sent.append(json.loads(line))
    record = AccessRecord("req", 0.0, lane="bypass")
    Successor(writer).count(record)
    counted: list[AccessRecord] = []
    Predecessor(writer, Mock(count=counted.append))._handle(sent[0])
    assert counted == [record]


def test_a_client_finds_its_requests_in_the_new_process_by_its_ids(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = Process("old", tmp_path), Process("new", tmp_path)
        key = old.local.keys.by_alias["a"]
        await old.begin()
        for name in ("runs", "waits"):
            request = AdmissionRequest(key, "normal", "m", 1, id=name)
            old.local.submit(request, lambda _: None, lambda _: None)
        await new.take_over()
        places = [new.local.place("a", name) for name in ("runs", "waits", "other")]
        assert [place and place.position for place in places] == [0, 1, None]
        assert old.local.place("a", "waits") is None

    run(scenario)


def test_requests_that_run_and_wait_keep_their_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = Process("old", tmp_path), Process("new", tmp_path)
        await old.begin()
        first = (await connect(old)).ask("a")
        await until(lambda: old.running)
        second = (await connect(old)).ask("a")
        await until(lambda: old.local.scheduler.depth("normal"))
        await new.take_over()
        third = (await connect(new)).ask("a")
        await until(lambda: new.local.scheduler.depth("normal") == 2)
        assert used(new, "a")["x-ratelimit-remaining-requests"] == "7"

        old.finish.set()
        assert await first == (200, "old")
        assert await second == (200, "old")
        assert not third.done()
        await until(lambda: new.running)
        new.finish.set()
        assert await third == (200, "new")
        assert used(new, "a")["x-ratelimit-remaining-tokens"] == str(1000 - 45)
        assert sorted(new.counted) == ["/a", "/a", "/a"]
        assert old.counted == []
        # Nothing is left, and the usage log is the new one's.
        await asyncio.wait_for(old.servers[0].wait_drained(with_tasks=True), 1)
        assert not any(slots.running for slots in new.local.scheduler.engine_slots())
        assert (tmp_path / "limits").read_text().count("tokens") == 3

    run(scenario)


def test_a_new_connection_gets_the_new_keys(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = Process("old", tmp_path, keys=("a",)), Process("new", tmp_path, keys=("c",))
        old.finish.set()
        new.finish.set()
        await old.begin()
        client = await connect(old)
        assert await client.ask("a") == (200, "old")
        await new.take_over()
        assert await (await connect(new)).ask("c") == (200, "new")
        await asyncio.wait_for(old.servers[0].wait_drained(with_tasks=True), 1)

    run(scenario)


def test_a_request_that_had_begun_asks_the_new_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = Process("old", tmp_path, slots=1), Process("new", tmp_path, slots=2, keys=("b",))
        await old.begin()
        await new.take_over()
        lease = await old.ask("a")
        assert lease.engine.models[0].slots == 2
        assert lease.swap() is False
        lease.release()
        # Refused there, with the complete error.
        leases = [await old.ask("b") for _ in range(2)]
        waiting = [asyncio.create_task(old.ask("b")) for _ in range(8)]
        await until(lambda: new.local.scheduler.depth("normal") == 8)
        with pytest.raises(ApiError) as refused:
            await old.ask("b")
        assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
        assert refused.value.all_headers()["x-ratelimit-remaining-requests"] == "0"
        assert 59 < (refused.value.retry_after or 0) <= 60
        for lease in leases:
            lease.touch()
            lease.release()
        assert len(await asyncio.wait_for(asyncio.gather(*waiting[:2]), 1)) == 2

    run(scenario)


def test_a_request_whose_engine_is_gone_waits_in_the_new_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = Process("old", tmp_path), Process("new", tmp_path)
        await old.begin()
        lease = await old.ask()
        await new.take_over()
        again = await asyncio.wait_for(acquire_again(lease, lambda _: None), 1)
        lease.release()
        assert used(new, "a")["x-ratelimit-remaining-requests"] == "8"
        assert [slots.running for slots in new.local.scheduler.engine_slots()] == [{"m": 1}]
        again.release()
        await until(lambda: not any(slots.running for slots in new.local.scheduler.engine_slots()))

    run(scenario)


def test_who_leaves_the_queue_leaves_it_in_the_new_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = Process("old", tmp_path), Process("new", tmp_path)
        await old.begin()
        held = await old.ask()
        before = asyncio.create_task(old.ask())
        await asyncio.sleep(0)
        await new.take_over()
        after = asyncio.create_task(old.ask())
        await until(lambda: new.local.scheduler.depth("normal") == 2)
        before.cancel()
        after.cancel()
        await until(lambda: new.local.scheduler.depth("normal") == 0)
        assert used(new, "a")["x-ratelimit-remaining-requests"] == "9"

        # It leaves while the grant is under way.
        granted: list[Lease] = []
        request = AdmissionRequest(old.local.keys.by_alias["a"], "normal", "m", 100)
        late = old.admission.submit(request, granted.append, lambda _: None)
        await until(lambda: new.local.scheduler.depth("normal") == 1)
        held.release()
        while new.local.scheduler.depth("normal"):
            await asyncio.sleep(0)
        late.cancel()
        assert granted == []
        await until(lambda: not any(slots.running for slots in new.local.scheduler.engine_slots()))

    run(scenario)


def test_when_the_old_process_dies_all_that_was_its_is_free(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = Process("old", tmp_path), Process("new", tmp_path)
        await old.begin()
        await old.ask()
        waiting = asyncio.create_task(old.ask())
        await asyncio.sleep(0)
        await new.take_over()
        own = asyncio.create_task(new.ask())
        await until(lambda: new.local.scheduler.depth("normal") == 2)
        new.cut()
        assert (await asyncio.wait_for(own, 1)).engine.name == "one"
        with pytest.raises(ApiError):
            await waiting

    run(scenario)


def test_when_the_new_process_dies_queued_requests_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = Process("old", tmp_path), Process("new", tmp_path)
        await old.begin()
        running = (await connect(old)).ask("a")
        waiting = (await connect(old)).ask("a")
        await until(lambda: old.local.scheduler.depth("normal"))
        await new.take_over()
        new.cut()
        status, body = await waiting
        assert (status, json.loads(body)["error"]["code"]) == (503, "restarting")
        with pytest.raises(ApiError):
            await old.ask()
        old.finish.set()
        assert await running == (200, "old")

    run(scenario)


def test_a_new_process_that_fails_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        old = Process("old", tmp_path)
        await old.begin()
        failed = await asyncio.to_thread(connect_handover, tmp_path)
        slow = await asyncio.to_thread(connect_handover, tmp_path)
        for each in (failed.channel, *failed.listeners.values()):
            each.close()
        await asyncio.sleep(0.05)
        old.finish.set()
        assert await (await connect(old)).ask("a") == (200, "old")

        # One that is ready only when another has taken over gets nothing.
        new = Process("new", tmp_path)
        await new.take_over()
        with pytest.raises(StartError):
            await take_over(slow.channel, Process("slow", tmp_path))

    run(scenario)


def test_a_message_that_is_not_understood_leaves_nobody_waiting(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, new = Process("old", tmp_path), Process("new", tmp_path)
        await old.begin()
        await old.ask()
        waiting = asyncio.create_task(old.ask())
        await asyncio.sleep(0)
        await new.take_over()
        old.admission.submit(AdmissionRequest(Key(alias="a", secrets=()), "highest", "m", 1), print, print)  # type: ignore[arg-type]
        with pytest.raises(ApiError, match="restarting"):
            await asyncio.wait_for(waiting, 2)
        assert not any(slots.running for slots in new.local.scheduler.engine_slots())

    run(scenario)


def test_a_reply_that_is_not_understood_leaves_nobody_waiting() -> None:
    async def scenario() -> None:
        writer = Mock(spec=asyncio.StreamWriter)
        writer.is_closing.return_value = False
        successor = Successor(writer)
        successor.adopt({}, {})
        refused: list[ApiError] = []
        successor.submit(
            AdmissionRequest(Key(alias="a", secrets=()), "normal", "m", 1), print, refused.append
        )
        reader = asyncio.StreamReader()
        reader.feed_data(b'{"number": 1, "do": "grant", "engine": {}}\n')
        await asyncio.wait_for(successor.listen(reader), 2)
        assert [error.code for error in refused] == ["restarting"]

    run(scenario)


def test_a_process_of_another_version_is_left_as_it_is(tmp_path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"0 api")

    async def scenario() -> None:
        server = await asyncio.start_unix_server(greet, tmp_path / "handover.socket")
        with pytest.raises(StartError, match="systemctl restart bedplate-gateway"):
            await asyncio.to_thread(connect_handover, tmp_path)
        server.close()

    run(scenario)


def test_there_is_nothing_to_take_over(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="systemctl restart bedplate-gateway"):
        connect_handover(tmp_path)


def test_a_reload_while_the_process_before_still_has_requests(tmp_path: Path) -> None:
    async def scenario() -> None:
        old, middle, new = (Process(name, tmp_path) for name in ("old", "middle", "new"))
        await old.begin()
        asks = [(await connect(old)).ask("a")]
        await until(lambda: old.running)
        asks.append((await connect(old)).ask("a"))
        await until(lambda: old.local.scheduler.depth("normal") == 1)
        await middle.take_over()
        asks.append((await connect(middle)).ask("a"))
        await until(lambda: middle.local.scheduler.depth("normal") == 2)
        await new.take_over()
        asks.append((await connect(new)).ask("a"))
        await until(lambda: new.local.scheduler.depth("normal") == 3)
        for process in (old, middle, new):
            process.finish.set()
        assert [await ask for ask in asks] == [(200, "old"), (200, "old"), (200, "middle"), (200, "new")]
        assert len(new.counted) == 4
        assert used(new, "a")["x-ratelimit-remaining-tokens"] == str(1000 - 60)
        assert not any(slots.running for slots in new.local.scheduler.engine_slots())
        await until(lambda: not (old.servers[0].connections or middle.servers[0].connections))

    run(scenario)
