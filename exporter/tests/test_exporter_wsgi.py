import importlib
import json
import re
from typing import Any

import pytest
from bedplate_exporter import gunicorn_conf
from bedplate_exporter.ollama import Engine
from bedplate_exporter.settings import SettingsError, ollama_url
from bedplate_exporter.wsgi import create_app


class Answer:
    """What the application answered."""

    def __init__(self, url: str, path: str, method: str = "GET") -> None:
        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            self.status, self.headers = status, dict(headers)

        app: Any = create_app(Engine(url))
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": ""}
        self.text = b"".join(app(environ, start_response)).decode()


NOWHERE = "http://127.0.0.1:1"


def test_metrics_of_a_healthy_engine(fake_ollama: Any) -> None:
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
    ]


def test_one_scrape_is_one_poll(fake_ollama: Any) -> None:
    Answer(fake_ollama.url, "/metrics")
    assert len(fake_ollama.asked) == 3


def test_metrics_of_a_dead_engine() -> None:
    answer = Answer(NOWHERE, "/metrics")
    assert answer.status == "200 OK"
    samples = [line.split()[0] for line in answer.text.splitlines() if not line.startswith("#")]
    assert samples == ["bedplate_ollama_up", "bedplate_ollama_scrape_duration_seconds"]
    assert "bedplate_ollama_up 0.0" in answer.text


def test_state_of_a_healthy_engine(fake_ollama: Any) -> None:
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
        "engine": {"up": True, "version": "0.24.0", "error": None},
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
    }


def test_state_of_a_dead_engine() -> None:
    answer = Answer(NOWHERE, "/state.json")
    assert answer.status == "200 OK"
    state = json.loads(answer.text)
    assert state["engine"]["up"] is False
    assert state["engine"]["version"] is None
    assert state["engine"]["error"].endswith("see `systemctl status ollama`.")
    assert state["models"] == []


def test_its_own_health_asks_no_engine(fake_ollama: Any) -> None:
    assert Answer(fake_ollama.url, "/healthz").text == "ok\n"
    assert fake_ollama.asked == []


def test_other_paths_and_methods_are_refused() -> None:
    assert Answer(NOWHERE, "/").status == "404 Not Found"
    assert Answer(NOWHERE, "/metrics", "POST").status == "405 Method Not Allowed"


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:11434", "ftp://h", "http://", "http://h:0", "http://h:x", "http://h/v1", "http://[::1"],
)
def test_a_bad_url_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_OLLAMA_URL", url)
    with pytest.raises(SettingsError, match="BEDPLATE_OLLAMA_URL"):
        ollama_url()
    with pytest.raises(SystemExit, match="bedplate-exporter: BEDPLATE_OLLAMA_URL"):
        importlib.reload(gunicorn_conf)


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_OLLAMA_URL", "http://10.0.0.1:11434/")
    monkeypatch.setenv("BEDPLATE_EXPORTER_BIND", "10.0.0.1:9101")
    assert ollama_url() == "http://10.0.0.1:11434"
    assert importlib.reload(gunicorn_conf).bind == "10.0.0.1:9101"
