"""One retry in all, by the gateway or by LiteLLM: a second stack on the host, whose engines only fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.second_stack import ask_second, second_stack
from tests.support.stack import Stack

ENGINES = {"first": 18501, "second": 18502}
# The model `shared` is on both engines, the model `single` on the first only.
MODELS = {"first": ["shared", "single"], "second": ["shared"]}
FAKE_ENGINE = Path(__file__).with_name("fake_failing_engine.py")
MODEL_LIST = "".join(
    f"  - model_name: {name}/{model}\n"
    f"    litellm_params: {{model: hosted_vllm/{model}, api_base: 'http://127.0.0.1:{ENGINES[name]}/v1', "
    "api_key: none, use_chat_completions_api: true}\n"
    for name, models in MODELS.items()
    for model in models
)


@pytest.fixture(scope="module")
def second(stack: Stack) -> Iterator[Stack]:
    """The host with the second stack; each engine answers every request with HTTP 500."""
    engines = [
        {
            "name": name,
            "kind": "ollama",
            "url": f"http://127.0.0.1:{port}",
            "models": [{"name": model, "slots": 1} for model in MODELS[name]],
        }
        for name, port in ENGINES.items()
    ]
    servers = {
        f"engine-{name}": (FAKE_ENGINE, f"{port} {' '.join(MODELS[name])}") for name, port in ENGINES.items()
    }
    with second_stack(stack, {"engines": engines}, model_list=MODEL_LIST, servers=servers):
        yield stack


def calls(stack: Stack, engine: str) -> int:
    """Return how many requests an engine got."""
    return int(stack(f"curl --silent --fail http://127.0.0.1:{ENGINES[engine]}/calls"))


@pytest.mark.parametrize(("model", "expected"), [("single", [2, 0]), ("shared", [1, 1])])
def test_a_failing_request_reaches_engines_twice(second: Stack, model: str, expected: list[int]) -> None:
    before = [calls(second, engine) for engine in ENGINES]
    status, _, error = ask_second(second, model)
    assert status == 502, error
    assert "itellm" not in error.lower()
    after = [calls(second, engine) for engine in ENGINES]
    assert [later - earlier for later, earlier in zip(after, before, strict=True)] == expected
