"""A fake Ollama that answers each chat with the user's last message, at a pace that a test chooses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.serving import serving

MODELS = {
    "seer:7b": ["completion", "vision", "thinking"],
    "writer:3b": ["completion"],
    "vectors": ["embedding"],
}
DIGESTS = {name: f"{number:064x}" for number, name in enumerate(MODELS, start=1)}


class FakeChatEngine(ThreadingHTTPServer):
    """Tests change the attributes; times are in seconds."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeChatHandler)
        self.replies: dict[str, str] = {}
        """Answers by message, where it is not the message itself."""
        self.thoughts = ""
        self.first_seconds = 0.0
        """The longest time until the first token."""
        self.turns = threading.Semaphore(0)
        """Each release of it begins one answer at once."""
        self.part_seconds = 0.0
        self.part_size = 8
        self.times = 1
        """How many times the answer is sent."""
        self.requests: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        """Return its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class FakeChatHandler(BaseHTTPRequestHandler):
    """One request."""

    server: FakeChatEngine

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        """List the models, all of which are loaded."""
        if self.path in {"/api/tags", "/api/ps"}:
            self._send({"models": [{"name": name, "digest": digest} for name, digest in DIGESTS.items()]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        """Describe a model, or stream an answer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/show":
            self._send({"capabilities": MODELS[body["model"]], "modelfile": "", "model_info": {}})
        elif self.path == "/api/chat":
            # The gateway's question whether a prompt fits.
            self._send({"done": True})
        elif self.path == "/v1/chat/completions":
            self.server.requests.append(body)
            self._stream(body)
        else:
            self.send_error(404)

    def _stream(self, body: dict[str, Any]) -> None:
        server = self.server
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        answer = server.replies.get(text, text) * server.times
        parts = [{"reasoning": word + " "} for word in server.thoughts.split()]
        parts += [
            {"content": answer[start : start + server.part_size]}
            for start in range(0, len(answer), server.part_size)
        ]
        server.turns.acquire(timeout=server.first_seconds)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for part in parts:
                self._event({"choices": [{"index": 0, "delta": part, "finish_reason": None}]})
                time.sleep(server.part_seconds)
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 9, "completion_tokens": len(parts), "total_tokens": 9 + len(parts)}
            self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass  # The client stopped it.

    def _event(self, chunk: dict[str, Any]) -> None:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
        self.wfile.write(b"data: " + json.dumps(head | chunk).encode() + b"\n\n")

    def _send(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running() -> Iterator[FakeChatEngine]:
    """Run a fake engine for the duration of the block."""
    with serving(FakeChatEngine()) as server:
        yield server
