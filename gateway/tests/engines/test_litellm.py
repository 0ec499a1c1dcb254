"""Requests through LiteLLM. The fake proxy sends what LiteLLM 1.110.2 sent for an engine's answers."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from bedplate_gateway.api.schema import Request, parse_request
from bedplate_gateway.engines import litellm as module
from bedplate_gateway.engines.health import Engines
from bedplate_gateway.engines.litellm import Lane, LiteLLM, LiteLLMEvents, engine_text, restored_embeddings
from bedplate_gateway.engines.request import EngineRequest, Upstream
from bedplate_gateway.errors import ApiError
from bedplate_gateway.settings import Engine, EngineModel, LiteLLMSettings, Settings, SettingsError

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
WHOLE = (
    '{"id":"chatcmpl-5b","created":1,"model":"engine0/m","object":"chat.completion",'
    '"system_fingerprint":"fp_ollama","choices":[{"finish_reason":"stop","index":0,"message":'
    '{"content":"Hello","role":"assistant","reasoning_content":"think","provider_specific_fields":'
    '{"reasoning":"think"}},"provider_specific_fields":{}}],"usage":{"completion_tokens":2,'
    '"prompt_tokens":11,"total_tokens":13},"provider_specific_fields":{"original_response_id":"chatcmpl-1"}}'
)
USAGE = '"usage":{"completion_tokens":2,"prompt_tokens":11,"total_tokens":13,"completion_tokens_details":{}}'
ERROR = (
    "litellm.BadRequestError: Hosted_vllmException - {text}\n\n"
    "LiteLLM: model group 'engine0/m' failed with the error above. No fallback was attempted."
)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def chunk(choices: str, more: str = "") -> str:
    return (
        '{"id":"chatcmpl-be","created":9,"model":"engine0/m","object":"chat.completion.chunk",'
        f'"system_fingerprint":"fp_ollama","choices":[{choices}],'
        f'"provider_specific_fields":{{"original_response_id":"chatcmpl-1"}}{more}}}'
    )


BEGIN = chunk('{"index":0,"delta":{"content":"Hel","role":"assistant"}}')
FINISH = chunk('{"finish_reason":"stop","index":0,"delta":{}}')
ENGINE_USAGE = chunk('{"index":0,"delta":{}}')
COUNT = chunk("", "," + USAGE)


class FakeServer:
    """A server that answers as the test says; `calls` are path, headers and body of its requests."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.alive: Callable[[], Awaitable[web.Response]] | None = None
        self.port = 0

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self.port = runner.addresses[0][1]
        return runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/health/liveliness":
            if self.alive:
                return await self.alive()
            return web.json_response("I'm alive!")
        if request.path in {"/api/tags", "/api/ps"}:
            return web.json_response({"models": [{"name": "m:latest", "digest": "d"}]})
        if request.path == "/api/show":
            return web.json_response({"capabilities": ["completion"]})
        body = await request.json() if request.method == "POST" else {}
        self.calls.append((request.path, {k.lower(): v for k, v in request.headers.items()}, body))
        return await self.answer(request)


class FakeLease:
    def __init__(self, engine: Engine, others: list[Engine]) -> None:
        self.engine, self.others = engine, others

    @property
    def model(self) -> EngineModel:
        return self.engine.models[0]

    def touch(self) -> None: ...

    def charge(self, tokens: int) -> None: ...

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None: ...

    def swap(self) -> bool:
        if not self.others:
            return False
        self.engine = self.others.pop(0)
        return True


def text(body: str, status: int = 200) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text=body, status=status, content_type="application/json")

    return answer


def refusal(status: int, engine_body: str) -> Answer:
    message = ERROR.format(text=engine_body)
    return text(json.dumps({"error": {"message": message, "type": "x", "code": str(status)}}), status)


