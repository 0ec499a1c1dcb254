"""Models of other providers, behind the real LiteLLM: a second stack on the host, with a fake provider."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_provider, fake_trace_receiver
from tests.support.second_stack import (
    FOLDER,
    GATEWAY,
    KEY,
    LITELLM,
    ask_second,
    second_metrics,
    second_stack,
    start_second_litellm,
)
from tests.support.stack import Stack, wait_for

PROVIDER, RECEIVER = 18506, 18507
SLOW_SECONDS = 3
PARAMETERS = f"api_base: 'http://127.0.0.1:{PROVIDER}/v1', timeout: {SLOW_SECONDS}"
# By the name of the model in the API: what the fake provider does, and the key that it gets.
MODELS = {
    "cloud": ("fake-ok", "GOOD"),
    "wrong-key": ("fake-ok", "WRONG"),
    "limited": ("fake-429", "GOOD"),
    "failing": ("fake-500", "GOOD"),
    "garbage": ("fake-garbage", "GOOD"),
    "silent": ("fake-never", "GOOD"),
}
# A second item of its name: a group.
PAIR = {"pair": ("fake-ok-1", "GOOD")}, {"pair": ("fake-ok-2", "GOOD")}
MODEL_LIST = "".join(
    f"  - model_name: {name}\n    litellm_params: {{model: openai/{fake}, api_key: os.environ/{key}, "
    f"input_cost_per_token: 0.001, output_cost_per_token: 0.002, {PARAMETERS}}}\n"
    for models in (MODELS, *PAIR)
    for name, (fake, key) in models.items()
)
DEPLOYMENT = (
    "  - model_name: two/{model}\n    litellm_params: {{model: hosted_vllm/{model}, api_key: none, "
    "use_chat_completions_api: true, api_base: '{url}/v1'}}\n"
)
QUEUE_SECONDS = 2
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENVIRONMENT = {"GOOD": fake_provider.KEY, "WRONG": "sk-fake-wrong"}


@pytest.fixture(scope="module")
def second(stack: Stack) -> Iterator[Stack]:
    """The host with the second stack: a dead engine, the host's own, one that is full, and providers."""
    dead = {"name": "one", "kind": "ollama", "url": "http://127.0.0.1:9"}
    own = json.loads(stack("cat /etc/bedplate/bedplate-gateway/gateway.json"))["engines"][0]
    full = {"name": "three", "kind": "openai", "url": f"http://127.0.0.1:{PROVIDER}"}
    names = [{"name": name, "slots": 4} for name in (*MODELS, "pair")]
    providers = {"name": "litellm", "kind": "litellm", "url": f"http://127.0.0.1:{LITELLM}", "models": names}
    settings = {
        "engines": [
            dead | {"models": [{"name": "m", "slots": 1}]},
            own | {"name": "two", "models": [{"name": stack.model, "slots": 1}]},
            full | {"api_key": fake_provider.KEY, "models": [{"name": "fake-never", "slots": 1}]},
            providers,
        ],
        "fallbacks": {"m": ["cloud"], "limited": ["cloud"], "fake-never": ["cloud"]},
        "queues": {"normal": {"size": 1, "seconds": QUEUE_SECONDS}},
    }
    servers = {
        "provider": (Path(fake_provider.__file__), str(PROVIDER)),
        "receiver": (Path(fake_trace_receiver.__file__), str(RECEIVER)),
    }
    with second_stack(
        stack,
        settings,
        model_list=MODEL_LIST + DEPLOYMENT.format(model=stack.model, url=own["url"]),
        servers=servers,
        environment=ENVIRONMENT,
        traces=f"http://127.0.0.1:{RECEIVER}",
    ):
        yield stack


def calls(stack: Stack) -> dict[str, int]:
    """Return how many requests the provider got, by its model."""
    counted: dict[str, int] = json.loads(stack(f"curl --silent --fail http://127.0.0.1:{PROVIDER}/calls"))
    return counted


