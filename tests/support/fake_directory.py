#!/usr/bin/python3
"""An ACME directory that issues nothing: it sends garbage, or refuses each order because of a rate limit."""

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

URL = "https://127.0.0.1:14000"
DIRECTORY = {
    name: f"{URL}/{name}" for name in ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")
}
LIMITED = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many certificates already issued"}


class Directory(BaseHTTPRequestHandler):
    """The first argument of the program is what it does: `garbage` or `limited`."""

    def answer(self, status: int, content: str) -> None:
        """Send an answer with the nonce that each request needs."""
        self.send_response(status)
        self.send_header("Replay-Nonce", "bm9uY2U")
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content.encode())

    def do_GET(self) -> None:
        """Answer with the directory."""
        self.answer(200, "<html>garbage" if sys.argv[1] == "garbage" else json.dumps(DIRECTORY))

    def do_HEAD(self) -> None:
        """Answer with a nonce."""
        self.answer(200, "")

    def do_POST(self) -> None:
        """Refuse the order."""
        self.answer(429, json.dumps(LIMITED))

    def log_message(self, *args: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", 14000), Directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/srv/pebble/server.crt", "/srv/pebble/server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
