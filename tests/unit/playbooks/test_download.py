"""download: complete, wrong and cut files, and a proxy with a password, against a real server and proxy."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CONTENT = b"engine" * 300_000
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
WORD = "word-of-the-proxy"
Run = Callable[..., dict[str, Any]]


class Server:
    """A server of CONTENT, also as a proxy; it remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.environments: list[bytes] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers["Proxy-Authorization"]))
                server.environments.append(Path("/proc/self/environ").read_bytes())
                if self.path.endswith("/missing"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT[: -1 if self.path.endswith("/cut") else None])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def run(
    load_source: Callable[[str], ModuleType],
    run_module: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Run:
    """Run the module for a file in tmp_path; the process has no proxies."""
    plugin = load_source("playbooks/library/download.py")
    # A copy, so that what the module sets ends with the test.
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    monkeypatch.setattr(os, "environ", kept)

    def run(url: str, *, check: bool = False, **params: Any) -> dict[str, Any]:
        return run_module(plugin, {"url": url, "dest": str(tmp_path / "file"), **params}, check=check)

    return run


def test_a_file_is_downloaded_once(run: Run, server: Server, tmp_path: Path) -> None:
    assert run(f"{server.url}/a", checksum=CHECKSUM, check=True)["changed"] is True
    assert list(tmp_path.iterdir()) == []
    assert run(f"{server.url}/a", checksum=CHECKSUM, mode="0640")["changed"] is True
    file = tmp_path / "file"
    assert file.read_bytes() == CONTENT
    assert file.stat().st_mode & 0o777 == 0o640
    assert run(f"{server.url}/a", checksum=CHECKSUM, mode="0640")["changed"] is False
    assert run(f"{server.url}/a", mode="0640")["changed"] is False
    assert len(server.asked) == 1
    file.write_bytes(b"half")
    assert run(f"{server.url}/a", checksum=CHECKSUM)["changed"] is True
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "cannot be downloaded: HTTP status 404."),
        ("cut", "cannot be downloaded: it ended 1 bytes early."),
        ("a", f"has {CHECKSUM}, expected sha256:{'0' * 64}: correct the checksum or the address."),
    ],
)
def test_a_failed_download_leaves_the_old_file(
    run: Run, server: Server, tmp_path: Path, path: str, message: str
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    failed = run(f"{server.url}/{path}", checksum=f"sha256:{'0' * 64}")
    assert failed["failed"] is True
    assert message in failed["msg"]
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_nobody_listens(run: Run) -> None:
    assert "http://127.0.0.1:9/a cannot be downloaded: " in run("http://127.0.0.1:9/a")["msg"]


def test_the_proxys_password_is_sent_and_shown_nowhere(run: Run, server: Server) -> None:
    proxies = {"http": f"http://user:{WORD}@127.0.0.1:{server.port}"}
    done = run("http://mirror.example/a", checksum=CHECKSUM, proxies=proxies)
    assert done["changed"] is True
    login = base64.b64encode(f"user:{WORD}".encode()).decode()
    assert server.asked == [("http://mirror.example/a", f"Basic {login}")]
    assert WORD not in str(done)
    assert WORD.encode() not in server.environments[0]
