"""uninstall_plan: what goes, what stays and in which order, on folders that stand for a host's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import host_record, uninstall_plan
from ansible.module_utils.host_record import look_at
from ansible.module_utils.uninstall_plan import Host, PackageChoice, Plan, Removal, is_unit_of

SYSTEM = ("stop", "delete_table", "purge", "mark_automatic", "reload", "remove_user", "restore_user")
"""Steps that change no file of the test."""


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/uninstall.py")


class FakeHost:
    """Folders that stand for a host's; its roles are `app`, and `watch`, which needs app's user."""

    def __init__(self, root: Path, module: ModuleType) -> None:
        self.root = root
        self.module = module
        self.units = root / "units"
        self.loaded: list[str] = []
        self.users: dict[str, dict[str, str]] = {}
        self.packages = PackageChoice()
        self.tables = ["inet app", "inet stranger"]
        self.declared: list[dict[str, Any]] = [
            {
                "role": "app",
                "file": "app.yml",
                "users": ["app"],
                "units": ["app.service", "app@.timer"],
                "masks": ["debian.service"],
                "paths": self.paths("etc/ours/app", "opt/app", "bin/app", "lib/app"),
                "shared": self.paths("etc/ours", "libexec"),
                "runtime": self.paths("run/app"),
                "tables": ["inet app"],
                "packages": ["app-package"],
                "whole": self.paths("opt/app/releases"),
                "data": {"models": self.paths("srv/app", "srv/app/models")},
            },
            {
                "role": "watch",
                "file": "watch.yml",
                "users": ["watch", "app"],
                "units": ["watch.service"],
                "paths": self.paths("etc/ours/watch", "opt/app/watched"),
                "shared": self.paths("etc/ours"),
            },
        ]

    def paths(self, *names: str) -> list[str]:
        return [str(self.root / name) for name in names]

    def write(self, name: str, text: str = "", mode: int = 0o640) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def link(self, name: str, target: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def install(self, role: str, recorded: list[str], users: list[str]) -> None:
        """Record a role whose files are there, as service_files does."""
        given = next(given for given in self.declared if given["role"] == role)
        found = host_record.RoleRecord(host_record.declaration_from(given))
        found.record.paths = {path: look_at(Path(path)) for path in self.paths(*recorded)}
        found.record.users = users
        found.record.units = [unit for unit in given["units"] if (self.units / str(unit)).exists()]
        found.end()

    def begin(self, role: str, paths: tuple[str, ...] = ()) -> None:
        given = next(given for given in self.declared if given["role"] == role)
        host_record.RoleRecord(host_record.declaration_from(given)).begin(self.paths(*paths))

    def install_app(self) -> None:
        self.begin("app")
        self.write("etc/ours/app/app.conf", "port: 1\n")
        self.write("opt/app/releases/1/bin/app", "program", 0o755)
        self.link("opt/app/current", "releases/1")
        self.link("bin/app", "../opt/app/current/bin/app")
        (self.root / "libexec").mkdir(exist_ok=True)
        self.write("run/app/socket")
        self.write("srv/app/models/blob", "weights")
        self.write("units/app.service", "[Unit]\n")
        self.write("units/app@.timer", "[Unit]\n")
        self.link("units/debian.service", "/dev/null")
        self.link("units/multi-user.target.wants/app.service", "../app.service")
        self.link("units/app.service.wants/app@one.timer", "../app@.timer")
        self.users["app"] = {"state": "present", "home": "/var/lib/app", "shell": "/usr/sbin/nologin"}
        self.loaded = ["app.service", "app@one.timer"]
        recorded = [
            *("etc/ours", "etc/ours/app", "etc/ours/app/app.conf", "opt/app", "opt/app/releases/1"),
            *("opt/app/current", "bin/app", "libexec", "srv/app", "srv/app/models"),
            *("units/app.service", "units/app@.timer", "units/debian.service"),
        ]
        self.install("app", recorded, ["app"])

    def install_watch(self) -> None:
        self.begin("watch")
        self.write("etc/ours/watch/watch.conf")
        self.write("opt/app/watched/log")
        self.write("units/watch.service", "[Unit]\n")
        self.users["watch"] = {"state": "present", "home": "/var/lib/watch", "shell": "/usr/sbin/nologin"}
        recorded = [
            *("etc/ours", "etc/ours/watch", "etc/ours/watch/watch.conf", "opt/app/watched"),
            *("opt/app/watched/log", "units/watch.service"),
        ]
        self.install("watch", recorded, ["watch", "app"])

    def record(self) -> dict[str, Any]:
        """Return the content of app's record."""
        content: dict[str, Any] = json.loads((host_record.RECORDS / "app.json").read_text())
        return content

    def write_record(self, content: dict[str, Any]) -> None:
        host_record.write_json(host_record.RECORDS / "app.json", content)

    def plan(self, *roles: str, kinds: tuple[str, ...] = (), **given: Any) -> Plan:
        """Plan as the module does; all roles without a name."""
        declarations = [host_record.declaration_from(given) for given in self.declared]
        removal = Removal(declarations, roles or [given["role"] for given in self.declared], kinds)
        data = {folder: self.module.look_at_data(folder) for folder in removal.data_folders()}
        host = Host(
            users={
                user: self.users[user] for one in removal.going for user in one.users if user in self.users
            },
            units=self.loaded,
            tables=self.tables,
            packages=self.packages,
            data={folder: state for folder, state in data.items() if state["state"] != "absent"},
        )
        return removal.plan(replace(host, **given))

    def do(self, plan: Plan, steps: int | None = None) -> None:
        """Do the first steps of a plan, or all."""
        for step in plan.steps[:steps]:
            if step.kind == "remove_user":
                del self.users[step.names[0]]
            elif step.kind == "restore_user":
                self.users[step.names[0]] = step.state
            elif step.kind == "stop":
                assert set(step.names) <= set(self.loaded)
            elif step.kind == "reload":
                self.loaded = []
            elif step.kind == "delete_table":
                self.tables.remove(step.names[0])
            elif step.kind in ("purge", "mark_automatic"):
                self.packages = PackageChoice(staying=self.packages.staying)
            elif step.kind not in SYSTEM:
                self.module.DO[step.kind](step)

    def tree(self) -> dict[str, str]:
        """Return what there is: each path with its kind, mode and text or target."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            text = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
            found[str(path.relative_to(self.root))] = f"{path.lstat().st_mode:o} {text}"
        return found


@pytest.fixture
def host(tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    root = tmp_path / "host"
    (root / "units/multi-user.target.wants").mkdir(parents=True)
    (root / "etc").mkdir()
    for name in ("bin", "opt", "run", "srv", "state"):
        (root / name).mkdir()
    monkeypatch.setattr(host_record, "UNIT_DIRECTORY", root / "units")
    monkeypatch.setattr(host_record, "RECORDS", root / "state/bedplate/record")
    monkeypatch.setattr(host_record, "FORMER_FILES", root / "state/bedplate/before")
    monkeypatch.setattr(host_record, "OUR_FOLDERS", (f"{root}/etc/ours/", f"{root}/opt/"))
    monkeypatch.setattr(uninstall_plan, "TIMER_STAMPS", root / "stamps")
    # Only root may give a file away.
    monkeypatch.setattr(module, "give", lambda path, former: path.chmod(int(former["mode"], 8)))
    return FakeHost(root, module)


def names(plan: Plan, kind: str) -> list[str]:
    return [name for step in plan.steps if step.kind == kind for name in step.names]


def test_nothing_is_left_of_an_installation(host: FakeHost) -> None:
    before = host.tree()
    host.install_app()
    host.install_watch()
    plan = host.plan(kinds=("models",))
    assert plan.staying == {}
    host.do(plan)
    assert host.tree() == before
    assert host.users == {}
    assert host.plan(kinds=("models",)).steps == []


def test_the_steps_have_the_order_that_survives_a_power_cut(host: FakeHost) -> None:
    host.install_app()
    host.packages = PackageChoice(purged=("app-package",), automatic=("curl",))
    plan = host.plan(kinds=("models",))
    lines = [str(step).replace(f"{host.root}/", "") for step in plan.steps]
    assert lines == [
        # Nothing starts at boot any more.
        "remove units/app.service.wants/app@one.timer",
        "remove units/multi-user.target.wants/app.service",
        "stop app.service, app@one.timer",
        "delete the firewall table inet app",
        "remove etc/ours/app",
        "remove opt/app",
        "remove bin/app",
        "remove run/app",
        "remove srv/app",
        # While its unit is masked.
        "purge the packages app-package",
        "mark as automatically installed, as before, the packages curl",
        "remove units/app.service",
        "remove units/app@.timer",
        "remove units/debian.service",
        "remove units/app.service.wants",
        "reload systemd",
        "remove the user app",
        "remove libexec if it is empty",
        "remove etc/ours if it is empty",
        "remove state/bedplate",
    ]


@pytest.mark.parametrize("kinds", [(), ("models",)])
def test_an_uninstallation_that_was_cut_after_any_step_is_ended_by_the_next(
    host: FakeHost, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    host.write("units/debian.service", "[Unit]\n# the host's own\n", 0o644)
    host.write("lib/app/mine", "the host's own", 0o600)
    host.install_app()
    host.write("etc/ours/app/notes", "mine")
    host.install_watch()
    installed, users, loaded = tmp_path / "installed", dict(host.users), list(host.loaded)
    tables = list(host.tables)
    shutil.copytree(host.root, installed, symlinks=True)
    count = len(host.plan(kinds=kinds).steps)
    ends = []
    for cut in range(count + 1):
        shutil.rmtree(host.root)
        shutil.copytree(installed, host.root, symlinks=True)
        host.users, host.loaded, host.tables = dict(users), list(loaded), list(tables)
        host.do(host.plan(kinds=kinds), cut)
        host.do(host.plan(kinds=kinds))
        ends.append((host.tree(), dict(host.users)))
        assert [str(step) for step in host.plan(kinds=kinds).steps] == []
    assert count > 15
    assert [end for end in ends if end != ends[-1]] == []
    assert ends[0][0]["lib/app/mine"].endswith("the host's own")
    assert ends[0][0]["units/debian.service"].endswith("the host's own\n")
    assert ends[0][1] == {}


def test_a_file_of_the_users_in_a_folder_of_ours_stays_and_is_named(host: FakeHost) -> None:
    host.install_app()
    host.write("etc/ours/app/notes", "mine")
    host.write("etc/ours/app/mine/deep", "mine")
    host.write("etc/ours/other", "mine")
    host.write("units/app.service.d/mine.conf", "[Service]\n")
    if os.getuid() == 0:
        os.chown(host.root / "etc/ours/app", 1, 1)
    # Left by an interrupted run.
    host.write("etc/ours/app/.app.conf.0123456789ab")
    plan = host.plan(kinds=("models",))
    stays = host.paths("etc/ours/app/mine/deep", "etc/ours/app/notes", "units/app.service.d")
    stays += host.paths("etc/ours/other")
    assert plan.staying == dict.fromkeys(stays, "not Bedplate's")
    host.do(plan)
    left = [path for path in host.tree() if (host.root / path).is_file()]
    assert sorted(left) == [
        *("etc/ours/app/mine/deep", "etc/ours/app/notes", "etc/ours/other"),
        "units/app.service.d/mine.conf",
    ]
    # The user app is gone, and its number may become another's.
    restored = [step for step in plan.steps if step.kind == "restore"]
    assert [(step.names[0], step.state["owner"]) for step in restored] == [
        (str(host.root / "etc/ours/app"), "root")
    ]


def test_what_somebody_put_in_the_place_of_ours_stays(host: FakeHost) -> None:
    host.install_app()
    host.write("bin/app", "another program", 0o755)
    plan = host.plan()
    assert plan.staying[str(host.root / "bin/app")] == "not Bedplate's"
    host.do(plan)
    assert (host.root / "bin/app").read_text() == "another program"


def test_what_was_there_before_comes_back(host: FakeHost) -> None:
    host.write("bin/app", "the host's own program", 0o755)
    host.link("units/debian.service", "/srv/other.service")
    host.write("lib/app/mine", "mine")
    host.write("lib/app/app.conf", "the host's own")
    (host.root / "lib/app").chmod(0o700)
    (host.root / "libexec").mkdir(mode=0o700)
    before = host.tree()
    host.users["app"] = {"state": "present", "home": "/home/app", "shell": "/bin/sh"}
    host.begin("app", ("lib/app/app.conf", "lib/app/new.conf"))
    content = host.record()
    content["before"]["user app"] = {"state": "present", "home": "/home/app", "shell": "/bin/sh"}
    host.write_record(content)
    host.install_app()
    (host.root / "lib/app").chmod(0o755)
    (host.root / "libexec").chmod(0o755)
    content = host.record()
    for name in ("lib/app/app.conf", "lib/app/new.conf"):
        host.write(name, "port: 1\n")
        content["paths"][str(host.root / name)] = look_at(host.root / name)
    host.write_record(content)
    plan = host.plan(kinds=("models",))
    assert names(plan, "restore_user") == ["app"]
    assert names(plan, "remove_user") == []
    host.do(plan)
    assert host.tree() == before
    assert host.users["app"]["home"] == "/home/app"


def test_data_stays_until_it_is_named_and_so_does_its_owner(host: FakeHost) -> None:
    before = host.tree()
    host.install_app()
    owner = look_at(host.root / "srv/app")["owner"]
    for given in host.declared:
        given["users"] = [owner if user == "app" else user for user in given["users"]]
    host.users[owner] = host.users.pop("app")
    host.begin("app")
    content = host.record()
    content["before"][f"user {owner}"] = {"state": "absent"}
    host.write_record(content)
    plan = host.plan()
    folder = str(host.root / "srv/app")
    assert plan.staying == {folder: "models", f"user {owner}": f"it owns {folder}"}
    host.do(plan)
    assert {path for path in host.tree() if path not in before} == {
        *("srv/app", "srv/app/models", "srv/app/models/blob"),
        *("state/bedplate", "state/bedplate/record", "state/bedplate/record/app.json"),
    }
    # A second run has nothing to do, and says again what stays.
    again = host.plan()
    assert (again.steps, again.staying) == ([], plan.staying)
    # A new installation does not take the data for another's.
    host.begin("app")
    assert not host_record.load_record(host_record.RECORDS)["app"].before[folder].get("empty")
    host.do(host.plan(kinds=("models",)))
    assert host.tree() == before
    assert host.users == {}


@pytest.mark.parametrize("content", [None, "another's model"])
def test_a_folder_of_data_that_was_there_is_emptied_only_if_it_was_empty(
    host: FakeHost, content: str | None
) -> None:
    (host.root / "srv/app/models").mkdir(parents=True)
    (host.root / "srv/app/models/lost+found").mkdir()
    if content:
        host.write("srv/app/models/others", content)
    before = host.tree()
    host.install_app()
    (host.root / "srv/app/models").chmod(0o750)
    plan = host.plan(kinds=("models",))
    host.do(plan)
    if content:
        assert set(plan.staying.values()) == {"models, some of which were there before Bedplate"}
        assert (host.root / "srv/app/models/blob").exists()
    else:
        # srv/app had a folder in it.
        assert list(plan.staying) == host.paths("srv/app")
        assert host.tree()["srv/app/models"] != before["srv/app/models"]


def test_an_empty_disk_for_models_is_empty_again(host: FakeHost) -> None:
    host.declared[0]["data"] = {"models": host.paths("mnt/models")}
    (host.root / "mnt/models/lost+found").mkdir(parents=True)
    (host.root / "mnt/models").chmod(0o755)
    before = host.tree()
    host.begin("app")
    host.install_app()
    shutil.rmtree(host.root / "srv/app")
    host.write("mnt/models/blobs/blob")
    (host.root / "mnt/models").chmod(0o750)
    plan = host.plan(kinds=("models",))
    assert names(plan, "empty") == host.paths("mnt/models")
    host.do(plan)
    assert host.tree() == before


def test_one_role_leaves_what_the_others_need(host: FakeHost) -> None:
    host.install_app()
    host.install_watch()
    (host.root / "state/bedplate/record/packages.json").write_text(
        '{"schema": 1, "installed": {"app-package": "1", "dependency": "2"}}'
    )
    host.packages = PackageChoice(purged=("app-package",), staying={"dependency": "another package needs it"})
    plan = host.plan("app", kinds=("models",))
    assert names(plan, "remove_user") == []
    host.do(plan)
    there = host.tree()
    assert {"etc/ours/watch/watch.conf", "opt/app/watched/log", "units/watch.service"} <= there.keys()
    assert "etc/ours/app" not in there
    assert "opt/app/releases" not in there
    assert not {path for path in host.paths("opt/app/watched") if path in plan.staying}
    assert sorted(host_record.load_record(host_record.RECORDS)) == ["watch"]
    assert host_record.load_packages(host_record.RECORDS) == host_record.Packages()
    assert host.plan("app", kinds=("models",)).steps == []


def test_the_packages_of_a_role_are_those_that_no_other_declares(host: FakeHost) -> None:
    host.declared[0]["packages"] = ["curl", "app-package"]
    host.declared[1]["packages"] = ["curl"]
    host.install_app()
    host.install_watch()
    known = host_record.Packages(
        {"curl": "1", "app-package": "2", "library": "3"}, ["app-package", "curl"], ["nft"]
    )
    host_record.write_json(host_record.RECORDS / "packages.json", known.as_json())
    declarations = [host_record.declaration_from(given) for given in host.declared]
    assert Removal(declarations, ["app"]).packages == host_record.Packages(
        {"app-package": "2", "library": "3"}, ["app-package"], []
    )
    assert Removal(declarations, ["app", "watch"]).packages == known


def test_a_host_of_an_earlier_release_has_no_records(host: FakeHost) -> None:
    before = host.tree()
    host.install_app()
    shutil.rmtree(host.root / "state/bedplate")
    host.write("units/app.service", "# Managed by Bedplate.\n[Unit]\n")
    host.write("units/app@.timer", "# Managed by Bedplate.\n[Unit]\n")
    (host.root / "libexec").rmdir()
    plan = host.plan(kinds=("models",))
    assert plan.staying == {}
    assert not host_record.RECORDS.exists()
    # Interrupted, so that no unit has the marker any more.
    host.do(plan, 14)
    assert not (host.units / "app.service").exists()
    host.do(host.plan(kinds=("models",)))
    assert host.tree() == before


def test_a_role_that_was_only_begun_leaves_nothing(host: FakeHost) -> None:
    before = host.tree()
    host.begin("app")
    host.write("opt/app/releases/1/half")
    host.loaded = []
    host.do(host.plan())
    assert host.tree() == before


def test_a_unit_of_another_with_the_name_of_ours_is_left_alone(host: FakeHost) -> None:
    host.write("units/app.service", "[Unit]\n# another's\n")
    host.begin("app")
    before = host.tree()
    host.loaded = ["app.service"]
    plan = host.plan()
    assert names(plan, "stop") == []
    host.do(plan)
    assert host.tree()["units/app.service"] == before["units/app.service"]


def test_files_of_former_settings_go_and_folders_are_data(host: FakeHost) -> None:
    host.install_app()
    host.write("srv/other/model")
    host.write("etc/former.conf")
    content = host.record()
    for path in host.paths("srv/other", "etc/former.conf"):
        content["paths"][path] = look_at(Path(path))
        content["before"][path] = {"state": "absent"}
    host.write_record(content)
    plan = host.plan()
    assert plan.staying[str(host.root / "srv/other")] == "models"
    host.do(plan)
    assert not (host.root / "etc/former.conf").exists()
    assert (host.root / "srv/other/model").exists()
    host.do(host.plan(kinds=("models",)))
    assert not (host.root / "srv/other").exists()


def test_what_others_made_after_an_uninstallation_is_not_ours(host: FakeHost) -> None:
    host.install_app()
    host.do(host.plan())
    for name in ("bin/app", "etc/ours/app/conf", "run/app/socket", "units/app.service", "libexec/other"):
        host.write(name)
    host.users["app"] = {"state": "present", "home": "/home/app", "shell": "/bin/sh"}
    host.loaded = ["app.service"]
    assert host.plan().steps == []
    # Only the data goes, and its record.
    plan = host.plan(kinds=("models",))
    assert [step.names for step in plan.steps] == [
        tuple(host.paths("srv/app")),
        tuple(host.paths("state/bedplate")),
    ]


def test_a_disk_that_hangs_is_left_alone(host: FakeHost) -> None:
    host.install_app()
    folders = host.paths("srv/app", "srv/app/models")
    plan = host.plan(kinds=("models",), data={}, silent=folders)
    assert plan.staying == {
        folders[0]: "models; its disk does not answer",
        "user app": f"it owns {folders[0]}",
    }
    host.do(plan)
    assert (host.root / "srv/app/models/blob").exists()
    assert set(host_record.load_record(host_record.RECORDS)["app"].paths) == set(folders)


def test_a_group_that_was_there_is_recorded() -> None:
    group = "root" if os.getuid() else "nogroup"
    assert host_record.look_at_user("no-such-user") == {"state": "absent"}
    assert host_record.has_group(group)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("app.service", True),
        ("app.timer", False),
        ("app@one.timer", True),
        ("app@.timer", True),
        ("app@one.service", False),
        ("bedplate-heal@app.timer", True),
        ("bedplate-heal@app.service", True),
        ("bedplate-heal@other.timer", False),
        ("other.service", False),
    ],
)
def test_which_units_are_those_of_a_role(name: str, expected: bool) -> None:
    assert bool(is_unit_of(name, ["app.service", "app@.timer"])) is expected
