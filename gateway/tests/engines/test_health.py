import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey
from bedplate_gateway.engines import client
from bedplate_gateway.engines import health as module
from bedplate_gateway.engines.drains import Drain
from bedplate_gateway.engines.health import Engines, EngineState
from bedplate_gateway.settings import Engine, EngineModel, Settings

BLOB = "b" * 64
BACKLOG = 1
Test = Callable[[Engines, "FakeOllama"], Awaitable[None]]


class FakeOllama:
    """Answers what Ollama answers about its models; `mood` makes it answer badly."""

    def __init__(self) -> None:
        self.tags = {"m:1b": "d1", "copy:latest": "d2", "other:1b": "d3"}
        self.running = {"copy:latest": "d2"}
        self.blobs = {"d1": BLOB, "d2": BLOB, "d3": "c" * 64}
        self.info: object = {"general.architecture": "llama", "llama.context_length": 8192}
        self.mood: Callable[[], Awaitable[web.Response]] | None = None
        self.listener: socket.socket | None = None
        self.waiting: list[socket.socket] = []
        self.asked: list[str] = []
        self.keys: list[str | None] = []

    async def vanish(self) -> None:
        """Drop each new connection, as the network to a lost host does: a backlog that nobody empties."""

        async def never() -> web.Response:
            await asyncio.sleep(60)
            return web.Response()

        assert self.listener is not None
        self.mood = never
        asyncio.get_running_loop().remove_reader(self.listener.fileno())
        for _ in range(BACKLOG + 1):
            waiting = socket.socket()
            waiting.setblocking(False)
            await asyncio.get_running_loop().sock_connect(waiting, self.listener.getsockname())
            self.waiting.append(waiting)

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        self.keys.append(request.headers.get("Authorization"))
        if self.mood:
            return await self.mood()
        if request.path == "/api/show":
            name = (await request.json())["model"]
            blob = self.blobs[self.tags.get(name) or self.tags[f"{name}:latest"]]
            modelfile = f"# FROM {name}\n\nFROM /models/blobs/sha256-{blob}\nTEMPLATE x\n"
            shown = {"modelfile": modelfile, "capabilities": ["completion"], "model_info": self.info}
            return web.json_response(shown)
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": name} for name in self.tags]})
        models = self.tags if request.path == "/api/tags" else self.running
        return web.json_response({"models": [{"name": n, "digest": d, "size": 1} for n, d in models.items()]})


def settings_of(url: str, kind: str = "ollama", key: str | None = None) -> Settings:
    models = [{"name": name, "slots": 1} for name in ("m:1b", "copy", "other:1b", "absent")]
    listener = {"address": "127.0.0.1", "port": 0}
    engine = {"name": "e", "kind": kind, "url": url, "api_key": key, "models": models}
    return Settings.model_validate(
        {"api": listener, "metrics": listener, "engines": [engine], "keys_file": "k", "state_dir": "s"}
    )


(ENGINE,) = settings_of("http://127.0.0.1:1").engines


def run(test: Test, monkeypatch: pytest.MonkeyPatch, kind: str = "ollama", key: str | None = None) -> None:
    async def main() -> None:
        fake = FakeOllama()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        fake.listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        await web.SockSite(runner, fake.listener, backlog=BACKLOG).start()
        engines = Engines(settings_of(f"http://127.0.0.1:{runner.addresses[0][1]}", kind, key))
        await engines.start()
        try:
            await test(engines, fake)
        finally:
            await engines.stop()
            for waiting in fake.waiting:
                waiting.close()
            await runner.cleanup()

    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    asyncio.run(asyncio.wait_for(main(), 20))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_context_is_not_longer_than_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engines: Engines, fake: FakeOllama) -> None:
        def asked_more(path: str, times: int) -> bool:
            return fake.asked.count(path) > times

        for name, declared, expected in (
            ("m:1b", 65536, 8192),
            ("m:1b", 4096, 4096),
            ("m:1b", None, 8192),
            ("absent", 65536, 65536),
            ("absent", None, None),
        ):
            assert engines.context(ENGINE, EngineModel(name=name, slots=1, context=declared)) == expected
        for odd in (None, {}, {"general.architecture": "llama", "llama.context_length": "many"}):
            fake.info, fake.tags["other:1b"], fake.blobs[str(odd)] = odd, str(odd), BLOB
            before = fake.asked.count("/api/show")
            await until(partial(asked_more, "/api/show", before))
            await until(partial(asked_more, "/api/ps", fake.asked.count("/api/ps") + 2))
            assert engines.state("e").up
            assert "other:1b" not in engines.state("e").contexts

    run(test, monkeypatch)


