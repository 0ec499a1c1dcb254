"""Requests for /v1/messages, and the messages that become of the answers of a chat."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from itertools import groupby
from typing import Any

import pytest
from bedplate_gateway import errors
from bedplate_gateway.api import messages as module
from bedplate_gateway.api.messages import MessagesAdapter, decode, decode_count, error_object, status_of
from bedplate_gateway.api.schema import Request
from bedplate_gateway.engines.sse import EventStream
from bedplate_gateway.errors import ApiError

MINIMAL: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
PNG = "iVBORw0KGgo="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


def adapter(**fields: Any) -> MessagesAdapter:
    """Return the adapter that has decoded a request; a token is ten bytes of its prompt."""
    made = MessagesAdapter(lambda _: None, lambda _, size: size // 10)
    made.decode_request(json.dumps(MINIMAL | fields).encode())
    return made


def translated(**fields: Any) -> Request:
    raw = json.dumps(MINIMAL | fields).encode()
    return decode(raw, default_max_output=lambda _: None)[1]


def chat_of(*messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return list(translated(messages=list(messages), **fields).body["messages"])


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        translated(**fields)
    assert raised.value.status == 400
    return raised.value


# Requests


def test_a_request_becomes_a_chat() -> None:
    request = translated(
        system="be kind",
        stream=True,
        temperature=0.5,
        top_p=0.9,
        stop_sequences=["END"],
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        metadata={"user_id": "secret"},
        service_tier="auto",
    )
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert request.body == {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "none",
    }
    assert request.want_usage
    assert request.lower_to is None


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_a_choice_of_tools_is_passed_on(choice: dict[str, Any], expected: object) -> None:
    assert translated(tools=[TOOL], tool_choice=choice).body["tool_choice"] == expected


def test_a_model_of_a_provider_is_not_told_to_think_less() -> None:
    raw = json.dumps(MINIMAL | {"model": "cloud"}).encode()
    for provider_models, sent in ((frozenset({"cloud"}), False), (frozenset({"other"}), True)):
        request = decode(raw, default_max_output=lambda _: None, provider_models=provider_models)[1]
        assert ("reasoning_effort" in request.body) is sent


def test_no_tools_are_offered_where_the_client_forbids_them() -> None:
    assert not translated(tools=[TOOL], tool_choice={"type": "none"}).has_tools


def test_a_system_prompt_in_blocks_and_in_a_message_is_kept_without_its_cache_control() -> None:
    blocks = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in "ab"]
    assert chat_of(
        {"role": "user", "content": blocks}, {"role": "system", "content": "c"}, system=blocks
    ) == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "a\n\nb"},
        {"role": "system", "content": "c"},
    ]


def test_a_round_trip_of_a_tool_becomes_messages_of_a_chat() -> None:
    turn = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "ä"}},
        {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "1"}, IMAGE]},
        {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
        {"type": "text", "text": "thanks"},
    ]
    sent = chat_of({"role": "assistant", "content": turn}, {"role": "user", "content": results})
    assert sent == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning": "hm",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":"ä"}'}},
                {"id": "t2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "1"},
        {"role": "tool", "tool_call_id": "t2", "content": ""},
        {"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "thanks"}]},
    ]


def test_a_message_with_results_only_adds_no_message_of_the_user() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "1"}
    assert [message["role"] for message in chat_of({"role": "user", "content": [result]})] == ["tool"]


def test_an_image_is_checked_and_counts_as_no_text() -> None:
    request = translated(messages=[{"role": "user", "content": [IMAGE, {"type": "text", "text": "what"}]}])
    assert request.has_images
    assert request.prompt_bytes == 4
    source = IMAGE["source"] | {"data": "?"}  # type: ignore[operator] # a dict
    error = refusal(messages=[{"role": "user", "content": [IMAGE | {"source": source}]}])
    assert error.message == (
        "Invalid 'messages[0].content[0].source.data': its base64 is not valid: encode it again."
    )


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, "none"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, "none"),
        ({"thinking": {"type": "adaptive"}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 16384}}, "high"),
    ],
)
def test_thinking_is_an_effort(fields: dict[str, Any], effort: str) -> None:
    assert translated(**fields).body["reasoning_effort"] == effort


def test_a_schema_of_the_answer_is_passed_on() -> None:
    schema = {"type": "object"}
    request = translated(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert request.body["response_format"]["json_schema"] == {"name": "answer", "schema": schema}


def test_flex_and_priority_lower_the_class() -> None:
    assert translated(service_tier="flex").lower_to == "low"
    assert translated(priority=1).lower_to == "normal"


def test_what_claude_code_sends_is_accepted() -> None:
    # Fields of version 2.1.197.
    request = translated(
        max_tokens=32000,
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
        metadata={"user_id": "device and session"},
        tools=[TOOL | {"name": "mcp__" + "x" * 100, "cache_control": {"type": "ephemeral"}}],
    )
    assert request.has_tools
    assert "context_management" not in request.body


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "'max_tokens'"),
        ({"top_k": 5}, "'top_k': engines ignore it"),
        ({"mcp_servers": [{}]}, "'mcp_servers'"),
        ({"container": "c"}, "'container'"),
        ({"output_format": {}}, "use 'output_config.format'"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0]"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "Supported: 'user', 'assistant', 'system'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            "Supported: 'text', 'image', 'tool_result'",
        ),
        (
            {"messages": [{"role": "user", "content": [IMAGE | {"source": {"type": "url", "url": "x"}}]}]},
            "Supported: 'base64'",
        ),
        ({"thinking": {"type": "enabled"}}, "'thinking.budget_tokens'"),
    ],
)
def test_what_no_engine_does_is_refused(fields: dict[str, Any], words: str) -> None:
    assert words in refusal(**fields).message


def test_a_request_to_count_needs_no_bound_of_the_answer() -> None:
    body = {name: value for name, value in MINIMAL.items() if name != "max_tokens"}
    assert decode_count(json.dumps(body | {"system": "be kind"}).encode()).prompt_bytes == 9


# Messages


def chat_answer(message: dict[str, Any], reason: str = "stop", **usage: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": reason}
    return json.dumps({"id": "chatcmpl-1", "choices": [choice], "usage": USAGE | usage}).encode()


def test_an_answer_becomes_a_message() -> None:
    message = json.loads(adapter().encode_response(chat_answer({"content": "Hello"})))
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 11,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 3,
        },
    }


def test_thoughts_and_calls_become_blocks() -> None:
    call = {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    answer = chat_answer({"content": "", "reasoning": "hm", "tool_calls": [call]}, "tool_calls")
    message = json.loads(adapter(**THINKING).encode_response(answer))
    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
    ]
    assert message["stop_reason"] == "tool_use"
    # A client that has not asked for thoughts reads the first block as text.
    assert json.loads(adapter().encode_response(answer))["content"][0]["type"] == "tool_use"


@pytest.mark.parametrize(
    ("reason", "expected"), [("length", "max_tokens"), ("content_filter", "refusal"), ("eos", "end_turn")]
)
def test_the_end_is_named_as_anthropic_does(reason: str, expected: str) -> None:
    answer = chat_answer({"content": "x"}, reason)
    assert json.loads(adapter().encode_response(answer))["stop_reason"] == expected


def test_cached_tokens_are_counted_apart() -> None:
    answer = chat_answer({"content": "x"}, prompt_tokens_details={"cached_tokens": 5})
    usage = json.loads(adapter().encode_response(answer))["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (6, 5)


@pytest.mark.parametrize("arguments", ["not json", "[1]", ""])
def test_arguments_that_are_no_object_are_an_empty_one(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    [block] = json.loads(adapter().encode_response(chat_answer({"tool_calls": [call]})))["content"]
    assert block["input"] == {}
    assert block["id"].startswith("toolu_")


def test_an_empty_answer_is_an_empty_text() -> None:
    empty = [{"type": "text", "text": ""}]
    assert json.loads(adapter().encode_response(chat_answer({"content": ""})))["content"] == empty
    events = written(adapter(), delta("stop"), COUNTED, "[DONE]")
    assert [event["content_block"] for event in events if event["type"] == "content_block_start"] == empty
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0]


# Streams


def delta(reason: str | None = None, **fields: Any) -> str:
    return json.dumps({"model": "m", "choices": [{"index": 0, "delta": fields, "finish_reason": reason}]})


def call_delta(index: int, **function: str) -> str:
    more = {"id": f"c{index}", "type": "function"} if "name" in function else {}
    return delta(tool_calls=[{"index": index, **more, "function": function}])


COUNTED = json.dumps({"model": "m", "choices": [], "usage": USAGE})


def written(made: MessagesAdapter, *data: str, split: int = 1000) -> list[dict[str, Any]]:
    """Return the events of a message for the data of a chat's events, which come in pieces of any size."""
    events = EventStream("m", want_usage=True)
    sent = b"".join(f"data: {each}\n\n".encode() for each in data)
    passed = events.feed(sent) + (b"" if events.done else events.feed(b""))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(passed), split):
            yield passed[start : start + split]

    async def read() -> bytes:
        return b"".join([part async for part in made.encode_stream(pieces())])

    return parsed(asyncio.run(read()))


