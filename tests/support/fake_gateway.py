"""A fake gateway that passes every check of gateway_checks, unless a test changes its attributes."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.serving import serving

MODEL = "smollm2:135m"


class FakeGateway(ThreadingHTTPServer):
    """Tests change the attributes; limits are by key and never reset."""

    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.lock = threading.Lock()
        self.models = [MODEL]
        self.keys: set[str] = set()
        self.open_paths: set[str] = set()
        self.limits: dict[str, tuple[str, int]] = {}
        self.reported_limits: dict[str, tuple[str, int]] = {}
        self.used: Counter[str] = Counter()
        self.retry_after = "60"
        self.headers = True
        self.chat_status = 200
        self.ready = 200
        self.stream_ends = {"/v1/messages": "message_stop", "/v1/responses": "response.incomplete"}
        self.tokens = 0
        self.metrics = ""
        """Lines of /metrics, after that of the tokens."""
        self.tokens_of_a_stream = 1
        self.edge_only = False
        """Whether only an edge answers, with its own error."""

    @property
    def url(self) -> str:
        """Return the base URL without /v1."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def limit_headers(self, key: str) -> dict[str, str]:
        """Return the x-ratelimit headers for a key."""
        unit, limit = self.reported_limits.get(key) or self.limits.get(key) or ("", 0)
        left = max(0, limit - self.used[key])
        values = {"limit": limit, "remaining": left, "reset": "60s"}
        return (
            {f"x-ratelimit-{name}-{unit}": str(value) for name, value in values.items()}
            if unit and self.headers
            else {}
        )


class FakeHandler(BaseHTTPRequestHandler):
    """One request."""

    server: FakeGateway

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    @property
    def key(self) -> str:
        """Return the request's API key."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def reply(self, status: int, document: dict[str, Any], headers: dict[str, str]) -> None:
        """Send a response."""
        self.reply_with(status, json.dumps(document), headers)

    def reply_with(self, status: int, text: str, headers: dict[str, str]) -> None:
        """Send a response that is no JSON."""
        body = text.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        """Send an error response."""
        self.reply(status, {"error": {"message": "no", "code": code}}, headers or {})

    def do_GET(self) -> None:
        """Handle GET."""
        if self.server.edge_only:
            self.refuse(503, "service_unavailable")
        elif self.path in self.server.open_paths:
            self.reply(200, {}, {})
        elif self.path == "/metrics" and not self.key:
            tokens = (
                f'bedplate_gateway_completion_tokens_total{{alias="verify",model="m"}} {self.server.tokens}'
            )
            self.reply_with(200, f"{tokens}\n{self.server.metrics}", {})
        elif self.path == "/health/readiness":
            self.reply(self.server.ready, {}, {})
        elif self.path != "/v1/models":
            self.refuse(404, "unknown_url")
        elif self.key not in self.server.keys:
            self.refuse(401, "invalid_api_key")
        else:
            names = [{"id": name} for name in self.server.models]
            self.reply(200, {"data": names}, self.server.limit_headers(self.key))

    def do_POST(self) -> None:
        """Handle POST."""
        if self.server.edge_only:
            self.refuse(503, "service_unavailable")
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "{}")
        if self.path not in {"/v1/chat/completions", *self.server.stream_ends}:
            self.refuse(404, "unknown_url")
        elif self.key not in self.server.keys:
            self.refuse(401, "invalid_api_key")
        elif body["model"] not in self.server.models:
            self.refuse(503, "engine_unavailable")
        elif self.server.chat_status != 200:
            self.refuse(self.server.chat_status, "engine_error")
        elif end := self.server.stream_ends.get(self.path):
            self.server.tokens += self.server.tokens_of_a_stream
            self.reply_with(200, f"event: begin\ndata: {{}}\n\nevent: {end}\ndata: {{}}\n\n", {})
        else:
            self.complete()

    def complete(self) -> None:
        """Respond to a chat request if the limit allows it."""
        server, key = self.server, self.key
        unit, limit = server.limits.get(key, ("", 0))
        with server.lock:
            passes = not unit or server.used[key] < limit
            server.used[key] += passes
            headers = server.limit_headers(key)
        if passes:
            self.reply(200, {}, headers)
        else:
            self.refuse(429, "rate_limit_exceeded", headers | {"retry-after": server.retry_after})


@contextmanager
def running() -> Iterator[FakeGateway]:
    """Run a fake gateway for the duration of the block."""
    with serving(FakeGateway()) as server:
        yield server
