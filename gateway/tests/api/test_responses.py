"""Requests for /v1/responses, and recorded answers to them: of LiteLLM 1.110.2 and of Ollama 0.24.0."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from bedplate_gateway.api.responses import ResponsesContext, decode, encode, encode_stream
from bedplate_gateway.api.schema import Request
from bedplate_gateway.engines.litellm import restored_responses_event
from bedplate_gateway.engines.responses_events import ResponsesEvents, mend, read_response
from bedplate_gateway.errors import ApiError
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

MINIMAL = {"model": "gpt-4o", "input": "hi"}
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "1"}
TEXT_TOOL = {
    "type": "custom",
    "name": "patch",
    "description": "Edits.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"},
}
NAMESPACE = {"type": "namespace", "name": "mcp__files__", "description": "Files.", "tools": [TOOL, TEXT_TOOL]}
CODEX_TOOLS = [TOOL, TEXT_TOOL, NAMESPACE]
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
PNG = "data:image/png;base64,iVBORw0KGgo="
FAILURE = {
    "error": {"message": "The engine broke.", "type": "server_error", "param": None, "code": "engine_error"}
}
RECORDED = Path(__file__).parents[1] / "recorded" / "responses"
STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def translated(**fields: Any) -> tuple[ResponsesContext, Request]:
    """Return what becomes of a request."""
    return decode(json.dumps(MINIMAL | fields).encode(), default_max_output=lambda _model: None)


def messages(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return list(translated(input=list(items), **fields)[1].body["messages"])


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        translated(**fields)
    assert raised.value.status == 400
    return raised.value


def whole(name: str, context: ResponsesContext, limit: int | None = None) -> bytes:
    """Return the response for a recorded whole answer."""
    response = read_response((RECORDED / f"{name}.json").read_bytes())
    assert response is not None
    mend(response, limit)
    return encode(context, json.dumps(response).encode())


def answered(name: str, limit: int | None = None, **fields: Any) -> dict[str, Any]:
    body = whole(name, translated(**fields)[0], limit)
    assert b"litellm" not in body.lower()
    assert b"one/m" not in body
    assert b"ZGVwbG95bWVudA" not in body
    Response.model_validate_json(body, strict=False)
    return dict(json.loads(body))


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.sse").read_bytes()


def relayed(stream: bytes, limit: int | None = None) -> Iterable[bytes]:
    """Return what the engine's side passes on of a stream."""
    events = ResponsesEvents(limit=limit, restore=restored_responses_event)
    yield events.feed(stream) + events.feed(b"")
    if not events.done and not events.failure:
        yield events.finish(3, 4)
    if events.failure:
        error = FAILURE["error"] | {"message": events.failure}
        yield f"data: {json.dumps({'error': error})}\n\n".encode()


def streamed(pieces: Iterable[bytes], context: ResponsesContext | None = None) -> bytes:
    async def events() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def collect() -> bytes:
        return b"".join([data async for data in encode_stream(context or translated()[0], events())])

    return asyncio.run(collect())


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream, each checked against OpenAI's description of it."""
    assert b"litellm" not in stream.lower()
    assert b"one/m" not in stream
    events = []
    for block in stream.decode().strip().split("\n\n"):
        event_line, data_line = block.split("\n")
        event = json.loads(data_line.removeprefix("data: "))
        assert event_line == f"event: {event['type']}"
        STREAM_EVENT.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def replayed(name: str, limit: int | None = None) -> list[dict[str, Any]]:
    return events_of(streamed(relayed(recorded(name), limit)))


# There


def test_a_text_becomes_a_chat() -> None:
    context, request = translated(instructions="be kind", max_output_tokens=9, temperature=0.5, top_p=0.9)
    assert context.response("completed")["model"] == request.model == "gpt-4o"
    assert request.body == {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        "stream": False,
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
    }


def test_a_conversation_becomes_messages() -> None:
    spoken = {"type": "output_text", "text": "I look.", "annotations": []}
    assert messages(
        {"role": "developer", "content": "be"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [spoken]},
        {"role": "user", "content": "go on"},
        THOUGHT,
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
    plain = translated()[1]
    assert replace(translated(**fields)[1], held_bytes=plain.held_bytes) == plain


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


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": [{"role": "user", "content": "x"}] * 8193}, "input", "a maximum length of 8192"),
        ({"metadata": {str(number): number for number in range(17)}}, "metadata", "a maximum length of 16"),
        ({"tools": [TOOL] * 1025}, "tools", "a maximum length of 1024"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 1025}]},
            "input[0].content",
            "a maximum length of 1024",
        ),
    ],
)
def test_what_has_too_many_elements_is_refused(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.message) == (param, f"Invalid '{param}': expected {message}.")


