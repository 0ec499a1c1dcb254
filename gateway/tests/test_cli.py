"""The command as systemd runs it, with a stub of systemd that stores sockets and receives notifications."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bedplate_gateway
import pytest
from bedplate_gateway.cli import EXIT_CONFIGURATION

SOURCE = Path(bedplate_gateway.__file__).parents[1]
COMMAND = "from bedplate_gateway import cli; cli.REACHABLE_SECONDS = 0.1; cli.main()"


class StubSystemd:
    """Starts the command with the sockets that it stored, and notes the main process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[str, int] = {}
        self.main: int | None = None
        self.messages: list[str] = []
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(str(folder / "notify"))
        self._channel.settimeout(20)
        self.processes: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command without waiting for it."""
        # The shell knows its number before it becomes the command, and hands the sockets on from 3.
        order = [f"{3 + number}<&{stored}" for number, stored in enumerate(self.stored.values())]
        script = f'LISTEN_PID=$$ exec "$@" {" ".join(order)}'
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                script,
                "bash",
                sys.executable,
                "-c",
                COMMAND,
                *arguments,
                str(self.folder / "gateway.json"),
            ],
            pass_fds=list(self.stored.values()),
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(SOURCE),
                "NOTIFY_SOCKET": str(self.folder / "notify"),
                "LISTEN_FDS": str(len(self.stored)),
                "LISTEN_FDNAMES": ":".join(self.stored),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def start(self) -> subprocess.Popen[str]:
        """Start the command and wait until it is ready."""
        process = self.run()
        self.main = process.pid
        self.hear("READY=1")
        return process

    def hear(self, wanted: str) -> None:
        """Do what notifications say, up to the wanted one."""
        while True:
            data, descriptors, *_ = socket.recv_fds(self._channel, 4096, 4)
            message = data.decode()
            self.messages.append(message)
            if message.startswith("FDSTORE=1\nFDNAME="):
                # Above those that the shell deals the sockets to.
                self.stored[message.rpartition("=")[2]] = fcntl.fcntl(descriptors[0], fcntl.F_DUPFD, 10)
                os.close(descriptors[0])
            if message.startswith("MAINPID="):
                self.main = int(message.partition("=")[2])
            if message == wanted or message.startswith(f"{wanted}="):
                return

    def end(self) -> None:
        if self.main is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.main, signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.communicate()
        for descriptor in self.stored.values():
            os.close(descriptor)
        self._channel.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[StubSystemd]:
    stub = StubSystemd(tmp_path)
    configure(tmp_path, free_port())
    deploy_key(tmp_path, "sk-1")
    yield stub
    stub.end()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def configure(folder: Path, port: int, address: str = "127.0.0.1") -> None:
    settings = {
        "api": {"address": address, "port": port},
        "metrics": {"address": "127.0.0.1", "port": free_port()},
        "engines": [],
        "drain_seconds": 2,
        "keys_file": str(folder / "keys.json"),
        "state_dir": str(folder),
    }
    (folder / "gateway.json").write_text(json.dumps(settings))


def configure_socket(folder: Path) -> Path:
    """Let it listen on a Unix socket, in a folder of its own, and return the socket's file."""
    file = folder / "run" / "http.sock"
    file.parent.mkdir()
    settings = json.loads((folder / "gateway.json").read_text())
    (folder / "gateway.json").write_text(json.dumps(settings | {"api": {"path": str(file)}}))
    return file


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, file: Path) -> None:
        super().__init__("localhost", timeout=20)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(file))


def deploy_key(folder: Path, secret: str) -> None:
    key = {"alias": "a", "secrets": [{"sha256": hashlib.sha256(secret.encode()).hexdigest()}]}
    (folder / "keys.json").write_text(json.dumps({"schema": 2, "keys": [key]}))


