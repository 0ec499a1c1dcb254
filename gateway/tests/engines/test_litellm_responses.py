"""Requests for /v1/responses in all lanes, with recorded answers of LiteLLM 1.110.2 and of Ollama 0.24.0."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from bedplate_gateway.api.responses import decode
from bedplate_gateway.api.schema import RESPONSES, Request
from bedplate_gateway.engines.litellm import Lane
from bedplate_gateway.engines.request import EngineRequest
from bedplate_gateway.errors import ApiError

from gateway.tests.engines.test_litellm import Answer, Bench, FakeLease, FakeServer, cut, refusal, text

RECORDED = Path(__file__).parents[1] / "recorded" / "responses"


def request(**body: Any) -> Request:
    raw = json.dumps({"model": "m", "input": "hi"} | body).encode()
    return decode(raw, default_max_output=lambda _: None)[1]


def recorded(name: str, *, cut_after: int | None = None) -> Answer:
    """Return a server's answer: a recorded whole one, or a stream, cut after some events or complete."""
    path = RECORDED / name
    if path.suffix == ".json":
        return text(path.read_text())

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in path.read_bytes().split(b"\n\n")[:-1][:cut_after]:
            await response.write(event + b"\n\n")
        if cut_after is None:
            return response
        await asyncio.sleep(0.1)
        return await cut(request)

    return answer


def bench(tmp_path: Path, through: Answer, direct: Answer | None = None) -> Bench:
    return Bench(tmp_path, FakeServer(through), FakeServer(direct or text("{}", 500)))


async def ask(bench: Bench, asked: Request) -> tuple[Any, EngineRequest]:
    """Return the response (of a stream the one in its last event) or the ApiError."""
    answer, engine_request = await bench.ask(asked)
    if isinstance(answer, list):
        return answer[-1].get("response", answer[-1]), engine_request
    return answer, engine_request


STREAMED = pytest.mark.parametrize(("kind", "stream"), [("json", False), ("sse", True)])


@STREAMED
def test_a_response_comes_through_litellm(tmp_path: Path, kind: str, stream: bool) -> None:
    async def test(bench: Bench) -> None:
        response, engine_request = await ask(bench, request(stream=stream, metadata={"a": "b"}))
        assert response["output"][0]["content"][0]["text"] == "Hello"
        assert response["status"] == "completed"
        assert engine_request.lane is Lane.LITELLM
        assert (engine_request.prompt_tokens, engine_request.completion_tokens) == (11, 2)
        assert not engine_request.estimated
        [(path, headers, body)] = bench.proxy.calls
        assert (path, headers["authorization"]) == (RESPONSES, "Bearer sk-master")
        assert body == {
            "model": "engine0/m",
            "input": [{"type": "message", "role": "user", "content": "hi"}],
            "stream": stream,
            "store": False,
        }

    bench(tmp_path, recorded(f"litellm/text.{kind}")).run(test)


@STREAMED
def test_a_direct_engine_gets_it_at_its_own_endpoint(tmp_path: Path, kind: str, stream: bool) -> None:
    async def test(bench: Bench) -> None:
        response, engine_request = await ask(bench, request(stream=stream, max_output_tokens=4))
        assert engine_request.lane is Lane.DIRECT
        # Ollama calls it completed.
        assert response["status"] == "incomplete"
        assert engine_request.completion_tokens == 4
        [(path, _, body)] = bench.engines[0].calls
        assert (path, body["model"], body["max_output_tokens"]) == (RESPONSES, "m", 4)
        assert bench.proxy.calls == []

    bench(tmp_path, text("{}"), recorded(f"ollama/length.{kind}")).run(test, direct=["m"])


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_reasoning_are_passed_on(tmp_path: Path, stream: bool) -> None:
    async def test(bench: Bench) -> None:
        response, _ = await ask(bench, request(stream=stream))
        kinds = [item["type"] for item in response["output"]]
        assert kinds == ["reasoning", "message", "function_call"] if stream else ["message", "function_call"]

    name = "reasoning_and_call.sse" if stream else "call.json"
    bench(tmp_path, recorded(f"litellm/{name}")).run(test)


def test_a_whole_answer_without_usage_is_estimated_and_counts_as_cut(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        response, engine_request = await ask(bench, request())
        assert engine_request.estimated
        assert response["usage"]["output_tokens"] == engine_request.completion_tokens > 0
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}

    bench(tmp_path, recorded("litellm/no_usage.json")).run(test)


def test_a_stream_that_ends_after_equal_tokens_is_incomplete_and_estimated(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        response, engine_request = await ask(bench, request(stream=True))
        assert response["status"] == "incomplete"
        assert engine_request.estimated
        assert response["usage"]["output_tokens"] == engine_request.completion_tokens == 33

    bench(tmp_path, recorded("litellm/repeated.sse")).run(test)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("failed", "engine broke"),
        ("cut", "it closed the connection in the middle of the answer"),
        ("no_finish", "it ended the answer too early"),
    ],
)
def test_an_error_in_a_stream_has_the_engines_words_only(tmp_path: Path, name: str, words: str) -> None:
    async def test(bench: Bench) -> None:
        response, engine_request = await ask(bench, request(stream=True))
        assert f"The engine failed ({words})" in response["error"]["message"]
        assert "itellm" not in json.dumps(response)
        assert engine_request.error is not None
        assert engine_request.estimated

    bench(tmp_path, recorded(f"litellm/{name}.sse")).run(test)


