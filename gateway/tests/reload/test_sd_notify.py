import os
import socket
import time
from pathlib import Path

import pytest
from bedplate_gateway.reload import sd_notify
from bedplate_gateway.reload.sd_notify import FIRST_FD, Watchdog, notify, store_socket, stored_sockets


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(tmp_path / "notify"))
    channel.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return channel


def test_a_message_arrives_and_without_systemd_nothing_happens(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with systemd:
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


def test_an_address_with_an_at_sign_is_in_the_abstract_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"bedplate-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0{name}")
        channel.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert channel.recv(100) == b"READY=1"


def test_a_socket_is_stored_under_its_name(systemd: socket.socket) -> None:
    with systemd, socket.create_server(("127.0.0.1", 0)) as listener:
        store_socket("api", listener)
        message, descriptors, *_ = socket.recv_fds(systemd, 100, 1)
        assert message == b"FDSTORE=1\nFDNAME=api"
        with socket.socket(fileno=descriptors[0]) as copy:
            assert copy.getsockname() == listener.getsockname()


def test_stored_sockets_are_for_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "api")
    assert stored_sockets() == []
    assert FIRST_FD == 3


def test_the_watchdog_hears_of_the_process_every_few_seconds(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd_notify, "ALIVE_SECONDS", 0.2)
    with systemd:
        systemd.setblocking(False)
        watchdog = Watchdog()
        for _ in range(2):
            watchdog.alive()
            watchdog.alive()
            assert systemd.recv(100) == b"WATCHDOG=1"
            with pytest.raises(BlockingIOError):
                systemd.recv(100)
            time.sleep(0.25)


def test_a_systemd_that_reads_nothing_stops_nobody(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd_notify, "ALIVE_SECONDS", 0.0)
    watchdog = Watchdog()
    with systemd:
        for _ in range(5000):
            watchdog.alive()
