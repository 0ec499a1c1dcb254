import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from bedplate_gateway.api.schema import Request, parse_request
from bedplate_gateway.errors import ApiError
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tests.odd_requests import CALL, CHAT, COMPLETIONS, EMBEDDINGS, FIELDS, odd_fields

MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": "m", "prompt": "hi"},
    EMBEDDINGS: {"model": "m", "input": "hi"},
}
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}


def parse(path: str, body: object = None, *, bound: int | None = None, **fields: Any) -> Request:
    content = MINIMAL[path] | fields if body is None else body
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return parse_request(path, raw, default_max_output=lambda _model: bound)


def refusal(path: str, body: object = None, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse(path, body, **fields)
    error = raised.value
    assert error.status == 400
    assert error.type == "invalid_request_error"
    return error


def messages(*given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a chat's messages become."""
    return list(parse(CHAT, messages=list(given)).body["messages"])


# What goes through


def test_a_chat_goes_through() -> None:
    request = parse(CHAT)
    assert request == Request(
        path=CHAT,
        model="m",
        stream=False,
        want_usage=False,
        lower_to=None,
        packed=request.packed,
        held_bytes=len(request.packed),
        max_tokens=None,
        messages=1,
        prompt_bytes=2,
        has_tools=False,
        has_images=False,
    )
    assert request.body == MINIMAL[CHAT] | {"stream": False}


def test_openai_fields_go_through() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 1,
        "frequency_penalty": -2,
        "presence_penalty": 2.0,
        "seed": -1,
        "stop": ["a", "b", "c", "d"],
        "response_format": {"type": "json_object"},
        "tools": [TOOL],
        "parallel_tool_calls": False,
        "logprobs": True,
        "top_logprobs": 3,
        "reasoning_effort": "medium",
    }
    assert parse(CHAT, **fields).body == MINIMAL[CHAT] | {"stream": False} | fields


def test_nulls_are_left_out() -> None:
    fields = dict.fromkeys(
        ["stream", "max_tokens", "stop", "tools", "seed", "service_tier", "priority", "n", "user"]
    )
    assert parse(CHAT, **fields).body == MINIMAL[CHAT] | {"stream": False}


def test_a_schema_goes_through_as_it_is() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [None, 1.5, "x"]}},
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert parse(CHAT, response_format=wanted).body["response_format"] == wanted


def test_completions_and_embeddings_go_through() -> None:
    assert parse(COMPLETIONS, suffix="s", stop="x").body == {
        "model": "m",
        "prompt": "hi",
        "suffix": "s",
        "stop": "x",
        "stream": False,
    }
    assert parse(COMPLETIONS, prompt=["one"]).body["prompt"] == "one"
    fields: dict[str, Any] = {"input": ["ä", "b"], "encoding_format": "base64", "dimensions": 8}
    request = parse(EMBEDDINGS, **fields)
    assert request.body == {"model": "m"} | fields
    assert request.prompt_bytes == 3


# The bounds of an answer


@pytest.mark.parametrize(
    ("fields", "bound", "sent"),
    [
        ({}, None, None),
        ({}, 50, 50),
        ({"max_tokens": 10}, 50, 10),
        ({"max_tokens": 99}, 50, 50),
        ({"max_completion_tokens": 10}, None, 10),
        ({"max_completion_tokens": 99}, 50, 50),
        ({"max_tokens": 20, "max_completion_tokens": 10}, None, 10),
    ],
)
def test_answers_are_bounded(fields: dict[str, int], bound: int | None, sent: int | None) -> None:
    body = parse(CHAT, bound=bound, **fields).body
    assert body.get("max_tokens") == sent
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize("value", [0, -5, 2**31, 10**40])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_bounds_without_sense_are_refused(field: str, value: int) -> None:
    assert refusal(CHAT, **{field: value}).param == field


# Streams


def test_the_usage_of_a_stream_is_always_asked_for() -> None:
    request = parse(CHAT, stream=True)
    assert (request.stream, request.want_usage) == (True, False)
    assert request.body["stream_options"] == {"include_usage": True}
    assert parse(COMPLETIONS, stream=True).body["stream_options"] == {"include_usage": True}
    assert not parse(CHAT, stream=True, stream_options={"include_usage": False}).want_usage
    assert parse(CHAT, stream=True, stream_options={"include_usage": True}).want_usage


def test_stream_options_need_a_stream() -> None:
    assert refusal(CHAT, stream_options={"include_usage": True}).param == "stream_options"
    assert refusal(CHAT, stream="yes").param == "stream"


