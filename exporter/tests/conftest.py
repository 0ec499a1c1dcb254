"""A fake Ollama whose answers a test chooses, to inject what the real one does only when it is ill."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

DIGEST = "9077fe9d2ae1a4a41a868836b56b8163731a8fe16621397028c2c76f838c6907"
EXPIRES_AT = "2126-11-24T07:54:10.123456789+01:00"


class FakeOllama:
    """Answers the three questions; `answers` maps a path to a JSON value, bytes or a function that writes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
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
                fake.asked.append(self.path)
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
