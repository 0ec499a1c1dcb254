"""The `anthropic` Python package: each feature as users call it, and its error classes."""

import json
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from tests.clients.endpoints import Endpoint, Faulty

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL: Any = {
    "name": "get_weather",
    "description": "weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def connect(endpoint: Endpoint | Faulty, key: str) -> Anthropic:
    return Anthropic(base_url=endpoint.url.removesuffix("/v1"), api_key=key, max_retries=0, timeout=120)


@pytest.fixture
def client(endpoint: Endpoint) -> Anthropic:
    return connect(endpoint, endpoint.key)


def test_models(client: Anthropic, endpoint: Endpoint) -> None:
    assert endpoint.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(endpoint.model).id == endpoint.model


def test_message_with_usage(client: Anthropic, endpoint: Endpoint) -> None:
    system: list[Any] = [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
    message = client.messages.create(
        model=endpoint.model,
        messages=HELLO,
        max_tokens=8,
        system=system,
        stop_sequences=["END"],
        metadata={"user_id": "somebody"},
    )
    assert message.content[0].type == "text"
    assert message.content[0].text
    assert message.id.startswith("msg_")
    assert message.model == endpoint.model
    assert message.stop_reason in {"end_turn", "max_tokens"}
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert message._request_id


def test_bearer_tokens(endpoint: Endpoint) -> None:
    url = endpoint.url.removesuffix("/v1")
    client = Anthropic(base_url=url, auth_token=endpoint.key, max_retries=0)
    assert client.messages.create(model=endpoint.model, messages=HELLO, max_tokens=1).content


def test_stream(client: Anthropic, endpoint: Endpoint) -> None:
    with client.messages.stream(model=endpoint.model, messages=HELLO, max_tokens=8) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text
    assert message.content[0].type == "text"
    assert message.content[0].text == text
    assert message.stop_reason in {"end_turn", "max_tokens"}
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


def test_thinking_of_a_model_that_cannot(client: Anthropic, endpoint: Endpoint) -> None:
    budget: Any = {"type": "enabled", "budget_tokens": 1024}
    message = client.messages.create(model=endpoint.model, messages=HELLO, max_tokens=2, thinking=budget)
    assert [block.type for block in message.content] == ["text"]


@pytest.mark.parametrize("streamed", [False, True])
def test_tools(client: Anthropic, endpoint: Endpoint, streamed: bool) -> None:
    if not endpoint.tools:
        pytest.skip("the model's template supports no tools")
    fields: Any = {"model": endpoint.model, "messages": WEATHER, "tools": [TOOL], "max_tokens": 64}
    fields["extra_body"] = {"temperature": 0}
    if streamed:
        with client.messages.stream(**fields) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(**fields)
    assert message.stop_reason == "tool_use"
    [call] = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "get_weather"
    assert "city" in call.input
    turn = [block.model_dump(exclude_none=True) for block in message.content]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    more: list[Any] = [{"role": "assistant", "content": turn}, {"role": "user", "content": [result]}]
    answer = client.messages.create(**fields | {"messages": WEATHER + more})
    assert answer.usage.input_tokens > message.usage.input_tokens


def test_tokens_are_counted(client: Anthropic, endpoint: Endpoint) -> None:
    counted = client.messages.count_tokens(model=endpoint.model, messages=HELLO, system="Be kind.")
    assert 1 <= counted.input_tokens < 100


ERRORS: list[tuple[str, str, type[anthropic.APIStatusError], str]] = [
    ("any", "none", anthropic.NotFoundError, "not_found_error"),
    ("expired", "good", anthropic.AuthenticationError, "authentication_error"),
    ("any", "broken", anthropic.InternalServerError, "api_error"),
    ("any", "gone", anthropic.InternalServerError, "overloaded_error"),
    ("any", "silent", anthropic.InternalServerError, "timeout_error"),
]


@pytest.mark.parametrize(("alias", "model", "kind", "name"), ERRORS)
def test_errors(
    faulty: Faulty, alias: str, model: str, kind: type[anthropic.APIStatusError], name: str
) -> None:
    client = connect(faulty, faulty.keys[alias])
    with pytest.raises(kind) as refused:
        client.messages.create(model=model, messages=HELLO, max_tokens=2)
    body: Any = refused.value.body
    assert body["error"]["type"] == name
    assert refused.value.request_id == body["request_id"]


def test_a_used_up_limit(faulty: Faulty) -> None:
    client = connect(faulty, faulty.keys["once-anthropic"])
    client.messages.create(model="good", messages=HELLO, max_tokens=2)
    with pytest.raises(anthropic.RateLimitError) as refused:
        client.messages.create(model="good", messages=HELLO, max_tokens=2)
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60


def test_an_error_in_a_stream(faulty: Faulty) -> None:
    client = connect(faulty, faulty.keys["any"])
    with (
        pytest.raises(anthropic.APIStatusError) as refused,
        client.messages.stream(model="cut", messages=HELLO, max_tokens=8) as stream,
    ):
        list(stream)
    assert "api_error" in json.dumps(refused.value.body)
