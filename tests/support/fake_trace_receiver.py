"""A fake receiver of OpenTelemetry's traces: `fake_trace_receiver.py PORT`. It stores nothing but in memory.

It takes OTLP over HTTP, in JSON from the gateway and in protobuf from LiteLLM. For the latter it must run
with an interpreter that has the package opentelemetry-proto, such as LiteLLM's own. `GET /spans` returns the
spans as one list of flat objects, `GET /raw` every byte that came.
"""

from __future__ import annotations

import json
import sys
import threading
from base64 import b64decode
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any

KINDS = {"SPAN_KIND_INTERNAL": 1, "SPAN_KIND_SERVER": 2, "SPAN_KIND_CLIENT": 3}
FIELDS = ("traceId", "spanId", "parentSpanId", "name", "kind", "startTimeUnixNano", "endTimeUnixNano")


class FakeTraceReceiver(ThreadingHTTPServer):
    """Answers with `status`, and keeps the spans of what it took with 200."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.status = 200
        self.spans: list[dict[str, Any]] = []
        self.raw = b""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Return the base URL without /v1/traces."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One message."""

    server: FakeTraceReceiver

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        """Take a message with spans."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/traces":
            self.reply(404, b"")
            return
        spans = list(flat(read_message(body, self.headers["Content-Type"])))
        with self.server.lock:
            self.server.raw += body
            if self.server.status == 200:
                self.server.spans += spans
        self.reply(self.server.status, b"{}")

    def do_GET(self) -> None:
        """Return what came."""
        with self.server.lock:
            body = self.server.raw if self.path == "/raw" else json.dumps(self.server.spans).encode()
        self.reply(200, body)

    def reply(self, status: int, body: bytes) -> None:
        """Send a response."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def read_message(body: bytes, content_type: str) -> dict[str, Any]:
    """Return a message in the form of OTLP's JSON."""
    if content_type == "application/json":
        document: dict[str, Any] = json.loads(body)
        return document
    # Only LiteLLM's interpreter has them.
    service = import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    to_dict = import_module("google.protobuf.json_format").MessageToDict
    request: dict[str, Any] = to_dict(service.ExportTraceServiceRequest.FromString(body))
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                # JSON made of protobuf has ids in Base64, and OTLP's JSON has them in hex.
                for name in {"traceId", "spanId", "parentSpanId"} & span.keys():
                    span[name] = b64decode(span[name]).hex()
                span["kind"] = KINDS[span["kind"]]
    return request


def flat(message: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Iterate over the spans, each with its service and its attributes by name."""
    for resource in message["resourceSpans"]:
        service = values(resource["resource"]["attributes"])["service.name"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                fields = {name: span.get(name, "") for name in FIELDS}
                failed = span.get("status", {}).get("code") in {2, "STATUS_CODE_ERROR"}
                named = values(span.get("attributes", []))
                yield {**fields, "service": service, "failed": failed, "values": named}


def values(attributes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return attributes as a dictionary."""
    return {each["key"]: value_of(each["value"]) for each in attributes}


def value_of(value: Mapping[str, Any]) -> Any:
    """Return one value; JSON has whole numbers as text."""
    [(kind, content)] = value.items()
    return int(content) if kind == "intValue" else content


if __name__ == "__main__":
    FakeTraceReceiver(int(sys.argv[1])).serve_forever()