def test_ollama_state(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engines: Engines, fake: FakeOllama) -> None:
        state = engines.state("e")
        assert (state.up, state.error) == (True, None)
        assert state.present == {"m:1b", "copy", "other:1b"}
        # m:1b shares its blob with copy, which alone is named by /api/ps.
        assert state.loaded == {"m:1b", "copy"}
        assert state.capabilities["m:1b"] == {"completion"}
        assert engines.capabilities("m:1b") == frozenset({"completion"})
        assert engines.capabilities("absent") is None
        assert engines.serves(ENGINE, "m:1b")
        assert not engines.serves(ENGINE, "absent")
        assert engines.lacks("m:1b", "tools")
        assert not engines.lacks("m:1b", "completion")
        assert not engines.lacks("absent", "tools")
        shown = fake.asked.count("/api/show")
        asked = len(fake.asked)
        await until(lambda: len(fake.asked) > asked + 6)
        assert shown == fake.asked.count("/api/show") == 3

    run(test, monkeypatch)


def test_a_drained_engine_is_polled_but_gets_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(engines: Engines, fake: FakeOllama) -> None:
        reported: list[bool] = []
        engines.on_change = lambda: reported.append(engines.serves(ENGINE, "m:1b"))
        drain = Drain(engine="e", who="kim", since=datetime(2026, 3, 1, tzinfo=UTC), why="new fan")
        engines.set_drains({"e": drain})
        assert (engines.has(ENGINE, "m:1b"), engines.serves(ENGINE, "m:1b")) == (True, False)
        assert engines.drain(ENGINE) is drain
        fake.running = {}
        await until(lambda: not engines.loaded(ENGINE, "m:1b"))
        engines.set_drains({"another": drain})
        assert engines.serves(ENGINE, "m:1b")
        assert engines.drain(ENGINE) is None
        assert reported == [False, False, True]

    with caplog.at_level(logging.INFO):
        run(test, monkeypatch)
    assert [line for line in caplog.messages if "drained" in line] == [
        "Engine e is drained by kim: new fan.",
        "Engine e is no longer drained.",
    ]


def test_changes_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engines: Engines, fake: FakeOllama) -> None:
        reported: list[frozenset[str]] = []
        engines.on_change = lambda: reported.append(engines.state("e").loaded)
        await asyncio.sleep(0.1)
        assert reported == []
        fake.running = {"other:1b": "d3"}
        await until(lambda: reported)
        await asyncio.sleep(0.1)
        assert reported == [{"other:1b"}]
        del fake.tags["m:1b"]
        await until(lambda: not engines.serves(ENGINE, "m:1b"))

    run(test, monkeypatch)


def test_openai_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engines: Engines, fake: FakeOllama) -> None:
        state = engines.state("e")
        assert state.up
        assert state.present == state.loaded == {"m:1b", "other:1b"}
        assert not engines.lacks("m:1b", "tools")
        assert set(fake.asked) == {"/v1/models"}
        assert set(fake.keys) == {"Bearer secret"}

    run(test, monkeypatch, "openai", "secret")


