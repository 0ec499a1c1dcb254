"""The real server: gunicorn starts, polls in its worker, and refuses a wrong configuration."""

import contextlib
import importlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def start(tmp_path: Path, socket_path: Path, config: dict[str, Any]) -> Iterator[Start]:
    (tmp_path / "gateway-key").write_text("sk-dashboard")
    (tmp_path / "config.json").write_text(json.dumps(config | {"gateway_url": "http://127.0.0.1:1"}))
    started = []

    def run() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "-c", "python:bedplate_dashboard.gunicorn_conf"),
                *("--bind", f"unix:{socket_path}", "bedplate_dashboard.wsgi:app"),
            ],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(SOURCE),
                "CREDENTIALS_DIRECTORY": str(tmp_path),
                "BEDPLATE_DASHBOARD_CONFIG": str(tmp_path / "config.json"),
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.terminate()
        process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


def test_it_starts_and_polls(start: Start, socket_path: Path) -> None:
    process = start()
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_path))) as client:
        status: dict[str, Any] = {"at": None}
        deadline = time.monotonic() + 20
        while status["at"] is None:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
            # The socket's file exists a moment before gunicorn listens on it.
            with contextlib.suppress(httpx.ConnectError):
                status = client.get("http://dashboard/api/status.json").json()
        assert status["state"] == "down"
        assert status["next"] == "journalctl -u bedplate-gateway -n 50"
        assert client.get("http://dashboard/healthz").text == "ok\n"


def test_the_watchdog_hears_of_a_worker_that_polls(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        start()
        assert systemd.recv(100).startswith(b"READY=1")
        assert systemd.recv(100) == b"WATCHDOG=1"


class StubWorker:
    """A worker with one thread, at a Unix socket and a port."""

    log = logging.getLogger("stub")

    def __init__(self, file: Path) -> None:
        self.cfg = SimpleNamespace(address=[str(file), ("127.0.0.1", 3001)])
        self.beats = 0
        self.tpool = ThreadPoolExecutor(1)
        self.poller = SimpleNamespace(passes=0)
        self.wsgi = SimpleNamespace(extensions={"poller": self.poller})

    def notify(self) -> None:
        self.beats += 1


@pytest.fixture
def conf(tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "gateway-key").write_text("sk-dashboard")
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("BEDPLATE_DASHBOARD_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    module = importlib.import_module("bedplate_dashboard.gunicorn_conf")
    monkeypatch.setattr(module, "ALIVE_SECONDS", 0.0)
    return module


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(0.3)
        yield channel


@pytest.fixture
def worker(socket_path: Path) -> Iterator[StubWorker]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        stub = StubWorker(socket_path)
        yield stub
        stub.tpool.shutdown()


def test_the_watchdog_hears_nothing_while_the_poller_or_every_thread_hangs(
    conf: ModuleType, systemd: socket.socket, worker: StubWorker
) -> None:
    watchdog = conf.Watchdog(worker)
    watchdog.notify()
    with pytest.raises(TimeoutError):
        systemd.recv(100)
    worker.poller.passes += 1
    watchdog.notify()
    assert systemd.recv(100) == b"WATCHDOG=1"
    worker.tpool.submit(int).result()

    hang = threading.Event()
    worker.tpool.submit(hang.wait)
    for _ in range(3):
        worker.poller.passes += 1
        watchdog.notify()
    with pytest.raises(TimeoutError):
        systemd.recv(100)
    hang.set()
    assert systemd.recv(100) == b"WATCHDOG=1"
    assert worker.beats == 5


def test_the_watchdog_hears_nothing_once_the_socket_is_removed(
    conf: ModuleType, systemd: socket.socket, worker: StubWorker, socket_path: Path
) -> None:
    watchdog = conf.Watchdog(worker)
    socket_path.unlink()
    worker.poller.passes += 1
    watchdog.notify()
    with pytest.raises(TimeoutError):
        systemd.recv(100)


def test_a_wrong_configuration_ends_the_start(start: Start, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    process = start()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("bedplate-dashboard: ")
    assert "Traceback" not in errors
