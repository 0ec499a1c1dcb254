"""Servers and connections over real sockets, with limits of fractions of a second."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import uvloop
from bedplate_gateway.http import server
from bedplate_gateway.http.server import ClientLimits, HttpServer, listen

LIMITS = ClientLimits(header=0.4, body=0.4, body_rate=10_000, idle=0.8, reader=1.0, header_size=4096)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TICK_SECONDS", 0.02)


class App:
    """Reads the body and sends it back when it may answer; /stream sends a part at once."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.seen: list[str] = []
        self.fields: list[set[bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["path"])
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.seen.append("disconnected")
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.fields.append({name for name, _ in scope["headers"]})
        stream = scope["path"] == "/stream"
        if stream:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        disconnected = asyncio.create_task(receive())
        may = asyncio.create_task(self.may_answer.wait())
        await asyncio.wait({disconnected, may}, return_when=asyncio.FIRST_COMPLETED)
        if disconnected.done():
            self.seen.append("disconnected")
            return
        disconnected.cancel()
        if not stream:
            head = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"" if stream else body, "more_body": False})


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer with a content-length."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, body

    async def end(self) -> bytes:
        """Read to the end of the connection."""
        try:
            return await asyncio.wait_for(self.reader.read(-1), 5)
        except ConnectionResetError:
            return b""


class Stage:
    """A server that is open on a free port, and the app behind it."""

    def __init__(self, limits: ClientLimits) -> None:
        self.app = App()
        self.listener = listen("127.0.0.1", 0, limits)
        self.server = HttpServer("api", self.app, self.listener, limits)
        self._address = self.listener.getsockname()

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection(*self._address))


Scenario = Callable[[Stage], Awaitable[None]]


def run(scenario: Scenario, limits: ClientLimits = LIMITS) -> None:
    async def main() -> None:
        at = Stage(limits)
        await at.server.open()
        await scenario(at)
        at.server.drain()
        await at.server.close()
        assert not at.server.tasks

    uvloop.run(main())


def error(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return found


def test_keep_alive() -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        client.send(GET)
        status, headers, _ = await client.answer()
        assert status == 200
        assert "connection" not in headers
        assert "date" in headers
        assert "server" not in headers
        await asyncio.sleep(0.3)
        client.send(POST)
        assert (await client.answer())[2] == b"0123456789"

    run(scenario)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHo"])
def test_a_header_that_does_not_come_ends_the_connection(begun: bytes) -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        client.send(begun)
        answer = await client.end()
        if begun:
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert error(answer.partition(b"\r\n\r\n")[2])["code"] == "request_timeout"
        else:
            assert answer == b""
        assert at.app.seen == []

    run(scenario)


def test_a_trickling_header_gets_no_more_time() -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        loop = asyncio.get_running_loop()
        started = loop.time()
        answer = asyncio.create_task(client.end())
        for byte in GET:
            client.send(bytes([byte]))
            await asyncio.sleep(0.1)
            if answer.done():
                break
        assert 0.3 < loop.time() - started < 0.8
        assert (await answer).startswith(b"HTTP/1.1 408 ")

    run(scenario)


def test_a_body_that_stops_is_answered_and_one_that_flows_gets_its_time() -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        client.send(POST[:-5])
        assert (await client.end()).startswith(b"HTTP/1.1 408 ")
        assert at.app.seen == ["/", "disconnected"]

        client = await at.connect()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8000\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.1)
            client.send(b"x" * 1000)
        assert (await client.answer())[2] == b"x" * 8000

    run(scenario)


def test_an_idle_connection_ends_and_a_waiting_one_does_not() -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        client.send(GET)
        await client.answer()
        started = asyncio.get_running_loop().time()
        assert await client.end() == b""
        assert 0.7 < asyncio.get_running_loop().time() - started < 1.2

        at.app.may_answer.clear()
        client = await at.connect()
        client.send(GET)
        await asyncio.sleep(1.2)
        at.app.may_answer.set()
        assert (await client.answer())[0] == 200

    run(scenario)


