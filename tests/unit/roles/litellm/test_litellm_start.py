"""roles/litellm/files/start.py: it gets the key, warms LiteLLM up and then notifies systemd."""

import gc
import json
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class FakeLiteLLM(ThreadingHTTPServer):
    """Answers every request with `statuses` of its path, 200 by default, and keeps what it was asked."""

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}
        self.requests: list[tuple[str, str | None, dict[str, Any]]] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    """One request to FakeLiteLLM."""

    server: FakeLiteLLM

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body: dict[str, Any]) -> None:
        """Record the request and answer it."""
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.server.statuses.get(self.path, 200))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def start(load_source: Callable[[str], ModuleType]) -> ModuleType:
    """Return the program as a module."""
    return load_source("roles/litellm/files/start.py")


@pytest.fixture
def litellm() -> Iterator[FakeLiteLLM]:
    """Run a FakeLiteLLM."""
    with FakeLiteLLM() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Return the socket at which systemd gets notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(0.1)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel


def before_silence(systemd: socket.socket) -> int:
    """Return the number of notifications, at most 100, before none came for the socket's timeout."""
    for number in range(100):
        try:
            systemd.recv(100)
        except TimeoutError:
            return number
    return 100


def test_systemd_is_notified_after_one_request_of_each_kind(
    start: ModuleType, litellm: FakeLiteLLM, systemd: socket.socket
) -> None:
    threading.Thread(target=start.report_state, args=(litellm.server_port, "sk-master"), daemon=True).start()
    systemd.settimeout(5)
    assert systemd.recv(100) == b"READY=1"
    first, *warm_up = litellm.requests
    assert first[0] == "/health/liveliness"
    assert [(path, body.get("stream", False)) for path, _, body in warm_up] == [
        ("/v1/chat/completions", False),
        ("/v1/chat/completions", True),
        ("/v1/completions", False),
        ("/v1/embeddings", False),
        ("/v1/responses", False),
    ]
    assert {(key, body["model"]) for _, key, body in warm_up} == {("Bearer sk-master", "warm-up")}


def test_the_watchdog_is_notified_only_while_litellm_answers(
    start: ModuleType, litellm: FakeLiteLLM, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "WATCHDOG_SECONDS", 0.01)
    threading.Thread(target=start.notify_watchdog, args=(litellm.server_port,), daemon=True).start()
    systemd.settimeout(5)
    assert systemd.recv(100) == b"WATCHDOG=1"
    litellm.statuses["/health/liveliness"] = 503
    systemd.settimeout(0.3)
    assert before_silence(systemd) < 100


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the unit's credentials."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return tmp_path


def test_the_providers_keys_are_read_from_the_credential(start: ModuleType, credentials: Path) -> None:
    # As Ansible writes {CLOUD_KEY: "sk-ü", RETRIES: 3}.
    (credentials / "environment.json").write_text('{"CLOUD_KEY": "sk-\\u00fc", "RETRIES": 3}')
    assert start.read_environment() == {"CLOUD_KEY": "sk-ü", "RETRIES": "3"}


@pytest.mark.parametrize(
    "content", ["", "CLOUD_KEY=sk-cloud", '{"CLOUD_KEY": "sk-cloud"', '["sk-cloud"]', '"sk-cloud"']
)
def test_an_invalid_credential_ends_the_start_without_showing_it(
    start: ModuleType, credentials: Path, content: str
) -> None:
    (credentials / "environment.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        start.read_environment()
    assert str(ended.value) == (
        "/etc/bedplate/litellm/environment.json is not valid: ansible-playbook site.yml --tags litellm"
    )


@pytest.mark.parametrize(("content", "accepted"), [("sk-master\n", True), ("", False), ("master", False)])
def test_without_a_master_key_litellm_does_not_start(
    start: ModuleType, credentials: Path, content: str, accepted: bool
) -> None:
    (credentials / "master-key").write_text(content)
    if accepted:
        assert start.master_key() == "sk-master"
        return
    with pytest.raises(SystemExit, match="contains no key"):
        start.master_key()


class Garbage:
    """Something that only the collector finds."""

    itself: object


@pytest.fixture
def collector() -> Iterator[None]:
    """Put Python's collector and the timer back as they were."""
    handler = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    gc.enable()


@pytest.mark.usefixtures("collector")
def test_garbage_is_collected_by_the_timer_alone(start: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "GARBAGE_SECONDS", 0.05)
    start.collect_garbage_between_steps()
    assert not gc.isenabled()
    garbage = Garbage()
    garbage.itself = garbage
    watched = weakref.ref(garbage)
    del garbage
    until = time.monotonic() + 10
    while watched() is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert watched() is None


def test_a_failed_warm_up_ends_the_service(
    start: ModuleType,
    litellm: FakeLiteLLM,
    systemd: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    litellm.statuses["/v1/embeddings"] = 500
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    start.report_state(litellm.server_port, "sk-master")
    assert codes == [1]
    assert capsys.readouterr().err == "warm-up failed: LiteLLM answered 500 at /v1/embeddings\n"
    with pytest.raises(TimeoutError):
        systemd.recv(100)


def test_it_waits_until_litellm_listens(start: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([0, 503, 200])
    monkeypatch.setattr(start, "status", lambda *_: next(codes, 200))
    start.warm_up(4000, "sk-master")
    assert next(codes, None) is None


def test_nothing_listening_is_status_0(start: ModuleType) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert start.status(unused.getsockname()[1], "/") == 0


def test_a_taken_port_is_refused(start: ModuleType, litellm: FakeLiteLLM) -> None:
    with pytest.raises(SystemExit, match=rf"^127.0.0.1:{litellm.server_port} cannot be used \(Address"):
        start.refuse_taken_port(litellm.server_port)


def test_a_free_port_stays_free(start: ModuleType) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start.refuse_taken_port(port)
    start.refuse_taken_port(port)


@pytest.mark.parametrize("content", ["", "\n", "something else"])
def test_without_a_key_it_does_not_start(
    start: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / "master-key").write_text(content)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(SystemExit, match="contains no key"):
        start.master_key()


def test_the_key_comes_from_the_credential(
    start: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "master-key").write_text("sk-abc\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert start.master_key() == "sk-abc"
