"""Models of other providers: the real gateway in front of a fake LiteLLM, which answers as 1.110.2 did."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from bedplate_gateway.app import Gateway
from bedplate_gateway.engines import health, litellm
from bedplate_gateway.engines import request as engine_request
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.settings import Engine, LiteLLMSettings, Settings

from gateway.tests.engines.test_litellm import FakeServer, cut, stream

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-f",
    "created": 1,
    "model": "cloud",
    "object": "chat.completion",
    "choices": [
        {
            "finish_reason": "stop",
            "index": 0,
            "message": {"content": "Hello!", "role": "assistant"},
            "provider_specific_fields": {},
        }
    ],
    "usage": {
        "completion_tokens": 3,
        "prompt_tokens": 11,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 5},
    },
}
CHUNK = '{"id":"chatcmpl-f","created":1,"model":"cloud","object":"chat.completion.chunk","choices":[%s]%s}'
STREAM = (
    CHUNK % ('{"index":0,"delta":{"content":"Hello!","role":"assistant"}}', ""),
    CHUNK % ('{"finish_reason":"stop","index":0,"delta":{}}', ""),
    CHUNK % ("", ',"usage":{"completion_tokens":3,"prompt_tokens":11,"total_tokens":14,"cost":0.017}'),
    "[DONE]",
)
SECRET = "sk-secret of org acme"
PROVIDER_ERROR = (
    "litellm.{kind}: {kind}: OpenAIException - {text}\n\n"
    "LiteLLM: model group 'cloud' failed with the error above. No fallback was attempted."
)


async def whole(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    document = ANSWER | {"model": body["model"]}
    return web.json_response(document, headers={"x-litellm-response-cost": "0.017"})


def fails(status: int, text: str = SECRET, retry_after: str = "") -> Any:
    async def answer(_: web.Request) -> web.StreamResponse:
        message = PROVIDER_ERROR.format(kind="SomeError", text=text)
        headers = {"llm_provider-retry-after": retry_after} if retry_after else {}
        error = {"message": message, "type": "x", "param": None, "code": str(status)}
        return web.json_response({"error": error}, status=status, headers=headers)

    return answer


class Stack:
    """The gateway with a local model and the providers' models `cloud` and `spare`."""

    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        self.tmp_path, self.settings = tmp_path, settings
        self.litellm = FakeServer(whole)
        self.runner: web.AppRunner | None = None

    def run(self, test: Callable[["Stack"], Awaitable[None]]) -> None:
        async def main() -> None:
            self.runner = await self.litellm.start()
            (self.tmp_path / "key").write_text("sk-master\n")
            url = f"http://127.0.0.1:{self.litellm.port}"
            clouds = [{"name": "cloud", "slots": 2}, {"name": "spare", "slots": 2}]
            local = {"name": "one", "kind": "ollama", "url": "http://127.0.0.1:9"}
            document = {
                "api": {"address": "127.0.0.1", "port": 0},
                "metrics": {"address": "127.0.0.1", "port": 0},
                "engines": [
                    local | {"models": [{"name": "m", "slots": 1}]},
                    {"name": "litellm", "kind": "litellm", "url": url, "models": clouds},
                ],
                "litellm": {"url": url, "key_file": str(self.tmp_path / "key")},
                "keys_file": "/none",
                "state_dir": str(self.tmp_path),
                **self.settings,
            }
            keys = Keys((_key("all"), _key("local", models=["m"]), _key("tiny", rpm=1)))
            self.gateway = Gateway(Settings.model_validate(document), keys)
            await self.gateway.start()
            transport = httpx.ASGITransport(app=self.gateway)
            self.client = httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=30)
            try:
                await test(self)
            finally:
                await self.client.aclose()
                await self.gateway.stop()
                await self.runner.cleanup()

        asyncio.run(asyncio.wait_for(main(), 30))

    async def ask(self, model: str = "cloud", alias: str = "all", **more: Any) -> httpx.Response:
        body = {"model": model, "messages": HI} | more
        return await self.client.post(CHAT, json=body, headers={"authorization": f"Bearer sk-{alias}"})

    def metric(self, start: str) -> list[str]:
        metrics = self.gateway.metrics
        lines = metrics.render(metrics.read()).decode().splitlines()
        return [line for line in lines if line.startswith(start)]

    @property
    def chats(self) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
        return [call for call in self.litellm.calls if call[0] == CHAT]


