"""Completions: tokens, and what makes one a failure."""

from pathlib import Path
from typing import Any

import pytest
from bedplate_traffic.fake_engine.server import Behaviour

from traffic.tests.fake_endpoint import (
    KEY,
    USAGE,
    WHOLE,
    FakeEndpoint,
    chunk,
    events,
    exit_status,
    failure,
    respond,
)
from traffic.tests.traffic_fakes import engine
from traffic.tests.traffic_runs import Ran, burst, profile


def test_an_endless_answer_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate_traffic.load.completion_stream.MAX_BYTES", 1000)
    with engine(Behaviour(tokens=500)) as (url, _):
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=1, answer_tokens=500)))
    assert list(ran.only["errors"]) == ["the answer is longer than 1000 bytes"]


@pytest.mark.parametrize("delta", [{"reasoning_content": "hm"}, {"tool_calls": [{"index": 0}]}])
def test_reasoning_and_tool_calls_are_tokens(fake: FakeEndpoint, delta: dict[str, Any]) -> None:
    fake.chat = lambda handler: events(handler, chunk(delta), chunk({}, usage=USAGE), "[DONE]")
    assert exit_status("--max", "1") == 0


@pytest.mark.parametrize(
    ("items", "error"),
    [
        (WHOLE[:3], "the stream ended without [DONE]"),
        ((*WHOLE[:2], "[DONE]"), "the answer has no usage block"),
        ((WHOLE[0], *WHOLE[2:]), "the answer is empty"),
        (("{garbage", "[DONE]"), "the stream contains an invalid chunk"),
        (("7",), "the stream contains an invalid chunk"),
        ((chunk({"content": "a"}, usage={"prompt_tokens": None}),), "the stream contains an invalid"),
        (({"error": {"message": "engine\ngone"}},), "the stream ended with an error: engine gone"),
        ((), "the stream ended without [DONE]"),
    ],
)
def test_a_bad_stream_fails_the_request(
    fake: FakeEndpoint, tmp_path: Path, items: tuple[Any, ...], error: str
) -> None:
    fake.chat = lambda handler: events(handler, *items)
    request = failure(tmp_path)
    assert request["status"] == 200
    assert request["error"].startswith(error)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (
            429,
            {"error": {"message": f"Rate limit of {KEY} exceeded"}},
            "status 429: Rate limit of [key] exceeded",
        ),
        (404, {"error": {"message": "model 'm1' not found"}}, "status 404: model 'm1' not found"),
        (403, {"detail": "not allowed"}, "status 403: not allowed"),
        (500, b"<html>", "status 500"),
        (502, ["x"], "status 502"),
        (307, b"", "status 307"),
    ],
)
def test_an_error_status_fails_the_request(
    fake: FakeEndpoint, tmp_path: Path, status: int, body: Any, error: str
) -> None:
    fake.chat = lambda handler: respond(handler, status, body)
    request = failure(tmp_path)
    assert (request["status"], request["error"]) == (status, error)
