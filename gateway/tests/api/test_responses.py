import asyncio
import json
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from bedplate_gateway.api.responses import (
    ResponsesContext,
    from_chat,
    load_translator,
    stream_from_chat,
    to_chat,
)
from bedplate_gateway.api.schema import Request, build_request
from bedplate_gateway.errors import ApiError
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

# LiteLLM silences it, pytest shows it again.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")

MINIMAL = {"model": "gpt-4o", "input": "hi"}
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "1"}
PNG = "data:image/png;base64,iVBORw0KGgo="
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ANSWER = {"role": "assistant", "content": "Hello"}
CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "c1",
            "index": 0,
            "type": "function",
            "function": {"name": "f", "arguments": '{"city":"Rome"}'},
        }
    ],
}
STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def translated(**fields: Any) -> tuple[ResponsesContext, Request]:
    """Return what becomes of a request, checked as the chat that it is then."""
    context, chat = to_chat(json.dumps(MINIMAL | fields).encode())
    return context, build_request("/v1/chat/completions", chat, default_max_output=lambda _model: None)


def messages(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return list(translated(input=list(items), **fields)[1].body["messages"])


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        to_chat(json.dumps(MINIMAL | fields).encode())
    assert raised.value.status == 400
    return raised.value


def chat_answer(message: dict[str, Any], finish_reason: str = "stop") -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return json.dumps(
        {
            "id": "chatcmpl-7",
            "object": "chat.completion",
            "created": 1,
            "model": "engine-model",
            "system_fingerprint": "fp_ollama",
            "choices": [choice],
            "usage": USAGE,
        }
    ).encode()


def answered(message: dict[str, Any], finish_reason: str = "stop", **fields: Any) -> dict[str, Any]:
    context, _ = translated(**fields)
    body = from_chat(context, chat_answer(message, finish_reason))
    assert b"litellm" not in body.lower()
    assert b"engine-model" not in body
    Response.model_validate_json(body, strict=False)
    return dict(json.loads(body))


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {
        "index": 0,
        "delta": {"role": "assistant", "content": ""} | delta,
        "finish_reason": finish_reason,
    }
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "engine-model",
        "choices": [choice],
    }


