"""Anthropic's API, answered by LiteLLM and the real Ollama."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack, wait_for

COUNTER = r'^bedplate_gateway_{name}_total{{alias="bench",model="[^"]+"}} (\S+)$'
LITELLM = re.compile(r'^bedplate_gateway_lane_requests_total{lane="litellm"} (\S+)$', re.MULTILINE)
BUSY = re.compile(r"^bedplate_gateway_slots_busy{.*} (\S+)$", re.MULTILINE)
HELLO = {"role": "user", "content": "Say hello."}
WEATHER = {"role": "user", "content": "What is the weather in Paris?"}
TOOL = {
    "name": "get_weather",
    "description": "weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
STEERING = {
    "api_base": "http://127.0.0.1:9/v1",
    "api_key": "sk-other",
    "fallbacks": ["warm-up"],
    "mock_response": "steered",
    "num_retries": 9,
    "timeout": 0.001,
    "metadata": {"user_id": "steered", "tags": ["steered"]},
    "litellm_metadata": {"tags": ["steered"]},
}
# Its template names .Tools and shows examples of calls, so that this small model calls a tool.
MODELFILE = """FROM saved
PARAMETER num_ctx 4096
PARAMETER num_thread 1
PARAMETER stop <|im_start|>
PARAMETER stop <|im_end|>
TEMPLATE \"\"\"{{ if .Tools }}<|im_start|>system
You answer with one function call in JSON. Functions: {{ .Tools }}<|im_end|>
<|im_start|>user
What is the weather in Rome?<|im_end|>
<|im_start|>assistant
{"name": "get_weather", "arguments": {"city": "Rome"}}<|im_end|>
<|im_start|>user
How is the weather in Madrid?<|im_end|>
<|im_start|>assistant
{"name": "get_weather", "arguments": {"city": "Madrid"}}<|im_end|>
{{ end }}{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\
{{ end }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\"
"""


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        client.headers.update({"x-api-key": stack.key("bench"), "anthropic-version": "2023-06-01"})
        yield client


@pytest.fixture
def with_tools(stack: Stack, client: httpx.Client) -> Iterator[None]:
    """The model has a template with tools as long as a test runs."""
    stack(f"ollama cp {stack.model} saved && cat >/root/Modelfile", stdin=MODELFILE)
    try:
        stack(f"ollama create {stack.model} -f /root/Modelfile")
        wait_for(lambda: ask(client, stack, tools=[TOOL], max_tokens=1).status_code == 200)
        yield
    finally:
        stack(f"ollama cp saved {stack.model} && ollama rm saved")


def ask(client: httpx.Client, stack: Stack, **fields: Any) -> httpx.Response:
    body = {"model": stack.model, "max_tokens": 8, "temperature": 0, "messages": [HELLO]}
    return client.post("/v1/messages?beta=true", json=body | fields)


def metrics(stack: Stack) -> str:
    return stack(f"curl --silent --fail {stack.metrics_url}")


def counted(stack: Stack) -> tuple[float, float, float]:
    """Return the tokens of prompts and of answers of the key, and the requests through LiteLLM."""
    text = metrics(stack)
    tokens = [
        sum(map(float, re.findall(COUNTER.format(name=name), text, re.MULTILINE)))
        for name in ("prompt_tokens", "completion_tokens")
    ]
    return tokens[0], tokens[1], sum(map(float, LITELLM.findall(text)))


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


def test_a_message_is_counted_on_its_key_whole_and_streamed(stack: Stack, client: httpx.Client) -> None:
    before = counted(stack)
    whole = ask(client, stack)
    assert whole.status_code == 200, whole.text
    message = whole.json()
    assert message["id"].startswith("msg_")
    assert message["content"][0]["text"]
    assert whole.headers["x-litellm-call-id"]
    events = events_of(ask(client, stack, stream=True, thinking={"type": "adaptive"}))
    assert [kind for kind, _ in groupby(event["type"] for event in events)] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text == message["content"][0]["text"]
    assert events[-2]["usage"] == message["usage"]
    used = [2 * message["usage"][name] for name in ("input_tokens", "output_tokens")]
    after = counted(stack)
    assert [new - old for new, old in zip(after, before, strict=True)] == [*used, 2]


@pytest.mark.usefixtures("with_tools")
def test_a_tool_is_called_whole_and_streamed_and_its_result_is_read(
    stack: Stack, client: httpx.Client
) -> None:
    fields = {"messages": [WEATHER], "tools": [TOOL], "max_tokens": 60}
    message = ask(client, stack, **fields).json()
    [block] = message["content"]
    assert (message["stop_reason"], block["type"]) == ("tool_use", "tool_use")
    assert (block["name"], block["input"]) == ("get_weather", {"city": "Paris"})
    events = events_of(ask(client, stack, **fields, stream=True))
    [begun] = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert (begun["type"], begun["name"]) == ("tool_use", "get_weather")
    assert json.loads("".join(parts)) == {"city": "Paris"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": "sunny"}
    turns = [WEATHER, {"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]
    read = ask(client, stack, messages=turns, tools=[TOOL])
    assert read.status_code == 200, read.text


def test_errors_have_anthropics_shape_behind_the_edge(stack: Stack, client: httpx.Client) -> None:
    for response, status, kind in (
        (ask(client, stack, model="absent"), 404, "not_found_error"),
        (ask(client, stack, tools=[TOOL]), 400, "invalid_request_error"),
        (
            client.post("/v1/messages", json={}, headers={"x-api-key": "sk-wrong"}),
            401,
            "authentication_error",
        ),
    ):
        assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
        assert response.json()["request_id"] == response.headers["request-id"]


def test_no_field_steers_litellm_and_the_journal_has_no_key(stack: Stack, client: httpx.Client) -> None:
    answer = ask(client, stack, **STEERING)
    assert answer.status_code == 200, answer.text
    assert "steered" not in answer.text
    journal = stack(
        "journalctl --unit bedplate-gateway --unit bedplate-edge --unit litellm --no-pager -n 200"
    )
    assert "path=/v1/messages stream=no" in journal
    assert stack.key("bench") not in journal
    assert "steered" not in journal


def test_a_client_that_leaves_frees_its_slot(stack: Stack, client: httpx.Client) -> None:
    story = {"role": "user", "content": "Write a long story about a fox, a river and a town."}
    body = {"model": stack.model, "max_tokens": 2000, "messages": [story], "stream": True}
    with client.stream("POST", "/v1/messages", json=body) as response:
        # Without a name for it, httpx would disconnect at once.
        parts = response.iter_bytes()
        next(parts)
        assert sum(map(float, BUSY.findall(metrics(stack)))) == 1
    wait_for(lambda: not sum(map(float, BUSY.findall(metrics(stack)))))


def test_tokens_are_counted(stack: Stack, client: httpx.Client) -> None:
    body = {"model": stack.model, "messages": [{"role": "user", "content": "hello " * 100}]}
    tokens = client.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    assert 50 < tokens < 300
