"""bedplate-heal: a service that hangs is killed, one that is stopped or works is not."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[[str], ModuleType]
# A systemctl that reports the state in the file `state`, and writes down its other commands.
FAKE_SYSTEMCTL = """#!/bin/sh
cd {folder}
case $1 in show) cat state ;; *) echo "$@" >>commands ;; esac
"""
ACTIVE = "active\nrun-1\n"


class Service:
    """A server that is silent for the first questions, and the program that asks it."""

    def __init__(self, program: ModuleType, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.silent = 0
        self.questions = 0
        self.answer = b"HTTP/1.0 503 Not yet\r\n\r\n"
        self.on_question: Callable[[int], None] = lambda _: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/health"
        self.state(ACTIVE)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            self.questions += 1
            self.on_question(self.questions)
            if self.questions > self.silent:
                connection.recv(1000)
                connection.sendall(self.answer)
                connection.shutdown(socket.SHUT_RDWR)

    def state(self, text: str) -> None:
        """Set what systemd reports."""
        (self.folder / "state").write_text(text)

    def heal(self, busy_seconds: int = 0) -> str:
        """Look once; returns what the program says."""
        said: str = self.program.heal("engine", {"url": self.url, "busy_seconds": busy_seconds})
        return said

    def commands(self) -> list[str]:
        """Return the orders to systemd."""
        file = self.folder / "commands"
        return file.read_text().splitlines() if file.exists() else []

    def counted(self) -> int:
        """Return the counter that the node exporter reads."""
        text = (self.folder / "heal-engine.prom").read_text()
        (count,) = re.findall(
            r'^bedplate_heal_restarts_total\{unit="engine\.service"\} (\d+)$', text, re.MULTILINE
        )
        return int(count)

    def close(self) -> None:
        """Stop the server."""
        if self._listener.fileno() != -1:
            # Otherwise the waiting accept() keeps it open.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for connection in self._open:
            connection.close()


@pytest.fixture
def service(load_source: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service with the program's waits shortened, and no processes in /proc."""
    program = load_source("roles/bedplate/files/heal.py")
    for name in ("RESTARTS", "TEXTFILES"):
        monkeypatch.setattr(program, name, tmp_path)
    monkeypatch.setattr(program, "PROC", tmp_path / "proc")
    monkeypatch.setattr(program, "PAUSE_SECONDS", 0.15)
    monkeypatch.setattr(program, "ANSWER_SECONDS", 0.1)
    fake = tmp_path / "bin/systemctl"
    fake.parent.mkdir()
    fake.write_text(FAKE_SYSTEMCTL.format(folder=tmp_path))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    found = Service(program, tmp_path)
    yield found
    found.close()


def process(folder: Path, unit: str, ticks: int) -> None:
    """Write a process of a unit that has used the CPU for so many ticks."""
    entry = folder / "proc/7"
    entry.mkdir(parents=True, exist_ok=True)
    (entry / "cgroup").write_text(f"1:name=systemd:/system.slice/{unit}\n0::/system.slice/{unit}\n")
    (entry / "stat").write_text(f"7 (a (b) c) S {' '.join(['0'] * 10)} {ticks} 0 0 0\n")


def test_a_service_that_answers_is_asked_once(service: Service) -> None:
    assert service.heal() == ""
    assert (service.questions, service.commands(), service.counted()) == (1, [], 0)


def test_a_service_that_hangs_is_killed_after_three_questions(service: Service) -> None:
    service.silent = 9
    said = service.heal()
    assert said.startswith(f"engine.service did not answer at {service.url} and was killed")
    assert (service.questions, service.counted()) == (3, 1)
    assert service.commands() == ["kill --signal=SIGKILL engine.service"]


def test_a_service_that_answers_again_is_left_alone(service: Service) -> None:
    service.silent = 2
    assert service.heal() == ""
    assert (service.questions, service.commands()) == (3, [])


