"""A fake endpoint for `traffic --max`, and helpers that run the command against it."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from bedplate_traffic.cli import main

KEY = "sk-secret-of-the-test"


def chunk(delta: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}], **fields}


USAGE = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}


WHOLE = (
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "hi"}),
    chunk({}, usage=USAGE),
    "[DONE]",
)


class FakeEndpoint:
    """Serves /v1/models and /v1/chat/completions as a test configures them; `chat` writes the response."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.models: tuple[int, Any] = (200, {"data": [{"id": "m1"}, {"id": "m2"}]})
        self.chat: Callable[[BaseHTTPRequestHandler], None] = lambda handler: events(handler, *WHOLE)
        self.closing = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    respond(self, 401, {"error": {"message": f"Wrong key {self.headers['Authorization']}."}})
                elif self.path == "/v1/models":
                    respond(self, *fake.models)
                else:
                    respond(self, 404, {"detail": "Not Found"})

            def do_POST(self) -> None:
                fake.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                fake.chat(self)

            def log_message(self, *args: object) -> None:
                """Keep the test's output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def respond(handler: BaseHTTPRequestHandler, status: int, body: Any) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def events(handler: BaseHTTPRequestHandler, *items: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    for item in items:
        handler.wfile.write(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode())


def exit_status(*arguments: str) -> int:
    """Run the command `traffic`; returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def failure(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run one request that must fail; returns its entry in the report."""
    file = tmp_path / "report.json"
    assert exit_status("--max", "1", "--json", str(file), *arguments) == 1
    report = json.loads(file.read_text())
    assert report["ok"] is False
    assert report["summary"]["failed"] == 1
    assert report["summary"]["seconds_p50"] is None
    (request,) = report["requests"]
    assert request["ok"] is False
    assert isinstance(request, dict)
    return request


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that cannot start; returns its one line on stderr."""
    assert exit_status(*arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("traffic: ")
    assert KEY not in message
    return message
