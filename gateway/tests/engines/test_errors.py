import json
import time
from typing import Any

import pytest
from bedplate_gateway.api.schema import parse_request
from bedplate_gateway.engines.errors import MAX_TEXT_LENGTH, error_text, from_response, redact
from bedplate_gateway.settings import Engine

ENGINE = Engine(name="gpu-rack7", kind="ollama", url="http://gpu1.example:11434", models=())
REQUEST = parse_request(
    "/v1/chat/completions",
    b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}',
    default_max_output=lambda _: None,
)


@pytest.mark.parametrize(
    ("status", "text", "expected", "again", "elsewhere"),
    [
        (400, "invalid seed", (400, None), False, False),
        (400, "context length exceeded", (400, "context_length_exceeded"), False, False),
        (500, "invalid JSON schema in format", (400, "invalid_value"), False, False),
        (404, "model not found", (503, "engine_unavailable"), False, True),
        (429, "busy", (503, "engine_unavailable"), True, True),
        (503, "busy", (503, "engine_unavailable"), True, True),
        (500, "CUDA", (502, "engine_error"), True, True),
        (401, "who?", (502, "engine_error"), False, False),
    ],
)
def test_a_status_says_what_the_client_gets_and_which_retry_may_help(
    status: int, text: str, expected: tuple[int, str | None], again: bool, elsewhere: bool
) -> None:
    failure = from_response(status, json.dumps({"error": text}).encode(), REQUEST, ENGINE, 4096)
    assert (failure.error.status, failure.error.code) == expected
    assert (failure.again, failure.elsewhere) == (again, elsewhere)


@pytest.mark.parametrize(
    "body", [{"error": {"message": "no"}}, {"error": "no"}, {"detail": "no"}, {"message": "no"}]
)
def test_the_message_is_found_in_the_usual_fields(body: dict[str, Any]) -> None:
    assert error_text(json.dumps(body).encode(), ENGINE) == "no"


def test_other_bodies_are_shown_as_they_are() -> None:
    assert error_text(b"<html>\n  502 </html>", ENGINE) == "<html> 502 </html>"


@pytest.mark.parametrize(
    "address",
    [
        "http://10.0.0.1:11434/api",
        "gpu1.example:11434",
        "gpu1.example",
        "10.0.0.1",
        "[fe80::1]:80",
        "gpu-rack7",
        "gpu-rack7:11434",
        "other:11434",
        "other.example:443",
        "engine-1.internal.example",
    ],
)
def test_no_address_reaches_a_client(address: str) -> None:
    assert redact(f"dial {address} failed", ENGINE) == "dial (address) failed"


def test_a_host_that_was_looked_up_reaches_no_client() -> None:
    text = "dial tcp: lookup gpu9 on 10.0.0.2:53: no such host"
    assert redact(text, ENGINE) == "dial tcp: lookup (address) on (address): no such host"


@pytest.mark.parametrize(
    "text",
    [
        "model smollm2:135m not found",
        "exit status 2 at ggml-cuda.cu:102",
        "version 0.24.0 of model.gguf",
        "gpu-rack70 is not gpu",
        "litellm.BadRequestError: HTTP 400: no",
    ],
)
def test_what_is_no_address_stays(text: str) -> None:
    assert redact(text, ENGINE) == text


@pytest.mark.parametrize("part", ["a.", "a-", "a", "1.", "lookup ", "http://", "a:", "[", "sk-", "Bearer "])
def test_the_time_for_a_text_does_not_grow_with_it(part: str) -> None:
    started = time.process_time()
    redact(part * 1_000_000, ENGINE)
    assert time.process_time() - started < 0.05


@pytest.mark.parametrize("status", [*range(300, 309), *range(400, 432), 451, *range(500, 512), 529])
def test_no_status_brings_the_operators_key_to_a_client(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-secretupstreamkey"
    engine = ENGINE.model_copy(update={"kind": "openai", "api_key": key})
    text = f"Incorrect API key provided: {key} (sk-other***1234, Bearer abc.def) of account 4711"
    failure = from_response(status, json.dumps({"error": {"message": text}}).encode(), REQUEST, engine, None)
    for reached in (failure.error.body().decode(), caplog.text):
        assert not [secret for secret in (key, "sk-other", "abc.def") if secret in reached]
    # The operator's account is nothing to a client, and the journal has it.
    if status in (401, 402, 403, 407):
        assert "4711" not in failure.error.message
        assert "4711" in caplog.text


def test_a_key_of_any_form_is_hidden() -> None:
    engine = ENGINE.model_copy(update={"api_key": "0f3c9a"})
    assert redact("the token 0f3c9a is unknown", engine) == "the token (key) is unknown"


def test_a_long_message_is_shortened() -> None:
    assert len(redact("long " * 200, ENGINE)) == MAX_TEXT_LENGTH