def test_chats_whole_and_streamed_with_their_cost(second: Stack) -> None:
    status, _, body = ask_second(second, "cloud")
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    assert answer["choices"][0]["message"]["content"] == "fake answer"
    assert (answer["model"], answer["usage"]["total_tokens"]) == ("cloud", 14)
    status, headers, body = ask_second(second, "cloud", stream=True, stream_options={"include_usage": True})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    events = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == "fake answer"
    assert chunks[-1]["usage"]["total_tokens"] == 14
    # Two answers of 11 x 0.001 + 3 x 0.002 dollars.
    assert 'bedplate_gateway_cost_dollars_total{alias="a",model="cloud"} 0.034' in second_metrics(second)


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("wrong-key", 502, "the operator checks the key in litellm_environment"),
        ("failing", 502, "(its provider failed)"),
        ("garbage", 502, "(its provider failed)"),
        ("silent", 504, "did not answer in time"),
    ],
)
def test_failures(second: Stack, model: str, status: int, words: str) -> None:
    before = calls(second)
    seen, _, body = ask_second(second, model)
    assert (seen, words in body) == (status, True), body
    assert not any(word in body for word in (fake_provider.SECRET_WORDS, "sk-fake", "itellm."))
    after = calls(second)
    fake = MODELS[model][0]
    assert after[fake] - before.get(fake, 0) == (2 if "(its provider failed)" in words else 1)


def test_a_limit_of_the_provider_reaches_the_client_or_a_fallback(second: Stack) -> None:
    started = time.monotonic()
    status, headers, body = ask_second(second, "limited")
    assert (status, headers["x-bedplate-fallback"]) == (200, "cloud"), body
    assert json.loads(body)["model"] == "cloud"
    # LiteLLM does not wait for the provider's Retry-After in the slot.
    assert time.monotonic() - started < 5
    assert calls(second)["fake-429"] == 1


def test_a_local_model_that_is_down_falls_back(second: Stack) -> None:
    status, headers, body = ask_second(second, "m")
    assert (status, headers["x-bedplate-fallback"]) == (200, "cloud"), body
    assert 'bedplate_gateway_fallbacks_total{model="m"} 1.0' in second_metrics(second)


def test_a_local_model_that_is_full_falls_back(second: Stack) -> None:
    """The first request has the only slot, the second one waits, and the queue has no place for a third."""
    answers: dict[str, tuple[float, int, dict[str, str]]] = {}

    def ask(name: str) -> None:
        started = time.monotonic()
        status, headers, _ = ask_second(second, "fake-never")
        answers[name] = (time.monotonic() - started, status, headers)

    second(
        "systemd-run --quiet --unit=second-client curl --silent --max-time 60 --json "
        '\'{"model": "fake-never", "messages": [{"role": "user", "content": "hi"}]}\' '
        f"--header 'Authorization: Bearer {KEY}' http://127.0.0.1:{GATEWAY}/v1/chat/completions"
    )
    busy = 'bedplate_gateway_slots_busy{engine="three",model="fake-never"} 1.0'
    wait_for(lambda: busy in second_metrics(second))
    waiting = threading.Thread(target=ask, args=("waited",))
    waiting.start()
    wait_for(lambda: 'bedplate_gateway_queue_requests{class="normal"} 1.0' in second_metrics(second))
    ask("refused")
    waiting.join()
    second("systemctl stop second-client")
    for name, least, most in (("refused", 0, QUEUE_SECONDS - 0.5), ("waited", QUEUE_SECONDS - 0.5, 10)):
        seconds, status, headers = answers[name]
        print(f"{name}: {seconds:.2f} s, x-bedplate-queue-ms {headers.get('x-bedplate-queue-ms')}")
        assert (status, headers.get("x-bedplate-fallback")) == (200, "cloud")
        assert least < seconds < most


def test_items_of_one_name_are_a_group(second: Stack) -> None:
    for _ in range(12):
        assert ask_second(second, "pair")[0] == 200
    assert {"fake-ok-1", "fake-ok-2"} <= calls(second).keys()