def parsed(stream: bytes) -> list[dict[str, Any]]:
    found = []
    for event in stream.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    return [kind for kind, _ in groupby(event["type"] for event in events)]


@pytest.mark.parametrize("split", [1, 7, 1000])
def test_a_stream_has_the_events_of_a_message_in_their_order(split: int) -> None:
    events = written(
        adapter(messages=[{"role": "user", "content": "x" * 50}]),
        delta(role="assistant", content="Hel"),
        delta(content="lo"),
        delta("length"),
        COUNTED,
        "[DONE]",
        split=split,
    )
    assert kinds(events) == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert start["id"].startswith("msg_")
    assert (start["content"], start["stop_reason"], start["usage"]["input_tokens"]) == ([], None, 5)
    assert "".join(event["delta"]["text"] for event in events[3:5]) == "Hello"
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert (events[-2]["usage"]["input_tokens"], events[-2]["usage"]["output_tokens"]) == (11, 3)


def test_each_thought_text_and_call_is_a_block_of_its_own() -> None:
    events = written(
        adapter(**THINKING),
        delta(reasoning="hm"),
        delta(reasoning=" hm"),
        delta(content="I look."),
        call_delta(0, name="f", arguments=""),
        call_delta(0, arguments='{"a":'),
        call_delta(0, arguments="1}"),
        call_delta(1, name="g", arguments="{}"),
        delta("tool_calls"),
        COUNTED,
        "[DONE]",
    )
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["type"], block.get("name"), block.get("id")) for block in blocks] == [
        ("thinking", None, None),
        ("text", None, None),
        ("tool_use", "f", "c0"),
        ("tool_use", "g", "c1"),
    ]
    parts: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            [text] = [value for name, value in event["delta"].items() if name != "type"]
            parts[event["index"]] = parts.get(event["index"], "") + text
    assert parts == {0: "hm hm", 1: "I look.", 2: '{"a":1}', 3: "{}"}
    stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert stops == [0, 1, 2, 3]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_thoughts_that_were_not_asked_for_are_left_out() -> None:
    events = written(adapter(), delta(reasoning="hm"), delta(content="x"), delta("stop"), COUNTED, "[DONE]")
    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert blocks == ["text"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(errors.engine_error("it broke"), "api_error"), (errors.engine_timeout(1), "timeout_error")],
)
def test_an_error_in_a_stream_is_its_last_event(error: ApiError, kind: str) -> None:
    async def chat() -> AsyncIterator[bytes]:
        yield f"data: {delta(content='x')}\n\n".encode()
        yield b"data: " + error.body() + b"\n\n"

    async def read() -> bytes:
        return b"".join([part async for part in adapter().encode_stream(chat())])

    last = parsed(asyncio.run(read()))[-1]
    assert last == {"type": "error", "error": {"type": kind, "message": error.message}}


