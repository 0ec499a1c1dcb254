"""A gateway that keeps every promise to clients, and can be told to break one."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "smollm2:135m"


class FakeGateway(ThreadingHTTPServer):
    """The attributes are what a test changes; limits are by key and count for ever."""

    request_queue_size = 100

    def __init__(self) -> None:
        """Listen on a free port of the loopback."""
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.lock = threading.Lock()
        self.models = [MODEL]
        self.keys: set[str] = set()
        self.open_paths: set[str] = set()
        self.limits: dict[str, tuple[str, int]] = {}
        self.told_limits: dict[str, tuple[str, int]] = {}
        self.used: Counter[str] = Counter()
        self.retry_after = "60"
        self.headers = True
        self.chat_status = 200
        self.ready = 200

    @property
    def url(self) -> str:
        """Its address without /v1."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def told(self, key: str) -> dict[str, str]:
        """Return the x-ratelimit headers of a key."""
        unit, limit = self.told_limits.get(key) or self.limits.get(key) or ("", 0)
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
        """Say nothing."""

    @property
    def key(self) -> str:
        """The key that came."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def tell(self, status: int, document: dict[str, Any], headers: dict[str, str]) -> None:
        """Send an answer."""
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        """Send an error."""
        self.tell(status, {"error": {"message": "no", "code": code}}, headers or {})

    def do_GET(self) -> None:
        """Answer a GET."""
        if self.path in self.server.open_paths:
            self.tell(200, {}, {})
        elif self.path == "/health/readiness":
            self.tell(self.server.ready, {}, {})
        elif self.path != "/v1/models":
            self.refuse(404, "unknown_url")
        elif self.key not in self.server.keys:
            self.refuse(401, "invalid_api_key")
        else:
            names = [{"id": name} for name in self.server.models]
            self.tell(200, {"data": names}, self.server.told(self.key))

    def do_POST(self) -> None:
        """Answer a POST."""
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "{}")
        if self.path != "/v1/chat/completions":
            self.refuse(404, "unknown_url")
        elif self.key not in self.server.keys:
            self.refuse(401, "invalid_api_key")
        elif body["model"] not in self.server.models:
            self.refuse(503, "engine_unavailable")
        elif self.server.chat_status != 200:
            self.refuse(self.server.chat_status, "engine_error")
        else:
            self.count()

    def count(self) -> None:
        """Answer a question where the limit allows."""
        server, key = self.server, self.key
        unit, limit = server.limits.get(key, ("", 0))
        with server.lock:
            passes = not unit or server.used[key] < limit
            server.used[key] += passes
            told = server.told(key)
        if passes:
            self.tell(200, {}, told)
        else:
            self.refuse(429, "rate_limit_exceeded", told | {"retry-after": server.retry_after})


@contextmanager
def running() -> Iterator[FakeGateway]:
    """Run one for the length of a block."""
    with FakeGateway() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