def stream(*events: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(f"data: {event}\n\n".encode())
        return response

    return answer


async def whole(_: web.Request) -> web.StreamResponse:
    headers = {"x-litellm-call-id": "call-1", "x-litellm-version": "1", "x-litellm-attempted-retries": "1"}
    return web.Response(text=WHOLE, headers=headers, content_type="application/json")


async def cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def request(path: str = CHAT, **body: Any) -> Request:
    fields = {"input": "hi"} if path == EMBEDDINGS else {"messages": [{"role": "user", "content": "hi"}]}
    raw = json.dumps({"model": "m"} | fields | body).encode()
    return parse_request(path, raw, default_max_output=lambda _: None)


class Bench:
    """One or more engines behind a proxy, and what a request got."""

    def __init__(self, tmp_path: Path, proxy: FakeServer, *engines: FakeServer) -> None:
        self.tmp_path, self.proxy, self.engines = tmp_path, proxy, engines

    def run(self, test: Callable[["Bench"], Awaitable[None]], **more: Any) -> None:
        async def main() -> None:
            runners = [await server.start() for server in (self.proxy, *self.engines)]
            (self.tmp_path / "key").write_text("sk-master\n")
            models = [{"name": "m", "slots": 2}]
            names = [(f"engine{number}", engine.port) for number, engine in enumerate(self.engines)]
            document = {
                "api": {"address": "127.0.0.1", "port": 0},
                "metrics": {"address": "127.0.0.1", "port": 0},
                "engines": [
                    {"name": name, "kind": "ollama", "url": f"http://127.0.0.1:{port}", "models": models}
                    for name, port in names
                ],
                "litellm": {
                    "url": f"http://127.0.0.1:{self.proxy.port}",
                    "key_file": str(self.tmp_path / "key"),
                    "direct": more.pop("direct", []),
                },
                "keys_file": "k",
                "state_dir": "s",
                **more,
            }
            self.settings = Settings.model_validate(document)
            self.states = Engines(self.settings)
            self.litellm = LiteLLM(self.settings.litellm)
            self.upstream = Upstream(self.settings, self.states, self.litellm)
            await self.states.start()
            await self.litellm.start(self.states.session)
            self.runners = runners
            try:
                await test(self)
            finally:
                await self.litellm.stop()
                await self.states.stop()
                for runner in self.runners:
                    await runner.cleanup()

        asyncio.run(asyncio.wait_for(main(), 20))

    async def ask(self, asked: Request | None = None) -> tuple[Any, EngineRequest]:
        """Return the answer (JSON of a whole one, the events' JSON of a stream, or an ApiError)."""
        first, *others = self.settings.engines
        asked = asked or request()
        engine_request = self.upstream.new_request(asked, FakeLease(first, others), asyncio.Event())
        try:
            answer = await engine_request.answer()
            if answer.body is not None:
                return json.loads(answer.body), engine_request
            body = b"".join([part async for part in answer.events()]).decode()
            data = [event.removeprefix("data: ") for event in body.split("\n\n")[:-1]]
            return [json.loads(each) for each in data if each != "[DONE]"], engine_request
        except ApiError as error:
            return error, engine_request
        finally:
            await engine_request.close()

    async def lane(self) -> Lane | None:
        """Send a request and return its lane."""
        return (await self.ask())[1].lane


@pytest.fixture
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.1)


@contextmanager
def proxy_hangs(proxy: FakeServer) -> Iterator[None]:
    async def never() -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    proxy.alive = never
    yield
    proxy.alive = None


def bench(tmp_path: Path, through: Answer, *direct: Answer) -> Bench:
    return Bench(tmp_path, FakeServer(through), *map(FakeServer, direct or (text('{"choices": []}'),)))


# Shape


