"""The `openai` Python package: each feature as users call it, and each of its error classes."""

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import ResponseCompletedEvent, ResponseIncompleteEvent
from pydantic import BaseModel

from tests.clients.endpoints import Endpoint, Faulty
from tests.support import servers

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def client(endpoint: Endpoint) -> OpenAI:
    return OpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0, timeout=120)


def test_models(client: OpenAI, endpoint: Endpoint) -> None:
    assert endpoint.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(endpoint.model).id == endpoint.model


def test_chat_with_usage(client: OpenAI, endpoint: Endpoint) -> None:
    answer = client.chat.completions.create(model=endpoint.model, messages=HELLO, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.model == endpoint.model
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_max_completion_tokens_bounds_the_answer(client: OpenAI, endpoint: Endpoint) -> None:
    answer = client.chat.completions.create(
        model=endpoint.model, messages=HELLO, max_completion_tokens=2, temperature=0
    )
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 2


def test_responses_have_the_limits_in_their_headers(faulty: Faulty) -> None:
    client = OpenAI(base_url=faulty.url, api_key=faulty.keys["once-python"], max_retries=0)
    raw = client.chat.completions.with_raw_response.create(model="good", messages=HELLO, max_tokens=2)
    assert raw.headers["x-ratelimit-limit-requests"] == "1"
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="good", messages=HELLO, max_tokens=2)
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    assert refused.value.code == "rate_limit_exceeded"