def test_a_reader_that_stops_is_dropped() -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        size = 16_000_000
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        async with asyncio.timeout(10):
            while not at.app.seen:
                await asyncio.sleep(0.05)
            while at.server.connections:
                await asyncio.sleep(0.05)

    run(scenario, replace(LIMITS, body=30))


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (
            b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 5000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 1000 + b"\r\n", 431),
        # Not complete, and larger than what the socket takes at a time.
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 2_000_000, 431),
    ],
)
def test_what_is_no_request_is_answered_in_openais_shape(request_bytes: bytes, status: int) -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        client.send(request_bytes)
        got, headers, body = await client.answer()
        assert got == status
        assert headers["connection"] == "close"
        assert error(body)["type"] == "invalid_request_error"
        client.writer.close()

    run(scenario)


@pytest.mark.parametrize("path", [b"/", b"/stream"])
@pytest.mark.parametrize("second", [GET, POST[:-5], b"\x00\x01\r\n\r\n"])
def test_what_follows_a_request_that_is_not_answered_yet_is_not_served(path: bytes, second: bytes) -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        at.app.may_answer.clear()
        client.send(GET.replace(b"/", path, 1))
        await asyncio.sleep(0.05)
        client.send(second)
        await asyncio.sleep(0.5)
        at.app.may_answer.set()
        answer = await client.end()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert (b"connection: close" in answer) == (path == b"/")
        assert len(at.app.seen) == 1

        at.app.may_answer.clear()
        client = await at.connect()
        client.send(GET + second)
        await asyncio.sleep(0.05)
        client.writer.close()
        await asyncio.sleep(0.05)
        assert at.app.seen[-1] == "disconnected"

    run(scenario)


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\n"


def test_a_trailer_is_no_header() -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        client.send(CHUNKED + b"Authorization: Bearer x\r\n\r\n")
        assert (await client.answer())[2] == b"01234"
        assert at.app.fields == [{b"host", b"transfer-encoding"}]
        client.send(POST)
        assert (await client.answer())[2] == b"0123456789"

    run(scenario)


def test_trailers_are_bounded() -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        client.send(CHUNKED + b"a: b\r\n" * 1000)
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (431, "close")

    run(scenario)


def test_an_upgrade_that_is_not_taken_is_answered_as_a_request() -> None:
    async def scenario(at: Stage) -> None:
        client = await at.connect()
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
        request = POST.replace(b"\r\n\r\n", b"\r\n" + upgrade + b"\r\n")
        for half in (len(request) - 5, len(request) - 20, 20):
            client.send(request[:half])
            await asyncio.sleep(0.05)
            client.send(request[half:])
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"0123456789")
            assert "connection" not in headers
            client.send(POST)
            assert (await client.answer())[2] == b"0123456789"

    run(scenario)


def test_a_draining_server_serves_what_has_begun_and_waits_for_no_idle_connection() -> None:
    async def scenario(at: Stage) -> None:
        idle, new, busy, streaming, half = [await at.connect() for _ in range(5)]
        idle.send(GET)
        await idle.answer()
        at.app.may_answer.clear()
        busy.send(POST)
        streaming.send(GET.replace(b"/", b"/stream", 1))
        await streaming.reader.readuntil(b"part")
        half.send(POST[:-5])
        await asyncio.sleep(0.05)

        at.server.drain()
        with pytest.raises(ConnectionRefusedError):
            await at.connect()
        assert await idle.end() == b""
        new.send(GET)
        half.send(POST[-5:])
        await asyncio.sleep(0.05)
        at.app.may_answer.set()
        for client in (new, busy, half):
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.end() == b""
        assert (await streaming.end()).endswith(b"0\r\n\r\n")
        await asyncio.wait_for(at.server.wait_drained(with_tasks=True), 1)

    run(scenario)


def test_a_closing_server_says_so_to_those_who_wait() -> None:
    async def scenario(at: Stage) -> None:
        waiting, streaming = await at.connect(), await at.connect()
        at.app.may_answer.clear()
        waiting.send(POST)
        streaming.send(GET.replace(b"/", b"/stream", 1))
        await streaming.reader.readuntil(b"part")
        at.server.drain()
        await at.server.close()
        status, headers, body = await waiting.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        assert error(body)["code"] == "restarting"
        assert not (await streaming.end()).endswith(b"0\r\n\r\n")
        assert at.app.seen[-2:] == ["disconnected", "disconnected"]

    run(scenario)
