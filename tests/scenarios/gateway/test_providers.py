"""Models of other providers, behind the real LiteLLM: a second stack on the host, with a fake provider."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_provider
from tests.support.second_stack import (
    FOLDER,
    LITELLM,
    ask_second,
    second_metrics,
    second_stack,
    start_second_litellm,
)
from tests.support.stack import Stack

PROVIDER = 18506
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
MODEL_LIST = "".join(
    f"  - model_name: {name}\n    litellm_params: {{model: openai/{fake}, api_key: os.environ/{key}, "
    f"input_cost_per_token: 0.001, output_cost_per_token: 0.002, {PARAMETERS}}}\n"
    for name, (fake, key) in MODELS.items()
)
ENVIRONMENT = {"GOOD": fake_provider.KEY, "WRONG": "sk-fake-wrong"}


@pytest.fixture(scope="module")
def second(stack: Stack) -> Iterator[Stack]:
    """The host with the second stack, whose only engine is down."""
    local = {"name": "one", "kind": "ollama", "url": "http://127.0.0.1:9"}
    names = [{"name": name, "slots": 4} for name in MODELS]
    providers = {"name": "litellm", "kind": "litellm", "url": f"http://127.0.0.1:{LITELLM}", "models": names}
    settings = {
        "engines": [local | {"models": [{"name": "m", "slots": 1}]}, providers],
        "fallbacks": {"m": ["cloud"], "limited": ["cloud"]},
    }
    servers = {"provider": (Path(fake_provider.__file__), str(PROVIDER))}
    with second_stack(stack, settings, model_list=MODEL_LIST, servers=servers, environment=ENVIRONMENT):
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