def test_a_turn_joins_its_reasoning_and_its_calls() -> None:
    again = CALL | {"call_id": "c2"}
    (turn, *_) = messages(THOUGHT, THOUGHT, CALL, again, OUTPUT)
    assert turn["reasoning"] == "hm\n\nhm"
    assert [call["id"] for call in turn["tool_calls"]] == ["c1", "c2"]


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
        _, request = decode(raw, default_max_output=lambda _model: None)
    except ApiError:
        return
    for for_ollama in (True, False):
        request.engine_body(for_ollama=for_ollama)


# What an engine gets


def engine_body(for_ollama: bool = False, **fields: Any) -> dict[str, Any]:
    return translated(**fields)[1].engine_body(for_ollama=for_ollama)


def test_an_engine_gets_known_fields_only() -> None:
    assert engine_body(store=True, user="u", metadata={"a": "b"}, truncation="auto", fallbacks=["x"]) == {
        "model": "gpt-4o",
        "input": [{"type": "message", "role": "user", "content": "hi"}],
        "stream": False,
        "store": False,
    }


def test_an_engine_gets_a_conversation_as_items() -> None:
    parts = [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": PNG}]
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    body = engine_body(
        instructions="be kind",
        input=[
            {"role": "developer", "content": [{"type": "input_text", "text": "be"}]},
            {"role": "user", "content": parts},
            refused,
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]},
            THOUGHT,
            {"role": "assistant", "content": "I look."},
            CALL,
            OUTPUT | {"output": [{"type": "input_text", "text": "1"}]},
        ],
    )
    assert body["instructions"] == "be kind"
    assert body["input"] == [
        {"type": "message", "role": "system", "content": "be"},
        {
            "type": "message",
            "role": "user",
            "content": [parts[0], {"type": "input_image", "image_url": PNG, "detail": "auto"}],
        },
        {"type": "message", "role": "assistant", "content": "no"},
        {"type": "message", "role": "user", "content": "a\n\nb"},
        THOUGHT | {"id": "rs_0"},
        {"type": "message", "role": "assistant", "content": "I look."},
        CALL,
        OUTPUT,
    ]


def test_only_ollama_gets_reasoning_in_the_field_that_it_reads() -> None:
    items = [{"role": "user", "content": "hi"}, THOUGHT, CALL, OUTPUT]
    assert engine_body(for_ollama=True, input=items)["input"][1]["encrypted_content"] == "hm"
    assert engine_body(input=items)["input"][1] == THOUGHT | {"id": "rs_0"}


def test_an_engine_gets_the_options_of_a_response() -> None:
    wanted = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
    body = engine_body(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        stream=True,
        tools=[TOOL],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        text={"format": wanted},
        reasoning={"effort": "minimal"},
    )
    del body["model"], body["input"], body["store"]
    assert body == {
        "stream": True,
        "max_output_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "text": {"format": wanted},
        "reasoning": {"effort": "low"},
    }
    assert engine_body(text={"format": {"type": "json_object"}})["text"] == {
        "format": {"type": "json_object"}
    }
    limited = decode(json.dumps(MINIMAL).encode(), default_max_output=lambda _: 7)[1]
    assert limited.engine_body(for_ollama=False)["max_output_tokens"] == 7


def test_tools_that_a_chat_does_not_have_become_functions() -> None:
    functions = [tool["function"] for tool in translated(tools=CODEX_TOOLS)[1].body["tools"]]
    assert [function["name"] for function in functions] == [
        "f",
        "patch",
        "mcp__files__f",
        "mcp__files__patch",
    ]
    assert functions[2] == {
        "name": "mcp__files__f",
        **{k: functions[0][k] for k in functions[0] if k != "name"},
    }
    for text_tool in (functions[1], functions[3]):
        assert text_tool["parameters"]["properties"] == {"input": {"type": "string"}}
        assert text_tool["description"] == "Edits.\n\nGrammar of the input:\nstart: X"
    [plain] = translated(tools=[{"type": "custom", "name": "say"}])[1].body["tools"]
    assert "description" not in plain["function"]


