"""uninstall: the module's own decisions; tests/scenarios/uninstall runs it on a host."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import host_record
from ansible.module_utils.host_record import Packages, declaration_from
from ansible.module_utils.uninstall_plan import Host, Removal, Step

OWNER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name


@pytest.fixture
def plugin(
    load_source: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    monkeypatch.setattr(host_record, "UNIT_DIRECTORY", tmp_path / "units")
    monkeypatch.setattr(host_record, "RECORDS", tmp_path / "state/record")
    monkeypatch.setattr(host_record, "FORMER_FILES", tmp_path / "state/before")
    return load_source("playbooks/library/uninstall.py")


class FakeApt:
    """Answers apt's and dpkg's questions; `needs` has what each package depends on."""

    def __init__(self, needs: dict[str, list[str]], manual: list[str], held: list[str] | None = None) -> None:
        self.needs, self.manual, self.held = needs, manual, held or []

    def __call__(
        self, command: Sequence[str], _seconds: float = 0, **_: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "\n".join(self.answer(list(command))), "")

    def answer(self, command: list[str]) -> list[str]:
        if command[0] == "dpkg-query":
            return [f"ii \t{name}" for name in self.needs]
        if command[:2] == ["apt-mark", "showmanual"]:
            return self.manual
        if command[:2] == ["apt-mark", "showhold"]:
            return self.held
        assert command[:3] == ["apt-get", "purge", "--simulate"]
        gone = {word for word in command[3:] if not word.startswith("--")}
        while more := {name for name in self.needs if set(self.needs[name]) & gone} - gone:
            gone |= more
        if "--auto-remove" in command:
            needed = set(self.manual) - gone
            while more := {need for name in needed for need in self.needs[name]} - needed:
                needed |= more
            gone |= self.needs.keys() - needed
        return [f"Purg {name} [1.0]" for name in gone]


def chosen(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch, apt: FakeApt, known: Packages) -> Any:
    monkeypatch.setattr(plugin, "run", apt)
    host_record.write_json(host_record.RECORDS / "packages.json", known.as_json())
    return plugin.choose_packages(Removal([], []))


def test_the_packages_go_with_what_only_they_depend_on(
    plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = FakeApt({"ours": ["library", "base"], "library": [], "base": []}, manual=["ours", "base"])
    known = Packages({"ours": "1", "library": "1"}, ["ours"], ["base"])
    choice = chosen(plugin, monkeypatch, apt, known)
    assert (choice.purged, choice.automatic, choice.staying) == (("library", "ours"), ("base",), {})


def test_packages_that_others_need_stay(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"ours": ["library"], "second": ["deep"], "others": ["second", "library"]}
    apt = FakeApt({"library": [], "deep": [], **needs}, manual=["ours", "second", "others"])
    known = Packages({"ours": "1", "library": "1", "second": "1", "deep": "1"}, ["ours", "second"])
    choice = chosen(plugin, monkeypatch, apt, known)
    assert choice.purged == ("ours",)
    assert choice.staying == dict.fromkeys(["deep", "library", "second"], "another package needs it")


def test_packages_that_the_user_wants_stay(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = FakeApt(
        {"ours": ["library"], "library": [], "kept": []}, manual=["ours", "library", "kept"], held=["kept"]
    )
    known = Packages({"ours": "1", "library": "1", "kept": "1", "gone": "1"}, ["ours", "kept", "gone"])
    choice = chosen(plugin, monkeypatch, apt, known)
    assert choice.purged == ("ours",)
    assert choice.staying == {"kept": "it is held", "library": "it was marked as manually installed"}


def test_without_a_record_no_package_goes(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "run", FakeApt({"base": []}, manual=["base"]))
    assert plugin.choose_packages(Removal([], [])).purged == ()


def test_a_disk_that_is_mounted_is_emptied_and_stays(plugin: ModuleType, tmp_path: Path) -> None:
    for name in ("data/models/blobs/one", "data/models/lost+found/two", "data/key"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    plugin.remove_path(tmp_path / "data", [str(tmp_path / "data/models"), "/elsewhere"])
    left = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert left == ["data/models/lost+found/two"]
    plugin.remove_path(tmp_path / "data", [])
    # A second time.
    plugin.remove_path(tmp_path / "data", [])
    assert not (tmp_path / "data").exists()


def test_a_former_file_comes_back_with_its_mode(plugin: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("former")
    path = tmp_path / "etc/app.conf"
    state = {
        "state": "file",
        "owner": OWNER,
        "group": GROUP,
        "mode": "0640",
        "copy": str(tmp_path / "copy"),
    }
    for _ in range(2):
        plugin.restore(Step("restore", (str(path),), state))
        assert path.read_text() == "former"
        assert path.stat().st_mode & 0o7777 == 0o640
        path.unlink()
        path.symlink_to("elsewhere")
    plugin.restore(Step("restore", (str(path),), {"state": "link", "target": "/dev/null"}))
    assert str(path.readlink()) == "/dev/null"
    plugin.restore(Step("restore", (str(tmp_path / "etc"),), {**state, "state": "directory", "mode": "0710"}))
    assert (tmp_path / "etc").stat().st_mode & 0o7777 == 0o710


def test_a_service_that_cannot_be_stopped_is_named(
    plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: Sequence[str], *_: object, **__: object) -> subprocess.CompletedProcess[str]:
        commands.append(command[1])
        return subprocess.CompletedProcess(command, 0, "ollama.service loaded deactivating stop-sigterm", "")

    monkeypatch.setattr(plugin, "run", run)
    with pytest.raises(plugin.UninstallError, match=r"^ollama\.service cannot be stopped, .* restart"):
        plugin.stop(Step("stop", ("ollama.service",)))
    assert commands == ["stop", "list-units", "kill", "stop", "list-units"]


def test_data_on_a_disk_that_hangs_is_refused_before_any_change(
    plugin: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {"role": "app", "file": "app.yml", "data": {"models": [f"{tmp_path}/models"]}}
    host_record.RoleRecord(declaration_from(given)).begin([])

    def hang(_read: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(plugin, "in_time", hang)
    monkeypatch.setattr(plugin, "run", FakeApt({}, []))
    monkeypatch.setattr(plugin, "loaded_units", lambda _units: {})
    monkeypatch.setattr(plugin, "tables", list)
    with pytest.raises(plugin.UninstallError) as raised:
        plugin.look_at_host(Removal([declaration_from(given)], ["app"], ["models"]))
    assert str(raised.value) == (
        f"the disk at {tmp_path}/models gave no answer in 10 s: repair it (findmnt -T {tmp_path}/models; "
        "dmesg | tail), or leave out models in uninstall_state. Nothing is removed yet."
    )
    # It stays then.
    assert plugin.look_at_host(Removal([declaration_from(given)], ["app"])).silent == [f"{tmp_path}/models"]


def test_check_mode_changes_nothing(
    plugin: ModuleType,
    run_module: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"role": "app", "file": "app.yml", "paths": [f"{tmp_path}/app"], "users": ["app"]}
    host_record.RoleRecord(declaration_from(given)).begin([])
    (tmp_path / "app").mkdir()
    monkeypatch.setattr(plugin, "look_at_host", lambda _removal: Host())
    monkeypatch.setattr(plugin, "write_to_disk", lambda: None)
    params = {"declarations": [given], "roles": ["app"]}
    planned = run_module(plugin, params, check=True)
    assert (tmp_path / "app").exists()
    assert planned["steps"] == [f"remove {tmp_path}/app", f"remove {tmp_path}/state"]
    assert (planned["roles"], planned["changed"]) == (["app"], True)
    assert run_module(plugin, params)["steps"] == planned["steps"]
    assert not (tmp_path / "app").exists()
    assert run_module(plugin, params) == {**planned, "steps": [], "roles": [], "changed": False}


def test_a_record_that_cannot_be_read_is_named(
    plugin: ModuleType, run_module: Callable[..., dict[str, Any]]
) -> None:
    host_record.RECORDS.mkdir(parents=True)
    (host_record.RECORDS / "app.json").write_text("{")
    result = run_module(plugin, {"declarations": [], "roles": ["app"]})
    assert result["msg"].startswith(f"{host_record.RECORDS}/app.json is no record (JSONDecodeError: ")


def test_each_step_has_a_function_and_a_line(plugin: ModuleType) -> None:
    assert all(str(Step(kind, ("name",))) for kind in plugin.DO)