LAST = chunk({}) | {"choices": [], "usage": USAGE}
HELLO = [chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop"), LAST]
FAILURE = {
    "error": {"message": "The engine broke.", "type": "server_error", "param": None, "code": "engine_error"}
}


def sse(chunks: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(f"data: {json.dumps(one)}\n\n".encode() for one in chunks) + b"data: [DONE]\n\n"


def streamed(pieces: Iterable[bytes], context: ResponsesContext | None = None) -> bytes:
    async def events() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def collect() -> bytes:
        return b"".join([data async for data in stream_from_chat(context or translated()[0], events())])

    return asyncio.run(collect())


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream, each checked against OpenAI's description of it."""
    assert b"litellm" not in stream.lower()
    events = []
    for block in stream.decode().strip().split("\n\n"):
        event_line, data_line = block.split("\n")
        event = json.loads(data_line.removeprefix("data: "))
        assert event_line == f"event: {event['type']}"
        STREAM_EVENT.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


# There


def test_a_text_becomes_a_chat() -> None:
    context, request = translated(instructions="be kind", max_output_tokens=9, temperature=0.5, top_p=0.9)
    assert context.request["model"] == request.model == "gpt-4o"
    assert request.body == {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        "stream": False,
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
    }


def test_a_conversation_becomes_messages() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
    spoken = {"type": "output_text", "text": "I look.", "annotations": []}
    assert messages(
        {"role": "developer", "content": "be"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [spoken]},
        {"role": "user", "content": "go on"},
        thought,
        CALL,
        CALL | {"call_id": "c2"},
        OUTPUT,
        OUTPUT | {"call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
    ) == [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "I look."},
        {"role": "user", "content": "go on"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [
                {"id": name, "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                for name in ("c1", "c2")
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
    ]


def test_images_go_with_their_text() -> None:
    parts = [
        {"type": "input_text", "text": "what?"},
        {"type": "input_image", "image_url": PNG, "detail": "low"},
    ]
    _, request = translated(input=[{"role": "user", "content": parts}])
    assert request.has_images
    assert request.body["messages"][0]["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
    ]


def test_options_become_those_of_a_chat() -> None:
    schema = {"type": "object", "properties": {}}
    _, request = translated(
        tools=[TOOL],
        tool_choice="auto",
        parallel_tool_calls=False,
        stream=True,
        text={"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}},
        reasoning={"effort": "low", "summary": "auto"},
        service_tier="flex",
    )
    assert (request.stream, request.want_usage, request.lower_to) == (True, True, "low")
    wanted = {"name": "answer", "schema": schema, "strict": True}
    assert request.body["response_format"] == {"type": "json_schema", "json_schema": wanted}
    assert request.body["tools"] == [
        {"type": "function", "function": {name: TOOL[name] for name in TOOL if name != "type"}}
    ]
    assert request.body["parallel_tool_calls"] is False
    assert request.body["reasoning_effort"] == "low"
    assert not translated(tools=[TOOL], tool_choice="none")[1].has_tools


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"store": False},
        {"background": False},
        {"previous_response_id": None},
        {"include": ["reasoning.encrypted_content"]},
        {"truncation": "auto", "user": "u", "metadata": {"a": "b"}},
        {"prompt_cache_key": "x", "safety_identifier": "x", "stream_options": {"include_obfuscation": False}},
        {"api_base": "http://evil.example", "api_key": "x", "mock_response": "x", "fallbacks": ["x"]},
        {
            "custom_llm_provider": "openai",
            "extra_headers": {"a": "b"},
            "litellm_metadata": {},
            "num_retries": 9,
        },
    ],
)
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    assert translated(**fields)[1] == translated()[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("prompt", {"id": "pmpt_1"}),
        ("background", True),
        ("context_management", [{"type": "compaction"}]),
        ("top_logprobs", 3),
        ("include", ["message.output_text.logprobs"]),
    ],
)
def test_what_cannot_be_had_is_refused(field: str, value: object) -> None:
    error = refusal(**{field: value})
    assert (error.param, error.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"input": [CALL | {"arguments": "x"}]}, "input[0].arguments"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [OUTPUT]}, "input[0]"),
        ({"input": [OUTPUT, CALL]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_url": "http://x"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "name": "f"}]}, "tools[0].type"),
        ({"tools": [TOOL | {"name": ""}]}, "tools[0].name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"temperature": 3}, "temperature"),
        ({"model": ""}, "model"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "output_text", "input_image", "refusal", "input_file"])},
    optional={
        "text": st.text(max_size=5) | anything,
        "image_url": st.just(PNG) | anything,
        "refusal": anything,
    },
)
items = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]) | anything,
        "role": st.sampled_from(["user", "assistant", "system", "developer"]) | anything,
        "content": st.text(max_size=5) | st.lists(parts, max_size=2) | anything,
        "call_id": st.sampled_from(["c1", "c2"]),
        "name": st.just("f") | anything,
        "arguments": st.just("{}") | anything,
        "output": st.text(max_size=5) | anything,
        "summary": st.just([{"type": "summary_text", "text": "hm"}]) | anything,
    },
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(items, min_size=1, max_size=4),
    st.dictionaries(
        st.sampled_from(
            ["instructions", "tools", "text", "reasoning", "stream", "metadata", "tool_choice", "user"]
        ),
        anything | st.just([TOOL]),
        max_size=3,
    ),
)
def test_any_request_is_translated_or_refused(some: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    raw = json.dumps(MINIMAL | {"input": some} | fields).encode()
    try:
        _, chat = to_chat(raw)
    except ApiError:
        return
    build_request("/v1/chat/completions", chat, default_max_output=lambda _model: None)


# And back


def test_an_answer_comes_back() -> None:
    response = answered(ANSWER, instructions="be kind", metadata={"a": "b"}, user="u", tools=[TOOL])
    assert response["id"].startswith("resp_")
    assert [response[name] for name in ("object", "status", "model", "store")] == [
        "response",
        "completed",
        "gpt-4o",
        False,
    ]
    [message] = response["output"]
    assert message["content"] == [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]
    assert response["usage"]["input_tokens"] == 3
    assert response["usage"]["output_tokens"] == 2
    assert response["usage"]["total_tokens"] == 5
    assert response["tools"] == [TOOL]
    assert [response["instructions"], response["metadata"], response["user"]] == ["be kind", {"a": "b"}, "u"]


def test_a_call_comes_back_without_an_empty_text() -> None:
    [call] = answered(CALLING, "tool_calls")["output"]
    assert (call["type"], call["call_id"], call["name"]) == ("function_call", "c1", "f")
    assert call["arguments"] == '{"city":"Rome"}'


def test_a_cut_answer_says_so() -> None:
    response = answered(ANSWER, "length")
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


def test_reasoning_comes_back_as_a_summary() -> None:
    thought, message = answered(ANSWER | {"reasoning": "hm"})["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert message["type"] == "message"


def test_an_empty_answer_stays_one() -> None:
    [message] = answered(ANSWER | {"content": ""})["output"]
    assert message["content"][0]["text"] == ""


def test_no_call_is_remembered() -> None:
    answered(CALLING, "tool_calls")
    streamed([sse([chunk(CALLING), chunk({}, "tool_calls"), LAST])])
    cache = sys.modules["litellm.responses.litellm_completion_transformation.transformation"].TOOL_CALLS_CACHE
    assert cache.get_cache(key="c1") is None


# Streams


def test_a_text_is_streamed() -> None:
    events = events_of(streamed([sse(HELLO)]))
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    whole = events[-1]["response"]
    assert whole["output"] == [events[-2]["item"]]
    assert whole["output"][0]["content"][0]["text"] == "Hello"
    assert whole["usage"]["total_tokens"] == 5
    assert {event["response"]["id"] for event in events if "response" in event} == {whole["id"]}
    assert {event["response"]["model"] for event in events if "response" in event} == {"gpt-4o"}


def test_reasoning_and_calls_are_streamed() -> None:
    thinking = [chunk({"reasoning": "h"}), chunk({"reasoning": "m"})]
    events = events_of(streamed([sse([*thinking, chunk(CALLING), chunk({}, "tool_calls"), LAST])]))
    thought, call = events[-1]["response"]["output"]
    assert thought["summary"][0]["text"] == "hm"
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "f", '{"city":"Rome"}')
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city":"Rome"}'


def test_a_cut_stream_says_so() -> None:
    last = events_of(streamed([sse([chunk({"content": "Hel"}), chunk({}, "length"), LAST])]))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_an_error_ends_a_stream() -> None:
    failed, error = events_of(streamed([sse([HELLO[0], FAILURE])]))[-2:]
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "The engine broke."}
    assert error["message"] == "The engine broke."
    assert error["error"] == FAILURE["error"]