def test_calls_of_these_tools_become_those_of_functions() -> None:
    text = 'He said "hi".\n'
    call = {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": text}
    output = {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"}
    turn, first, second = messages(
        CALL | {"namespace": "mcp__files__"}, call, OUTPUT, output, tools=CODEX_TOOLS
    )
    functions = [called["function"] for called in turn["tool_calls"]]
    assert functions[0] == {"name": "mcp__files__f", "arguments": '{"a": 1}'}
    assert (functions[1]["name"], json.loads(functions[1]["arguments"])) == ("patch", {"input": text})
    assert [first["tool_call_id"], second["tool_call_id"]] == ["c1", "c2"]
    assert refusal(input=[output]).param == "input[0]"


def test_images_of_outputs_follow_all_outputs_of_the_turn() -> None:
    image = {"type": "input_image", "image_url": PNG}
    seen = [{"type": "input_text", "text": "seen"}, image]
    calls = [CALL, CALL | {"call_id": "c2"}]
    outputs: list[dict[str, Any]] = [OUTPUT | {"output": seen}, OUTPUT | {"call_id": "c2", "output": [image]}]
    sent = messages(*calls, *outputs, {"role": "user", "content": "and?"})
    assert [message["role"] for message in sent] == ["assistant", "tool", "tool", "user", "user"]
    assert [message.get("content") for message in sent[1:3]] == ["seen", ""]
    assert [part["image_url"]["url"] for part in sent[3]["content"]] == [PNG, PNG]
    assert messages(*calls, *outputs)[-1] == sent[3]


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "web_search"}, "tools[0].type"),
        ({"type": "namespace", "name": "n", "tools": [NAMESPACE]}, "tools[0].tools[0].type"),
        ({"type": "namespace", "name": "n"}, "tools[0].tools"),
        ({"type": "custom"}, "tools[0].name"),
    ],
)
def test_tools_that_nobody_can_call_are_refused(tool: dict[str, Any], param: str) -> None:
    assert refusal(tools=[tool]).param == param


# And back


def called(name: str, arguments: str) -> bytes:
    """Return an engine's whole answer with one call."""
    item = {"type": "function_call", "call_id": "c1", "name": name, "arguments": arguments}
    response = read_response(json.dumps({"status": "completed", "usage": None, "output": [item]}).encode())
    assert response is not None
    mend(response, None)
    return json.dumps(response).encode()


