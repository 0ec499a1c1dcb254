"""The fake engine: its delays, concurrency, order and faults are the configured ones."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from bedplate_traffic.cli import main
from bedplate_traffic.fake_engine.server import Behaviour, FakeEngine, Fault, FaultKind

CHAT = "/v1/chat/completions"


def serve(behaviour: Behaviour, use: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    """Run a fake engine and a client's function; returns that function's result."""

    async def run() -> Any:
        application = FakeEngine(behaviour).application()
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=5)) as session:
                return await use(session)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def chat(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


async def post(session: aiohttp.ClientSession, path: str, body: Any, **more: Any) -> tuple[int, Any]:
    async with session.post(path, json=body, **more) as response:
        return response.status, await response.json(content_type=None)


async def stats(session: aiohttp.ClientSession) -> dict[str, Any]:
    async with session.get("/fake/stats") as response:
        counts = await response.json()
        assert isinstance(counts, dict)
        return counts


async def events(session: aiohttp.ClientSession, path: str, body: Any) -> list[Any]:
    async with session.post(path, json=body) as response:
        assert response.status == 200
        text = await response.text()
    blocks = [block.removeprefix("data: ") for block in text.strip().split("\n\n")]
    assert blocks.pop() == "[DONE]"
    return [json.loads(block) for block in blocks]


def test_a_chat_answer_counts_words() -> None:
    status, answer = serve(Behaviour(), lambda session: post(session, CHAT, chat(max_tokens=2)))
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "word0 word1 "
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_stream_ends_with_usage_where_it_was_requested(path: str) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    if path == "/v1/completions":
        body["prompt"] = body.pop("messages")[0]["content"]
    stream = serve(Behaviour(tokens=3), lambda session: events(session, path, body))
    assert [bool(event["choices"]) for event in stream] == [True] * 4 + [False]
    assert stream[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert stream[-2]["choices"][0]["finish_reason"] == "stop"
    del body["stream_options"]
    stream = serve(Behaviour(tokens=3), lambda session: events(session, path, body))
    assert len(stream) == 4


def test_json_mode_gives_json() -> None:
    body = chat(response_format={"type": "json_object"})
    _, answer = serve(Behaviour(), lambda session: post(session, CHAT, body))
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"answer": "fake"}


def test_the_first_tool_is_called_until_it_has_answered() -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
    body = chat(tools=[tool])
    _, answer = serve(Behaviour(), lambda session: post(session, CHAT, body))
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    function = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "fake", "days": 1})
    body["messages"].append({"role": "tool", "content": "sunny", "tool_call_id": "call_1"})
    _, answer = serve(Behaviour(), lambda session: post(session, CHAT, body))
    assert "tool_calls" not in answer["choices"][0]["message"]


def test_a_call_has_what_the_tool_requires_in_its_types() -> None:
    # As Codex declares its tools: whole numbers are numbers, and most arguments can be left out.
    properties = {
        "cmd": {"type": "string"},
        "yield_time_ms": {"type": "number"},
        "lines": {"type": "integer"},
        "login": {"type": "boolean"},
    }

    def called(**more: Any) -> str:
        parameters = {"type": "object", "properties": properties, **more}
        tool = {"type": "function", "function": {"name": "run", "parameters": parameters}}
        _, answer = serve(Behaviour(), lambda session: post(session, CHAT, chat(tools=[tool])))
        return str(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])

    # The texts, because Python counts 1 and 1.0 as equal.
    assert called() == '{"cmd": "fake", "yield_time_ms": 1, "lines": 1, "login": true}'
    assert called(required=["cmd", "yield_time_ms"]) == '{"cmd": "fake", "yield_time_ms": 1}'
    assert called(required=[]) == "{}"


RESPONSES = "/v1/responses"
ASKED = {"model": "fake", "instructions": "be kind", "input": "one two"}


def test_a_response_counts_words_and_does_not_say_that_it_was_cut() -> None:
    body = ASKED | {"max_output_tokens": 2}
    _, answer = serve(Behaviour(), lambda session: post(session, RESPONSES, body))
    assert answer["output"][0]["content"][0]["text"] == "word0 word1 "
    assert answer["usage"] == {"input_tokens": 4, "output_tokens": 2, "total_tokens": 6}
    assert answer["status"] == "completed"


def test_a_response_is_streamed() -> None:
    async def use(session: aiohttp.ClientSession) -> list[Any]:
        async with session.post(RESPONSES, json=ASKED | {"stream": True}) as response:
            lines = (await response.text()).splitlines()
        return [json.loads(line[5:]) for line in lines if line.startswith("data:")]

    stream = serve(Behaviour(tokens=2), use)
    assert [event["type"].removeprefix("response.") for event in stream] == [
        "created",
        "in_progress",
        *["output_text.delta"] * 2,
        "output_item.done",
        "completed",
    ]
    assert stream[-1]["response"]["output"] == [stream[-2]["item"]]


def test_a_response_calls_the_first_tool_until_it_has_answered() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}
    _, answer = serve(Behaviour(), lambda session: post(session, RESPONSES, ASKED | {"tools": [tool]}))
    [call] = answer["output"]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "f", '{"a": 1}')
    done = ASKED | {"tools": [tool], "input": [call, {"type": "function_call_output", "output": "1"}]}
    _, answer = serve(Behaviour(), lambda session: post(session, RESPONSES, done))
    assert answer["output"][0]["type"] == "message"


def test_ollamas_own_chat() -> None:
    async def use(session: aiohttp.ClientSession) -> tuple[Any, list[Any]]:
        _, whole = await post(session, "/api/chat", chat(stream=False, options={"num_predict": 2}))
        async with session.post("/api/chat", json=chat()) as response:
            return whole, [json.loads(line) for line in (await response.text()).splitlines()]

    whole, lines = serve(Behaviour(tokens=3), use)
    assert (whole["message"]["content"], whole["done_reason"]) == ("word0 word1 ", "length")
    assert [line["done"] for line in lines] == [False, False, False, True]
    assert (lines[-1]["prompt_eval_count"], lines[-1]["eval_count"]) == (3, 3)


def test_the_routes_that_the_gateway_polls() -> None:
    async def use(session: aiohttp.ClientSession) -> list[Any]:
        bodies = []
        for path in ("/api/tags", "/api/ps", "/v1/models", "/api/version"):
            async with session.get(path) as response:
                bodies.append(await response.json())
        return [
            *bodies,
            *[await post(session, "/api/show", {"model": model}) for model in ("b:latest", "none")],
        ]

    tags, loaded, models, version, shown, missing = serve(Behaviour(models=("a", "b"), context=99), use)
    assert [model["name"] for model in tags["models"]] == ["a:latest", "b:latest"]
    assert [model["digest"] for model in loaded["models"]] == [model["digest"] for model in tags["models"]]
    assert loaded["models"][0]["context_length"] == 99
    assert [model["id"] for model in models["data"]] == ["a", "b"]
    assert version == {"version": "0.0.0-fake"}
    assert shown[0] == 200
    assert "tools" in shown[1]["capabilities"]
    assert missing == (404, {"error": "model 'none' not found"})


def test_embeddings_as_numbers_and_as_base64() -> None:
    async def use(session: aiohttp.ClientSession) -> list[Any]:
        body = {"model": "fake", "input": ["a b", "c"]}
        path = "/v1/embeddings"
        return [await post(session, path, body | more) for more in ({}, {"encoding_format": "base64"})]

    (_, numbers), (_, packed) = serve(Behaviour(), use)
    assert [entry["embedding"] for entry in numbers["data"]] == [[0.6, 0.0, -0.8]] * 2
    assert numbers["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert packed["data"][0]["embedding"] == "mpkZPwAAAADNzEy/"


def test_a_prompt_over_the_context_is_cut_or_refused() -> None:
    async def use(session: aiohttp.ClientSession) -> list[Any]:
        long = chat("word " * 11, stream=False)
        return [await post(session, CHAT, long), await post(session, "/api/chat", long | {"truncate": False})]

    (_, cut), refused = serve(Behaviour(context=10), use)
    assert cut["usage"]["prompt_tokens"] == 10
    assert refused == (400, {"error": "the input length exceeds the context length"})


def test_delays_are_the_configured_ones() -> None:
    async def use(session: aiohttp.ClientSession) -> tuple[float, float]:
        start = time.monotonic()
        async with session.post(CHAT, json=chat(stream=True)) as response:
            await response.content.readany()
            first = time.monotonic() - start
            await response.read()
        return first, time.monotonic() - start

    first, whole = serve(Behaviour(prompt_seconds=0.1, seconds_per_token=0.02, tokens=10), use)
    assert 0.12 <= first < 0.2
    assert 0.3 <= whole < 0.4


def test_more_than_the_concurrency_waits_in_order() -> None:
    async def use(session: aiohttp.ClientSession) -> dict[str, Any]:
        async def later(number: int) -> None:
            await asyncio.sleep(number * 0.005)
            await post(session, CHAT, chat(f"request-{number} text"))

        await asyncio.gather(*[later(number) for number in range(6)])
        return await stats(session)

    counts = serve(Behaviour(concurrency=2, prompt_seconds=0.05), use)
    assert (counts["max_running"], counts["running"], counts["waiting"], counts["served"]) == (2, 0, 0, 6)
    arrivals = counts["arrivals"]
    assert [arrival["marker"] for arrival in arrivals] == [f"request-{number}" for number in range(6)]
    assert [arrival["started"] for arrival in arrivals] == sorted(arrival["started"] for arrival in arrivals)
    assert all(arrival["outcome"] == "served" for arrival in arrivals)


def test_a_client_that_disconnects_during_the_prompt_keeps_its_slot_to_the_prompts_end() -> None:
    async def use(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
        request = asyncio.create_task(post(session, CHAT, chat()))
        await asyncio.sleep(0.1)
        request.cancel()
        await asyncio.sleep(0.1)
        early = await stats(session)
        await asyncio.sleep(0.25)
        return [early, await stats(session)]

    early, late = serve(Behaviour(prompt_seconds=0.35), use)
    assert (early["running"], early["cancelled"]) == (1, 1)
    assert (late["running"], late["cancelled"]) == (0, 1)


def test_a_client_that_disconnects_during_the_answer_frees_its_slot_at_once() -> None:
    async def use(session: aiohttp.ClientSession) -> dict[str, Any]:
        async with session.post(CHAT, json=chat(stream=True)) as response:
            await response.content.readany()
        await asyncio.sleep(0.15)
        return await stats(session)

    counts = serve(Behaviour(seconds_per_token=0.05, tokens=100), use)
    assert (counts["running"], counts["cancelled"]) == (0, 1)
    assert 0 < counts["arrivals"][0]["completion_tokens"] < 10


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["error", "cut", "garbage", "silent", "stall"])
def test_faults(kind: FaultKind, stream: bool) -> None:
    async def use(session: aiohttp.ClientSession) -> dict[str, Any]:
        body = chat(stream=stream)
        request = session.post(CHAT, json=body, timeout=aiohttp.ClientTimeout(total=0.3))
        if kind in {"silent", "stall"}:
            with pytest.raises(asyncio.TimeoutError):
                async with request as response:
                    await response.read()
        elif kind == "cut":
            with pytest.raises(aiohttp.ClientError):
                async with request as response:
                    await response.read()
        else:
            async with request as response:
                assert response.status == (500 if kind == "error" else 200)
                text = await response.read()
                assert (b"was configured to fail" in text) == (kind == "error")
        await asyncio.sleep(0.1)
        return await stats(session)

    counts = serve(Behaviour(faults=(Fault(kind),)), use)
    assert (counts["fault"], counts["running"], counts["served"]) == (1, 0, 0)


def test_faults_by_model_header_and_probability() -> None:
    async def use(session: aiohttp.ClientSession) -> list[Any]:
        statuses = [(await post(session, CHAT, chat(model="broken")))[0]]
        statuses += [(await post(session, CHAT, chat(), headers={"X-Fake-Fault": "error"}))[0]]
        return statuses + [(await post(session, CHAT, chat()))[0] for _ in range(200)]

    faults = (Fault("error", model="broken"), Fault("error", 0.2))
    statuses = serve(Behaviour(models=("fake", "broken"), faults=faults), use)
    assert statuses[:2] == [500, 500]
    assert 20 < statuses[2:].count(500) < 60
    assert statuses == serve(Behaviour(models=("fake", "broken"), faults=faults), use)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, {"model": "none", "messages": []}, 404),
        (CHAT, [1], 400),
        (CHAT, {"model": "fake", "messages": []}, 200),
        ("/api/chat", {"model": "none"}, 404),
    ],
)
def test_malformed_requests(path: str, body: Any, status: int) -> None:
    received, _ = serve(Behaviour(), lambda session: post(session, path, body))
    assert received == status


async def statuses_of(address: str, models: tuple[str, ...]) -> list[int]:
    async with aiohttp.ClientSession(address) as session:
        return [(await post(session, CHAT, chat(model=model)))[0] for model in models]


def test_the_command_prints_its_address_and_ends_at_a_signal() -> None:
    command = [sys.executable, "-m", "bedplate_traffic", "fake-server", "--model", "a", "--model", "b:7b"]
    source = str(Path(__file__).parents[2] / "src")
    with subprocess.Popen(
        [*command, "--fault", "error=1.0@b:7b"], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": source}
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        try:
            statuses = asyncio.run(statuses_of(address, ("a", "b:7b")))
        finally:
            process.terminate()
    assert statuses == [200, 500]
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--concurrency", "0"), "'0' is not a whole number above 0"),
        (("--prompt-seconds", "-1"), "'-1' is not a number of seconds from 0"),
        (("--fault", "explode"), "'explode' is not a fault: use error, cut, garbage, silent, stall"),
        (("--fault", "cut=2"), "'2' is not a probability from 0 to 1"),
        (("--address", "192.0.2.1"), "cannot listen on 192.0.2.1 port 0"),
        (("--port", "99999"), "'99999' is not a port from 0 to 65535"),
    ],
)
def test_a_bad_flag_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fake-server", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
