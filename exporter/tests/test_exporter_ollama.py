import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from bedplate_exporter.ollama import Engine, Model


def test_a_poll_asks_three_questions_once(fake_ollama: Any) -> None:
    Engine(fake_ollama.url).poll()
    assert fake_ollama.asked == ["/api/version", "/api/tags", "/api/ps"]


def test_a_healthy_engine(fake_ollama: Any) -> None:
    state = Engine(fake_ollama.url).poll()
    assert state.up
    assert state.version == "0.24.0"
    assert 0 < state.latency_seconds < 2
    digest = f"sha256:{fake_ollama.answers['/api/tags']['models'][0]['digest']}"
    assert state.models == (
        # A hundred years ahead counts as for ever.
        Model("smollm2:135m", digest, 144_811_000, True, 400_000_000, 100, 4096, None),
        Model("other:latest", f"sha256:{'ab' * 32}", 5),
    )


def test_an_expiry_is_read_to_the_second(fake_ollama: Any) -> None:
    fake_ollama.answers["/api/ps"]["models"][0]["expires_at"] = "2026-11-24T07:54:10.123456789+01:00"
    expires_at = Engine(fake_ollama.url).poll().models[0].expires_at
    assert expires_at is not None
    assert expires_at.replace(microsecond=0) == datetime(2026, 11, 24, 6, 54, 10, tzinfo=UTC)


def test_a_copy_of_a_loaded_model_is_loaded(fake_ollama: Any) -> None:
    models = fake_ollama.answers["/api/tags"]["models"]
    models[1] = {**models[0], "name": "copy:latest"}
    assert [model.loaded for model in Engine(fake_ollama.url).poll().models] == [True, True]


def test_a_model_deleted_while_loaded_is_not_present(fake_ollama: Any) -> None:
    fake_ollama.answers["/api/tags"]["models"].pop(0)
    assert [model.name for model in Engine(fake_ollama.url).poll().models] == ["other:latest"]


@pytest.mark.parametrize("empty", [[], None])
def test_an_engine_without_models_is_up(fake_ollama: Any, empty: Any) -> None:
    fake_ollama.answers["/api/tags"] = fake_ollama.answers["/api/ps"] = {"models": empty}
    state = Engine(fake_ollama.url).poll()
    assert state.up
    assert state.models == ()


def test_an_engine_that_is_not_there() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        state = Engine(url).poll()
    assert not state.up
    assert state.version is None
    assert state.models == ()
    assert state.error == f"Ollama does not listen at {url}: see `systemctl status ollama`."


def test_an_engine_that_comes_back_is_up_again(fake_ollama: Any) -> None:
    engine = Engine(fake_ollama.url)
    fake_ollama.status = 503
    assert not engine.poll().up
    fake_ollama.status = 200
    assert engine.poll().up


@pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/ps"])
def test_an_engine_that_hangs_costs_the_time_limit(
    fake_ollama: Any, ended: Callable[[float], bool], path: str
) -> None:
    def hang(_: BaseHTTPRequestHandler) -> None:
        ended(10)

    fake_ollama.answers[path] = hang
    start = time.monotonic()
    state = Engine(fake_ollama.url, timeout_seconds=0.3).poll()
    assert time.monotonic() - start < 1
    assert f"did not answer {path} within 0.3 s" in str(state.error)


def test_an_engine_that_trickles_costs_the_time_limit(
    fake_ollama: Any, ended: Callable[[float], bool]
) -> None:
    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            while not ended(0.05):
                handler.wfile.write(b" ")

    fake_ollama.answers["/api/tags"] = trickle
    start = time.monotonic()
    state = Engine(fake_ollama.url, timeout_seconds=0.3).poll()
    assert time.monotonic() - start < 1
    assert "did not answer /api/tags within 0.3 s" in str(state.error)


@pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/ps"])
@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"null",
        b"7",
        b"[1]",
        b"{}",
        b'{"version": 7, "models": 7}',
        b"[" * 100_000,
    ],
)
def test_garbage_is_an_error_sentence(fake_ollama: Any, path: str, garbage: bytes) -> None:
    fake_ollama.answers[path] = garbage
    state = Engine(fake_ollama.url).poll()
    assert state.error == (
        f"{fake_ollama.url}{path} answered, but not as Ollama does: check which program listens there."
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "\ud800"),
        ("digest", None),
        ("size", "5"),
        ("size", True),
        ("size", -1),
        ("size", 10**400),
        ("size_vram", None),
        ("context_length", 1.5),
        ("expires_at", "soon"),
        ("expires_at", "2026-11-24T07:54:10"),
        ("expires_at", "0001-01-01T00:00:00+05:00"),
    ],
)
def test_a_bad_field_is_an_error_sentence(fake_ollama: Any, field: str, value: Any) -> None:
    for path in ("/api/tags", "/api/ps"):
        model = fake_ollama.answers[path]["models"][0]
        if field in model:
            model[field] = value
    fake_ollama.answers = json.loads(json.dumps(fake_ollama.answers))
    assert "not as Ollama does" in str(Engine(fake_ollama.url).poll().error)


def test_an_answer_cut_short_is_an_error_sentence(fake_ollama: Any) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"{")

    fake_ollama.answers["/api/version"] = cut
    assert "broke off its answer to /api/version" in str(Engine(fake_ollama.url).poll().error)


def test_an_error_status_is_an_error_sentence(fake_ollama: Any) -> None:
    fake_ollama.status = 500
    assert "answered /api/version with status 500" in str(Engine(fake_ollama.url).poll().error)


def test_an_endless_answer_is_ended(fake_ollama: Any) -> None:
    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            while True:
                handler.wfile.write(b" " * 1024 * 1024)

    fake_ollama.answers["/api/version"] = flood
    assert "sends more than" in str(Engine(fake_ollama.url).poll().error)


def test_the_machines_proxy_is_not_asked(fake_ollama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Engine(fake_ollama.url).poll().up
