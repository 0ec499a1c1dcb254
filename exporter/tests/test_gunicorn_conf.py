"""The real server under a stub of systemd."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(20)
        yield channel


def test_the_watchdog_hears_of_the_worker_until_every_thread_hangs(
    tmp_path: Path, systemd: socket.socket
) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "-c", "python:bedplate_exporter.gunicorn_conf"),
            *("--bind", f"unix:{tmp_path / 's'}", "bedplate_exporter.wsgi:app"),
        ],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SOURCE),
            "BEDPLATE_OLLAMA_URL": "http://127.0.0.1:1",
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
        },
    )
    try:
        assert systemd.recv(100).startswith(b"READY=1")
        assert systemd.recv(100) == b"WATCHDOG=1"
        hanging = [socket.socket(socket.AF_UNIX) for _ in range(8)]
        for client in hanging:
            client.connect(str(tmp_path / "s"))
            client.send(b"GET / HTTP/1.1\r\n")
        systemd.settimeout(7)
        with pytest.raises(TimeoutError):
            systemd.recv(100)
        for client in hanging:
            client.close()
        assert systemd.recv(100) == b"WATCHDOG=1"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
