import json
from typing import Any

import pytest
from bedplate_gateway.api.schema import Request, parse_request
from bedplate_gateway.engines.context import CONTEXT_ERROR, could_overflow, embeddings_answer, fit_check

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def request(path: str, **body: Any) -> Request:
    return parse_request(path, json.dumps({"model": "m"} | body).encode(), default_max_output=lambda _: None)


def chat(text: str, count: int = 1) -> Request:
    return request(CHAT, messages=[{"role": "user", "content": text}] * count)


def test_a_prompt_may_overflow_once_its_bytes_and_the_template_exceed_the_context() -> None:
    assert not could_overflow(chat("x" * 400), 928)
    assert could_overflow(chat("x" * 401), 928)
    # Each message adds its share of the template.
    assert could_overflow(chat("x" * 200, 2), 928)


def test_an_image_may_always_overflow() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    assert could_overflow(request(CHAT, messages=[{"role": "user", "content": [image]}]), 10**9)


def test_each_text_of_embeddings_has_a_context_of_its_own() -> None:
    assert not could_overflow(request(EMBEDDINGS, input=["x" * 98] * 9), 100)
    assert could_overflow(request(EMBEDDINGS, input=["x", "x" * 99]), 100)


def test_the_check_uses_ollamas_own_api_and_forbids_truncation() -> None:
    for asked, path in (
        (chat("x"), "/api/chat"),
        (request(COMPLETIONS, prompt="x", suffix="y"), "/api/generate"),
        (request(EMBEDDINGS, input="x"), "/api/embed"),
    ):
        checked, body = fit_check(asked)
        assert checked == path
        assert json.loads(body)["truncate"] is False


@pytest.mark.parametrize(
    ("text", "too_long"),
    [
        ("the input length exceeds the context length", True),
        ("This model's maximum context length is 4096 tokens.", True),
        ("prompt is too long", True),
        ("invalid seed", False),
    ],
)
def test_engines_messages_about_the_context_are_recognised(text: str, too_long: bool) -> None:
    assert bool(CONTEXT_ERROR.search(text)) == too_long


def test_embeddings_come_in_openais_shape() -> None:
    native = json.dumps({"embeddings": [[1.0]], "prompt_eval_count": 3}).encode()
    answer = json.loads(embeddings_answer(request(EMBEDDINGS, input="x"), native))
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": [1.0]}]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