def test_a_stream_that_just_ends_is_an_error() -> None:
    assert written(adapter())[-1]["error"]["type"] == "api_error"


def test_a_stream_without_events_gets_pings_and_ends_with_its_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PING_SECONDS", 0.02)
    closed = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        try:
            await asyncio.sleep(0.1)
            yield b"event"
            await asyncio.sleep(60)
        finally:
            closed.set()

    async def read() -> list[bytes]:
        events = module.with_pings(slow())
        seen = [await anext(events)]
        while seen[-1] != b"event":
            seen.append(await anext(events))
        assert await anext(events) == seen[0]
        await events.aclose()  # type: ignore[attr-defined] # a generator
        await asyncio.wait_for(closed.wait(), 1)
        return seen

    seen = asyncio.run(read())
    assert set(seen[:-1]) == {b'event: ping\ndata: {"type": "ping"}\n\n'}
    assert 2 <= len(seen) < 10


# Errors


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.no_api_key(), 401, "authentication_error"),
        (errors.model_not_found("m"), 404, "not_found_error"),
        (errors.request_too_large(1), 413, "request_too_large"),
        (errors.queue_full("It is full", 1), 429, "rate_limit_error"),
        (errors.queue_timeout("m", 1, 1), 529, "overloaded_error"),
        (errors.engine_unavailable("m"), 503, "overloaded_error"),
        (errors.engine_timeout(), 504, "timeout_error"),
        (errors.internal_error(), 500, "api_error"),
    ],
)
def test_an_error_has_anthropics_status_and_shape(error: ApiError, status: int, kind: str) -> None:
    assert status_of(error) == status
    shown = error_object(error, "req_1")
    assert shown == {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": "req_1",
    }