def _key(alias: str, **fields: Any) -> Key:
    digest = sha256(f"sk-{alias}".encode()).hexdigest()
    return Key.model_validate({"alias": alias, "secrets": [{"sha256": digest}], **fields})


def run(tmp_path: Path, test: Callable[[Stack], Awaitable[None]], **settings: Any) -> None:
    Stack(tmp_path, **settings).run(test)


def test_a_whole_answer_and_its_cost(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        answer = await stack.ask()
        assert answer.status_code == 200
        document = answer.json()
        assert document["model"] == "cloud"
        assert document["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}
        assert "provider_specific_fields" not in json.dumps(document)
        _, headers, body = stack.chats[0]
        assert (body["model"], headers["authorization"]) == ("cloud", "Bearer sk-master")
        (cost,) = stack.metric("bedplate_gateway_cost_dollars_total{")
        assert cost == 'bedplate_gateway_cost_dollars_total{alias="all",model="cloud"} 0.017'
        assert 'bedplate_gateway_slots{engine="litellm",model="cloud"} 2.0' in stack.metric(
            "bedplate_gateway_slots{"
        )

    run(tmp_path, test)


def test_a_stream_and_its_cost(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(*STREAM)
        answer = await stack.ask(stream=True, stream_options={"include_usage": True})
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        chunks = [json.loads(event) for event in events[:-1]]
        assert chunks[0]["choices"][0]["delta"]["content"] == "Hello!"
        assert chunks[-1]["usage"] == {"completion_tokens": 3, "prompt_tokens": 11, "total_tokens": 14}
        (cost,) = stack.metric("bedplate_gateway_cost_dollars_total{")
        assert cost.endswith(" 0.017")
        (tokens,) = stack.metric("bedplate_gateway_completion_tokens_total{")
        assert tokens.endswith(" 3.0")

    run(tmp_path, test)


def test_models_are_listed_for_the_keys_that_may_use_them(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        for alias, names in (("all", ["cloud", "spare"]), ("local", [])):
            answer = await stack.client.get("/v1/models", headers={"authorization": f"Bearer sk-{alias}"})
            assert [model["id"] for model in answer.json()["data"]] == names
        answer = await stack.ask(alias="local")
        assert answer.status_code == 404
        assert not stack.chats

    run(tmp_path, test)


def test_a_provider_takes_more_fields_than_an_engine(tmp_path: Path) -> None:
    wide: dict[str, Any] = {
        "messages": [
            {
                "role": "system",
                "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it"},
                    {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
                    {
                        "type": "file",
                        "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"},
                    },
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                ],
            },
        ],
        "n": 2,
        "logit_bias": {"1": 2.0},
        "user": "u-1",
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    steering: dict[str, Any] = {
        "api_base": "http://127.0.0.1:9",
        "api_key": "sk-own",
        "fallbacks": ["spare"],
        "num_retries": 9,
        "mock_response": "steered",
        "guardrails": [],
        "router_settings_override": {},
        "metadata": {"tags": ["x"]},
        "extra_headers": {"a": "b"},
        "cache": {"no-cache": True},
    }

    async def test(stack: Stack) -> None:
        answer = await stack.ask(**wide, **steering)
        assert answer.status_code == 200, answer.text
        body = stack.chats[0][2]
        assert body == {"model": "cloud", "stream": False} | wide
        answer = await stack.ask("m", n=2)
        assert answer.status_code == 400

    run(tmp_path, test)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "https://127.0.0.1/a.png",
        "https://localhost/a.png",
        "https://user@example.org/a.png",
        "https://example.org:8443/a.png",
        "file:///etc/passwd",
        "gs://bucket/a.png",
    ],
)
def test_other_urls_are_refused(tmp_path: Path, url: str) -> None:
    async def test(stack: Stack) -> None:
        part = {"type": "image_url", "image_url": {"url": url}}
        answer = await stack.ask(messages=[{"role": "user", "content": [part]}])
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
        assert not stack.chats

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (fails(429, retry_after="7"), (429, "rate_limit_exceeded", "provider_limit"), "again in 7 s"),
        (fails(429), (429, "rate_limit_exceeded", "provider_limit"), "again in 5 s"),
        (fails(429, retry_after="Wed"), (429, "rate_limit_exceeded", "provider_limit"), "again in 5 s"),
        (fails(401), (502, "engine_error", "provider_key"), "litellm_environment"),
        (fails(403), (502, "engine_error", "provider_key"), "forbids the request"),
        (fails(402), (502, "engine_error", "provider_key"), "requires payment"),
        (fails(404), (502, "engine_error", "provider_model"), "litellm_model_list"),
        (fails(408), (504, "timeout", "timeout"), "in time"),
        (fails(500), (502, "engine_error", "engine_error"), "(its provider failed)"),
        (fails(503), (502, "engine_error", "engine_error"), "(its provider failed)"),
        (fails(400, "too hot"), (400, None, "bad_request"), "refused the request: too hot"),
        (
            fails(400, "This model's maximum context length is 10 tokens"),
            (400, "context_length_exceeded", "context_length_exceeded"),
            "do not fit",
        ),
    ],
)
def test_a_providers_failure(
    tmp_path: Path, answer: Any, expected: tuple[int, str | None, str], words: str
) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = answer
        status, code, reason = expected
        refused = await stack.ask()
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (status, code)
        assert words in error["message"]
        assert not any(word in refused.text for word in ("secret", "acme", "model group", "litellm."))
        (refusal,) = [
            line for line in stack.metric("bedplate_gateway_refusals_total{") if not line.endswith(" 0.0")
        ]
        assert f'reason="{reason}"' in refusal
        assert len(stack.chats) == (2 if reason == "engine_error" else 1)
        # It takes the model from nobody.
        stack.litellm.answer = whole
        assert (await stack.ask()).status_code == 200

    run(tmp_path, test)