def test_garbage_in_place_of_a_stream_is_an_error(second: Stack) -> None:
    status, _, body = ask_second(second, "garbage", stream=True)
    assert (status, "(its provider failed)" in body) == (502, True), body


def spans_of(stack: Stack, trace: str) -> list[dict[str, Any]]:
    """Return the spans of a trace that the receiver got, in the order of their start."""
    spans: list[dict[str, Any]] = json.loads(stack(f"curl --silent --fail http://127.0.0.1:{RECEIVER}/spans"))
    spans = [span for span in spans if span["traceId"] == trace]
    return sorted(spans, key=lambda span: int(span["startTimeUnixNano"]))


def test_one_trace_from_the_gateway_through_litellm_to_the_engine(second: Stack) -> None:
    question = [{"role": "user", "content": "Tell me a secret."}]
    header = f"traceparent: 00-{TRACE}-{CALLER}-01"
    status, _, body = ask_second(second, second.model, header, messages=question, max_tokens=16)
    assert status == 200, body
    # Each service sends its spans when it likes.
    sent = {
        ("bedplate-gateway", "POST /v1/chat/completions"),
        ("litellm", "Received Proxy Server Request"),
        ("litellm", f"chat {second.model}"),
    }
    wait_for(lambda: sent <= {(span["service"], span["name"]) for span in spans_of(second, TRACE)})
    spans = spans_of(second, TRACE)
    print(json.dumps(spans))
    children: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        children.setdefault(span["parentSpanId"], []).append(span)
    [root] = children[CALLER]
    assert root["name"] == "POST /v1/chat/completions"
    parts = children[root["spanId"]]
    assert [part["name"] for part in parts] == ["admission", "wait", f"chat {second.model}"]
    # FastAPI may send a span of its own beside it.
    [proxy] = [
        span for span in children[parts[-1]["spanId"]] if span["name"] == "Received Proxy Server Request"
    ]
    assert proxy["service"] == "litellm"
    [engine] = [span for span in children[proxy["spanId"]] if "gen_ai.request.model" in span["values"]]
    names = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    assert all(root["values"][name] == engine["values"][name] for name in names)
    assert root["values"]["gen_ai.operation.name"] == "chat"
    assert root["values"]["gen_ai.request.model"] == second.model
    # Each part lies within the one above it; clocks of processes on one host agree to a millisecond.
    for inner, outer in ((parts[-1], root), (proxy, parts[-1]), (engine, proxy)):
        assert int(inner["startTimeUnixNano"]) >= int(outer["startTimeUnixNano"]) - 1_000_000
    raw = second(
        f"curl --silent --fail http://127.0.0.1:{RECEIVER}/raw | tr --complement --delete '[:print:]'"
    )
    answer = json.loads(body)["choices"][0]["message"]["content"]
    assert "admission" in raw
    assert "litellm_request" in raw or "chat " in raw
    assert not any(word in raw for word in (answer, "secret", "sk-"))


def test_requests_wait_while_litellm_restarts(second: Stack) -> None:
    # The name is free once its former unit is gone.
    second(
        "systemctl kill --signal=KILL second-litellm; systemctl stop second-litellm || true; "
        "systemctl reset-failed second-litellm || true"
    )
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(ask_second(second, "cloud")[0]))
    thread.start()
    time.sleep(2)
    assert not answers
    start_second_litellm(second)
    thread.join(60)
    assert answers == [200]


def test_no_process_and_no_unit_shows_a_key(second: Stack) -> None:
    shown = second(
        "systemctl show second-litellm; ps axeww; journalctl --no-pager -u second-litellm -u second-gateway; "
        f"cat {FOLDER}/config.yaml; "
        "tr '\\0' '\\n' </proc/$(systemctl show --property=MainPID --value second-litellm)/environ"
    )
    assert "LITELLM_MODE=PRODUCTION" in shown
    assert not any(secret in shown for secret in ENVIRONMENT.values())