def test_stream(client: OpenAI, endpoint: Endpoint) -> None:
    chunks = list(
        client.chat.completions.create(model=endpoint.model, messages=HELLO, max_tokens=8, stream=True)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
    # The client did not request the usage, so it gets none, although the gateway requests it from the engine.
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_stream_with_usage(client: OpenAI, endpoint: Endpoint) -> None:
    chunks = list(
        client.chat.completions.create(
            model=endpoint.model,
            messages=HELLO,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.choices for chunk in chunks[:-1])


def test_stream_helper(client: OpenAI, endpoint: Endpoint) -> None:
    with client.chat.completions.stream(model=endpoint.model, messages=HELLO, max_tokens=8) as stream:
        kinds = {event.type for event in stream}
    assert {"chunk", "content.delta"} <= kinds
    assert stream.current_completion_snapshot.choices[0].message.content


def refuses_tools(client: OpenAI, endpoint: Endpoint) -> bool:
    """Return whether the model lacks tools; then check that tools are refused with 400."""
    if not endpoint.tools:
        with pytest.raises(openai.BadRequestError, match="tool"):
            client.chat.completions.create(model=endpoint.model, messages=WEATHER, tools=[TOOL])
    return not endpoint.tools


def test_tools(client: OpenAI, endpoint: Endpoint) -> None:
    if refuses_tools(client, endpoint):
        return
    answer = client.chat.completions.create(
        model=endpoint.model, messages=WEATHER, tools=[TOOL], temperature=0, max_tokens=60
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert "city" in json.loads(call.function.arguments)
    assert answer.choices[0].finish_reason == "tool_calls"
    # The tool's result is sent back and accepted.
    conversation: list[Any] = [
        *WEATHER,
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    after = client.chat.completions.create(model=endpoint.model, messages=conversation, max_tokens=8)
    assert after.choices[0].message.content


def test_tools_in_a_stream(client: OpenAI, endpoint: Endpoint) -> None:
    if refuses_tools(client, endpoint):
        return
    chunks = client.chat.completions.create(
        model=endpoint.model, messages=WEATHER, tools=[TOOL], temperature=0, max_tokens=60, stream=True
    )
    names, arguments, reasons = "", "", []
    for chunk in chunks:
        reasons.append(chunk.choices[0].finish_reason)
        for call in chunk.choices[0].delta.tool_calls or []:
            names += (call.function and call.function.name) or ""
            arguments += (call.function and call.function.arguments) or ""
    assert names == "get_weather"
    assert "city" in json.loads(arguments)
    assert reasons[-1] == "tool_calls"


def test_json_mode(client: OpenAI, endpoint: Endpoint) -> None:
    answer = client.chat.completions.create(
        model=endpoint.model,
        messages=[{"role": "user", "content": "Give a JSON object with one short field."}],
        response_format={"type": "json_object"},
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


class Reply(BaseModel):
    answer: str


def test_structured_output(client: OpenAI, endpoint: Endpoint) -> None:
    answer = client.chat.completions.parse(
        model=endpoint.model, messages=HELLO, response_format=Reply, max_tokens=200, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Reply)


def test_legacy_completions(client: OpenAI, endpoint: Endpoint) -> None:
    answer = client.completions.create(model=endpoint.model, prompt="One, two,", max_tokens=6)
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    chunks = list(client.completions.create(model=endpoint.model, prompt="One,", max_tokens=6, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks)


def test_embeddings(client: OpenAI, endpoint: Endpoint) -> None:
    # The package requests base64 by default and decodes it.
    answer = client.embeddings.create(model=endpoint.model, input=["one", "two"])
    assert [entry.index for entry in answer.data] == [0, 1]
    assert all(isinstance(number, float) for number in answer.data[0].embedding)
    plain = client.embeddings.create(model=endpoint.model, input="one", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-4)
    assert plain.usage.prompt_tokens > 0


def test_responses(client: OpenAI, endpoint: Endpoint) -> None:
    answer = client.responses.create(model=endpoint.model, input="Say hello.", max_output_tokens=16)
    assert answer.output_text
    assert answer.object == "response"
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0


def test_responses_with_instructions_and_tools(client: OpenAI, endpoint: Endpoint) -> None:
    if refuses_tools(client, endpoint):
        return
    tool: Any = {"type": "function", "strict": False, **TOOL["function"]}
    answer = client.responses.create(
        model=endpoint.model,
        input="What is the weather in Paris?",
        tools=[tool],
        max_output_tokens=60,
        temperature=0,
    )
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["get_weather"]
    assert "city" in json.loads(calls[0].arguments)


def test_responses_stream(client: OpenAI, endpoint: Endpoint) -> None:
    events = list(
        client.responses.create(model=endpoint.model, input="Say hello.", max_output_tokens=16, stream=True)
    )
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds
    last = events[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    assert isinstance(last, ResponseCompletedEvent | ResponseIncompleteEvent)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == last.response.output_text
    assert last.response.usage is not None
    assert last.response.usage.output_tokens > 0


def test_the_asynchronous_client(endpoint: Endpoint) -> None:
    async def run() -> list[str | None]:
        async with AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key, timeout=120) as client:
            answers = await asyncio.gather(
                *[
                    client.chat.completions.create(model=endpoint.model, messages=HELLO, max_tokens=4)
                    for _ in range(4)
                ]
            )
            return [answer.choices[0].message.content for answer in answers]

    assert all(asyncio.run(run()))


# Errors


def send(faulty: Faulty, model: str = "good", alias: str = "any", **fields: Any) -> Any:
    client = OpenAI(base_url=faulty.url, api_key=faulty.keys.get(alias, alias), max_retries=0, timeout=30)
    return client.chat.completions.create(**{"model": model, "messages": HELLO, "max_tokens": 4, **fields})


@pytest.mark.parametrize(("key", "message"), [("sk-wrong", "not valid"), ("expired", "expired")])
def test_authentication_error(faulty: Faulty, key: str, message: str) -> None:
    with pytest.raises(openai.AuthenticationError, match=message) as refused:
        send(faulty, alias=key)
    assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize(("model", "alias"), [("none", "any"), ("broken", "good-only")])
def test_not_found_error(faulty: Faulty, model: str, alias: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        send(faulty, model, alias)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    client = OpenAI(base_url=faulty.url, api_key=faulty.keys[alias], max_retries=0)
    assert model not in [listed.id for listed in client.models.list()]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model)


def test_not_found_error_for_a_missing_route(faulty: Faulty) -> None:
    client = OpenAI(base_url=faulty.url, api_key=faulty.keys["any"], max_retries=0)
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        client.images.generate(prompt="a house", model="good")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_bad_request_error(faulty: Faulty, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        send(faulty, **fields)
    assert refused.value.type == "invalid_request_error"
    assert param in str(refused.value.param)


def test_bad_request_error_over_the_context(faulty: Faulty) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        send(faulty, messages=[{"role": "user", "content": "word " * 5000}])
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("model", "statuses"),
    [("broken", {500, 502}), ("garbage", {500, 502}), ("cut", {500, 502}), ("gone", {503})],
)
def test_internal_server_error(faulty: Faulty, model: str, statuses: set[int]) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        send(faulty, model)
    assert failed.value.status_code in statuses
    assert failed.value.type
    assert failed.value.message


def test_a_timed_out_request_is_not_retried(faulty: Faulty) -> None:
    def count_arrivals() -> int:
        text = servers.get(f"{faulty.engine_url}/fake/stats")[1]
        return sum(arrival["model"] == "silent" for arrival in json.loads(text)["arrivals"])

    before = count_arrivals()
    client = OpenAI(base_url=faulty.url, api_key=faulty.keys["any"], max_retries=2, timeout=30)
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="silent", messages=HELLO, max_tokens=4)
    assert failed.value.status_code == 504
    assert count_arrivals() - before == 1


def test_an_error_inside_a_stream(faulty: Faulty) -> None:
    with pytest.raises(openai.APIError) as failed:
        for _ in send(faulty, "cut", stream=True):
            pass
    assert failed.value.message


def test_error_classes_of_responses(faulty: Faulty) -> None:
    client = OpenAI(base_url=faulty.url, api_key=faulty.keys["any"], max_retries=0)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="good", input="x", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="none", input="x")