# Messages


def test_a_developer_is_a_system() -> None:
    assert messages({"role": "developer", "content": "be"}) == [{"role": "system", "content": "be"}]


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages({"role": "tool", "tool_call_id": "c1", "content": parts}) == [
        {"role": "tool", "tool_call_id": "c1", "content": "a\n\nb"}
    ]


def test_images_go_through_as_parts() -> None:
    parts = [{"type": "text", "text": "ä"}, {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}]
    request = parse(CHAT, messages=[{"role": "user", "content": parts}])
    assert request.body["messages"][0]["content"] == parts
    assert (request.has_images, request.prompt_bytes) == (True, 2)


@pytest.mark.parametrize(
    "url",
    ["https://example.com/a.png", "data:image/gif;base64,AAAA", "data:image/png;base64,A!", "", "file:///a"],
)
def test_other_images_are_refused(url: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": url}}]
    error = refusal(CHAT, messages=[{"role": "user", "content": parts}])
    assert error.param == "messages[0].content[1].image_url.url"


def test_tool_calls_go_through() -> None:
    sent: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
    ]
    assert messages(*sent) == sent
    assert parse(CHAT, messages=sent).prompt_bytes == len('f{"a": 1}hm1')


def test_tools_count_as_prompt() -> None:
    request = parse(CHAT, tools=[TOOL])
    assert request.has_tools
    assert request.prompt_bytes == 2 + len(json.dumps([TOOL]))


def test_tools_not_to_be_called_are_left_out() -> None:
    request = parse(CHAT, tools=[TOOL], tool_choice="none", parallel_tool_calls=True)
    assert not request.has_tools
    assert request.body == MINIMAL[CHAT] | {"stream": False}
    assert "tool_choice" not in parse(CHAT, tool_choice="auto").body


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "f"}}])
def test_which_tool_to_call_goes_on_to_the_engine(choice: object) -> None:
    assert parse(CHAT, tools=[TOOL], tool_choice=choice).body["tool_choice"] == choice


def test_efforts_are_said_in_words_that_engines_know() -> None:
    assert parse(CHAT, reasoning_effort="minimal").body["reasoning_effort"] == "low"
    assert parse(CHAT, reasoning_effort="xhigh").body["reasoning_effort"] == "high"


# Urgency


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_taken_back_by_either_name(name: str) -> None:
    sent = {"role": "assistant", "content": "b", name: "hm"}
    body = parse(CHAT, messages=[{"role": "user", "content": "a"}, sent]).body
    assert body["messages"][1] == {"role": "assistant", "content": "b", "reasoning": "hm"}


@pytest.mark.parametrize(
    ("fields", "lower_to"),
    [
        ({}, None),
        ({"service_tier": "auto"}, None),
        ({"service_tier": "priority"}, None),
        ({"service_tier": "flex"}, "low"),
        ({"priority": 0}, None),
        ({"priority": 1}, "normal"),
        ({"priority": 99}, "normal"),
        ({"priority": 100}, "low"),
        ({"priority": 10**30}, "low"),
        ({"service_tier": "flex", "priority": 1}, "low"),
    ],
)
@pytest.mark.parametrize("path", MINIMAL)
def test_a_request_may_lower_itself(path: str, fields: dict[str, Any], lower_to: str | None) -> None:
    request = parse(path, **fields)
    assert request.lower_to == lower_to
    assert not {"service_tier", "priority"} & request.body.keys()


# LiteLLM's and the engines' control fields: each was obeyed by a gateway that forwarded freely.


