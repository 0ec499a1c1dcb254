import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from bedplate_gateway.api.schema import Request, parse_request
from bedplate_gateway.engines import request as module
from bedplate_gateway.engines.errors import EngineGoneError
from bedplate_gateway.engines.health import Engines
from bedplate_gateway.engines.litellm import LiteLLM
from bedplate_gateway.engines.request import (
    MAX_MOVES,
    TRANSITIONS,
    WAITING,
    WORKED,
    EngineRequest,
    Event,
    State,
    Upstream,
)
from bedplate_gateway.errors import ApiError, ClientDisconnected
from bedplate_gateway.settings import Engine, EngineModel, Settings

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
USAGE = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeEngine:
    """An engine that answers as the test says; `cut` counts the clients that disconnected."""

    def __init__(self, kind: str = "ollama", *, loaded: bool = True) -> None:
        self.kind = kind
        self.loaded = loaded
        self.handlers: dict[str, Handler] = {}
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self.cut = 0
        self.port = 0

    async def start(self) -> web.AppRunner:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        return runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "m"}]})
        if request.path in {"/api/tags", "/api/ps"}:
            held = request.path == "/api/tags" or self.loaded
            models = [{"name": "m:latest", "digest": "d"}] if held else []
            return web.json_response({"models": models})
        if request.path == "/api/show":
            return web.json_response({"capabilities": ["completion"]})
        self.bodies.append((request.path, await request.json()))
        self.keys.append(request.headers.get("Authorization"))
        try:
            return await self.handlers[request.path](request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.cut += 1
            raise

    def paths(self) -> list[str]:
        return [path for path, _ in self.bodies]


@dataclass
class FakeLease:
    """A lease without limits; `others` are the engines that it can swap to."""

    engine: Engine
    model: EngineModel
    others: list[Engine] = field(default_factory=list)
    charges: list[int] = field(default_factory=list)
    settled: list[tuple[int, int]] = field(default_factory=list)
    touches: int = 0

    def touch(self) -> None:
        self.touches += 1

    def charge(self, tokens: int) -> None:
        self.charges.append(tokens)

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.settled.append((prompt_tokens, completion_tokens))

    def swap(self) -> bool:
        if not self.others:
            return False
        self.engine = self.others.pop(0)
        self.model = self.engine.models[0]
        return True


@dataclass
class Bench:
    """The engines of a test, and the upstream that uses them."""

    settings: Settings
    engines: Engines
    upstream: Upstream

    def new_request(
        self, request: Request, disconnected: asyncio.Event | None = None, *, swaps: bool = False
    ) -> tuple[EngineRequest, FakeLease]:
        first, *others = self.settings.engines
        lease = FakeLease(first, first.models[0], others if swaps else [])
        return self.upstream.new_request(request, lease, disconnected or asyncio.Event()), lease

    async def ask(
        self, request: Request, *, swaps: bool = False
    ) -> tuple["Result", EngineRequest, FakeLease]:
        engine_request, lease = self.new_request(request, swaps=swaps)
        try:
            answer = await engine_request.answer()
            body = answer.body
            if body is None:
                body = b"".join([chunk async for chunk in answer.events()])
            return Result(body, answer.headers, None), engine_request, lease
        except ApiError as error:
            return Result(b"", {}, error), engine_request, lease
        finally:
            await engine_request.close()


@dataclass
class Result:
    body: bytes
    headers: dict[str, str]
    raised: ApiError | None

    @property
    def error(self) -> ApiError:
        assert self.raised is not None, self.body
        return self.raised


Test = Callable[[Bench], Awaitable[None]]


def run(test: Test, *fakes: FakeEngine, context: int | None = None, **more: Any) -> None:
    async def main() -> None:
        runners = [await fake.start() for fake in fakes]
        listener = {"address": "127.0.0.1", "port": 0}
        engines = [
            {
                "name": f"engine{number}",
                "kind": fake.kind,
                "url": f"http://127.0.0.1:{fake.port}",
                "api_key": "secret" if fake.kind == "openai" else None,
                "models": [{"name": "m", "slots": 2, "context": context}],
            }
            for number, fake in enumerate(fakes)
        ]
        settings = Settings.model_validate(
            {
                "api": listener,
                "metrics": listener,
                "engines": engines,
                "keys_file": "k",
                "state_dir": "s",
                **more,
            }
        )
        states = Engines(settings)
        await states.start()
        bench = Bench(settings, states, Upstream(settings, states, LiteLLM(None)))
        try:
            await test(bench)
        finally:
            await states.stop()
            for runner in runners:
                await runner.cleanup()

    asyncio.run(asyncio.wait_for(main(), 20))


def request(path: str = CHAT, **body: Any) -> Request:
    texts: dict[str, Any] = {
        CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
        COMPLETIONS: {"prompt": "Hello"},
        EMBEDDINGS: {"input": "Hello"},
    }
    raw = json.dumps({"model": "m"} | texts[path] | body).encode()
    return parse_request(path, raw, default_max_output=lambda _: None)


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def content(text: str) -> bytes:
    return event(model="m", choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


FINISH = event(model="m", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USED = event(model="m", choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"
WHOLE = {
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


def answers(body: dict[str, Any], status: int = 200, after: float = 0.0) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(after)
        return web.json_response(body, status=status)

    return handler


def streams(*chunks: bytes | float, cut: bool = False) -> Handler:
    """Send chunks; numbers are pauses in seconds; a cut ends the connection instead of the answer."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        started = False
        for chunk in chunks:
            if isinstance(chunk, float):
                await asyncio.sleep(chunk)
                continue
            if not started:
                await response.prepare(request)
                started = True
            await response.write(chunk)
        if not started:
            await response.prepare(request)
        if cut:
            assert request.transport is not None
            request.transport.close()
        return response

    return handler


def in_turn(*handlers: Handler) -> Handler:
    left = list(handlers)

    async def handler(request: web.Request) -> web.StreamResponse:
        return await left.pop(0)(request)

    return handler


async def drop(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0.01)


# Answers


def test_a_whole_answer_comes_as_the_engine_gave_it() -> None:
    fake = FakeEngine("openai")

    async def test(bench: Bench) -> None:
        result, engine_request, lease = await bench.ask(request(max_tokens=5))
        assert json.loads(result.body) == WHOLE
        assert result.headers == {}
        assert (engine_request.prompt_tokens, engine_request.completion_tokens, engine_request.estimated) == (
            11,
            2,
            False,
        )
        assert lease.settled == [(11, 2)]
        assert fake.bodies[0][1]["max_tokens"] == 5
        assert fake.keys == ["Bearer secret"]

    fake.handlers[CHAT] = answers(WHOLE)
    run(test, fake)


def test_a_stream_is_relayed_and_charged() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, engine_request, lease = await bench.ask(request(stream=True))
        assert result.body == content("a") + content("b") + FINISH + DONE
        assert fake.bodies[0][1]["stream_options"] == {"include_usage": True}
        assert lease.settled == [(11, 2)]
        assert lease.charges == [1, 2]
        assert engine_request.ttft is not None
        assert 0.1 < engine_request.ttft < 1
        result, _, _ = await bench.ask(request(stream=True, stream_options={"include_usage": True}))
        assert result.body == content("a") + content("b") + FINISH + USED + DONE

    fake.handlers[CHAT] = streams(
        0.1, content("a"), 0.3, content("b"), 0.05, FINISH + USED[:9], 0.05, USED[9:] + DONE
    )
    run(test, fake)


def test_a_connection_is_used_again_after_a_stream() -> None:
    fake = FakeEngine()
    peers = set()

    async def handler(incoming: web.Request) -> web.StreamResponse:
        assert incoming.transport is not None
        peers.add(incoming.transport.get_extra_info("peername"))
        return await streams(content("a"), FINISH, USED, DONE)(incoming)

    async def test(bench: Bench) -> None:
        for _ in range(5):
            await bench.ask(request(stream=True))
        assert len(peers) == 1

    fake.handlers[CHAT] = handler
    run(test, fake)


def test_the_model_keeps_the_name_that_was_asked_for() -> None:
    fake = FakeEngine("openai")

    async def test(bench: Bench) -> None:
        result, _, _ = await bench.ask(request())
        assert json.loads(result.body)["model"] == "m"
        result, _, _ = await bench.ask(request(stream=True))
        assert b"/models/m.gguf" not in result.body

    renamed = content("a").replace(b'"m"', b'"/models/m.gguf"')
    fake.handlers[CHAT] = in_turn(answers(WHOLE | {"model": "/models/m.gguf"}), streams(renamed, DONE))
    run(test, fake)


def test_without_usage_tokens_are_estimated() -> None:
    fake = FakeEngine("openai")

    async def test(bench: Bench) -> None:
        _, engine_request, lease = await bench.ask(request(stream=True, **chat("four" * 10)))
        assert engine_request.estimated
        assert lease.settled == [(10, 3)]
        result, engine_request, lease = await bench.ask(request(**chat("four" * 10)))
        assert engine_request.estimated
        assert json.loads(result.body)["usage"]["prompt_tokens"] == 10
        _, engine_request, lease = await bench.ask(request(EMBEDDINGS, input="four" * 10))
        assert (engine_request.estimated, lease.settled) == (True, [(10, 0)])

    unused = {name: value for name, value in WHOLE.items() if name != "usage"}
    fake.handlers[CHAT] = in_turn(streams(content("a"), content("b"), FINISH, DONE), answers(unused))
    fake.handlers[EMBEDDINGS] = answers({"data": []})
    run(test, fake)


def test_what_ollama_ends_without_a_reason_ends_as_too_long() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, engine_request, _ = await bench.ask(request(stream=True))
        assert result.body.endswith(b'"finish_reason":"length"}]}\n\n' + DONE)
        assert engine_request.error is None
        assert engine_request.estimated
        result, engine_request, _ = await bench.ask(request())
        assert json.loads(result.body)["choices"][0]["finish_reason"] == "length"
        assert engine_request.estimated
        assert engine_request.completion_tokens > 10

    looped = {
        "model": "m",
        "choices": [{"index": 0, "message": {"content": "ha " * 30}, "finish_reason": None}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
    fake.handlers[CHAT] = in_turn(streams(content("ha"), content("ha")), answers(looped))
    run(test, fake)


def test_embeddings_are_not_parsed() -> None:
    fake = FakeEngine()
    body = {"object": "list", "data": [{"embedding": [1.0]}], "model": "m", "usage": {"prompt_tokens": 4}}

    async def test(bench: Bench) -> None:
        result, _, lease = await bench.ask(request(EMBEDDINGS))
        assert json.loads(result.body) == body
        assert lease.settled == [(4, 0)]

    fake.handlers[EMBEDDINGS] = answers(body)
    run(test, fake)


# Failures


def test_a_refused_connection_is_retried_then_unavailable() -> None:
    async def test(bench: Bench) -> None:
        engine = bench.settings.engines[0].model_copy(update={"url": "http://127.0.0.1:1"})
        lease = FakeLease(engine, engine.models[0])
        engine_request = bench.upstream.new_request(request(), lease, asyncio.Event())
        with pytest.raises(ApiError) as raised:
            await engine_request.answer()
        await engine_request.close()
        assert (raised.value.status, raised.value.code) == (503, "engine_unavailable")
        assert raised.value.retry_after
        assert (engine_request.retries, lease.settled, engine_request.estimated) == (2, [(0, 0)], False)
        assert not bench.engines.state("engine0").up
        assert bench.engines.state("engine0").error == "refuses connections"

    run(test, FakeEngine(), retries=2)


@pytest.mark.parametrize("failure", [drop, answers({"error": "CUDA"}, 500), answers({}, 503)])
def test_another_engine_is_tried_first_and_the_same_one_otherwise(failure: Handler) -> None:
    broken, sound = FakeEngine(), FakeEngine()

    async def test(bench: Bench) -> None:
        for stream in (True, False):
            result, engine_request, lease = await bench.ask(request(stream=stream), swaps=True)
            assert result.raised is None
            assert (engine_request.retries, lease.engine.name) == (1, "engine1")
            result, engine_request, lease = await bench.ask(request(stream=stream))
            assert result.raised is None
            assert (engine_request.retries, lease.engine.name) == (1, "engine0")

    whole, streamed = answers(WHOLE), streams(content("a"), USED, DONE)
    broken.handlers[CHAT] = in_turn(failure, failure, streamed, failure, failure, whole)
    sound.handlers[CHAT] = in_turn(streamed, whole)
    run(test, broken, sound)


def test_a_stream_that_ends_before_its_first_byte_is_tried_again() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        for _ in range(2):
            result, engine_request, _lease = await bench.ask(request(stream=True))
            assert (result.body, engine_request.retries) == (content("a") + DONE, 1)

    sound = streams(content("a"), USED, DONE)
    fake.handlers[CHAT] = in_turn(streams(cut=True), sound, streams(), sound)
    run(test, fake)


def test_an_engine_that_goes_on_failing_is_a_502_in_its_own_words() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, engine_request, lease = await bench.ask(request())
        error = result.error
        assert (error.status, error.code, error.type) == (502, "engine_error", "server_error")
        assert "model runner has stopped" in error.message
        assert "127.0.0.1" not in error.message
        assert "\n" not in error.message
        assert len(error.message) < 450
        assert error.retry_after
        assert (engine_request.retries, len(fake.bodies), lease.settled) == (1, 2, [(0, 0)])

    words = f"model runner has stopped\nPost http://127.0.0.1:4242/x at 127.0.0.1:99: {'long ' * 200}"
    fake.handlers[CHAT] = answers({"error": {"message": words}}, 500)
    run(test, fake)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            {"error": {"message": "invalid  seed"}},
            (400, None, "The engine refused the request: invalid seed"),
        ),
        (422, {"detail": "no"}, (400, None, "The engine refused the request: no")),
        (500, {"error": {"message": "invalid JSON schema in format"}}, (400, "invalid_value", None)),
        (401, {"error": "who?"}, (502, "engine_error", None)),
        (302, {}, (502, "engine_error", None)),
        (
            400,
            {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000."},
            (400, "context_length_exceeded", None),
        ),
    ],
)
def test_a_refusal_is_passed_on_and_not_tried_again(
    status: int, body: dict[str, Any], expected: tuple[int, str | None, str | None]
) -> None:
    fake, other = FakeEngine("openai"), FakeEngine("openai")

    async def test(bench: Bench) -> None:
        result, engine_request, _ = await bench.ask(request(), swaps=True)
        assert (result.error.status, result.error.code) == expected[:2]
        assert expected[2] in {None, result.error.message}
        assert (engine_request.retries, len(fake.bodies), other.bodies) == (0, 1, [])

    fake.handlers[CHAT] = answers(body, status)
    run(test, fake, other)


def test_a_model_missing_on_an_engine_is_looked_for_on_another() -> None:
    fake, other = FakeEngine(), FakeEngine()

    async def test(bench: Bench) -> None:
        result, _, lease = await bench.ask(request(), swaps=True)
        assert result.raised is None
        assert lease.engine.name == "engine1"
        assert [bench.engines.serves(engine, "m") for engine in bench.settings.engines] == [False, True]
        result, engine_request, _ = await bench.ask(request())
        assert (result.error.status, result.error.code) == (503, "engine_unavailable")
        assert engine_request.retries == 0

    fake.handlers[CHAT] = answers({"error": {"message": "model 'm' not found"}}, 404)
    other.handlers[CHAT] = answers(WHOLE)
    run(test, fake, other)


def test_nothing_is_tried_again_after_the_first_byte() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        for words in ("it closed the connection in the middle of the answer", "no memory", "it failed in"):
            result, engine_request, lease = await bench.ask(request(stream=True))
            begun, broken, rest = result.body.rsplit(b"\n\n", 2)
            error = json.loads(broken.removeprefix(b"data: "))["error"]
            assert begun + b"\n\n" == content("a")
            assert (error["code"], error["type"], rest) == ("engine_error", "server_error", b"")
            assert words in error["message"]
            assert engine_request.error is not None
            assert (engine_request.error.reason, engine_request.retries) == ("engine_error", 0)
            assert (engine_request.estimated, lease.settled) == (True, [(1, 1)])
        assert len(fake.bodies) == 3

    nameless = content("").replace(b'"model":"m"', b'"model":""')
    fake.handlers[CHAT] = in_turn(
        streams(content("a"), 0.05, cut=True),
        streams(content("a"), event(error={"message": "no memory"}), DONE),
        streams(content("a"), nameless),
    )
    run(test, fake)


def test_an_error_that_comes_first_in_a_stream_is_an_answer_of_its_own() -> None:
    fake = FakeEngine("openai")

    async def test(bench: Bench) -> None:
        result, _, _ = await bench.ask(request(stream=True))
        assert (result.error.status, result.error.code) == (502, "engine_error")
        assert "no memory" in result.error.message
        result, _, _ = await bench.ask(request())
        assert result.error.status == 502

    fake.handlers[CHAT] = in_turn(streams(event(error={"message": "no memory"})), answers({"error": "odd"}))
    run(test, fake)


def test_a_time_out_is_a_504_that_nobody_tries_again() -> None:
    fake, other = FakeEngine(), FakeEngine()

    async def test(bench: Bench) -> None:
        for stream in (True, False):
            result, engine_request, lease = await bench.ask(request(stream=stream), swaps=True)
            assert (result.error.status, result.error.code) == (504, "timeout")
            assert result.error.headers == {"x-should-retry": "false"}
            # The engine worked on the prompt, so it is charged.
            assert (engine_request.retries, engine_request.estimated, lease.settled[0][0]) == (0, True, 1)
        await asyncio.sleep(0.05)
        assert (len(fake.bodies), fake.cut, other.bodies) == (2, 2, [])

    fake.handlers[CHAT] = streams(5.0, content("a"))
    run(test, fake, other, first_byte_seconds=0.2)


async def lose(bench: Bench, engine: str, after: float = 0.1) -> None:
    """Report a host as lost after a while, as two failed polls do."""
    await asyncio.sleep(after)
    bench.engines.report_lost(engine)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_on_a_lost_host_moves_to_another_engine(stream: bool) -> None:
    lost, other = FakeEngine(), FakeEngine()

    async def test(bench: Bench) -> None:
        asked = time.monotonic()
        (result, engine_request, lease), _ = await asyncio.gather(
            bench.ask(request(stream=stream), swaps=True), lose(bench, "engine0")
        )
        assert time.monotonic() - asked < 2
        assert result.raised is None
        assert (engine_request.retries, lease.engine.name) == (1, "engine1")
        # The lost engine's work on the prompt is not charged.
        assert (lease.settled, engine_request.estimated) == ([(11, 2)], False)
        await asyncio.sleep(0.05)
        assert (len(lost.bodies), lost.cut, len(other.bodies)) == (1, 1, 1)

    lost.handlers[CHAT] = streams(60.0)
    other.handlers[CHAT] = streams(content("a"), USED, DONE) if stream else answers(WHOLE)
    run(test, lost, other)


def test_a_request_on_a_lost_host_waits_for_a_slot_of_another_engine() -> None:
    lost, other = FakeEngine(), FakeEngine()

    async def test(bench: Bench) -> None:
        engine_request, lease = bench.new_request(request())
        with pytest.raises(EngineGoneError) as raised:
            await asyncio.gather(engine_request.answer(), lose(bench, "engine0"))
        await engine_request.close()
        assert (raised.value.error.status, raised.value.error.code) == (502, "engine_error")
        assert "its host cannot be reached any more" in raised.value.error.message
        assert (engine_request.retries, lease.settled) == (1, [(0, 0)])
        # Its retries were spent on the engine while the host was dying.
        engine_request, lease = bench.new_request(request())
        engine_request.retries = bench.settings.retries
        with pytest.raises(EngineGoneError):
            await asyncio.gather(engine_request.answer(), lose(bench, "engine0"))
        await engine_request.close()
        # After all moves, and without another engine.
        for retries, up in ((MAX_MOVES, True), (0, False)):
            if not up:
                bench.engines.report_failure("engine1", "refuses connections")
            engine_request, lease = bench.new_request(request())
            engine_request.retries = retries
            lost.handlers[CHAT] = in_turn(streams(60.0), drop)
            with pytest.raises(ApiError) as failed:
                await asyncio.gather(engine_request.answer(), lose(bench, "engine0"))
            await engine_request.close()
            assert failed.value.code == "engine_error"
        assert other.bodies == []

    lost.handlers[CHAT] = streams(60.0)
    run(test, lost, other)


def test_a_lost_host_costs_the_request_where_nothing_may_be_tried_again() -> None:
    lost, other = FakeEngine(), FakeEngine()

    async def test(bench: Bench) -> None:
        (result, engine_request, _), _ = await asyncio.gather(
            bench.ask(request(), swaps=True), lose(bench, "engine0")
        )
        assert isinstance(result.raised, ApiError)
        assert (result.raised.code, engine_request.retries, other.bodies) == ("engine_error", 0, [])

    lost.handlers[CHAT] = streams(60.0)
    run(test, lost, other, retries=0)


@pytest.mark.parametrize("swaps", [True, False])
def test_an_engine_that_got_nothing_of_a_request_costs_no_retry(swaps: bool) -> None:
    async def test(bench: Bench) -> None:
        gone = bench.settings.engines[0].model_copy(update={"url": "http://127.0.0.1:1"})
        lease = FakeLease(gone, gone.models[0], [bench.settings.engines[1]] if swaps else [])
        engine_request = bench.upstream.new_request(request(), lease, asyncio.Event())
        if swaps:
            answer = await engine_request.answer()
            assert answer.body is not None
        else:
            with pytest.raises(EngineGoneError):
                await engine_request.answer()
        await engine_request.close()
        assert engine_request.retries == 1

    other = FakeEngine()
    other.handlers[CHAT] = answers(WHOLE)
    run(test, FakeEngine(), other, retries=0)


def test_a_stream_from_a_lost_host_ends_with_an_error() -> None:
    fake, other = FakeEngine(), FakeEngine()

    async def test(bench: Bench) -> None:
        begun = time.monotonic()
        (result, engine_request, lease), _ = await asyncio.gather(
            bench.ask(request(stream=True), swaps=True), lose(bench, "engine0", 0.2)
        )
        assert time.monotonic() - begun < 2
        first, broken, rest = result.body.rsplit(b"\n\n", 2)
        error = json.loads(broken.removeprefix(b"data: "))["error"]
        assert (first + b"\n\n", rest, error["code"]) == (content("a"), b"", "engine_error")
        assert "its host cannot be reached any more" in error["message"]
        assert (engine_request.estimated, lease.settled) == (True, [(1, 1)])
        assert other.bodies == []

    fake.handlers[CHAT] = streams(content("a"), 60.0)
    run(test, fake, other)


def test_what_had_arrived_from_a_lost_host_reaches_a_slow_reader() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        engine_request, _ = bench.new_request(request(stream=True))
        parts = []
        answer = await engine_request.answer()
        async for part in answer.events():
            parts.append(part)
            if len(parts) == 1:
                await asyncio.sleep(0.2)
                bench.engines.report_lost("engine0")
        await engine_request.close()
        assert parts[:2] == [content("a"), content("b")]
        assert b"its host cannot be reached any more" in parts[2]
        bench.engines.report_lost("engine0")

    fake.handlers[CHAT] = streams(content("a"), 0.05, content("b"), 60.0)
    run(test, fake)


def test_a_gap_in_a_stream_ends_it() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, engine_request, _ = await bench.ask(request(stream=True))
        assert result.body.startswith(content("a") + content("b"))
        assert b'"code": "timeout"' in result.body
        assert b"[DONE]" not in result.body
        assert engine_request.error is not None
        assert engine_request.error.status == 504
        await asyncio.sleep(0.05)
        assert fake.cut == 1

    fake.handlers[CHAT] = streams(content("a"), 0.2, content("b"), 5.0)
    run(test, fake, first_byte_seconds=0.3)


PINGS: list[bytes | float] = [b": ping\n\n", 0.1] * 100
ENDLESS: list[bytes | float] = [content("a"), 0.1] * 100


def test_comments_do_not_keep_a_stream_open() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, engine_request, _ = await bench.ask(request(stream=True))
        assert result.body.startswith(content("a") + b": ping\n\n")
        assert engine_request.error is not None
        assert engine_request.error.message.startswith("The engine did not answer within the limit of 0.3 s")

    fake.handlers[CHAT] = streams(content("a"), *PINGS)
    run(test, fake, first_byte_seconds=0.3)


def test_each_event_with_data_begins_a_new_gap() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, _, _ = await bench.ask(request(stream=True))
        assert result.body == content("a") * 6 + DONE

    fake.handlers[CHAT] = streams(*ENDLESS[:12], DONE)
    run(test, fake, first_byte_seconds=0.4)


def test_a_stream_is_bounded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate_gateway.engines.request.STREAM_SECONDS", 0.3)
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, engine_request, _ = await bench.ask(request(stream=True))
        assert result.body.startswith(content("a") * 2)
        assert engine_request.error is not None
        assert engine_request.error.message.startswith("The answer took more than the limit of 0.3 s")

    fake.handlers[CHAT] = streams(*ENDLESS)
    run(test, fake)


def test_the_time_of_a_slow_reader_is_not_the_engines() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        engine_request, _ = bench.new_request(request(stream=True))
        answer = await engine_request.answer()
        parts = []
        async for part in answer.events():
            parts.append(part)
            await asyncio.sleep(0.3)
        await engine_request.close()
        assert b"".join(parts) == content("a") + content("b") + DONE

    fake.handlers[CHAT] = streams(content("a"), 0.1, content("b"), 0.1, DONE)
    run(test, fake, first_byte_seconds=0.25)


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_only_a_model_that_is_not_loaded_may_take_longer(kind: str) -> None:
    fake = FakeEngine(kind, loaded=False)

    async def test(bench: Bench) -> None:
        result, _, _ = await bench.ask(request(stream=True))
        if kind == "openai":
            assert result.error.code == "timeout"
            return
        assert result.body == content("a") + DONE
        first, second = await asyncio.gather(bench.ask(request()), late(bench))
        assert (first[0].raised, second[0].raised) == (None, None)

    async def late(bench: Bench) -> tuple[Result, EngineRequest, FakeLease]:
        # Named as loaded meanwhile, while an earlier call still waits for it.
        await asyncio.sleep(0.05)
        bench.engines.loaded = lambda *_: True  # type: ignore[method-assign]
        return await bench.ask(request())

    fake.handlers[CHAT] = in_turn(streams(0.4, content("a"), DONE), *[answers(WHOLE, after=0.4)] * 2)
    run(test, fake, first_byte_seconds=0.2, load_seconds=2.0)


# Disconnected clients


async def disconnect(
    bench: Bench, asked: Request, after: float, *, cancel: bool = False
) -> tuple[EngineRequest, FakeLease, float, float]:
    """Disconnect after a while; return also the seconds until the app knows, and until the slot is free."""
    disconnected = asyncio.Event()
    engine_request, lease = bench.new_request(asked, disconnected)

    async def use() -> None:
        answer = await engine_request.answer()
        async for _ in answer.events():
            pass

    task = asyncio.create_task(use())
    await asyncio.sleep(after)
    moment = time.monotonic()
    if cancel:
        task.cancel()
    else:
        disconnected.set()
    with pytest.raises(asyncio.CancelledError if cancel else ClientDisconnected):
        await task
    known = time.monotonic() - moment
    await engine_request.close()
    freed = time.monotonic() - moment
    await asyncio.sleep(0.05)
    return engine_request, lease, known, freed


@pytest.mark.parametrize("cancel", [False, True])
def test_disconnecting_a_stream_stops_the_engine_at_once(cancel: bool) -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        engine_request, lease, known, freed = await disconnect(
            bench, request(stream=True), 0.2, cancel=cancel
        )
        assert known < 0.1
        assert freed < 0.1
        assert fake.cut == 1
        assert (engine_request.estimated, lease.settled) == (True, [(1, 2)])

    fake.handlers[CHAT] = streams(content("a"), content("b"), 9.0)
    run(test, fake)


@pytest.mark.parametrize("stream", [False, True])
def test_disconnecting_in_the_prompt_frees_an_extra_backend_at_once(stream: bool) -> None:
    fake = FakeEngine("openai")

    async def test(bench: Bench) -> None:
        _, _, known, freed = await disconnect(bench, request(stream=stream), 0.2)
        assert known < 0.1
        assert freed < 0.1
        assert fake.cut == 1

    fake.handlers[CHAT] = streams(9.0, content("a")) if stream else answers({}, after=9.0)
    run(test, fake)


@pytest.mark.parametrize("cancel", [False, True])
def test_disconnecting_in_the_prompt_of_a_stream_holds_the_slot_to_its_first_byte(cancel: bool) -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        engine_request, lease, known, freed = await disconnect(
            bench, request(stream=True), 0.2, cancel=cancel
        )
        assert known < 0.1
        assert 0.3 < freed < 0.6
        assert fake.cut == 1
        assert engine_request.estimated
        assert lease.settled == [(1, 1)]

    fake.handlers[CHAT] = streams(0.6, content("a"), 9.0)
    run(test, fake)


def test_disconnecting_a_whole_answer_holds_the_slot_as_long_as_the_prompt_takes() -> None:
    fake = FakeEngine()
    long = "word " * 400

    async def test(bench: Bench) -> None:
        # The speed of the engine is learned from a stream.
        await bench.ask(request(stream=True, **chat(long)))
        engine_request, lease, known, freed = await disconnect(bench, request(**chat(long)), 0.1)
        assert known < 0.1
        assert 0.2 < freed < 0.6
        assert fake.cut == 1
        assert engine_request.estimated
        assert lease.settled[0][0] > 100
        # Past the prompt, nothing is held, and what was generated is estimated.
        engine_request, _, _, freed = await disconnect(bench, request(**chat(long)), 0.8)
        assert freed < 0.1
        assert engine_request.completion_tokens > 5
        engine_request, _, _, _ = await disconnect(bench, request(max_tokens=3, **chat(long)), 0.8)
        assert engine_request.completion_tokens == 3

    used = {"prompt_tokens": 500, "completion_tokens": 2}
    fake.handlers[CHAT] = in_turn(
        streams(0.4, content("a"), event(model="m", choices=[], usage=used), DONE),
        *[answers(WHOLE, after=9.0)] * 3,
    )
    run(test, fake)


def test_disconnecting_between_tries_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeEngine()
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 5)

    async def test(bench: Bench) -> None:
        _, lease, known, freed = await disconnect(bench, request(stream=True), 0.2)
        assert known < 0.1
        assert freed < 0.1
        assert lease.settled == [(0, 0)]
        assert len(fake.bodies) == 1

    fake.handlers[CHAT] = answers({}, 500)
    run(test, fake)


def test_a_failure_after_the_client_disconnected_is_not_tried_again() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        _, _, _, freed = await disconnect(bench, request(stream=True), 0.1)
        assert 0.1 < freed < 0.5
        assert len(fake.bodies) == 1

    fake.handlers[CHAT] = in_turn(answers({}, 500, after=0.3), answers(WHOLE))
    run(test, fake)


# The context

FITS = {"message": {"content": "x"}, "done": True, "prompt_eval_count": 20}
TOO_LONG = {"error": "the input length exceeds the context length"}
LONG = "0123456789" * 100


@pytest.mark.parametrize(
    ("asked", "path", "check"),
    [
        (request(**chat(LONG)), "/api/chat", {"messages": [{"role": "user", "content": LONG}]}),
        (request(COMPLETIONS, prompt=LONG), "/api/generate", {"prompt": LONG}),
    ],
)
def test_a_prompt_that_could_be_too_long_is_checked(asked: Request, path: str, check: dict[str, Any]) -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, engine_request, _ = await bench.ask(asked)
        assert (result.headers, engine_request.truncated) == ({}, False)
        options = {"model": "m", "truncate": False, "stream": False, "options": {"num_predict": 1}}
        assert fake.bodies[0] == (path, options | check)
        result, engine_request, _ = await bench.ask(asked)
        assert (result.headers, engine_request.truncated) == ({"x-bedplate-context": "truncated"}, True)
        assert fake.paths() == [path, asked.path] * 2

    fake.handlers[path] = in_turn(answers(FITS), answers(TOO_LONG, 400))
    fake.handlers[asked.path] = answers(WHOLE)
    run(test, fake, context=600)


def test_what_does_not_fit_is_refused_where_the_settings_say_so() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        for asked, param in (
            (request(stream=True, **chat(LONG)), "messages"),
            (request(COMPLETIONS, prompt=LONG), "prompt"),
            (request(EMBEDDINGS, input=["short", LONG]), "input"),
        ):
            result, engine_request, lease = await bench.ask(asked, swaps=True)
            error = result.error
            assert (error.status, error.code, error.param) == (400, "context_length_exceeded", param)
            assert "600 tokens" in error.message
            assert str(asked.prompt_bytes) in error.message
            assert (engine_request.retries, lease.settled) == (0, [(0, 0)])
        assert set(fake.paths()) == {"/api/chat", "/api/generate", "/api/embed"}

    for path in ("/api/chat", "/api/generate", "/api/embed"):
        fake.handlers[path] = answers(TOO_LONG, 400)
    run(test, fake, context=600, refuse_truncation=True)


def test_what_does_not_fit_is_refused_where_it_has_tools() -> None:
    fake = FakeEngine()
    tool = {"type": "function", "function": {"name": "f"}}

    async def test(bench: Bench) -> None:
        result, _, _ = await bench.ask(request(**chat(LONG), tools=[tool]))
        assert result.error.code == "context_length_exceeded"
        # What coding agents look for, and what their user has to do.
        assert result.error.message.startswith("The prompt is too long: ")
        assert "ollama_context_length" in result.error.message

    fake.handlers["/api/chat"] = answers(TOO_LONG, 400)
    run(test, fake, context=600)


def test_what_fits_for_certain_is_not_checked() -> None:
    fake, other = FakeEngine(), FakeEngine("openai")

    async def test(bench: Bench) -> None:
        await bench.ask(request())
        await bench.ask(request(EMBEDDINGS, input=["0123456789"] * 100))
        assert fake.paths() == [CHAT, EMBEDDINGS]

    fake.handlers[CHAT] = answers(WHOLE)
    fake.handlers[EMBEDDINGS] = answers({"data": [], "usage": {"prompt_tokens": 300}})
    run(test, fake, other, context=600)


def test_a_400_about_something_else_leaves_the_answer_to_the_request() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, engine_request, _ = await bench.ask(request(**chat(LONG)))
        assert (result.raised, engine_request.truncated) == (None, False)

    fake.handlers["/api/chat"] = answers({"error": "m does not support thinking"}, 400)
    fake.handlers[CHAT] = answers(WHOLE)
    run(test, fake, context=600)


def test_embeddings_that_could_be_too_long_are_made_by_the_check_itself() -> None:
    fake = FakeEngine()

    async def test(bench: Bench) -> None:
        result, _, lease = await bench.ask(request(EMBEDDINGS, input=[LONG, "b"], dimensions=2))
        assert json.loads(result.body) == {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [1.0, 0.5]},
                {"object": "embedding", "index": 1, "embedding": [0.0, 0.25]},
            ],
            "model": "m",
            "usage": {"prompt_tokens": 9, "total_tokens": 9},
        }
        assert lease.settled == [(9, 0)]
        result, _, _ = await bench.ask(request(EMBEDDINGS, input=LONG, encoding_format="base64"))
        assert json.loads(result.body)["data"][0]["embedding"] == "AACAPwAAAD8="
        assert fake.paths() == ["/api/embed"] * 2
        assert fake.bodies[0][1]["dimensions"] == 2

    native = {"embeddings": [[1.0, 0.5], [0.0, 0.25]], "prompt_eval_count": 9}
    fake.handlers["/api/embed"] = answers(native)
    run(test, fake, context=600)


def test_a_prompt_that_filled_the_context_counts_as_truncated() -> None:
    fake = FakeEngine("openai")

    async def test(bench: Bench) -> None:
        result, engine_request, _ = await bench.ask(request())
        assert (engine_request.truncated, result.headers) == (True, {"x-bedplate-context": "truncated"})
        result, engine_request, _ = await bench.ask(request(stream=True))
        assert (engine_request.truncated, result.headers) == (True, {})

    full = {"prompt_tokens": 600, "completion_tokens": 1}
    used = event(model="m", choices=[], usage=full)
    fake.handlers[CHAT] = in_turn(answers(WHOLE | {"usage": full}), streams(content("a"), used, DONE))
    run(test, fake, context=600)


def test_the_fit_check_carries_tools_and_their_answers_in_ollamas_form() -> None:
    fake = FakeEngine()
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    tools = [{"type": "function", "function": {"name": "f"}}]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]

    async def test(bench: Bench) -> None:
        await bench.ask(request(messages=messages, tools=tools, reasoning_effort="none"))
        check = fake.bodies[0][1]
        assert check["messages"] == [
            {"role": "user", "content": "look"},
            {"role": "user", "images": ["aGk="]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "42", "tool_call_id": "c1", "tool_name": "f"},
        ]
        assert check["tools"] == tools
        assert check["think"] is False

    fake.handlers["/api/chat"] = answers(FITS)
    fake.handlers[CHAT] = answers(WHOLE)
    run(test, fake, context=600)


# The table of states


def reachable(start: State) -> set[State]:
    reached, left = {start}, [start]
    while left:
        for state in TRANSITIONS[left.pop()].values():
            if state not in reached:
                reached.add(state)
                left.append(state)
    return reached


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == reachable(State.IDLE) == set(State)
    assert {event for events in TRANSITIONS.values() for event in events} == set(Event)


def test_every_state_ends_settled_and_settled_is_final() -> None:
    assert all(State.SETTLED in reachable(state) for state in State)
    assert reachable(State.SETTLED) == {State.SETTLED}


def test_the_engines_work_is_never_forgotten() -> None:
    """Else a retry would make a prompt free that an engine has processed."""
    for state in WORKED:
        assert reachable(state) <= WORKED


def test_a_disconnected_client_is_not_tried_again() -> None:
    assert reachable(State.DRAINING) == {State.DRAINING, State.SETTLED}
    assert all(TRANSITIONS[state][Event.CLOSE_WAITING] is State.DRAINING for state in WAITING)


def test_an_attempt_starts_only_where_none_runs_and_only_a_waiting_one_answers() -> None:
    assert {state for state in State if Event.SEND in TRANSITIONS[state]} == {State.IDLE, State.INTERRUPTED}
    assert {state for state in State if Event.ANSWER in TRANSITIONS[state]} == WAITING | {State.DRAINING}
    assert all(Event.SETTLE not in TRANSITIONS[state] for state in WAITING)


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([Event.SEND, Event.ANSWER, Event.SETTLE], State.SETTLED),
        ([Event.SEND, Event.FAIL], State.IDLE),
        ([Event.SEND, Event.FAIL, Event.SEND], State.SENT),
        ([Event.SEND, Event.PROMPT_DONE, Event.FAIL, Event.SEND], State.PROCESSED),
        ([Event.SEND, Event.TIME_OUT], State.INTERRUPTED),
        ([Event.SEND, Event.ANSWER, Event.FAIL], State.INTERRUPTED),
        ([Event.SEND, Event.CLOSE_WAITING, Event.ANSWER], State.DRAINING),
        ([Event.SEND, Event.CLOSE_WAITING, Event.FAIL, Event.SETTLE, Event.FAIL], State.SETTLED),
    ],
)
def test_events_lead_through_the_table(events: list[Event], state: State) -> None:
    now = State.IDLE
    for each in events:
        now = TRANSITIONS[now][each]
    assert now is state


def test_an_event_out_of_order_is_a_bug() -> None:
    with pytest.raises(KeyError):
        TRANSITIONS[State.IDLE][Event.ANSWER]
