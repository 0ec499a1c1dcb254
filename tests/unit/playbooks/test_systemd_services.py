"""systemd_services: how it reads the states of units, changes them, and reports a failure."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def shown(
    name: str, active: str, file: str, *, load: str = "loaded", stale: str = "no", job: str = ""
) -> str:
    """Return a unit as systemctl show of systemd 252 prints it; Job is there only if there is one."""
    return (
        f"{f'Job={job}' if job else ''}\nId={name}.service\nLoadState={load}\nActiveState={active}\n"
        f"UnitFileState={file}\nNeedDaemonReload={stale}\n"
    ).lstrip()


SHOWN = {
    "active": shown("active", "active", "enabled"),
    "starting": shown("starting", "activating", "enabled", job="1723"),
    "restarting": shown("restarting", "active", "enabled", job="1724"),
    "reloading": shown("reloading", "reloading", "enabled"),
    "failed": shown("failed", "failed", "enabled"),
    "missing": shown("missing", "inactive", "", load="not-found"),
    "disabled": shown("disabled", "active", "disabled"),
    "static": shown("static", "active", "static"),
    "stale": shown("stale", "active", "enabled", stale="yes"),
    "new": shown("new", "inactive", "disabled"),
    "masked": shown("masked", "inactive", "masked", load="masked"),
}


def text(*names: str) -> str:
    """Return the output of systemctl show for units of SHOWN."""
    return "\n".join(SHOWN[name.removesuffix(".service")] for name in names)


def services(*names: str) -> list[str]:
    return [f"{name}.service" for name in names]


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/systemd_services.py")


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("active", {"exists", "running", "enabled"}),
        ("starting", {"exists", "enabled"}),
        ("restarting", {"exists", "enabled"}),
        ("reloading", {"exists", "running", "enabled"}),
        ("failed", {"exists", "enabled"}),
        ("missing", set()),
        ("disabled", {"exists", "running"}),
        ("static", {"exists", "running", "enabled"}),
        ("stale", {"exists", "running", "enabled", "stale"}),
        ("new", {"exists"}),
        ("masked", {"exists"}),
    ],
)
def test_state_of_a_unit(plugin: ModuleType, name: str, state: set[str]) -> None:
    (unit,) = plugin.parse_units(text(name), services(name))
    assert unit.name == f"{name}.service"
    assert {field for field in ("exists", "running", "enabled", "stale") if getattr(unit, field)} == state


def test_units_are_in_the_order_of_their_names(plugin: ModuleType) -> None:
    names = services("failed", "active", "absent", "missing")
    units = plugin.parse_units(text("active", "missing", "failed"), names)
    assert [unit.name for unit in units] == names
    assert [unit.exists for unit in units] == [True, True, False, False]


def test_nothing_is_done_for_units_that_run(plugin: ModuleType) -> None:
    names = services("active", "reloading", "static")
    assert plugin.find_actions(plugin.parse_units(text(*names), names), names) == {}


def test_actions_in_their_order(plugin: ModuleType) -> None:
    names = services("new", "stale", "starting", "restarting", "failed", "disabled", "missing")
    actions = plugin.find_actions(plugin.parse_units(text(*names), names), names)
    assert list(actions.items()) == [
        ("daemon-reload", services("stale")),
        ("enable", services("new", "disabled", "missing")),
        ("start", services("new", "starting", "restarting", "failed", "missing")),
    ]


def test_a_unit_to_enable_only_is_not_started(plugin: ModuleType) -> None:
    names = services("new")
    assert plugin.find_actions(plugin.parse_units(text(*names), names), []) == {"enable": names}


class FakeSystem:
    """Stands for systemctl and journalctl: records the commands, and starts what does not fail."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ran: list[str] = []
        self.fails = ""
        self.hangs = ""

    def run(self, command: Sequence[str], **options: Any) -> SimpleNamespace:
        """Stand for subprocess.run."""
        words = [word for word in command if not word.startswith("-")]
        verb, names = (words[1], words[2:]) if words[0] == "systemctl" else (words[0], words[1:])
        if verb == self.hangs:
            raise subprocess.TimeoutExpired(list(command), options["timeout"])
        if verb == "show" and verb != self.fails:
            blocks = [text(name) for name in names if name not in self.started]
            blocks += [shown(name.removesuffix(".service"), "active", "enabled") for name in self.started]
            return SimpleNamespace(stdout="\n".join(blocks), stderr="", returncode=0)
        if verb == "start":
            self.started = [name for name in names if name not in services("failed", "masked")]
        self.ran.append(" ".join([verb, *names]))
        if verb == "journalctl":
            return SimpleNamespace(stdout="line 1\nport is in use\n", stderr="", returncode=0)
        return SimpleNamespace(stdout="", stderr="Job failed.\n", returncode=int(verb == self.fails))