@pytest.mark.parametrize("path", MINIMAL)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fallbacks", ["other"]),
        ("context_window_fallbacks", [{"m": ["other"]}]),
        ("num_retries", 50),
        ("max_retries", 50),
        ("api_base", "http://evil.example"),
        ("base_url", "http://evil.example"),
        ("api_key", "sk-other"),
        ("api_version", "1"),
        ("custom_llm_provider", "openai"),
        ("extra_body", {"n": 5}),
        ("extra_headers", {"authorization": "x"}),
        ("headers", {"authorization": "x"}),
        ("mock_response", "fake"),
        ("mock_tool_calls", [CALL]),
        ("mock_timeout", True),
        ("metadata", {"tags": ["a"], "user_api_key": "x"}),
        ("litellm_metadata", {"user_api_key": "x"}),
        ("litellm_params", {"api_base": "x"}),
        ("litellm_credential_name", "x"),
        ("model_list", [{"model_name": "x"}]),
        ("models", ["a", "b"]),
        ("timeout", 0.001),
        ("stream_timeout", 0.001),
        ("request_timeout", 0.001),
        ("cache", {"no-cache": True}),
        ("caching", True),
        ("no-log", True),
        ("tags", ["paid"]),
        ("guardrails", []),
        ("drop_params", True),
        ("user_config", {"model_list": []}),
        ("deployment_id", "x"),
        ("specific_deployment", True),
        ("input_cost_per_token", 0),
        ("keep_alive", -1),
        ("options", {"num_ctx": 10**6, "num_predict": -1}),
        ("num_ctx", 10**6),
        ("think", True),
        ("format", "json"),
        ("template", "x"),
        ("raw", True),
        ("_debug_render_only", True),
        ("reasoning", {"effort": "high"}),
        ("user", "someone"),
        ("store", True),
        ("safety_identifier", "x"),
        ("prompt_cache_key", "x"),
    ],
)
def test_control_fields_reach_nothing(path: str, field: str, value: Any) -> None:
    assert parse(path, **{field: value}) == parse(path)


def test_control_fields_in_a_message_reach_nothing() -> None:
    extra = {
        "cache_control": {},
        "images": ["x"],
        "thinking": "x",
        "provider_specific_fields": {},
        "audio": {},
    }
    assert messages({"role": "user", "content": [{"type": "text", "text": "a"} | extra]} | extra) == [
        {"role": "user", "content": "a"}
    ]
    assert parse(CHAT, tools=[{**TOOL, "function": FUNCTION | extra, "items": 1}]).body["tools"] == [TOOL]


def test_a_list_of_models_is_one_name() -> None:
    assert parse(CHAT, model="a,b").model == "a,b"
    assert refusal(CHAT, model=["a", "b"]).param == "model"


# What is refused, with the field and a remedy


@pytest.mark.parametrize(
    ("path", "field", "values"),
    [
        (CHAT, "n", [2, 0, "1", [1]]),
        (CHAT, "logit_bias", [{"50256": -100}]),
        (CHAT, "functions", [[FUNCTION]]),
        (CHAT, "function_call", [{"name": "f"}]),
        (CHAT, "modalities", [["text", "audio"]]),
        (CHAT, "audio", [{"voice": "alloy", "format": "wav"}]),
        (CHAT, "web_search_options", [{}]),
        (COMPLETIONS, "n", [2]),
        (COMPLETIONS, "best_of", [2]),
        (COMPLETIONS, "echo", [True]),
        (COMPLETIONS, "logprobs", [0, 5]),
        (COMPLETIONS, "logit_bias", [{"1": 1}]),
    ],
)
def test_what_engines_ignore_is_refused(path: str, field: str, values: list[object]) -> None:
    for value in values:
        error = refusal(path, **{field: value})
        assert (error.param, error.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "n", 1),
        (CHAT, "logit_bias", {}),
        (CHAT, "functions", []),
        (CHAT, "function_call", "none"),
        (CHAT, "tool_choice", "auto"),
        (CHAT, "modalities", ["text"]),
        (COMPLETIONS, "n", 1),
        (COMPLETIONS, "best_of", 1),
        (COMPLETIONS, "echo", False),
    ],
)
def test_what_asks_for_nothing_is_dropped(path: str, field: str, value: Any) -> None:
    assert parse(path, **{field: value}) == parse(path)