def connect(folder: Path) -> http.client.HTTPConnection:
    port = json.loads((folder / "gateway.json").read_text())["api"]["port"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.connect()
    return connection


def ask(connection: http.client.HTTPConnection, key: str = "sk-1") -> int:
    """Return the status of a list of models on a connection that is open already."""
    assert connection.sock is not None
    connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def check(systemd: StubSystemd) -> tuple[int, str]:
    process = systemd.run("--check")
    output, _ = process.communicate(timeout=20)
    return process.returncode, output


def test_check_says_in_one_sentence_what_is_wrong(systemd: StubSystemd) -> None:
    assert check(systemd) == (0, "")
    (systemd.folder / "keys.json").write_text("{")
    status, output = check(systemd)
    assert status == EXIT_CONFIGURATION
    assert output.startswith(f"bedplate-gateway: {systemd.folder}/keys.json, the file: Invalid JSON")
    assert output.endswith(": deploy it again.\n")
    assert output.count("\n") == 1
    (systemd.folder / "gateway.json").unlink()
    assert check(systemd)[0] == EXIT_CONFIGURATION


def test_a_port_that_another_has_is_no_configuration_error(systemd: StubSystemd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        configure(systemd.folder, other.getsockname()[1])
        process = systemd.run()
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Cannot listen on 127.0.0.1 port" in output
    assert "(Address already in use)" in output
    assert output.count("\n") == 1


def test_the_port_outlives_a_kill_and_follows_the_settings(systemd: StubSystemd) -> None:
    process = systemd.start()
    assert list(systemd.stored) == ["api"]
    process.kill()
    process.wait()
    waiting = connect(systemd.folder)
    systemd.messages.clear()
    process = systemd.start()
    assert systemd.messages == ["READY=1"]
    assert ask(waiting) == 200

    process.terminate()
    waiting.close()
    assert process.wait(timeout=10) == 0
    configure(systemd.folder, free_port())
    with pytest.raises(ConnectionRefusedError):
        connect(systemd.folder)
    systemd.start()
    assert systemd.messages.count("FDSTORE=1\nFDNAME=api") == 1
    assert ask(connect(systemd.folder)) == 200


def test_a_metrics_socket_that_a_former_release_stored_is_replaced(systemd: StubSystemd) -> None:
    """systemd would filter its packets as it did when the socket was made."""
    port = json.loads((systemd.folder / "gateway.json").read_text())["metrics"]["port"]
    former = socket.create_server(("127.0.0.1", port))
    systemd.stored["metrics"] = fcntl.fcntl(former.fileno(), fcntl.F_DUPFD, 10)
    systemd.start()
    assert "FDSTORE=1\nFDNAME=metrics" not in systemd.messages
    with pytest.raises(OSError, match="Invalid argument"):
        former.accept()
    former.close()
    metrics = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    metrics.request("GET", "/metrics")
    assert metrics.getresponse().status == 200
    metrics.close()


def remove(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    """Leave the socket of a process that has ended."""
    file.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(file))


@pytest.mark.parametrize("harm", [remove, replace])
def test_a_lost_socket_is_made_again(systemd: StubSystemd, harm: Callable[[Path], None]) -> None:
    file = configure_socket(systemd.folder)
    process = systemd.start()
    before = UnixConnection(file)
    assert ask(before) == 200
    harm(file)
    systemd.hear("FDSTORE=1\nFDNAME=api")
    with contextlib.closing(UnixConnection(file)) as after:
        assert ask(after) == 200
    assert ask(before) == 200
    before.close()

    process.kill()
    process.wait()
    waiting = UnixConnection(file)
    systemd.start()
    assert ask(waiting) == 200
    waiting.close()


def test_a_process_that_can_make_no_socket_ends(systemd: StubSystemd) -> None:
    """systemd makes the folder again and starts it."""
    file = configure_socket(systemd.folder)
    process = systemd.start()
    shutil.rmtree(file.parent)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"No client could connect to {file}" in output
    assert "The task socket ended" in output


def test_a_stop_waits_for_no_idle_connection(systemd: StubSystemd) -> None:
    process = systemd.start()
    connection = connect(systemd.folder)
    assert ask(connection) == 200
    process.terminate()
    assert process.wait(timeout=3) == 0
    connection.close()


def test_a_reload_brings_new_keys(systemd: StubSystemd) -> None:
    old = systemd.start()
    connection = connect(systemd.folder)
    assert ask(connection) == 200
    deploy_key(systemd.folder, "sk-2")
    assert ask(connection, "sk-2") == 401
    reload = systemd.run("--replace")
    assert reload.wait(timeout=20) == 0
    systemd.hear("MAINPID")
    systemd.hear("READY=1")
    assert systemd.main not in (old.pid, reload.pid)
    after = connect(systemd.folder)
    assert ask(after) == 401
    assert ask(after, "sk-2") == 200
    assert old.wait(timeout=10) == 0


def test_a_reload_follows_the_settings_to_another_port(systemd: StubSystemd) -> None:
    old = systemd.start()
    before = connect(systemd.folder)
    other = http.client.HTTPConnection("127.0.0.1", before.port)
    assert ask(before) == 200
    configure(systemd.folder, free_port())
    assert systemd.run("--replace").wait(timeout=20) == 0
    systemd.hear("READY=1")
    systemd.hear("FDSTORE=1\nFDNAME=api")
    before.close()
    assert ask(connect(systemd.folder)) == 200
    with pytest.raises(ConnectionRefusedError):
        other.connect()
    assert old.wait(timeout=10) == 0


def test_a_reload_that_cannot_be_leaves_the_old_process_as_it_is(systemd: StubSystemd) -> None:
    systemd.start()
    connection = connect(systemd.folder)
    assert ask(connection) == 200
    deploy_key(systemd.folder, "sk-2")
    port = json.loads((systemd.folder / "gateway.json").read_text())["api"]["port"]
    wrong: dict[str, Any] = {
        "systemctl restart bedplate-gateway": lambda: configure(systemd.folder, port, "0.0.0.0"),  # noqa: S104 - never used
        "Invalid JSON": lambda: (systemd.folder / "keys.json").write_text("{"),
    }
    for sentence, make in wrong.items():
        make()
        reload = systemd.run("--replace")
        output, _ = reload.communicate(timeout=20)
        assert reload.returncode in (1, EXIT_CONFIGURATION)
        assert sentence in output
        assert output.count("\n") == 1
    assert ask(connection) == 200
    assert "MAINPID" not in "".join(systemd.messages)


def test_a_reload_without_a_process_says_what_to_do(systemd: StubSystemd) -> None:
    reload = systemd.run("--replace")
    output, _ = reload.communicate(timeout=20)
    assert reload.returncode == 1
    assert "systemctl restart bedplate-gateway" in output


def test_the_watchdog_hears_of_the_process_that_serves(systemd: StubSystemd) -> None:
    old = systemd.start()
    systemd.hear("WATCHDOG=1")
    assert systemd.run("--replace").wait(timeout=20) == 0
    systemd.hear("MAINPID")
    systemd.messages.clear()
    systemd.hear("READY=1")
    assert old.wait(timeout=10) == 0
    systemd.hear("WATCHDOG=1")
    assert "WATCHDOG=1" not in systemd.messages[:-1]


def test_a_log_that_nobody_reads_stops_no_request(systemd: StubSystemd) -> None:
    process = systemd.start()
    assert process.stdout is not None
    # The smallest pipe: a page.
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    connection = connect(systemd.folder)
    for _ in range(200):
        connection.request("GET", "/v1/models/none", headers={"authorization": "Bearer sk-1"})
        with connection.getresponse() as answer:
            assert answer.status == 404
            answer.read()
    assert ask(connection) == 200
    process.terminate()
    lines = [process.stdout.readline() for _ in range(200)]
    assert all(" status=404 alias=a " in line for line in lines)
    assert process.wait(timeout=10) == 0
