"""A fake provider of models with OpenAI's API: `fake_provider.py PORT`. No model answers here.

The name of the model says what it does:

    fake-ok       answers, also streamed
    fake-429      limits its client, with Retry-After: 7
    fake-500      fails
    fake-garbage  answers with text that is no JSON
    fake-never    never answers

Any other model answers, too.
A key other than `sk-fake-key` gets 401, with words that no client of the gateway may see. `GET /calls`
returns the number of requests by model.
"""

import json
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

KEY = "sk-fake-key"
SECRET_WORDS = "account fake-org-acme"
NEVER_SECONDS = 600.0
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


class FakeProvider(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    calls: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        """Return the models as an engine lists them, or the number of requests by model."""
        listed = {"data": [{"id": "fake-never"}]}
        self._answer(200, listed if self.path == "/v1/models" else dict(self.calls))

    def do_POST(self) -> None:
        """Answer a chat, as its model says."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = body["model"]
        self.calls[model] += 1
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self._fail(401)
        elif model == "fake-429":
            self._fail(429, {"Retry-After": "7"})
        elif model == "fake-500":
            self._fail(500)
        elif model == "fake-garbage":
            self._send(200, b"<html>fake", {})
        elif model == "fake-never":
            time.sleep(NEVER_SECONDS)
        elif body.get("stream"):
            self._stream(model)
        else:
            message = {"role": "assistant", "content": "fake answer"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            head = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 1, "model": model}
            self._answer(200, head | {"choices": [choice], "usage": USAGE})

    def _stream(self, model: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": model}
        deltas: list[tuple[dict[str, str], str | None]] = [
            ({"role": "assistant", "content": "fake "}, None),
            ({"content": "answer"}, None),
            ({}, "stop"),
        ]
        for delta, reason in deltas:
            self._event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        self._event(head | {"choices": [], "usage": USAGE})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def _fail(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._answer(status, {"error": {"message": f"fake failure of {SECRET_WORDS}"}}, headers)

    def _answer(self, status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(document).encode(), headers or {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), FakeProvider).serve_forever()