@pytest.mark.parametrize(
    ("path", "fields", "param", "code"),
    [
        (CHAT, {"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        (CHAT, {"temperature": -1}, "temperature", "integer_below_min_value"),
        (CHAT, {"temperature": "hot"}, "temperature", "invalid_type"),
        (CHAT, {"temperature": True}, "temperature", "invalid_type"),
        (CHAT, {"top_p": 1.5}, "top_p", "decimal_above_max_value"),
        (CHAT, {"presence_penalty": 3}, "presence_penalty", "integer_above_max_value"),
        (CHAT, {"frequency_penalty": []}, "frequency_penalty", "invalid_type"),
        (CHAT, {"seed": 2**63}, "seed", "integer_above_max_value"),
        (CHAT, {"seed": 1.5}, "seed", "invalid_type"),
        (CHAT, {"max_tokens": "10"}, "max_tokens", "invalid_type"),
        (CHAT, {"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        (CHAT, {"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        (CHAT, {"stop": ["a", ""]}, "stop[1]", "string_below_min_length"),
        (CHAT, {"stop": ""}, "stop", "string_below_min_length"),
        (CHAT, {"stop": {}}, "stop", "invalid_type"),
        (CHAT, {"model": ""}, "model", "string_below_min_length"),
        (CHAT, {"model": "m" * 257}, "model", "string_above_max_length"),
        (CHAT, {"model": None}, "model", "invalid_type"),
        (CHAT, {"messages": []}, "messages", "array_below_min_length"),
        (CHAT, {"messages": "hi"}, "messages", "invalid_type"),
        (CHAT, {"messages": {"role": "user"}}, "messages", "invalid_type"),
        (CHAT, {"messages": ["hi"]}, "messages[0]", "invalid_type"),
        (CHAT, {"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
        (CHAT, {"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_value"),
        (CHAT, {"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "invalid_value"),
        (CHAT, {"messages": [{"role": [{}], "content": "x"}]}, "messages[0].role", "invalid_value"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type"),
        (CHAT, {"messages": [{"role": "assistant"}]}, "messages[0].content", "missing_required_parameter"),
        (CHAT, {"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "invalid_type"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            CHAT,
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            CHAT,
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].tool_call_id",
            "missing_required_parameter",
        ),
        (
            CHAT,
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [CALL | {"function": {"name": "f", "arguments": "["}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
            "invalid_value",
        ),
        (CHAT, {"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        (
            CHAT,
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
            "string_does_not_match_pattern",
        ),
        (
            CHAT,
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
            "invalid_type",
        ),
        (CHAT, {"response_format": "json"}, "response_format", "invalid_type"),
        (CHAT, {"response_format": {}}, "response_format.type", "missing_required_parameter"),
        (CHAT, {"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            CHAT,
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": "x"}}},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        (CHAT, {"top_logprobs": 21, "logprobs": True}, "top_logprobs", "integer_above_max_value"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs", None),
        (CHAT, {"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
        (CHAT, {"service_tier": "gold"}, "service_tier", "invalid_value"),
        (CHAT, {"priority": -1}, "priority", "integer_below_min_value"),
        (CHAT, {"stream": 1}, "stream", "invalid_type"),
        (CHAT, {"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
        (COMPLETIONS, {"prompt": ""}, "prompt", "string_below_min_length"),
        (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": []}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": [1, 2]}, "prompt", "invalid_type"),
        (COMPLETIONS, {"prompt": [[1], [2]]}, "prompt", "invalid_type"),
        (COMPLETIONS, {"suffix": 5}, "suffix", "invalid_type"),
        (EMBEDDINGS, {"input": ""}, "input", "string_below_min_length"),
        (EMBEDDINGS, {"input": []}, "input", "array_below_min_length"),
        (EMBEDDINGS, {"input": ["x"] * 2049}, "input", "array_above_max_length"),
        (EMBEDDINGS, {"input": [1, 2]}, "input", "invalid_type"),
        (EMBEDDINGS, {"input": [[1]]}, "input", "invalid_type"),
        (EMBEDDINGS, {"input": ["a", 1]}, "input[1]", "invalid_type"),
        (EMBEDDINGS, {"input": None}, "input", "invalid_type"),
        (EMBEDDINGS, {"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        (EMBEDDINGS, {"dimensions": 0}, "dimensions", "integer_below_min_value"),
    ],
)
def test_bad_fields_are_named(path: str, fields: dict[str, Any], param: str, code: str | None) -> None:
    error = refusal(path, **fields)
    assert (error.param, error.code) == (param, code)
    assert f"'{param}'" in error.message


@pytest.mark.parametrize("path", MINIMAL)
def test_missing_fields_are_named(path: str) -> None:
    for field in MINIMAL[path]:
        body = {name: value for name, value in MINIMAL[path].items() if name != field}
        assert refusal(path, body).param == field
    assert refusal(path, {}).param == "model"


# Bodies that are none


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"hello",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"model": "m",}',
        b"{'model': 'm'}",
        b'{"model": NaN}',
        b'{"model": Infinity}',
        b'{"model": "\xff"}',
        b'{"model": "\xed\xa0\x80"}',
        rb'{"model": "\ud800"}',
        rb'{"model": "\udc00 x"}',
        b'{"model": "\x00"}',
        b'{"a": ' * 1000,
        b"[" * 10_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"{} {}",
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    error = refusal(CHAT, raw)
    assert "JSON object" in error.message
    assert error.reason == "bad_request"


@pytest.mark.parametrize(
    ("raw", "found"), [(b"[]", "an array"), (b'"x"', "a string"), (b"null", "null"), (b"5", "an")]
)
def test_other_json_is_refused(raw: bytes, found: str) -> None:
    assert f"The body is {found}" in refusal(CHAT, raw).message


def test_the_last_of_equal_fields_counts() -> None:
    raw = b'{"model": "a", "model": "b", "messages": 5, "messages": [{"role": "user", "content": "hi"}]}'
    assert parse(CHAT, raw).model == "b"


@pytest.mark.parametrize("number", [b"1e999", b"-1e999"])
def test_numbers_beyond_json_do_not_hide_in_free_values(number: bytes) -> None:
    hidden = b'{"type": "object", "maximum": ' + number + b"}"
    start = json.dumps(MINIMAL[CHAT])[:-1].encode()
    tool = b', "tools": [{"type": "function", "function": {"name": "f", "parameters": ' + hidden + b"}}]}"
    wanted = (
        b', "response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": '
        + hidden
        + b"}}}"
    )
    assert refusal(CHAT, start + tool).param == "tools"
    assert refusal(CHAT, start + wanted).param == "response_format"


def test_nesting_in_free_values_goes_through_within_bounds() -> None:
    deep: dict[str, Any] = {}
    for _ in range(150):
        deep = {"items": deep}
    assert parse(CHAT, tools=[{"type": "function", "function": {"name": "f", "parameters": deep}}]).has_tools


def test_secrets_in_long_values_are_not_repeated() -> None:
    error = refusal(CHAT, messages=[{"role": "x" * 100, "content": "secret"}])
    assert "x" * 41 not in error.message
    assert "secret" not in error.message


# Whatever comes: a request that is JSON again, or a 400

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "param", "most"),
    [
        ({"messages": [USER] * 8193}, "messages", 8192),
        ({"tools": [TOOL] * 1025}, "tools", 1024),
        ({"stop": ["x"] * 5}, "stop", 4),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": "x"}] * 1025}]},
            "messages[0].content",
            1024,
        ),
    ],
)
def test_arrays_are_bounded(fields: dict[str, Any], param: str, most: int) -> None:
    error = refusal(CHAT, **fields)
    assert (error.param, error.code) == (param, "array_above_max_length")
    assert error.message == f"Invalid '{param}': expected a maximum length of {most}."


def test_the_arguments_of_all_calls_together_are_bounded() -> None:
    def calling(values: int) -> dict[str, Any]:
        call = CALL | {"function": {"name": "f", "arguments": json.dumps({"a": [1] * values})}}
        return {"role": "assistant", "tool_calls": [call] * 2}

    parse(CHAT, messages=[calling(16_000)])
    error = refusal(CHAT, messages=[calling(20_000)])
    assert error.param == "messages[0].tool_calls[1].function.arguments"
    assert "the arguments of all calls have more than 32768 JSON values" in error.message


def test_text_with_many_commas_is_text() -> None:
    text = "1,2,[{" * 100_000
    assert messages({"role": "user", "content": text})[0]["content"] == text


bodies = st.builds(
    lambda path, fields: (path, MINIMAL[path] | fields), st.sampled_from(sorted(MINIMAL)), odd_fields
)


def passes_or_is_refused(path: str, raw: bytes) -> None:
    request: Request | None = None
    with suppress(ApiError):
        request = parse(path, raw, bound=100)
    if request is None:
        assert json.loads(refusal(path, raw).body())["error"]["message"]
        return
    again = json.dumps(request.body, ensure_ascii=False, allow_nan=False).encode()
    # What was rebuilt needs no more rebuilding, and no field beyond the allow-list is in it.
    assert parse(path, again, bound=100).body == request.body
    assert request.body.keys() <= set(FIELDS)
    assert request.prompt_bytes >= 0


@settings(max_examples=400, deadline=None, derandomize=True)
@given(bodies)
def test_any_body_passes_or_is_refused(case: tuple[str, dict[str, Any]]) -> None:
    path, body = case
    passes_or_is_refused(path, json.dumps(body).encode())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(MINIMAL)), st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_refused(path: str, raw: bytes) -> None:
    passes_or_is_refused(path, raw)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_bodies_pass_or_are_refused(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(MINIMAL)))
    raw = bytearray(json.dumps(MINIMAL[path] | {"tools": [TOOL], "stop": ["a"]}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    passes_or_is_refused(path, bytes(raw))