def called_in_stream(name: str, arguments: str) -> list[dict[str, Any]]:
    """Return the client's events for an engine's stream with one call."""
    call = {"type": "function_call", "call_id": "c1", "name": name}
    response = json.loads(called(name, arguments))
    engine_events = [
        {"type": "response.output_item.added", "output_index": 0, "item": call | {"arguments": ""}},
        *[
            {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": part}
            for part in (arguments[:5], arguments[5:])
        ],
        {"type": "response.completed", "response": response},
    ]
    stream = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in engine_events)
    return events_of(streamed(relayed(stream), translated(tools=CODEX_TOOLS)[0]))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("f", {"type": "function_call", "name": "f"}),
        ("mcp__files__f", {"type": "function_call", "name": "f", "namespace": "mcp__files__"}),
        ("unknown", {"type": "function_call", "name": "unknown"}),
    ],
)
def test_a_call_has_the_clients_name_of_its_tool(function: str, expected: dict[str, str]) -> None:
    body = json.loads(encode(translated(tools=CODEX_TOOLS)[0], called(function, '{"a": 1}')))
    assert body["tools"] == CODEX_TOOLS
    events = called_in_stream(function, '{"a": 1}')
    for item in (body["output"][0], events[-1]["response"]["output"][0], events[-2]["item"]):
        assert {name: item.get(name) for name in expected} == expected
        assert ("namespace" in item) == ("namespace" in expected)
        assert item["arguments"] == '{"a": 1}'
    [done] = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert done["name"] == expected["name"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\nb"}', "a\nb"),
        ('"a"', "a"),
        # A small model does not always write the JSON.
        ("*** Begin", "*** Begin"),
        ('{"patch": 1}', '{"patch": 1}'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_call_of_a_tool_that_takes_a_text_has_its_text(arguments: str, text: str) -> None:
    body = json.loads(encode(translated(tools=CODEX_TOOLS)[0], called("patch", arguments)))
    events = called_in_stream("patch", arguments)
    for item in (body["output"][0], events[-1]["response"]["output"][0], events[-2]["item"]):
        assert item["type"] == "custom_tool_call"
        assert item["id"].startswith("ctc_")
        assert (item["name"], item["input"]) == ("patch", text)
        assert "arguments" not in item
    assert [event["type"] for event in events[2:]] == [
        "response.output_item.added",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_an_answer_comes_back() -> None:
    response = answered("litellm/text", instructions="be kind", metadata={"a": "b"}, user="u", tools=[TOOL])
    assert response["id"].startswith("resp_")
    assert [response[name] for name in ("object", "status", "model", "store")] == [
        "response",
        "completed",
        "gpt-4o",
        False,
    ]
    [message] = response["output"]
    assert message["content"] == [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]
    assert response["usage"]["input_tokens"] == 11
    assert response["usage"]["output_tokens"] == 2
    assert response["usage"]["total_tokens"] == 13
    assert response["tools"] == [TOOL]
    assert [response["instructions"], response["metadata"], response["user"]] == ["be kind", {"a": "b"}, "u"]


def test_the_lanes_give_the_same_fields() -> None:
    through, own = answered("litellm/text"), answered("ollama/text")
    assert list(through) == list(own)
    assert list(through["usage"]) == list(own["usage"])
    assert list(through["output"][0]) == list(own["output"][0])


@pytest.mark.parametrize(
    ("name", "call_id", "arguments"),
    [("litellm/call_only", "call_1", '{"a":1}'), ("ollama/call", "call_", '{"a":1}')],
)
def test_a_call_comes_back_without_an_empty_text(name: str, call_id: str, arguments: str) -> None:
    [call] = answered(name)["output"]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "f", arguments)
    assert call["call_id"].startswith(call_id)


@pytest.mark.parametrize(("name", "limit"), [("litellm/length", None), ("ollama/length", 4)])
def test_a_cut_answer_says_so(name: str, limit: int | None) -> None:
    response = answered(name, limit)
    assert response["status"] == response["output"][-1]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answered("ollama/length", 5)["status"] == "completed"


@pytest.mark.parametrize(
    ("name", "text"), [("litellm/reasoning", "think"), ("ollama/reasoning", "Hi, I'm here to help")]
)
def test_reasoning_comes_back_as_a_summary(name: str, text: str) -> None:
    thought = answered(name)["output"][0]
    assert thought["type"] == "reasoning"
    assert thought["summary"] == [{"type": "summary_text", "text": text}]
    assert answered("litellm/reasoning")["output"][1]["type"] == "message"


def test_an_empty_answer_stays_one() -> None:
    [message] = answered("litellm/empty")["output"]
    assert message["content"][0]["text"] == ""


def test_what_openai_does_not_have_is_dropped() -> None:
    odd = {"status": "completed", "usage": None, "output": [{"type": "mcp_call", "id": "x"}, "text"]}
    response = read_response(json.dumps(odd).encode())
    assert response is not None
    body = json.loads(encode(translated()[0], json.dumps(response).encode()))
    assert [item["type"] for item in body["output"]] == ["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"output": 1}'])
def test_what_is_no_response_is_none(body: bytes) -> None:
    assert read_response(body) is None


# Streams


@pytest.mark.parametrize("name", ["litellm/text", "ollama/text"])
def test_a_text_is_streamed(name: str) -> None:
    events = replayed(name)
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert len(deltas) > 1
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    response = events[-1]["response"]
    assert response["output"] == [events[-2]["item"]]
    assert response["output"][0]["content"][0]["text"] == "".join(deltas)
    assert response["usage"]["total_tokens"] == {"litellm/text": 13, "ollama/text": 44}[name]
    assert {event["response"]["id"] for event in events if "response" in event} == {response["id"]}
    assert {event["response"]["model"] for event in events if "response" in event} == {"gpt-4o"}


def test_reasoning_text_and_calls_are_streamed() -> None:
    events = replayed("litellm/reasoning_and_call")
    thought, message, call = events[-1]["response"]["output"]
    assert thought["summary"][0]["text"] == "thi"
    assert message["content"][0]["text"] == "Hello"
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "f", '{"a":1}')
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"a":1}'
    done = {event["output_index"]: event["item"] for event in events if event["type"].endswith("item.done")}
    assert [done[index] for index in range(3)] == [thought, message, call]
    assert events[-1]["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}


def test_reasoning_is_streamed_as_a_summary() -> None:
    kinds = [event["type"] for event in replayed("ollama/reasoning")]
    for kind in ("part.added", "text.delta", "text.done", "part.done"):
        assert f"response.reasoning_summary_{kind}" in kinds


@pytest.mark.parametrize("name", ["litellm/call_only", "ollama/call"])
def test_a_call_is_streamed_without_an_empty_text(name: str) -> None:
    events = replayed(name)
    [call] = events[-1]["response"]["output"]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "f", '{"a":1}')
    [done] = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert (done["name"], done["arguments"]) == ("f", '{"a":1}')


def test_an_item_without_deltas_is_streamed() -> None:
    item = {"type": "function_call", "id": "x", "call_id": "c9", "name": "f", "arguments": "{}"}
    done = {"type": "response.output_item.done", "output_index": 0, "item": item}
    end = {"type": "response.completed", "response": {"output": [], "usage": None}}
    stream = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in (done, end))
    [call] = events_of(streamed(relayed(stream)))[-1]["response"]["output"]
    assert (call["call_id"], call["arguments"]) == ("c9", "{}")


