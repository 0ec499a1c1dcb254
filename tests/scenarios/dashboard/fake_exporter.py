"""A fake exporter that returns HTML in every text. Usage: fake_exporter.py PORT"""

import json
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

MARKUP = '<img src=x onerror=alert(1)>"><script>alert(2)</script>'


class FakeExporter(BaseHTTPRequestHandler):
    """Answers every request with the same state."""

    def do_GET(self) -> None:
        """Send a state in which each text is markup."""
        model = {"name": MARKUP, "digest": MARKUP, "size_bytes": 1, "loaded": False}
        state = {
            "schema": 1,
            "at": datetime.now(UTC).isoformat(),
            "engine": {"up": True, "version": MARKUP, "error": MARKUP, "latency_seconds": 0.001},
            "models": [model, {**model, "name": f"{MARKUP}:latest"}],
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(state).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Log nothing."""


HTTPServer(("127.0.0.1", int(sys.argv[1])), FakeExporter).serve_forever()
