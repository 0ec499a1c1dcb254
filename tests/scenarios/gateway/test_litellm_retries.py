"""One retry in all, by the gateway or by LiteLLM: a second stack on the host, whose engines only fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import send_file
from tests.support.stack import Stack, wait_for

ENGINES = {"first": 18501, "second": 18502}
# The model `shared` is on both engines, the model `single` on the first only.
MODELS = {"first": ["shared", "single"], "second": ["shared"]}
FAKE_ENGINE = Path(__file__).with_name("fake_failing_engine.py")
GATEWAY, METRICS, LITELLM = 18500, 18504, 18503
FOLDER = "/run/second-stack"
UNITS = ("second-gateway", "second-litellm", *(f"second-engine-{name}" for name in ENGINES))
CONFIG = "model_list:\n" + "".join(
    f"  - model_name: {name}/{model}\n"
    f"    litellm_params: {{model: hosted_vllm/{model}, api_base: 'http://127.0.0.1:{ENGINES[name]}/v1', "
    "api_key: none, use_chat_completions_api: true}\n"
    for name, models in MODELS.items()
    for model in models
)


def settings() -> dict[str, object]:
    """Return the second gateway's settings."""
    return {
        "api": {"address": "127.0.0.1", "port": GATEWAY},
        "metrics": {"address": "127.0.0.1", "port": METRICS},
        "engines": [
            {
                "name": name,
                "kind": "ollama",
                "url": f"http://127.0.0.1:{port}",
                "models": [{"name": model, "slots": 1} for model in MODELS[name]],
            }
            for name, port in ENGINES.items()
        ],
        "litellm": {"url": f"http://127.0.0.1:{LITELLM}", "key_file": f"{FOLDER}/master-key"},
        "keys_file": f"{FOLDER}/keys.json",
        "state_dir": FOLDER,
    }


@pytest.fixture(scope="module")
def second(stack: Stack) -> Iterator[Stack]:
    """The host with the second stack; each engine answers every request with HTTP 500."""
    keys = {
        "schema": 2,
        "keys": [{"alias": "a", "secrets": [{"sha256": hashlib.sha256(b"sk-a").hexdigest()}]}],
    }
    # The retry settings are those of the role's configuration, and so is the start program.
    shared = "sed -n '/^litellm_settings:/,$p' /etc/bedplate/litellm/config.yaml"
    warm_up = "  - model_name: warm-up\n    litellm_params: {model: hosted_vllm/warm-up, api_key: none, "
    warm_up += "use_chat_completions_api: true, mock_response: ready}\n"
    stack(
        f"mkdir -p {FOLDER} && echo sk-second >{FOLDER}/master-key && cat >{FOLDER}/gateway.json",
        stdin=json.dumps(settings()),
    )
    stack(f"cat >{FOLDER}/keys.json", stdin=json.dumps(keys))
    stack(f"{{ cat; {shared}; }} >{FOLDER}/config.yaml", stdin=CONFIG + warm_up)
    send_file(stack.name, FAKE_ENGINE, f"{FOLDER}/fake_failing_engine.py")
    for name, port in ENGINES.items():
        models = " ".join(MODELS[name])
        run = f"systemd-run --quiet --unit=second-engine-{name}"
        stack(f"{run} python3 {FOLDER}/fake_failing_engine.py {port} {models}")
    environment = (
        "--setenv=LITELLM_MODE=PRODUCTION --setenv=LITELLM_OFFLINE_MODE=true --setenv=LITELLM_LOG=ERROR"
    )
    stack(
        f"systemd-run --quiet --unit=second-litellm --property=Type=notify {environment} "
        f"--property=LoadCredential=master-key:{FOLDER}/master-key /opt/bedplate/litellm/current/bin/python "
        f"/opt/bedplate/litellm/start.py {LITELLM} {FOLDER}/config.yaml"
    )
    stack(
        "systemd-run --quiet --unit=second-gateway --property=Type=notify --property=NotifyAccess=all "
        f"/opt/bedplate/bedplate-gateway/current/bin/bedplate-gateway {FOLDER}/gateway.json"
    )
    wait_for(lambda: "litellm_up 1" in stack(f"curl --silent --fail http://127.0.0.1:{METRICS}/metrics"))
    yield stack
    stack(
        f"systemctl stop {' '.join(UNITS)} || true; systemctl reset-failed 'second-*' || true; rm -r {FOLDER}"
    )


def calls(stack: Stack, engine: str) -> int:
    """Return how many requests an engine got."""
    return int(stack(f"curl --silent --fail http://127.0.0.1:{ENGINES[engine]}/calls"))


@pytest.mark.parametrize(("model", "expected"), [("single", [2, 0]), ("shared", [1, 1])])
def test_a_failing_request_reaches_engines_twice(second: Stack, model: str, expected: list[int]) -> None:
    before = [calls(second, engine) for engine in ENGINES]
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]})
    answer = second(
        "curl --silent --write-out '\\n%{http_code}' --header 'Authorization: Bearer sk-a' --json @- "
        f"http://127.0.0.1:{GATEWAY}/v1/chat/completions",
        stdin=body,
    )
    error, status = answer.rsplit("\n", 1)
    assert status == "502", answer
    assert "itellm" not in error.lower()
    after = [calls(second, engine) for engine in ENGINES]
    assert [later - earlier for later, earlier in zip(after, before, strict=True)] == expected