def test_a_whole_answer_has_the_engines_shape(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        answer, engine_request = await bench.ask()
        assert answer == {
            "id": "chatcmpl-1",
            "created": 1,
            "model": "m",
            "object": "chat.completion",
            "system_fingerprint": "fp_ollama",
            "choices": [
                {
                    "finish_reason": "stop",
                    "index": 0,
                    "message": {
                        "content": "Hello",
                        "role": "assistant",
                        "reasoning": "think",
                        "reasoning_content": "think",
                    },
                }
            ],
            "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13},
        }
        assert engine_request.lane is Lane.LITELLM
        assert (engine_request.prompt_tokens, engine_request.completion_tokens) == (11, 2)
        path, headers, body = bench.proxy.calls[0]
        assert (path, headers["authorization"], body["model"]) == (CHAT, "Bearer sk-master", "engine0/m")
        assert bench.engines[0].calls == []

    bench(tmp_path, text(WHOLE)).run(test)


def test_zero_usage_means_that_the_engine_sent_none(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        answer, engine_request = await bench.ask()
        assert engine_request.estimated
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] > 0

    zeros = WHOLE.replace(":2,", ":0,").replace(":11,", ":0,").replace(":13}", ":0}")
    bench(tmp_path, text(zeros)).run(test)


def test_a_stream_has_the_engines_shape(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        events, engine_request = await bench.ask(request(stream=True, stream_options={"include_usage": True}))
        shared = {"id": "chatcmpl-1", "created": 9, "model": "m", "object": "chat.completion.chunk"}
        shared["system_fingerprint"] = "fp_ollama"
        usage = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
        begin = {"index": 0, "delta": {"content": "Hel", "role": "assistant"}, "finish_reason": None}
        assert events == [
            shared | {"choices": [begin]},
            shared | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            shared | {"choices": [], "usage": usage},
        ]
        assert not engine_request.estimated

    bench(tmp_path, stream(BEGIN, FINISH, ENGINE_USAGE, COUNT, "[DONE]")).run(test)


def test_a_usage_that_litellm_counted_itself_is_dropped(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        events, engine_request = await bench.ask(request(stream=True, stream_options={"include_usage": True}))
        assert len(events) == 2
        assert engine_request.estimated

    bench(tmp_path, stream(BEGIN, FINISH, COUNT, "[DONE]")).run(test)


def test_a_stream_that_the_engine_ends_without_a_reason_ends_as_too_long(tmp_path: Path) -> None:
    failure = (
        "litellm.APIConnectionError: APIConnectionError: Hosted_vllmException - "
        "Stream ended before a finish_reason was received"
    )

    async def test(bench: Bench) -> None:
        events, engine_request = await bench.ask(request(stream=True))
        assert [event["choices"][0]["finish_reason"] for event in events] == [None, "length"]
        assert engine_request.error is None

    bench(tmp_path, stream(BEGIN, json.dumps({"error": {"message": failure}}), "[DONE]")).run(test)


def test_an_error_inside_a_stream_has_the_engines_words_only(tmp_path: Path) -> None:
    failure = "litellm.InternalServerError: InternalServerError: Hosted_vllmException - engine broke"

    async def test(bench: Bench) -> None:
        events, engine_request = await bench.ask(request(stream=True))
        assert "The engine failed (engine broke)" in events[-1]["error"]["message"]
        assert "itellm" not in json.dumps(events).lower()
        assert engine_request.error is not None

    bench(tmp_path, stream(BEGIN, json.dumps({"error": {"message": failure}}), "[DONE]")).run(test)


def test_the_events_of_a_text_completion_keep_their_text() -> None:
    restore = LiteLLMEvents()
    last = b'data: {"object":"text_completion","choices":[{"finish_reason":"stop","index":0}]}'
    assert json.loads(restore(last)[6:])["choices"] == [{"finish_reason": "stop", "index": 0, "text": ""}]


def test_embeddings_lose_what_litellm_adds() -> None:
    added = (
        b'{"data":[],"usage":{"completion_tokens":0,"prompt_tokens":3,"total_tokens":3,'
        b'"completion_tokens_details":null,"prompt_tokens_details":null}}'
    )
    expected = b'{"data":[],"usage":{"prompt_tokens":3,"total_tokens":3}}'
    assert restored_embeddings(added) == expected


# Errors: as in the direct lane, see test_errors.py


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 407, 408, 413, 422, 429, 500, 502, 503, 504])
def test_an_error_is_the_same_through_litellm_and_direct(tmp_path: Path, status: int) -> None:
    words = json.dumps({"error": {"message": "no such thing at http://10.0.0.1/x with sk-secret123"}})

    async def test(bench: Bench) -> None:
        through, _ = await bench.ask()
        bench.litellm.up = False
        direct, engine_request = await bench.ask()
        assert engine_request.lane is Lane.BYPASS
        if status == 408:
            assert (through.status, through.code) == (504, "timeout")
        else:
            assert (through.status, through.code, through.message) == (
                direct.status,
                direct.code,
                direct.message,
            )
        for secret in ("sk-secret", "10.0.0.1", "LiteLLM", "litellm", "vllm"):
            assert secret not in through.message

    bench(tmp_path, refusal(status, words), text(words, status)).run(test, retries=0)


def test_an_engine_that_litellm_cannot_reach_is_unavailable_at_once(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        error, _ = await bench.ask()
        assert (error.status, error.code) == (503, "engine_unavailable")
        assert not bench.states.state("engine0").up

    bench(tmp_path, refusal(500, "Cannot connect to host 10.0.0.1:11434 ssl:default")).run(test)


def test_litellms_own_refusal_sends_the_request_to_the_engine(tmp_path: Path) -> None:
    unknown = json.dumps({"error": {"message": "/chat/completions: Invalid model name passed in model=x."}})

    async def test(bench: Bench) -> None:
        assert await bench.lane() is Lane.BYPASS
        assert len(bench.engines[0].calls) == 1

    bench(tmp_path, text(unknown, 400), text(WHOLE)).run(test)


def test_the_engines_text_ends_where_litellms_begins() -> None:
    assert engine_text(ERROR.format(text='{"error": "a\\n\\nb"}')) == '{"error": "a\\n\\nb"}'
    timeout = "litellm.Timeout: Timeout Error: Hosted_vllmException - late\n\nDeployment Info: timeout: 330.0"
    assert engine_text(timeout) == "late"
    assert engine_text("Authentication Error, No api key passed in.") is None


# Retries


def test_litellm_retries_only_where_no_other_engine_can_serve(tmp_path: Path) -> None:
    async def alone(bench: Bench) -> None:
        error, _ = await bench.ask()
        assert error.status == 502
        assert [headers["x-litellm-num-retries"] for _, headers, _ in bench.proxy.calls] == ["1"]

    async def with_another(bench: Bench) -> None:
        error, _ = await bench.ask()
        assert error.status == 502
        assert [headers["x-litellm-num-retries"] for _, headers, _ in bench.proxy.calls] == ["0", "0"]
        assert [body["model"] for _, _, body in bench.proxy.calls] == ["engine0/m", "engine1/m"]

    bench(tmp_path, refusal(500, "broken")).run(alone)
    bench(tmp_path, refusal(500, "broken"), text("{}"), text("{}")).run(with_another)


def test_litellms_retries_are_counted_and_its_call_id_is_passed_on(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        engine_request = bench.upstream.new_request(
            request(), FakeLease(bench.settings.engines[0], []), asyncio.Event()
        )
        answer = await engine_request.answer()
        assert answer.headers == {"x-litellm-call-id": "call-1"}
        assert engine_request.retries == 1
        await engine_request.close()

    bench(tmp_path, whole).run(test)


# Lanes


@pytest.mark.parametrize("direct", [["engine0"], ["m"]])
def test_direct_engines_and_models_go_without_litellm(tmp_path: Path, direct: list[str]) -> None:
    async def test(bench: Bench) -> None:
        assert await bench.lane() is Lane.DIRECT
        assert bench.proxy.calls == []

    bench(tmp_path, text(WHOLE), text(WHOLE)).run(test, direct=direct)


def test_only_inference_hosts_are_reached_through_litellm(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-master")
    litellm = LiteLLM(LiteLLMSettings(url="http://x", key_file=tmp_path / "key"))
    litellm.up = True
    lanes = {
        kind: litellm.lane(Engine.model_validate({"name": "e", "kind": kind, "url": "u", "models": []}), "m")
        for kind in ("ollama", "openai")
    }
    assert lanes == {"ollama": Lane.LITELLM, "openai": Lane.DIRECT}
    assert LiteLLM(None).lane(Engine(name="e", kind="ollama", url="u", models=()), "m") is Lane.DIRECT


@pytest.mark.parametrize("streamed", [False, True])
def test_what_litellm_drops_before_its_first_byte_goes_to_the_engine(tmp_path: Path, streamed: bool) -> None:
    async def test(bench: Bench) -> None:
        answer, engine_request = await bench.ask(request(stream=streamed))
        assert engine_request.lane is Lane.BYPASS
        assert not isinstance(answer, ApiError)
        assert len(bench.engines[0].calls) == 1
        assert bench.engines[0].calls[0][2]["model"] == "m"
        assert engine_request.retries == 0

    engine = stream(BEGIN, FINISH, "[DONE]") if streamed else text(WHOLE)
    bench(tmp_path, cut, engine).run(test, retries=0)


@pytest.mark.usefixtures("_quick_polls")
def test_a_stopped_proxy_is_bypassed_and_used_again_when_it_answers_steadily(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await bench.runners[0].cleanup()
        assert await bench.lane() is Lane.BYPASS
        bench.runners[0] = await bench.proxy.start()
        await asyncio.sleep(0.1)
        assert await bench.lane() is Lane.BYPASS
        async with asyncio.timeout(5):
            while not bench.litellm.up:
                await asyncio.sleep(0.02)
        assert await bench.lane() is Lane.LITELLM

    bench(tmp_path, text(WHOLE), text(WHOLE)).run(test)


@pytest.mark.usefixtures("_quick_polls")
def test_a_hanging_proxy_is_bypassed_but_a_busy_one_is_not(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        loop = asyncio.get_running_loop()
        with proxy_hangs(bench.proxy):
            started = loop.time()
            while loop.time() - started < 0.6:
                bench.litellm.note_byte()
                await asyncio.sleep(0.02)
            assert bench.litellm.up
            await asyncio.sleep(0.6)
            assert await bench.lane() is Lane.BYPASS

    bench(tmp_path, text(WHOLE), text(WHOLE)).run(test)


@pytest.mark.usefixtures("_quick_polls")
def test_another_server_on_the_port_is_not_taken_for_litellm(tmp_path: Path) -> None:
    async def not_found() -> web.Response:
        return web.Response(status=404)

    async def test(bench: Bench) -> None:
        bench.proxy.alive = not_found
        await asyncio.sleep(0.25)
        assert await bench.lane() is Lane.BYPASS
        assert bench.proxy.calls == []

    bench(tmp_path, text(WHOLE), text(WHOLE)).run(test)


def test_a_key_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none cannot be read .*: deploy it again"):
        LiteLLM(LiteLLMSettings(url="http://x", key_file=tmp_path / "none"))


# Metrics


def test_litellms_metrics_are_fetched_with_the_key(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        assert await bench.litellm.metrics() == b"litellm_x 1\n"
        path, headers, _ = bench.proxy.calls[0]
        assert (path, headers["authorization"]) == ("/metrics/", "Bearer sk-master")
        bench.proxy.answer = text("no", 500)
        with pytest.raises(ApiError, match="LiteLLM returns no metrics"):
            await bench.litellm.metrics()

    bench(tmp_path, text("litellm_x 1\n")).run(test)