def test_an_empty_stream_has_an_empty_message() -> None:
    [message] = replayed("litellm/empty")[-1]["response"]["output"]
    assert message["content"][0]["text"] == ""


@pytest.mark.parametrize(
    ("name", "limit"), [("litellm/length", None), ("ollama/length", 4), ("litellm/repeated", None)]
)
def test_a_cut_stream_says_so(name: str, limit: int | None) -> None:
    events = replayed(name, limit)
    last = events[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"] == [events[-2]["item"]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("litellm/failed", "engine broke"),
        ("litellm/cut", "it closed the connection in the middle of the answer"),
        ("litellm/no_finish", "it ended the answer too early"),
    ],
)
def test_an_error_ends_a_stream(name: str, message: str) -> None:
    failed, error = replayed(name)[-2:]
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": message}
    assert error["message"] == message
    assert error["error"] == FAILURE["error"] | {"message": message}


@pytest.mark.parametrize("pieces", [[], [b"data: [DONE]\n\n"]])
def test_a_stream_without_an_answer_fails(pieces: list[bytes]) -> None:
    passed_on = ResponsesEvents(limit=None)
    assert events_of(streamed(map(passed_on.feed, pieces)))[-2]["type"] == "response.failed"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sets(st.integers(1, len(recorded("litellm/text")) - 1), max_size=8))
def test_pieces_of_a_stream_may_end_anywhere(cuts: set[int]) -> None:
    stream = recorded("litellm/text")
    ends = [0, *sorted(cuts), len(stream)]
    events = ResponsesEvents(limit=None, restore=restored_responses_event)
    pieces = [events.feed(stream[start:end]) for start, end in pairwise(ends)]
    texts = [
        event.get("text") for event in events_of(streamed(pieces)) if event["type"].endswith("text.done")
    ]
    assert texts == ["Hello"]


def test_an_event_without_its_fields_is_dropped() -> None:
    odd = [
        {"type": "response.output_text.delta", "delta": 5, "output_index": 0},
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": "response.output_item.done", "output_index": 0, "item": {"content": []}},
        {"type": "response.output_item.done", "output_index": 0, "item": {"type": "message", "content": [5]}},
        {"type": "response.completed"},
    ]
    events = ResponsesEvents(limit=None)
    assert events.feed(b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in odd)) == b""
    assert not events.done


def test_openai_package_reads_it() -> None:
    async def ask() -> None:
        def handle(request: httpx.Request) -> httpx.Response:
            context, asked = decode(request.content, default_max_output=lambda _model: None)
            if not asked.stream:
                return httpx.Response(200, content=whole("litellm/text", context))

            async def events() -> AsyncIterator[bytes]:
                name = "text" if asked.body["messages"][0]["content"] == "hi" else "failed"
                for part in relayed(recorded(f"litellm/{name}")):
                    yield part

            stream = encode_stream(context, events())
            return httpx.Response(200, content=stream, headers={"content-type": "text/event-stream"})

        transport = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        client = openai.AsyncOpenAI(api_key="x", base_url="http://gateway.test/v1", http_client=transport)
        assert (await client.responses.create(model="m", input="hi")).output_text == "Hello"
        async with client.responses.stream(model="m", input="hi") as stream:
            assert (await stream.get_final_response()).output_text == "Hello"
        with pytest.raises(openai.APIError, match=r"engine broke"):
            async for _ in await client.responses.create(model="m", input="break", stream=True):
                pass

    asyncio.run(ask())