@pytest.mark.parametrize("pieces", [[], [b"data: [DONE]\n\n"]])
def test_a_stream_without_an_answer_fails(pieces: list[bytes]) -> None:
    assert events_of(streamed(pieces))[-2]["type"] == "response.failed"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sets(st.integers(1, len(sse(HELLO)) - 1), max_size=8))
def test_pieces_of_a_stream_may_end_anywhere(cuts: set[int]) -> None:
    whole = sse(HELLO)
    ends = [0, *sorted(cuts), len(whole)]
    pieces = [whole[start:end] for start, end in pairwise(ends)]
    texts = [
        event.get("text") for event in events_of(streamed(pieces)) if event["type"].endswith("text.done")
    ]
    assert texts == ["Hello"]


def test_openai_package_reads_it() -> None:
    async def ask() -> None:
        def handle(request: httpx.Request) -> httpx.Response:
            context, chat = to_chat(request.content)
            if not chat.get("stream"):
                return httpx.Response(200, content=from_chat(context, chat_answer(ANSWER)))

            async def chunks() -> AsyncIterator[bytes]:
                yield sse(HELLO if context.request["input"] == "hi" else [HELLO[0], FAILURE])

            stream = stream_from_chat(context, chunks())
            return httpx.Response(200, content=stream, headers={"content-type": "text/event-stream"})

        transport = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        client = openai.AsyncOpenAI(api_key="x", base_url="http://gateway.test/v1", http_client=transport)
        assert (await client.responses.create(model="m", input="hi")).output_text == "Hello"
        async with client.responses.stream(model="m", input="hi") as stream:
            assert (await stream.get_final_response()).output_text == "Hello"
        with pytest.raises(openai.APIError, match=r"The engine broke\."):
            async for _ in await client.responses.create(model="m", input="break", stream=True):
                pass

    asyncio.run(ask())


# LiteLLM keeps quiet


def test_litellm_prints_nothing_and_calls_nobody(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("READ_BY_LITELLM=1\n")
    script = """
        import asyncio, json, os, sys
        called = []
        sys.addaudithook(lambda event, _: called.append(event) if event.startswith("socket.") else None)
        import gateway.tests.api.test_responses as tests
        tests.answered(tests.ANSWER, model="llama-3")
        tests.streamed([tests.sse(tests.HELLO)], tests.translated(model="llama-3")[0])
        assert not {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname"} & set(called), called
        assert "READ_BY_LITELLM" not in os.environ
        assert "litellm" in sys.modules
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={
            "PYTHONPATH": f"{Path(__file__).parents[3]}:{Path(__file__).parents[2] / 'src'}",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_translator_is_loaded_once() -> None:
    assert load_translator() is load_translator()
