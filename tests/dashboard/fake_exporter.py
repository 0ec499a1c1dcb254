"""A fake exporter whose every word is HTML. Usage: fake_exporter.py PORT"""

import json
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

WORD = '<img src=x onerror=alert(1)>"><script>alert(2)</script>'


class FakeExporter(BaseHTTPRequestHandler):
    """Answers everything with the same state."""

    def do_GET(self) -> None:
        """Tell a state in which each text is markup."""
        model = {"name": WORD, "digest": WORD, "size_bytes": 1, "loaded": False}
        state = {
            "schema": 1,
            "at": datetime.now(UTC).isoformat(),
            "engine": {"up": True, "version": WORD, "error": WORD, "latency_seconds": 0.001},
            "models": [model, {**model, "name": f"{WORD}:latest"}],
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(state).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing."""


HTTPServer(("127.0.0.1", int(sys.argv[1])), FakeExporter).serve_forever()
