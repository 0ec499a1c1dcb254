"""service_survey: the units' states, whose sockets are beyond loopback, and the answers of addresses."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EVERYWHERE = str(IPv4Address(0))
SSHD = 'users:(("sshd",pid=68,fd=6),("systemd",pid=1,fd=54))'
# As ss of Debian 12 and 13 prints it.
OUTPUT = f"""\
tcp   LISTEN 0      128           0.0.0.0:22      0.0.0.0:*    {SSHD}
tcp   LISTEN 0      128              [::]:22         [::]:*    {SSHD}
tcp   LISTEN 0      4096        127.0.0.1:9100    0.0.0.0:*    users:(("prometheus-node",pid=70,fd=3))
tcp   LISTEN 0      4096            [::1]:631        [::]:*
tcp   LISTEN 0      5    [::ffff:127.0.0.1]:7000         *:*    users:(("java",pid=71,fd=3))
tcp   LISTEN 0      5                   *:8080          *:*    users:(("tmux: server",pid=72,fd=3))
tcp   LISTEN 0      5           10.0.0.1:8081  0.0.0.0:*  users:(("worker",pid=73,fd=3),("worker",pid=1,fd=3))
tcp   LISTEN 0      5           10.0.0.1:8081    0.0.0.0:*    users:(("worker",pid=73,fd=4))
udp   UNCONN 0      0       0.0.0.0%eth0:68       0.0.0.0:*    users:(("dhclient",pid=75,fd=7))
udp   UNCONN 0      0    [fe80::1%eth0]:546         [::]:*    users:(("dhclient",pid=75,fd=8))
udp   UNCONN 0      0            0.0.0.0:51820    0.0.0.0:*
"""


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/service_survey.py")


def test_only_sockets_beyond_loopback_are_listed(module: ModuleType, tmp_path: Path) -> None:
    for pid, cgroup in {
        68: "0::/system.slice/ssh.service\n",
        72: "0::/user.slice/user-0.slice/session-1.scope\n",
        73: "0::/system.slice/worker.service\n",
    }.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(cgroup)
    # The process 75 has ended.
    assert [tuple(listener) for listener in module.listeners(OUTPUT, tmp_path)] == [
        ("tcp", EVERYWHERE, 22, "sshd", 68, "ssh.service"),
        ("tcp", "::", 22, "sshd", 68, "ssh.service"),
        ("udp", EVERYWHERE, 68, "dhclient", 75, ""),
        ("udp", "fe80::1", 546, "dhclient", 75, ""),
        ("tcp", "::", 8080, "tmux: server", 72, "session-1.scope"),
        ("tcp", "10.0.0.1", 8081, "worker", 73, "worker.service"),
        ("udp", EVERYWHERE, 51820, "", 0, ""),
    ]


def test_a_socket_that_only_systemd_holds_belongs_to_its_socket_unit(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is with the SSH server of Ubuntu before the first login."""
    shown = "Id=ssh.socket\nListen=0.0.0.0:22 (Stream)\nListen=[::]:22 (Stream)\n\nId=other.socket\n"
    monkeypatch.setattr(
        module.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, shown, "")
    )
    lines = [f'tcp LISTEN 0 5 0.0.0.0:{port} 0.0.0.0:* users:(("systemd",pid=1,fd=9))\n' for port in (22, 23)]
    found = module.listeners("".join(lines), tmp_path)
    assert [(listener.port, listener.unit) for listener in found] == [(22, "ssh.socket"), (23, "")]


def test_the_list_is_bounded_and_counted(
    module: ModuleType, run_module: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"udp UNCONN 0 0 0.0.0.0:{port} 0.0.0.0:*\n" for port in range(1000, 1300)]

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[0] == "ss"
        assert options["timeout"] == 10
        return subprocess.CompletedProcess(command, 0, "".join(lines), "")

    monkeypatch.setattr(module.subprocess, "run", run)
    result = run_module(module, {})
    assert (len(result["listeners"]), result["count"], result["changed"]) == (200, 300, False)


def test_a_host_without_ss(
    module: ModuleType, run_module: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SS", ["/nonexistent/ss"])
    assert run_module(module, {})["msg"].endswith("install the package iproute2.")


def test_the_states_of_units_are_as_systemd_prints_them(
    module: ModuleType, run_module: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 1, "Id=a.service\n\nId=b.service\n", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    result = run_module(module, {"units": ["a.service", "b.service"], "listeners": False})
    now, _, states = result["units"].partition("\n")
    assert 0 <= time.time() - int(now) < 60
    assert states == "Id=a.service\n\nId=b.service"
    assert [command[0] for command in ran] == ["systemctl"]
    assert ran[0][-3:] == ["--", "a.service", "b.service"]


class Page(BaseHTTPRequestHandler):
    """Answers with the login that it was given, and in other ways on other paths."""

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path == "/slow":
            time.sleep(2)
            return
        bodies = {"/list": "[1]", "/text": "no JSON"}
        body = bodies.get(self.path, json.dumps({"path": self.path, "login": self.headers["Authorization"]}))
        self.send_response(302 if self.path == "/moved" else 200)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def page() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_answers_are_in_the_order_of_their_addresses(
    module: ModuleType, run_module: Callable[..., dict[str, Any]], page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy of the environment is not used.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    paths = ["/a?b=c", "/list", "/text", "/moved"]
    options = {"listeners": False, "user": "me", "password": "secret"}
    answers = run_module(module, {"urls": [page + path for path in paths], **options})["answers"]
    login = "Basic bWU6c2VjcmV0"
    assert answers == [
        {"status": 200, "json": {"path": "/a?b=c", "login": login}, "msg": ""},
        {"status": 200, "json": {}, "msg": ""},
        {"status": 200, "json": {}, "msg": ""},
        {"status": 302, "json": {"path": "/moved", "login": login}, "msg": ""},
    ]


def test_addresses_without_an_answer(
    module: ModuleType, run_module: Callable[..., dict[str, Any]], page: str
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        urls = [f"{page}/slow", f"http://127.0.0.1:{closed.getsockname()[1]}/", page]
        answers = run_module(module, {"urls": urls, "listeners": False, "seconds": 1})["answers"]
    assert [answer["status"] for answer in answers] == [-1, -1, 200]
    # What the filter silence looks for.
    assert "timed out" in answers[0]["msg"]
    assert "refused" in answers[1]["msg"]
    assert answers[2]["json"]["login"] is None
