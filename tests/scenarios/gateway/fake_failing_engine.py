"""An engine that answers each request with HTTP 500, and counts: `fake_failing_engine.py PORT MODEL...`."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Lists the models as Ollama does, and the number of requests at /calls."""

    protocol_version = "HTTP/1.1"
    calls = 0

    def do_GET(self) -> None:
        """Answer a poll of the gateway."""
        if self.path == "/calls":
            self._respond(200, Handler.calls)
        else:
            models = [{"name": f"{model}:latest", "digest": model} for model in sys.argv[2:]]
            self._respond(200, {"models": models})

    def do_POST(self) -> None:
        """Fail, but for the details of a model."""
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/show":
            self._respond(200, {"capabilities": ["completion"]})
        else:
            Handler.calls += 1
            self._respond(500, {"error": {"message": "broken on purpose"}})

    def _respond(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