@pytest.fixture
def system(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    fake = FakeSystem()
    monkeypatch.setattr(plugin.subprocess, "run", fake.run)
    return fake


Start = Callable[..., dict[str, Any]]


@pytest.fixture
def start(plugin: ModuleType, run_module: Start) -> Start:
    """Run the module."""

    def run(*started: str, check: bool = False, **params: Any) -> dict[str, Any]:
        return run_module(plugin, {"started": services(*started), **params}, check=check)

    return run


def test_the_module_does_what_is_needed(system: FakeSystem, start: Start) -> None:
    result = start("stale", "new", enabled=services("disabled"))
    expected = ["daemon-reload", "enable new.service disabled.service", "start new.service"]
    assert (result["changed"], result["actions"]) == (True, expected)
    assert system.ran == expected


def test_a_restart_reads_a_new_file_first_and_is_not_waited_for(system: FakeSystem, start: Start) -> None:
    result = start(restarted=services("stale", "new"))
    expected = ["daemon-reload", "restart --no-block stale.service new.service"]
    assert (result["changed"], result["actions"]) == (True, expected)
    assert system.ran == ["daemon-reload", "restart stale.service new.service"]


def test_check_mode_only_reports(system: FakeSystem, start: Start) -> None:
    result = start("stale", "failed", check=True)
    assert (result["changed"], result["actions"]) == (True, ["daemon-reload", "start failed.service"])
    assert system.ran == []


def test_units_that_run_are_left_alone(system: FakeSystem, start: Start) -> None:
    result = start("active", "static")
    assert (result["changed"], result["actions"], system.ran) == (False, [], [])


def test_missing_units_are_left_out_on_request(system: FakeSystem, start: Start) -> None:
    assert start("missing", "new", installed_only=True)["actions"] == [
        "enable new.service",
        "start new.service",
    ]
    system.fails = "enable"
    refused = start("missing", "new")
    assert (refused["failed"], refused["msg"]) == (True, "Job failed.")


def test_states_that_cannot_be_read_are_a_failure(system: FakeSystem, start: Start) -> None:
    system.fails = "show"
    refused = start("active", installed_only=True)
    assert (refused["failed"], refused["msg"]) == (True, "Job failed.")


def test_a_failure_names_the_units_and_quotes_the_journal_of_the_first(
    system: FakeSystem, start: Start
) -> None:
    system.fails = "start"
    result = start("active", "starting", "failed", "masked")
    assert result["failed"]
    assert result["msg"] == (
        "failed.service, masked.service did not start: run journalctl -u failed.service there; "
        "its last lines are:\nline 1\nport is in use"
    )
    assert system.ran == [
        "enable masked.service",
        "start starting.service failed.service masked.service",
        "journalctl failed.service",
    ]


@pytest.mark.usefixtures("system")
def test_a_failure_without_a_failed_unit_has_the_words_of_systemctl(plugin: ModuleType) -> None:
    assert plugin.describe_failure(services("active"), "Access denied\n") == "Access denied"


@pytest.mark.parametrize(
    ("verb", "command"),
    [
        ("show", "systemctl show"),
        ("start", "systemctl start --quiet failed.service took longer than 7 s"),
        ("journalctl", "journalctl -u failed.service"),
    ],
)
def test_a_command_that_hangs_ends_the_module_with_a_sentence(
    system: FakeSystem, start: Start, verb: str, command: str
) -> None:
    system.fails, system.hangs = "start", verb
    result = start("failed", timeout=7)
    assert result["failed"]
    assert result["msg"].startswith(command)
    assert result["msg"].endswith(" s: run systemctl list-jobs there.")