def test_a_drained_engine_is_left_alone(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.silent = 99
    drained = tmp_path / "drained"
    monkeypatch.setattr(service.program, "DRAINED", drained)
    settings = {"url": service.url, "busy_seconds": 0}
    drained.write_text("gpu1\n")
    assert service.program.heal("ollama", settings) == ""
    assert (service.questions, service.commands()) == (0, [])
    # Other services of its host are not drained.
    assert service.program.heal("engine", settings) != ""
    drained.unlink()
    assert service.program.heal("ollama", settings) != ""
    assert service.commands() == [
        "kill --signal=SIGKILL engine.service",
        "kill --signal=SIGKILL ollama.service",
    ]


@pytest.mark.parametrize(
    "state", ["inactive\n\n", "activating\nrun-1\n", "deactivating\nrun-1\n", "reloading\nrun-1\n"]
)
def test_a_service_that_is_not_active_is_left_alone(service: Service, state: str) -> None:
    service.silent = 9
    service.state(state)
    assert service.heal() == ""
    assert (service.questions, service.commands()) == (1, [])


@pytest.mark.parametrize("state", ["inactive\nrun-1\n", "active\nrun-2\n"], ids=["stopped", "restarted"])
def test_a_service_that_is_stopped_or_restarted_meanwhile_is_left_alone(service: Service, state: str) -> None:
    service.silent = 9
    service.on_question = lambda question: service.state(state) if question == 3 else None
    assert service.heal() == ""
    assert (service.questions, service.commands()) == (3, [])


def test_a_service_that_works_may_be_silent_for_its_time(service: Service) -> None:
    service.silent = 5
    service.on_question = lambda question: process(service.folder, "engine.service", question * 100)
    assert service.heal(busy_seconds=60) == ""
    assert (service.questions, service.commands()) == (6, [])


@pytest.mark.parametrize(
    ("unit", "busy_seconds"),
    [("engine.service", 0), ("other-engine.service", 60)],
    ids=["its time is over", "another"],
)
def test_work_is_no_excuse(service: Service, unit: str, busy_seconds: int) -> None:
    service.silent = 9
    service.on_question = lambda question: process(service.folder, unit, question * 100)
    assert "was killed" in service.heal(busy_seconds)


def test_a_long_answer_is_an_answer(service: Service) -> None:
    service.answer = b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 1_000_000
    assert service.heal() == ""


def test_a_port_that_is_closed_is_no_answer(service: Service) -> None:
    service.close()
    assert "was killed" in service.heal()


def test_each_restart_within_an_hour_waits_longer(service: Service) -> None:
    wait = service.program.wait_left
    assert wait([], 1000.0) == 0
    assert wait([1000.0], 1010.0) == 50
    assert wait([1000.0, 1100.0], 1110.0) == 110
    assert wait([1000.0, 1100.0, 1300.0], 1310.0) == 230
    # The first is more than an hour ago.
    assert wait([1000.0, 4000.0], 4700.0) < 0


def test_a_service_that_hangs_again_waits_for_its_next_restart(service: Service) -> None:
    service.silent = 99
    assert "was killed" in service.heal()
    assert service.heal().startswith("engine.service hangs again, and may be killed in ")
    assert (len(service.commands()), service.counted()) == (1, 1)


def test_the_counter_begins_anew_after_a_boot(service: Service) -> None:
    (service.folder / "heal-engine.prom").write_text(
        'bedplate_heal_restarts_total{unit="engine.service"} 7\n'
    )
    service.heal()
    assert service.counted() == 0


@pytest.mark.parametrize("folder", ["RESTARTS", "TEXTFILES"])
def test_a_full_disk_keeps_no_service_from_being_healed(
    service: Service, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: str
) -> None:
    # Not even root can create a file in a directory that is none.
    blocked = service.folder / "state"
    monkeypatch.setattr(service.program, folder, blocked)
    monkeypatch.setattr(service.program, "read_restarts", lambda _: [])
    service.silent = 9
    assert "was killed" in service.heal()
    assert service.commands() == ["kill --signal=SIGKILL engine.service"]
    assert "cannot be written (Not a directory); make room." in capfd.readouterr().err
