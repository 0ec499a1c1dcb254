"""The exporter against a fake Ollama, which can fail in ways that a real one rarely does."""

import importlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bedplate_exporter import gunicorn_conf
from bedplate_exporter.gpu import Gpus
from bedplate_exporter.ollama import Engine, Model
from bedplate_exporter.settings import SettingsError, read_ollama_url
from bedplate_exporter.wsgi import create_app

DIGEST = "9077fe9d2ae1a4a41a868836b56b8163731a8fe16621397028c2c76f838c6907"
EXPIRES_AT = "2126-11-24T07:54:10.123456789+01:00"


class FakeOllama:
    """Answers three requests; `answers` maps a path to a JSON value, bytes or a function that writes."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.answers: dict[str, Any] = {
            "/api/version": {"version": "0.24.0"},
            "/api/tags": {
                "models": [
                    {"name": "smollm2:135m", "model": "smollm2:135m", "digest": DIGEST, "size": 144_811_000},
                    {"name": "other:latest", "model": "other:latest", "digest": "ab" * 32, "size": 5},
                ]
            },
            "/api/ps": {
                "models": [
                    {
                        "name": "smollm2:135m",
                        "digest": DIGEST,
                        "size": 400_000_000,
                        "size_vram": 100,
                        "context_length": 4096,
                        "expires_at": EXPIRES_AT,
                    }
                ]
            },
        }
        self.status = 200
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.requests.append(self.path)
                answer = fake.answers[self.path]
                if callable(answer):
                    answer(self)
                    return
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(fake.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Keep the test's output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fake_ollama() -> Iterator[FakeOllama]:
    fake = FakeOllama()
    yield fake
    fake.close()


@pytest.fixture
def ended() -> Iterator[Callable[[float], bool]]:
    """A wait that ends with the test, for answers that hang; returns whether the test is over."""
    over = threading.Event()
    yield over.wait
    over.set()


def test_a_poll_is_three_requests(fake_ollama: FakeOllama) -> None:
    Engine(fake_ollama.url).poll()
    assert fake_ollama.requests == ["/api/version", "/api/tags", "/api/ps"]


def test_a_healthy_engine(fake_ollama: FakeOllama) -> None:
    state = Engine(fake_ollama.url).poll()
    assert state.up
    assert state.version == "0.24.0"
    assert 0 < state.latency_seconds < 2
    digest = f"sha256:{fake_ollama.answers['/api/tags']['models'][0]['digest']}"
    assert state.models == (
        # A hundred years from now counts as never.
        Model(
            name="smollm2:135m",
            digest=digest,
            size_bytes=144_811_000,
            loaded=True,
            memory_bytes=400_000_000,
            gpu_memory_bytes=100,
            context_length=4096,
            expires_at=None,
        ),
        Model(name="other:latest", digest=f"sha256:{'ab' * 32}", size_bytes=5),
    )


def test_an_expiry_is_read_to_the_second(fake_ollama: FakeOllama) -> None:
    fake_ollama.answers["/api/ps"]["models"][0]["expires_at"] = "2026-11-24T07:54:10.123456789+01:00"
    expires_at = Engine(fake_ollama.url).poll().models[0].expires_at
    assert expires_at is not None
    assert expires_at.replace(microsecond=0) == datetime(2026, 11, 24, 6, 54, 10, tzinfo=timezone.utc)


def test_a_copy_of_a_loaded_model_is_loaded(fake_ollama: FakeOllama) -> None:
    models = fake_ollama.answers["/api/tags"]["models"]
    models[1] = {**models[0], "name": "copy:latest"}
    assert [model.loaded for model in Engine(fake_ollama.url).poll().models] == [True, True]


def test_a_model_deleted_while_loaded_is_not_present(fake_ollama: FakeOllama) -> None:
    fake_ollama.answers["/api/tags"]["models"].pop(0)
    assert [model.name for model in Engine(fake_ollama.url).poll().models] == ["other:latest"]


@pytest.mark.parametrize("empty", [[], None])
def test_an_engine_without_models_is_up(fake_ollama: FakeOllama, empty: Any) -> None:
    fake_ollama.answers["/api/tags"] = fake_ollama.answers["/api/ps"] = {"models": empty}
    state = Engine(fake_ollama.url).poll()
    assert state.up
    assert state.models == ()


def test_an_engine_that_does_not_listen() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        state = Engine(url).poll()
    assert not state.up
    assert state.version is None
    assert state.models == ()
    assert state.error == f"Ollama does not listen at {url}: see `systemctl status ollama`."


def test_an_engine_that_comes_back_is_up_again(fake_ollama: FakeOllama) -> None:
    engine = Engine(fake_ollama.url)
    fake_ollama.status = 503
    assert not engine.poll().up
    fake_ollama.status = 200
    assert engine.poll().up


@pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/ps"])
def test_an_engine_that_hangs_costs_the_time_limit(
    fake_ollama: FakeOllama, ended: Callable[[float], bool], path: str
) -> None:
    def hang(_: BaseHTTPRequestHandler) -> None:
        ended(10)

    fake_ollama.answers[path] = hang
    start = time.monotonic()
    state = Engine(fake_ollama.url, timeout_seconds=0.3).poll()
    assert time.monotonic() - start < 1
    assert f"did not answer {path} within 0.3 s" in str(state.error)
    assert state.fault == "hung"


def test_an_engine_that_trickles_costs_the_time_limit(
    fake_ollama: FakeOllama, ended: Callable[[float], bool]
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
def test_garbage_is_an_error_sentence(fake_ollama: FakeOllama, path: str, garbage: bytes) -> None:
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
def test_a_bad_field_is_an_error_sentence(fake_ollama: FakeOllama, field: str, value: Any) -> None:
    for path in ("/api/tags", "/api/ps"):
        model = fake_ollama.answers[path]["models"][0]
        if field in model:
            model[field] = value
    fake_ollama.answers = json.loads(json.dumps(fake_ollama.answers))
    assert "not as Ollama does" in str(Engine(fake_ollama.url).poll().error)


def test_an_answer_cut_short_is_an_error_sentence(fake_ollama: FakeOllama) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"{")

    fake_ollama.answers["/api/version"] = cut
    assert "closed the connection while answering /api/version" in str(Engine(fake_ollama.url).poll().error)


def test_an_error_status_is_an_error_sentence(fake_ollama: FakeOllama) -> None:
    fake_ollama.status = 500
    assert "answered /api/version with status 500" in str(Engine(fake_ollama.url).poll().error)


def test_an_endless_answer_is_ended(fake_ollama: FakeOllama) -> None:
    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            while True:
                handler.wfile.write(b" " * 1024 * 1024)

    fake_ollama.answers["/api/version"] = flood
    assert "sends more than" in str(Engine(fake_ollama.url).poll().error)


def test_the_environments_proxy_is_not_used(fake_ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Engine(fake_ollama.url).poll().up


class Answer:
    """What the application answered."""

    def __init__(self, url: str, path: str, method: str = "GET") -> None:
        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            self.status, self.headers = status, dict(headers)

        app: Any = create_app(Engine(url), Gpus(root=Path("/none")))
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": ""}
        self.text = b"".join(app(environ, start_response)).decode()


NOWHERE = "http://127.0.0.1:1"
NO_GPUS = [
    'bedplate_gpu_expected{vendor="nvidia"} 0.0',
    'bedplate_gpu_expected{vendor="amd"} 0.0',
    'bedplate_gpu_devices{vendor="nvidia"} 0.0',
    'bedplate_gpu_devices{vendor="amd"} 0.0',
    'bedplate_gpu_failed{vendor="nvidia"} 0.0',
    'bedplate_gpu_failed{vendor="amd"} 0.0',
]


def test_metrics_of_a_healthy_engine(fake_ollama: FakeOllama) -> None:
    answer = Answer(fake_ollama.url, "/metrics")
    assert answer.status == "200 OK"
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert re.fullmatch(r"bedplate_ollama_scrape_duration_seconds [0-9.e-]+", lines.pop(1))
    assert lines == [
        "bedplate_ollama_up 1.0",
        'bedplate_ollama_info{version="0.24.0"} 1.0',
        'bedplate_ollama_model_present{model="smollm2:135m"} 1.0',
        'bedplate_ollama_model_present{model="other:latest"} 1.0',
        'bedplate_ollama_model_size_bytes{model="smollm2:135m"} 1.44811e+08',
        'bedplate_ollama_model_size_bytes{model="other:latest"} 5.0',
        'bedplate_ollama_model_loaded{model="smollm2:135m"} 1.0',
        'bedplate_ollama_model_loaded{model="other:latest"} 0.0',
        'bedplate_ollama_model_memory_bytes{model="smollm2:135m"} 4e+08',
        'bedplate_ollama_model_memory_bytes{model="other:latest"} 0.0',
        'bedplate_ollama_model_gpu_memory_bytes{model="smollm2:135m"} 100.0',
        'bedplate_ollama_model_gpu_memory_bytes{model="other:latest"} 0.0',
        'bedplate_ollama_model_context_length_tokens{model="smollm2:135m"} 4096.0',
        'bedplate_ollama_model_unload_seconds{model="smollm2:135m"} +Inf',
        *NO_GPUS,
    ]


def test_one_scrape_is_one_poll(fake_ollama: FakeOllama) -> None:
    Answer(fake_ollama.url, "/metrics")
    assert len(fake_ollama.requests) == 3


def test_metrics_of_a_dead_engine() -> None:
    answer = Answer(NOWHERE, "/metrics")
    assert answer.status == "200 OK"
    samples = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert [sample.split()[0] for sample in samples[:2]] == [
        "bedplate_ollama_up",
        "bedplate_ollama_scrape_duration_seconds",
    ]
    assert samples[2:] == NO_GPUS
    assert "bedplate_ollama_up 0.0" in answer.text


def test_state_of_a_healthy_engine(fake_ollama: FakeOllama) -> None:
    fake_ollama.answers["/api/ps"]["models"][0]["expires_at"] = "2026-11-24T07:54:10.5+01:00"
    answer = Answer(fake_ollama.url, "/state.json")
    assert answer.status == "200 OK"
    assert answer.headers["Content-Type"] == "application/json"
    state = json.loads(answer.text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", state.pop("at"))
    assert state["engine"].pop("latency_seconds") > 0
    digest = f"sha256:{fake_ollama.answers['/api/tags']['models'][0]['digest']}"
    assert state == {
        "schema": 1,
        "engine": {"up": True, "version": "0.24.0", "error": None, "fault": None},
        "models": [
            {
                "name": "smollm2:135m",
                "digest": digest,
                "size_bytes": 144_811_000,
                "loaded": True,
                "memory_bytes": 400_000_000,
                "gpu_memory_bytes": 100,
                "context_length": 4096,
                "expires_at": "2026-11-24T06:54:10.500Z",
            },
            {
                "name": "other:latest",
                "digest": f"sha256:{'ab' * 32}",
                "size_bytes": 5,
                "loaded": False,
                "memory_bytes": 0,
                "gpu_memory_bytes": 0,
                "context_length": None,
                "expires_at": None,
            },
        ],
        "pull": None,
        "gpus": [],
        "drivers": [],
    }


def test_state_of_a_dead_engine() -> None:
    answer = Answer(NOWHERE, "/state.json")
    assert answer.status == "200 OK"
    state = json.loads(answer.text)
    assert state["engine"]["up"] is False
    assert state["engine"]["version"] is None
    assert state["engine"]["error"].endswith("see `systemctl status ollama`.")
    assert state["engine"]["fault"] == "stopped"
    assert state["models"] == []


def test_healthz_does_not_poll_the_engine(fake_ollama: FakeOllama) -> None:
    assert Answer(fake_ollama.url, "/healthz").text == "ok\n"
    assert fake_ollama.requests == []


def test_other_paths_and_methods_are_refused() -> None:
    assert Answer(NOWHERE, "/").status == "404 Not Found"
    assert Answer(NOWHERE, "/metrics", "POST").status == "405 Method Not Allowed"
    assert Answer(NOWHERE, "/healthz", "HEAD").headers["Allow"] == "GET"


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:11434", "ftp://h", "http://", "http://h:0", "http://h:x", "http://h/v1", "http://[::1"],
)
def test_a_bad_url_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_OLLAMA_URL", url)
    with pytest.raises(SettingsError, match="BEDPLATE_OLLAMA_URL"):
        read_ollama_url()
    with pytest.raises(SystemExit, match="bedplate-exporter: BEDPLATE_OLLAMA_URL"):
        importlib.reload(gunicorn_conf)


def test_a_slash_after_the_url_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_OLLAMA_URL", "http://10.0.0.1:11434/")
    assert read_ollama_url() == "http://10.0.0.1:11434"