def test_the_connection_cut_within_an_engines_stream_is_an_error(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        response, _ = await ask(bench, request(stream=True))
        assert "closed the connection in the middle of the answer" in response["error"]["message"]

    bench(tmp_path, text("{}"), recorded("ollama/text.sse", cut_after=6)).run(test, direct=["m"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [(400, 400, "The engine refused the request: "), (500, 502, "The engine failed (HTTP 500: ")],
)
def test_an_error_is_the_engines(
    tmp_path: Path, status: int, expected: int, words: str, stream: bool
) -> None:
    async def test(bench: Bench) -> None:
        error, _ = await ask(bench, request(stream=stream))
        assert error.status == expected
        assert error.message.startswith(f"{words}words of the engine, (key) (address)")

    recording = (RECORDED / "litellm" / f"error_{status}.json").read_text()
    bench(tmp_path, text(recording, status)).run(test)


@pytest.mark.parametrize("form", ['{"type": "error", "message": %s}', '{"error": {"message": %s}}'])
def test_litellms_words_stay_out_of_every_form_of_an_error(tmp_path: Path, form: str) -> None:
    words = json.dumps("litellm.APIError: Hosted_vllmException - broken at http://10.0.0.1/x")

    async def failing(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        begin = (RECORDED / "litellm" / "text.sse").read_bytes().split(b"\n\n")[:5]
        await response.write(b"\n\n".join([*begin, f"data: {form % words}".encode(), b""]))
        return response

    async def test(bench: Bench) -> None:
        response, _ = await ask(bench, request(stream=True))
        assert response["error"]["message"].startswith("The engine failed (broken at (address))")

    bench(tmp_path, failing).run(test)


def test_a_whole_answer_that_failed_has_the_engines_words_only(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        error, _ = await ask(bench, request())
        assert error.message.startswith("The engine failed (broken)")

    failed = {"error": {"message": "litellm.APIError: Hosted_vllmException - broken"}, "output": []}
    bench(tmp_path, text(json.dumps(failed))).run(test)


def test_a_streams_usage_that_litellm_counted_itself_is_taken(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        _, engine_request = await ask(bench, request(stream=True))
        # Nothing in it says who counted; Ollama always sends its own.
        assert (engine_request.prompt_tokens, engine_request.completion_tokens) == (10, 1)

    bench(tmp_path, recorded("litellm/no_usage.sse")).run(test)


def test_a_context_that_is_too_short_names_the_input(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        error, _ = await ask(bench, request())
        assert (error.code, error.param) == ("context_length_exceeded", "input")

    bench(tmp_path, refusal(400, "the prompt exceeds the context length")).run(test)


@STREAMED
def test_what_litellm_drops_before_its_first_byte_goes_to_the_engine(
    tmp_path: Path, kind: str, stream: bool
) -> None:
    async def test(bench: Bench) -> None:
        response, engine_request = await ask(bench, request(stream=stream))
        assert engine_request.lane is Lane.BYPASS
        assert engine_request.retries == 0
        assert response["output"]
        assert bench.engines[0].calls[0][0] == RESPONSES

    bench(tmp_path, cut, recorded(f"ollama/text.{kind}")).run(test, retries=0)


def test_events_before_the_answer_do_not_count_as_its_first_byte(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        response, engine_request = await ask(bench, request(stream=True))
        assert engine_request.lane is Lane.BYPASS
        assert response["status"] == "completed"

    bench(tmp_path, recorded("litellm/text.sse", cut_after=2), recorded("ollama/text.sse")).run(test)


@pytest.mark.parametrize(
    "body", ["not json", '{"choices": []}', '{"error": {"message": "broken"}, "output": []}']
)
def test_an_invalid_response_is_the_engines_fault(tmp_path: Path, body: str) -> None:
    async def test(bench: Bench) -> None:
        error, _ = await ask(bench, request())
        assert (error.status, error.code) == (502, "engine_error")

    bench(tmp_path, text(body)).run(test)


# Engines without the endpoint


@pytest.mark.parametrize("body", ['{"detail":"Not Found"}', "404 page not found"])
def test_an_engine_without_the_endpoint_keeps_its_model(tmp_path: Path, body: str) -> None:
    async def test(bench: Bench) -> None:
        error, _ = await ask(bench, request())
        assert (error.status, error.code) == (400, "unsupported_endpoint")
        assert "use /v1/chat/completions" in error.message
        assert "m" in bench.states.state("engine0").present

    bench(tmp_path, text("{}"), text(body, 404)).run(test, direct=["m"])


def test_a_model_that_is_missing_at_the_endpoint_is_missing(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        error, _ = await ask(bench, request())
        assert isinstance(error, ApiError)
        assert error.code == "engine_unavailable"
        assert bench.states.state("engine0").present == frozenset()

    missing = json.dumps({"error": {"message": "model 'm' not found", "type": "not_found_error"}})
    bench(tmp_path, text("{}"), text(missing, 404)).run(test, direct=["m"])


# The context check


def test_ollama_checks_the_conversation_as_a_chat(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        engine = bench.settings.engines[0]
        model = engine.models[0].model_copy(update={"context": 600})
        lease = FakeLease(engine.model_copy(update={"models": (model,)}), [])
        long = request(instructions="be kind", input="x" * 500)
        engine_request = bench.upstream.new_request(long, lease, asyncio.Event())
        with pytest.raises(ApiError) as raised:
            await engine_request.answer()
        await engine_request.close()
        assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "input")
        [(path, _, body)] = bench.engines[0].calls
        assert path == "/api/chat"
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert bench.proxy.calls == []

    refused = text('{"error": "the input exceeds the context length"}', 400)
    bench(tmp_path, text("{}"), refused).run(test, refuse_truncation=True)
