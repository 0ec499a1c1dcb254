"""A proxy that asks for a password and passes requests on from this machine, for the hosts of the lab."""

from __future__ import annotations

import base64
import http.client
import secrets
import select
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

IDLE_SECONDS = 60
PIECE = 2**16


class PasswordProxy(ThreadingHTTPServer):
    """The proxy; `programs` are the clients that it served, `refused` counts those without the password."""

    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), Handler)
        self.password = secrets.token_urlsafe(18)
        self.url = f"http://bedplate:{self.password}@{address}:{self.server_address[1]}"
        self.login = base64.b64encode(f"bedplate:{self.password}".encode()).decode()
        self.programs: set[str] = set()
        self.refused = 0

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients end connections in the middle of an answer."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection of a client."""

    server: PasswordProxy
    timeout = IDLE_SECONDS

    def is_allowed(self) -> bool:
        """Return whether the request has the password; otherwise answer it."""
        if self.headers["Proxy-Authorization"] == f"Basic {self.server.login}":
            self.server.programs.add((self.headers["User-Agent"] or "").partition("/")[0])
            return True
        self.server.refused += 1
        self.send_response(407)
        self.send_header("Proxy-Authenticate", 'Basic realm="lab"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_CONNECT(self) -> None:
        """Join the client with the server that it names."""
        if not self.is_allowed():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), IDLE_SECONDS) as server:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: server, server: self.connection}
            while readable := select.select(list(ends), [], [], IDLE_SECONDS)[0]:
                for end in readable:
                    piece = end.recv(PIECE)
                    if not piece:
                        self.close_connection = True
                        return
                    ends[end].sendall(piece)

    def do_GET(self) -> None:
        """Pass on a request without TLS, and its answer."""
        if not self.is_allowed():
            return
        target = urlsplit(self.path)
        kept = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        connection = http.client.HTTPConnection(target.netloc, timeout=IDLE_SECONDS)
        try:
            path = target._replace(scheme="", netloc="").geturl() or "/"
            connection.request("GET", path, headers={**kept, "Connection": "close"})
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"connection", "transfer-encoding"}:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            shutil.copyfileobj(answer, self.wfile)
        finally:
            connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def password_proxy(address: str) -> Iterator[PasswordProxy]:
    """Serve at an address of this machine during the block."""
    with PasswordProxy(address) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
