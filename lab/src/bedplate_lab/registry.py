"""A static model registry: serves a folder of Ollama's models, so that `ollama pull` works offline.

It serves GET of manifests, HEAD of blobs, and GET of blobs. It redirects GET of a blob to another host name
of this server: Ollama's HTTP library follows a redirect within one name, and Ollama then misses its Location.
"""

import re
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

from bedplate_lab.access import HostAccess
from bedplate_lab.errors import LabError
from bedplate_lab.records import Host, HostRecords
from bedplate_lab.tools import run, say

CODE_IN_HOST = "/usr/local/lib/lab-registry"

MANIFEST = re.compile(r"/v2/(?P<name>\w[\w.-]*/\w[\w.-]*)/manifests/(?P<tag>\w[\w.-]*)")
BLOB = re.compile(r"/(?:v2/[\w.-]+/[\w.-]+/blobs|data)/sha256:(?P<digest>[0-9a-f]{64})")
RANGE = re.compile(r"bytes=(?P<first>\d+)-(?P<last>\d*)")


class Server(ThreadingHTTPServer):
    """Serves the folder `models` on `address` and `port`; raises LabError if it is not a models folder."""

    daemon_threads = True

    def __init__(self, models: Path, address: str, port: int, pause_seconds: float = 0) -> None:
        if not (models / "manifests").is_dir() or not (models / "blobs").is_dir():
            raise LabError(f"{models} has no manifests/ and blobs/; name the folder in OLLAMA_MODELS")
        self.models = models
        self.pause_seconds = pause_seconds
        """The pause after each MiB, for a pull that takes long."""
        super().__init__((address, port), Handler)

    def manifest(self, name: str, tag: str) -> Path | None:
        """Return the manifest of a model from any registry, None if there is none."""
        return next(iter(sorted((self.models / "manifests").glob(f"*/{name}/{tag}"))), None)


class Handler(BaseHTTPRequestHandler):
    """Serves one request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Send the headers alone."""
        self._respond(body=False)

    def do_GET(self) -> None:
        """Send headers and content."""
        self._respond(body=True)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - http.server's
        """Log the request and its status on standard error."""
        say(f"registry: {self.address_string()} {self.requestline} {int(code)}")

    def _respond(self, body: bool) -> None:
        path: Path | None = None
        if match := MANIFEST.fullmatch(self.path):
            path = self.server.manifest(match["name"], match["tag"])
        elif match := BLOB.fullmatch(self.path):
            path = self.server.models / "blobs" / f"sha256-{match['digest']}"
            if body and not self.path.startswith("/data/") and path.is_file():
                self._redirect(match["digest"])
                return
        if path is None or not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as stream:
            self._send(stream, path.stat().st_size, body)

    def _redirect(self, digest: str) -> None:
        """Redirect to this server's address in its IPv6 spelling, which counts as another name."""
        address, port = self.connection.getsockname()[:2]
        self.send_response(HTTPStatus.TEMPORARY_REDIRECT)
        self.send_header("Location", f"http://[::ffff:{address}]:{port}/data/sha256:{digest}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, stream: BinaryIO, size: int, body: bool) -> None:
        first, last = 0, size - 1
        match = RANGE.fullmatch(self.headers["Range"] or "")
        if match:
            first, last = int(match["first"]), min(int(match["last"] or last), last)
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(HTTPStatus.OK)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if not body:
            return
        stream.seek(first)
        left = last - first + 1
        while left > 0 and (piece := stream.read(min(left, 1 << 20))):
            self.wfile.write(piece)
            left -= len(piece)
            time.sleep(self.server.pause_seconds)


def serve(models: Path, address: str, port: int, pause_seconds: float = 0) -> None:
    """Serve `models` until interrupted."""
    try:
        server = Server(models, address, port, pause_seconds)
    except OSError as error:
        raise LabError(
            f"can't listen on {address}:{port} ({error.strerror}); choose another --port"
        ) from None
    say(f"registry: {models} is served; pull http://{address}:{port}/library/NAME:TAG with insecure set")
    server.serve_forever()


def serve_in(records: HostRecords, host: Host, models: str, port: int, pause_seconds: float = 0) -> None:
    """Serve a host's folder `models` from that host, as its service lab-registry, until the host stops."""
    access, address = HostAccess(records), str(records.address(host))
    access.call(host, ["mkdir", "-p", f"{CODE_IN_HOST}/bedplate_lab"])
    for file in Path(__file__).parent.glob("*.py"):
        run(
            access.exec_command(host, ["tee", f"{CODE_IN_HOST}/bedplate_lab/{file.name}"]),
            stdin=file.read_text(),
        )
    program = "import sys, pathlib; from bedplate_lab.registry import serve; "
    program += "serve(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))"
    unit = [
        "systemd-run",
        "--quiet",
        "--collect",
        "--unit=lab-registry",
        f"--setenv=PYTHONPATH={CODE_IN_HOST}",
    ]
    access.call(host, [*unit, "python3", "-B", "-c", program, models, address, str(port), str(pause_seconds)])
    say(f"registry: {host.name} serves {models}; pull http://{address}:{port}/library/NAME:TAG as insecure")
