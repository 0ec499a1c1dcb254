#!/usr/bin/python3
"""A webhook and a mail server that write each message from Alertmanager as a line of JSON."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

LOG = Path(sys.argv[1] if len(sys.argv) > 1 else "/root/received.jsonl")


def record(kind: str, **what: object) -> None:
    """Append one line to the log."""
    with LOG.open("a") as file:
        file.write(json.dumps({"kind": kind, **what}) + "\n")


class Hook(BaseHTTPRequestHandler):
    """The webhook."""

    def do_POST(self) -> None:
        """Record the alerts and the request's bearer token."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        record("webhook", authorization=self.headers["Authorization"], **body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Log nothing."""


class Mail(StreamRequestHandler):
    """A minimal SMTP server."""

    def handle(self) -> None:
        """Record the mails of one session."""
        self.wfile.write(b"220 fake\r\n")
        for line in self.rfile:
            verb = line.split()[0].upper() if line.split() else b""
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                text = b"".join(iter(self.rfile.readline, b".\r\n"))
                record("mail", text=text.decode(errors="replace"))
            self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 fine\r\n")
            if verb == b"QUIT":
                return


if __name__ == "__main__":
    ThreadingTCPServer.allow_reuse_address = True
    mail = ThreadingTCPServer(("127.0.0.1", 2525), Mail)
    threading.Thread(target=mail.serve_forever, daemon=True).start()
    HTTPServer(("127.0.0.1", 9999), Hook).serve_forever()