def test_one_failed_poll_is_forgiven_two_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(engines: Engines, fake: FakeOllama) -> None:
        changes: list[str | None] = []
        engines.on_change = lambda: changes.append(engines.state("e").error)
        for mood in (late, nonsense, other, failing):
            fake.asked.clear()
            fake.mood = mood
            await until(lambda: fake.asked)
            assert engines.state("e").up
            await until(lambda: not engines.state("e").up)
            assert not engines.serves(ENGINE, "m:1b")
            fake.mood = None
            await until(lambda: engines.state("e").up)
        assert changes == [
            "does not answer (TimeoutError)",
            None,
            "does not answer with a list of models",
            None,
            "does not answer with a list of models",
            None,
            "answers with HTTP 500",
            None,
        ]

    async def late() -> web.Response:
        await asyncio.sleep(1)
        return web.Response()

    async def nonsense() -> web.Response:
        return web.Response(body=b"\xff<html>")

    async def other() -> web.Response:
        return web.json_response(["models"])

    async def failing() -> web.Response:
        return web.Response(status=500)

    monkeypatch.setattr(module, "POLL_TIMEOUT_SECONDS", 0.2)
    with caplog.at_level(logging.WARNING):
        run(test, monkeypatch)
    assert "Engine e answers with HTTP 500." in caplog.messages
    assert caplog.messages.count("Engine e answers again.") == 4


def test_a_lost_host_ends_what_runs_there_and_a_hung_engine_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(module, "POLL_TIMEOUT_SECONDS", 0.4)

    async def never() -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def test(engines: Engines, fake: FakeOllama) -> None:
        ended: list[str] = []
        engines.watch("e", ends := partial(ended.append, "a"))
        engines.watch("e", left := partial(ended.append, "b"))
        engines.unwatch("e", left)
        fake.mood = never
        await until(lambda: not engines.state("e").up)
        asked = len(fake.asked)
        await until(lambda: len(fake.asked) > asked + 2)
        assert (engines.state("e").error, ended) == ("does not answer (TimeoutError)", [])
        fake.mood = None
        await until(lambda: engines.state("e").up)
        await fake.vanish()
        await until(lambda: ended)
        assert engines.state("e").error == "cannot be reached"
        engines.unwatch("e", ends)

    run(test, monkeypatch)
    assert "Engine e is lost: 1 requests on it are ended or moved." in caplog.messages


def test_one_poll_without_a_connection_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engines: Engines, _: FakeOllama) -> None:
        ended: list[str] = []
        engines.watch("e", partial(ended.append, "a"))
        outcomes = iter([no_route, None, no_route, None, no_route, no_route])

        async def poll(engine: Engine) -> EngineState:
            outcome = next(outcomes, no_route)
            if outcome is None:
                return EngineState(up=True, error=None)
            assert engine.name == "e"
            seen.append(list(ended))
            raise outcome

        seen: list[list[str]] = []
        monkeypatch.setattr(engines, "_poll_ollama", poll)
        await until(lambda: ended)
        assert seen[:4] == [[]] * 4

    error = OSError(errno.EHOSTUNREACH, "No route to host")
    no_route = aiohttp.ClientConnectorError(cast(ConnectionKey, None), error)
    run(test, monkeypatch)


def test_what_a_request_reports_counts_until_the_next_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engines: Engines, fake: FakeOllama) -> None:
        engines.report_missing("e", "m:1b")
        assert not engines.serves(ENGINE, "m:1b")
        await until(lambda: engines.serves(ENGINE, "m:1b"))
        engines.report_failure("e", "refuses connections")
        assert not engines.serves(ENGINE, "m:1b")
        await until(lambda: engines.serves(ENGINE, "m:1b"))
        assert fake.asked

    run(test, monkeypatch)


def test_a_refused_connection_counts_at_once() -> None:
    async def main() -> None:
        engines = Engines(settings_of("http://127.0.0.1:1"))
        assert engines.state("e").error == "has not been polled yet"
        await engines.start()
        assert (engines.state("e").up, engines.state("e").error) == (False, "refuses connections")
        await engines.stop()

    asyncio.run(main())


def test_a_failing_callback_does_not_end_the_polls(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(engines: Engines, fake: FakeOllama) -> None:
        def fail() -> None:
            raise RuntimeError("callback")

        engines.on_change = fail
        fake.running = {}
        await until(lambda: "callback" in caplog.text)
        engines.on_change = lambda: None
        fake.tags = {}
        await until(lambda: not engines.serves(ENGINE, "m:1b"))

    run(test, monkeypatch)