def test_the_providers_retry_after_is_passed_on(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = fails(429, retry_after="7")
        answer = await stack.ask()
        assert answer.headers["retry-after"] == "7"

    run(tmp_path, test)


def test_a_failure_in_a_stream_shows_no_words_of_the_provider(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        error = {"message": PROVIDER_ERROR.format(kind="APIConnectionError", text=SECRET), "code": "500"}
        stack.litellm.answer = stream(STREAM[0], json.dumps({"error": error}), "[DONE]")
        answer = await stack.ask(stream=True)
        assert "its provider failed in the middle of the answer" in answer.text
        assert "acme" not in answer.text

    run(tmp_path, test)


END = CHUNK % ('{"finish_reason":"stop","index":0,"delta":{}}', "")
NO_USAGE = CHUNK % ("", "")
COUNTED = CHUNK % ("", ',"usage":{"completion_tokens":0,"prompt_tokens":11,"total_tokens":11}')


TEXT = CHUNK.replace("chat.completion.chunk", "text_completion")
TEXT_END = TEXT % ('{"finish_reason":"stop","index":0}', "")


async def ask_path(stack: Stack, path: str) -> httpx.Response:
    """Request a stream with what each path requires."""
    prompt = {"prompt": "hi"} if path == COMPLETIONS else {"messages": HI}
    body = {"model": "cloud", "max_tokens": 9, "stream": True} | prompt
    return await stack.client.post(path, json=body, headers={"authorization": "Bearer sk-all"})


@pytest.mark.parametrize("more", [(), (NO_USAGE,), (COUNTED,)])
@pytest.mark.parametrize(
    ("path", "end"), [(CHAT, END), ("/v1/messages", END), (COMPLETIONS, TEXT_END)], ids=lambda text: text[:9]
)
def test_an_end_that_litellm_made_of_garbage_is_an_error(
    tmp_path: Path, path: str, end: str, more: tuple[str, ...]
) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(end, *more, "[DONE]")
        answer = await ask_path(stack, path)
        assert (answer.status_code, "(its provider failed)" in answer.text) == (502, True), answer.text

    run(tmp_path, test)


def test_a_stream_of_text_may_begin_without_text(tmp_path: Path) -> None:
    first, text = (TEXT % (f'{{"text":"{part}","index":0}}', "") for part in ("", "Hello!"))

    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(first, text, TEXT_END, "[DONE]")
        answer = await ask_path(stack, COMPLETIONS)
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        parts = [json.loads(event)["choices"][0].get("text") for event in events[:-1]]
        assert (answer.status_code, parts) == (200, ["", "Hello!", ""])
        assert events[-1] == "[DONE]"

    run(tmp_path, test)


def test_a_provider_may_send_an_empty_answer(tmp_path: Path) -> None:
    usage = CHUNK % ("", ',"usage":{"completion_tokens":1,"prompt_tokens":11,"total_tokens":12}')

    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(END, usage, "[DONE]")
        answer = await stack.ask(stream=True)
        assert answer.status_code == 200
        assert '"finish_reason":"stop"' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")

    run(tmp_path, test)


def test_requests_wait_while_litellm_restarts(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        assert stack.runner is not None
        await stack.runner.cleanup()

        async def whole_or_stream(request: web.Request) -> web.StreamResponse:
            streamed = (await request.json())["stream"]
            answer: web.StreamResponse = await (stream(*STREAM) if streamed else whole)(request)
            return answer

        stack.litellm.answer = whole_or_stream
        asked = [asyncio.create_task(stack.ask(stream=each)) for each in (False, False, True)]
        await asyncio.sleep(2.5)
        assert not any(task.done() for task in asked)
        listed = await stack.client.get("/v1/models", headers={"authorization": "Bearer sk-all"})
        assert len(listed.json()["data"]) == 2
        stack.runner = await stack.litellm.start()
        answers = await asyncio.gather(*asked)
        assert [answer.status_code for answer in answers] == [200, 200, 200]

    run(tmp_path, test)


def test_the_wait_for_litellm_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_request, "HOLD_SECONDS", 1.0)
    monkeypatch.setattr(health, "HOLD_SECONDS", 2.0)
    monkeypatch.setattr(health, "POLL_SECONDS", 0.5)

    async def test(stack: Stack) -> None:
        assert stack.runner is not None
        await stack.runner.cleanup()
        answer = await stack.ask()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        await asyncio.sleep(2.5)
        listed = await stack.client.get("/v1/models", headers={"authorization": "Bearer sk-all"})
        assert listed.json()["data"] == []
        stack.runner = await stack.litellm.start()
        await asyncio.sleep(1.0)
        assert (await stack.ask()).status_code == 200

    run(tmp_path, test)


def test_a_request_that_ends_litellm_is_sent_twice_only(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = cut
        answer = await stack.ask()
        assert answer.status_code == 503
        assert len(stack.chats) == 2

    run(tmp_path, test)


def test_a_litellm_that_does_not_know_the_model_yet_is_asked_again(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        async def old(_: web.Request) -> web.StreamResponse:
            stack.litellm.answer = whole
            message = "/chat/completions: Invalid model name passed in model=cloud. Call `/v1/models`"
            return web.json_response({"error": {"message": message}}, status=400)

        stack.litellm.answer = old
        assert (await stack.ask()).status_code == 200

    run(tmp_path, test)


@pytest.mark.parametrize("alias", ["all", "local"])
def test_a_local_model_falls_back_to_a_provider_that_the_key_may_use(tmp_path: Path, alias: str) -> None:
    async def test(stack: Stack) -> None:
        answer = await stack.ask("m", alias)
        if alias == "local":
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
            assert not stack.chats
            return
        assert answer.status_code == 200
        assert answer.headers["x-bedplate-fallback"] == "cloud"
        assert answer.json()["model"] == "cloud"
        assert stack.metric("bedplate_gateway_fallbacks_total{") == [
            'bedplate_gateway_fallbacks_total{model="m"} 1.0'
        ]
        (requests,) = stack.metric("bedplate_gateway_requests_total{")
        assert 'model="cloud"' in requests

    run(tmp_path, test, fallbacks={"m": ["cloud"]})


@pytest.mark.parametrize("streamed", [False, True])
def test_a_message_names_the_model_that_answered(tmp_path: Path, streamed: bool) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(*STREAM) if streamed else whole
        body = {"model": "m", "messages": HI, "max_tokens": 9, "stream": streamed}
        answer = await stack.client.post("/v1/messages", json=body, headers={"x-api-key": "sk-all"})
        assert answer.headers["x-bedplate-fallback"] == "cloud"
        assert re.findall(r'"model": "(\w+)"', answer.text) == ["cloud"]

    run(tmp_path, test, fallbacks={"m": ["cloud"]})


def test_a_response_names_the_model_that_answered(tmp_path: Path) -> None:
    async def response(_: web.Request) -> web.StreamResponse:
        text = {"type": "output_text", "text": "Hello!", "annotations": []}
        message = {"type": "message", "role": "assistant", "content": [text]}
        usage = {"input_tokens": 11, "output_tokens": 3, "total_tokens": 14}
        document = {"id": "resp_1", "model": "cloud", "status": "completed", "usage": usage}
        return web.json_response(document | {"output": [message]})

    async def test(stack: Stack) -> None:
        stack.litellm.answer = response
        headers = {"authorization": "Bearer sk-all"}
        answer = await stack.client.post("/v1/responses", json={"model": "m", "input": "hi"}, headers=headers)
        assert (answer.status_code, answer.headers["x-bedplate-fallback"]) == (200, "cloud"), answer.text
        assert answer.json()["model"] == "cloud"

    run(tmp_path, test, fallbacks={"m": ["cloud"]})


def test_a_provider_falls_back_to_another_one_but_not_for_a_bad_request(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        refused = fails(429)

        async def first_is_limited(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            answer: web.StreamResponse = await (whole if body["model"] == "spare" else refused)(request)
            return answer

        stack.litellm.answer = first_is_limited
        answer = await stack.ask()
        assert (answer.status_code, answer.headers["x-bedplate-fallback"]) == (200, "spare")
        refused = fails(400, "too hot")
        assert (await stack.ask()).status_code == 400
        stack.litellm.answer = fails(500)
        assert (await stack.ask()).status_code == 502

    run(tmp_path, test, fallbacks={"cloud": ["spare"]})


def test_a_limit_of_the_key_is_no_reason_to_fall_back(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        assert (await stack.ask(alias="tiny")).status_code == 200
        assert (await stack.ask(alias="tiny")).status_code == 429
        assert len(stack.chats) == 1

    run(tmp_path, test, fallbacks={"cloud": ["spare"]})


def test_a_setting_must_name_providers_models(tmp_path: Path) -> None:
    async def test(_: Stack) -> None:
        """Never called."""

    with pytest.raises(ValueError, match="fallbacks names m, which no provider serves"):
        run(tmp_path, test, fallbacks={"cloud": ["m"]})


def test_direct_names_no_provider(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-master")
    document = {"url": "http://127.0.0.1:9", "key_file": tmp_path / "key", "direct": ["cloud"]}
    proxy = litellm.LiteLLM(LiteLLMSettings.model_validate(document))
    engine = {"name": "litellm", "kind": "litellm", "url": "x", "models": []}
    assert proxy.lane(Engine.model_validate(engine), "cloud") is litellm.Lane.LITELLM
