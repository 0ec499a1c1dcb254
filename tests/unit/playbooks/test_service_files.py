"""service_files: the module on real files, and the action plugin in real plays."""

from __future__ import annotations

import base64
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils import drift, host_record

USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name
SECRET = "sk-hush-hush-hush"
Update = Callable[..., dict[str, Any]]
Files = dict[str, tuple[str, int]]


def pack(contents: dict[str, str]) -> str:
    """Return the argument contents as the action plugin makes it."""
    return base64.b64encode(zlib.compress(json.dumps(contents).encode())).decode()


def tree(path: Path) -> Files:
    """Return what a directory contains: each path with its text or target, and its mode."""
    found = {}
    for inner in sorted(path.rglob("*")):
        text = "directory" if inner.is_dir() else str(inner.read_bytes())
        found[str(inner)] = (
            f"link to {inner.readlink()}" if inner.is_symlink() else text,
            inner.lstat().st_mode,
        )
    return found


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/service_files.py")


@pytest.fixture
def host(tmp_path: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with everything that the module may write, the units' included."""
    path = tmp_path / "host"
    (path / "units").mkdir(parents=True)
    monkeypatch.setattr(plugin, "UNIT_DIRECTORY", path / "units")
    monkeypatch.setattr(host_record, "UNIT_DIRECTORY", path / "units")
    monkeypatch.setattr(host_record, "RECORDS", tmp_path / "state/record")
    monkeypatch.setattr(host_record, "FORMER_FILES", tmp_path / "state/before")
    find_ids = plugin.find_ids

    # Only root may give a file to root, as a unit needs.
    def find_own_ids(entry: Any) -> tuple[int, int]:
        is_unit = entry.path.parent == path / "units"
        ids: tuple[int, int] = (os.getuid(), os.getgid()) if is_unit else find_ids(entry)
        return ids

    monkeypatch.setattr(plugin, "find_ids", find_own_ids)
    return path


@pytest.fixture
def update(plugin: ModuleType, run_module: Callable[..., dict[str, Any]], host: Path) -> Update:
    """Run the module with these entries, whose paths are relative to the host, and these units."""

    def run(
        *files: dict[str, Any], units: dict[str, str] | None = None, check: bool = False, **params: Any
    ) -> dict[str, Any]:
        contents = {str(host / "units" / unit): text for unit, text in (units or {}).items()}
        entries = []
        for entry in files:
            path = str(host / entry["path"])
            if "content" in entry:
                contents[path] = entry["content"]
            entries.append({**{name: entry[name] for name in entry if name != "content"}, "path": path})
        declaration = {"role": "app", "file": "host.yml", "paths": [str(host)], "users": ["new"]}
        given = {
            "owner": USER,
            "group": GROUP,
            "files": entries,
            "units": [*(units or {})],
            "declaration": declaration,
        }
        return run_module(plugin, {**given, "contents": pack(contents), **params}, check=check)

    return run


def names(result: dict[str, Any], host: Path) -> list[str]:
    """Return the changed paths relative to the host."""
    assert not result.get("failed"), result
    return [path.removeprefix(f"{host}/") for path in result["changed_paths"]]


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


ENTRIES: list[dict[str, Any]] = [
    {"path": "etc/app", "state": "directory", "mode": "2750"},
    {"path": "etc/app/app.conf", "content": "port: 1\n", "mode": "0640"},
    {"path": "etc/app/key", "content": SECRET, "mode": "0600", "secret": True},
    {"path": "bin/app", "state": "link", "target": "../opt/app"},
    {"path": "srv/data", "state": "directory"},
    {"path": "etc/plain", "content": ""},
]


def test_everything_is_created_once(update: Update, host: Path) -> None:
    result = update(*ENTRIES)
    assert result["changed"]
    assert names(result, host) == [entry["path"] for entry in ENTRIES]
    assert (host / "etc/app/app.conf").read_text() == "port: 1\n"
    assert (host / "bin/app").readlink() == Path("../opt/app")
    assert (host / "etc/plain").read_bytes() == b""
    modes = {path: mode(host / path) for path in ("etc/app", "etc/app/app.conf", "etc/app/key", "srv/data")}
    assert modes == {
        "etc/app": 0o2750,
        "etc/app/app.conf": 0o640,
        "etc/app/key": 0o600,
        "srv/data": 0o755,
    }
    assert mode(host / "etc/plain") == 0o644
    again = update(*ENTRIES)
    assert again["changed"] is False
    assert (again["changed_paths"], again["diff"]) == ([], [])


def test_check_mode_changes_nothing(update: Update, host: Path) -> None:
    before = tree(host)
    result = update(*ENTRIES, units={"app.service": "[Service]\n"}, check=True)
    assert names(result, host) == [*(entry["path"] for entry in ENTRIES), "units/app.service"]
    assert tree(host) == before


def test_a_mode_is_changed_without_a_new_file(update: Update, host: Path) -> None:
    update(*ENTRIES)
    file = host / "etc/app/app.conf"
    file.chmod(0o666)
    (host / "etc/app").chmod(0o700)
    inode = file.stat().st_ino
    # A text that is already there is not checked again.
    result = update(*({**entry, "validate": "false"} for entry in ENTRIES))
    assert names(result, host) == ["etc/app", "etc/app/app.conf"]
    assert (mode(file), mode(host / "etc/app")) == (0o640, 0o2750)
    assert file.stat().st_ino == inode
    assert result["diff"][1] == {"prepared": f"{file} gets {USER}:{GROUP} 0640\n"}


def test_the_default_mode_is_that_of_files(update: Update, host: Path) -> None:
    update({"path": "a", "content": "a"}, {"path": "b", "state": "directory"}, mode="0600")
    assert (mode(host / "a"), mode(host / "b")) == (0o600, 0o755)


def test_a_link_is_replaced_by_a_file_and_its_target_is_left_alone(update: Update, host: Path) -> None:
    (host / "target").write_text("mine")
    (host / "conf").symlink_to(host / "target")
    assert names(update({"path": "conf", "content": "new"}), host) == ["conf"]
    assert not (host / "conf").is_symlink()
    assert ((host / "conf").read_text(), (host / "target").read_text()) == ("new", "mine")


def test_a_file_and_another_link_are_replaced_by_a_link(update: Update, host: Path) -> None:
    (host / "file").write_text("old")
    (host / "link").symlink_to("old")
    entries = [{"path": path, "state": "link", "target": "new"} for path in ("file", "link")]
    assert names(update(*entries), host) == ["file", "link"]
    assert {(host / path).readlink() for path in ("file", "link")} == {Path("new")}
    assert names(update(*entries), host) == []


def test_a_directory_may_be_ones_own_link_to_another(
    update: Update, host: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host / "disk").mkdir(mode=0o700)
    (host / "data").symlink_to("disk")
    entry = {"path": "data", "state": "directory", "mode": "0750"}
    assert names(update(entry), host) == ["data"]
    assert ((host / "data").is_symlink(), mode(host / "disk")) == (True, 0o750)
    assert names(update(entry), host) == []
    # Another user's link could lead anywhere.
    monkeypatch.setattr(plugin.os, "geteuid", lambda: os.getuid() + 1)
    assert "data is no directory" in update(entry)["msg"]


def test_a_mode_in_letters_is_refused(update: Update) -> None:
    result = update({"path": "file", "content": "", "mode": "u=rw"})
    assert result["msg"] == "the mode 'u=rw' is not in octal digits, such as 0640."


def test_absent_paths_are_removed(update: Update, host: Path) -> None:
    (host / "kept").mkdir()
    (host / "kept/file").write_text("mine")
    (host / "folder/inner").mkdir(parents=True)
    (host / "folder/inner/file").write_text("old")
    (host / "folder/link").symlink_to(host / "kept")
    (host / "file").write_text("old")
    (host / "link").symlink_to(host / "kept")
    paths = ["folder", "file", "link", "nothing", "file/below"]
    entries = [{"path": path, "state": "absent"} for path in paths]
    result = update(*entries)
    assert names(result, host) == ["folder", "file", "link"]
    assert result["diff"][0] == {"prepared": f"{host}/folder is removed\n"}
    assert sorted(path.name for path in host.iterdir()) == ["kept", "units"]
    assert (host / "kept/file").read_text() == "mine"
    assert update(*entries)["changed"] is False


def test_force_false_keeps_what_is_in_a_links_place(update: Update, host: Path) -> None:
    entry = {"path": "units/a.service", "state": "link", "target": "/dev/null", "force": False}
    assert names(update(entry), host) == ["units/a.service"]
    (host / "units/a.service").unlink()
    (host / "units/a.service").write_text("a unit of ours")
    assert names(update(entry), host) == []
    assert (host / "units/a.service").read_text() == "a unit of ours"


def test_force_false_keeps_a_text_but_not_a_mode(update: Update, host: Path) -> None:
    entry = {"path": "key", "content": "first", "force": False, "mode": "0600"}
    assert names(update(entry), host) == ["key"]
    assert update({**entry, "content": "second"})["changed"] is False
    (host / "key").chmod(0o644)
    assert names(update({**entry, "content": "second"}), host) == ["key"]
    assert ((host / "key").read_text(), mode(host / "key")) == ("first", 0o600)


GOOD = {"path": "good", "content": "good\n", "validate": "grep -q good %s"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            {"path": "bad", "content": "x", "validate": "/bin/sh -c 'echo line 1 is wrong; exit 3'"},
            "line 1 is",
        ),
        ({"path": "bad", "content": "x", "validate": "/no/such/program %s"}, "No such file"),
        (
            {"path": "bad", "content": "x", "owner": "no-such-user"},
            "this host has no user no-such-user or no",
        ),
        ({"path": "bad", "state": "directory", "group": "no-such-group"}, "no group no-such-group."),
        ({"path": "folder", "content": "x"}, "folder is a directory: move it away, a file has to be there."),
        ({"path": "folder", "state": "link", "target": "x"}, "folder is a directory: move it away, a link"),
        ({"path": "file", "state": "directory"}, "file is no directory: move it away, a directory has to be"),
        ({"path": "bad", "remote_src": "/no/such/file"}, "/no/such/file does not exist on this host, so it"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else re.sub(r"\W+", "-", value)[:20],
)
def test_a_refusal_leaves_everything_as_it_was(
    update: Update, host: Path, bad: dict[str, Any], said: str
) -> None:
    (host / "folder").mkdir()
    (host / "folder/file").write_text("mine")
    (host / "link").symlink_to("folder")
    for path in ("file", "old", "good"):
        (host / path).write_text("before\n")
    before = tree(host)
    entries = [
        {"path": "new", "state": "directory"},
        {"path": "pointer", "state": "link", "target": "new"},
        {"path": "old", "state": "absent"},
        GOOD,
    ]
    result = update(*entries, bad, units={"app.service": "[Unit]\n"})
    assert result["failed"]
    assert said in result["msg"]
    assert tree(host) == before


def test_what_is_in_the_way_is_reported_in_check_mode(update: Update, host: Path) -> None:
    (host / "folder").mkdir()
    for entry in ({"path": "folder", "content": "x"}, {"path": "folder", "state": "link", "target": "x"}):
        assert update(entry, check=True)["failed"]


def test_a_check_sees_the_new_text_in_a_private_file_with_the_same_suffix(update: Update, host: Path) -> None:
    seen = host.parent / "seen"
    validate = f"/bin/sh -c 'stat -c %%a%%n %s > {seen}; cat %s >> {seen}'".replace("%%", "%")
    assert names(update({"path": "a.yml", "content": "text\n", "validate": validate}), host) == ["a.yml"]
    assert re.fullmatch(r"600/.*\.yml\ntext\n", seen.read_text())
    copy = Path(seen.read_text().splitlines()[0].removeprefix("600"))
    assert not copy.parent.exists()
    seen.unlink()
    assert update({"path": "a.yml", "content": "text\n", "validate": validate})["changed"] is False
    assert not seen.exists()


def test_a_check_that_hangs_or_says_too_much_is_limited(
    update: Update, host: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "TIMEOUT_SECONDS", 0.2)
        assert "timed out after 0.2 seconds" in update({**GOOD, "validate": "sleep 60"})["msg"]
    monkeypatch.setattr(plugin, "MAX_MESSAGE", 4)
    result = update({**GOOD, "validate": "/bin/sh -c 'echo first; echo last; exit 1'"})
    assert result["msg"] == f"failed to validate {host}/good: last"


def service(program: Path) -> str:
    """Return a unit that starts a program."""
    return f"[Service]\nExecStart={program}\n"


def test_units_are_checked_after_the_files_that_they_name(update: Update, host: Path) -> None:
    program = {"path": "bin/program", "content": "#!/bin/sh\n", "mode": "0755"}
    unit = {"app.service": service(host / "bin/program")}
    result = update(program, units=unit)
    assert names(result, host) == ["bin/program", "units/app.service"]
    assert (host / "units/app.service").read_text() == unit["app.service"]
    assert mode(host / "units/app.service") == 0o644
    assert result["diff"][1]["after_header"] == f"{host}/units/app.service (root:root 0644)"


def test_the_mode_of_a_unit_is_changed_without_a_check(update: Update, host: Path) -> None:
    (host / "units/app.service").write_text("[Service]\n")
    (host / "units/app.service").chmod(0o600)
    assert names(update(units={"app.service": "[Service]\n"}), host) == ["units/app.service"]
    assert mode(host / "units/app.service") == 0o644


def test_a_refused_unit_is_not_installed(update: Update, host: Path) -> None:
    timer = "[Timer]\nOnActiveSec=5min\n"
    units = {"app.timer": timer, "app.service": service(host / "bin/missing")}
    result = update(units=units)
    assert result["failed"]
    assert result["msg"].startswith(f"failed to validate {host}/units/app.timer: ")
    assert "missing is not executable" in result["msg"]
    assert [*(host / "units").iterdir()] == []


def test_a_secret_is_shown_nowhere(update: Update, host: Path) -> None:
    entry = {"path": "key", "content": SECRET, "secret": True}
    loud = {**entry, "validate": "/bin/sh -c 'cat %s; exit 1'"}
    refused = update(loud)
    assert refused["msg"] == f"failed to validate {host}/key: /bin/sh refuses it"
    assert SECRET in update({**loud, "secret": False})["msg"]
    results = [
        refused,
        update(entry, check=True),
        update(entry),
        update({**entry, "content": "other"}),
        update({**entry, "content": "other", "mode": "0600"}),
    ]
    assert [result["changed"] for result in results[1:]] == [True] * 4
    assert SECRET not in json.dumps(results)
    # The packed texts are in no journal and no result.
    assert refused["invocation"]["module_args"]["contents"] == "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
    assert results[2]["diff"] == [
        {"prepared": f"{host}/key changes ({USER}:{GROUP} 0644); its content is not shown\n"}
    ]
    (host / "key").write_text(SECRET)
    assert SECRET not in json.dumps(update({"path": "key", "state": "absent"}))


def test_a_file_of_the_host_is_copied(update: Update, host: Path) -> None:
    (host / "made").write_bytes(b"\xff\x00\n")
    entry = {"path": "copy", "remote_src": str(host / "made"), "mode": "0600"}
    assert names(update(entry), host) == ["copy"]
    assert (host / "copy").read_bytes() == b"\xff\x00\n"
    assert update(entry)["changed"] is False
    (host / "made").write_text("new")
    assert names(update(entry), host) == ["copy"]


def test_check_mode_expects_a_file_of_the_host_that_a_run_would_make(update: Update, host: Path) -> None:
    entry = {"path": "copy", "remote_src": str(host / "made"), "validate": "false"}
    result = update(entry, check=True)
    assert names(result, host) == ["copy"]
    assert result["diff"][0]["prepared"].endswith("its content is not shown\n")
    assert not (host / "copy").exists()


def test_a_file_of_the_host_that_is_too_large_is_not_copied(
    update: Update, host: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "MAX_REMOTE_BYTES", 3)
    (host / "made").write_text("123")
    assert names(update({"path": "copy", "remote_src": str(host / "made")}), host) == ["copy"]
    (host / "made").write_text("1234")
    result = update({"path": "copy", "remote_src": str(host / "made")})
    assert result["msg"] == f"{host}/made has more than 3 bytes, so it is not copied."
    assert (host / "copy").read_text() == "123"


def test_a_file_is_replaced_at_once(
    update: Update, host: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    update({"path": "conf", "content": "old"})
    with (host / "conf").open() as reader:
        update({"path": "conf", "content": "new"})
        assert reader.read() == "old"
    assert (host / "conf").read_text() == "new"

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plugin.os, "fsync", fail)
    result = update({"path": "conf", "content": "newest"})
    assert "No space left on device" in result["msg"]
    assert (host / "conf").read_text() == "new"
    assert sorted(path.name for path in host.iterdir()) == ["conf", "units"]


def test_a_file_is_private_until_it_has_its_owner(
    update: Update, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fchown(number: int, uid: int, gid: int) -> None:
        seen.append((os.fstat(number).st_mode & 0o7777, uid, gid))

    monkeypatch.setattr(plugin.os, "fchown", fchown)
    update({"path": "conf", "content": "x", "mode": "0644"})
    assert seen == [(0o600, os.getuid(), os.getgid())]


def test_the_diff_shows_both_texts(update: Update, host: Path) -> None:
    (created,) = update({"path": "conf", "content": "old\n"})["diff"]
    assert (created["before"], created["after"]) == ("", "old\n")
    (changed,) = update({"path": "conf", "content": "new\n", "mode": "0600"})["diff"]
    assert changed == {
        "before_header": f"{host}/conf",
        "before": "old\n",
        "after_header": f"{host}/conf ({USER}:{GROUP} 0600)",
        "after": "new\n",
    }
    (link,) = update({"path": "link", "state": "link", "target": "conf"})["diff"]
    assert link == {"prepared": f"{host}/link points to conf\n"}


def test_a_long_text_is_not_in_the_diff(update: Update, host: Path) -> None:
    (shown,) = update({"path": "conf", "content": "x" * 102_400})["diff"]
    assert shown["after"] == "x" * 102_400
    # In the second change the old text is too long.
    for content in ("x" * 102_401, "short"):
        (hidden,) = update({"path": "conf", "content": content})["diff"]
        assert hidden == {"prepared": f"{host}/conf changes ({USER}:{GROUP} 0644); it is too long to show\n"}


@pytest.fixture
def known_users(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, SimpleNamespace]:
    """The users that the module finds, which a test adds; the group games exists, as everywhere in Debian."""
    known: dict[str, SimpleNamespace] = {}
    monkeypatch.setattr(plugin.pwd, "getpwnam", known.__getitem__)
    return known


SETTINGS = ["--shell", "/usr/sbin/nologin"]


def test_commands_for_a_user(plugin: ModuleType, known_users: dict[str, SimpleNamespace]) -> None:
    create = ["useradd", "--system", "--no-create-home"]
    assert plugin.user_commands("new") == [
        [*create, "--user-group", "--home-dir", "/var/lib/new", *SETTINGS, "new"]
    ]
    assert plugin.user_commands("games") == [
        [*create, "--gid", "games", "--home-dir", "/var/lib/games", *SETTINGS, "games"]
    ]
    known_users["right"] = SimpleNamespace(pw_dir="/var/lib/right", pw_shell="/usr/sbin/nologin")
    known_users["shell"] = SimpleNamespace(pw_dir="/var/lib/shell", pw_shell="/bin/sh")
    known_users["home"] = SimpleNamespace(pw_dir="/home/home", pw_shell="/usr/sbin/nologin")
    assert plugin.user_commands("right") == []
    assert plugin.user_commands("shell") == [["usermod", "--home", "/var/lib/shell", *SETTINGS, "shell"]]
    assert plugin.user_commands("home") == [["usermod", "--home", "/var/lib/home", *SETTINGS, "home"]]


@pytest.mark.usefixtures("known_users")
def test_the_user_is_created_first_and_not_in_check_mode(
    update: Update, host: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "find_ids", lambda _entry: (os.getuid(), os.getgid()))
    ran = []

    def run_command(_: Any, command: list[str], *, check_rc: bool) -> None:
        assert check_rc
        assert not (host / "file").exists()
        ran.append(command[0])

    monkeypatch.setattr(plugin.AnsibleModule, "run_command", run_command)
    for check in (True, False):
        result = update({"path": "file", "content": "x", "group": "new"}, user="new", check=check)
        assert names(result, host) == ["user new", "file"]
        assert result["diff"][0]["prepared"].startswith("user new: useradd --system ")
        assert ran == ([] if check else ["useradd"])


def test_check_mode_accepts_a_group_that_a_run_would_create(update: Update, host: Path) -> None:
    (host / "file").write_text("x")
    result = update({"path": "file", "content": "x", "group": "no-such-group"}, check=True)
    assert names(result, host) == ["file"]


# The record.


@pytest.fixture
def record(host: Path) -> Callable[[], dict[str, Any]]:
    """Read the role's record, with paths relative to the host."""

    def read() -> dict[str, Any]:
        text = (host.parent / "state/record/app.json").read_text()
        found: dict[str, Any] = json.loads(text.replace(f"{host}/", "").replace(str(host), "."))
        return found

    return read


Read = Callable[[], dict[str, Any]]


def test_the_record_says_what_the_role_left(update: Update, host: Path, record: Read) -> None:
    (host / "made").write_text("made here")
    update(
        *ENTRIES,
        {"path": "once", "content": "first", "force": False},
        {"path": "copy", "remote_src": str(host / "made"), "secret": True},
        {"path": "gone", "state": "absent"},
        units={"app.target": "[Unit]\n"},
    )
    found = record()
    assert (found["schema"], found["role"], found["units"], found["users"]) == (1, "app", ["app.target"], [])
    own = {"owner": USER, "group": GROUP}
    assert found["paths"]["etc/app"] == {"state": "directory", "mode": "2750", **own}
    assert found["paths"]["bin/app"] == {"state": "link", "target": "../opt/app"}
    text = {"state": "file", **own, "secret": False}
    digest = hashlib.sha256(b"port: 1\n").hexdigest()
    assert found["paths"]["etc/app/app.conf"] == {**text, "mode": "0640", "sha256": digest}
    # It changes by itself later.
    assert found["paths"]["once"] == {**text, "mode": "0644"}
    assert found["paths"]["copy"]["secret"] is True
    assert found["paths"]["copy"]["sha256"] == hashlib.sha256(b"made here").hexdigest()
    assert found["paths"]["units/app.target"]["owner"] == "root"
    assert "gone" not in found["paths"]
    assert SECRET not in json.dumps(found)
    modes = [mode(path) for path in (host.parent / "state/record", host.parent / "state/record/app.json")]
    assert modes == [0o700, 0o600]


def test_a_run_that_changes_nothing_rewrites_no_record(update: Update, host: Path, record: Read) -> None:
    update(*ENTRIES)
    inode = (host.parent / "state/record/app.json").stat().st_ino
    before = record()
    update(*ENTRIES)
    assert (host.parent / "state/record/app.json").stat().st_ino == inode
    update({**ENTRIES[1], "content": "port: 2\n"})
    digest = hashlib.sha256(b"port: 2\n").hexdigest()
    before["paths"]["etc/app/app.conf"]["sha256"] = digest
    assert record() == before


def test_check_mode_records_nothing(update: Update, host: Path) -> None:
    update(*ENTRIES, units={"app.target": "[Unit]\n"}, check=True)
    assert not (host.parent / "state").exists()


def test_what_is_removed_leaves_the_record_and_the_last_path_takes_it_along(
    update: Update, host: Path, record: Read
) -> None:
    update(*ENTRIES, units={"app.target": "[Unit]\n"})
    update({"path": "etc", "state": "absent"}, {"path": "units/app.target", "state": "absent"})
    assert sorted(record()["paths"]) == ["bin/app", "srv/data"]
    assert record()["units"] == []
    update({"path": "bin", "state": "absent"}, {"path": "srv", "state": "absent"})
    assert not (host.parent / "state/record/app.json").exists()


def test_the_record_says_once_what_was_there_before(update: Update, host: Path, record: Read) -> None:
    (host / "etc/app").mkdir(parents=True, mode=0o711)
    (host / "etc/app/app.conf").write_text("somebody's")
    (host / "etc/app/app.conf").chmod(0o604)
    (host / "bin").mkdir()
    (host / "bin/app").symlink_to("elsewhere")
    for _ in range(2):
        update(*ENTRIES)
        before = record()["before"]
        own = {"owner": USER, "group": GROUP}
        assert before["etc/app"] == {"state": "directory", "mode": "0711", **own}
        assert before["bin/app"] == {"state": "link", "target": "elsewhere"}
        assert before["etc/app/key"] == {"state": "absent"}
        assert before["user new"] == {"state": "absent"}
        copy = host.parent / "state/before" / str(host / "etc/app/app.conf")[1:]
        recorded = str(copy).replace(f"{host}/", "")
        assert before["etc/app/app.conf"] == {"state": "file", "mode": "0604", "copy": recorded, **own}
        assert (copy.read_text(), mode(copy)) == ("somebody's", 0o604)


def test_the_record_of_what_was_there_is_written_before_the_first_change(
    update: Update, record: Read, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(_change: Any) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(plugin, "apply", power_cut)
        assert update(*ENTRIES)["msg"] == "power cut"
    assert record()["before"]["srv/data"] == {"state": "absent"}
    update(*ENTRIES)
    assert record()["before"]["srv/data"] == {"state": "absent"}
    assert sorted(record()["paths"]) == sorted(entry["path"] for entry in ENTRIES)


def test_a_record_that_cannot_be_read_stops_the_run(update: Update, host: Path) -> None:
    file = host.parent / "state/record/app.json"
    file.parent.mkdir(parents=True)
    record = {"schema": 1, "role": "app", "paths": {}, "units": [], "users": [], "before": {}}
    for text, said in {
        "{": "is no record (JSONDecodeError: ",
        "[]": "is no record (TypeError: ",
        '{"schema": 2}': "has schema 2, but this release knows 1: use a newer one.",
        '{"schema": 1, "other": 1}': "is no record (KeyError: 'role'): ",
        json.dumps({**record, "paths": []}): "is no record (paths is no dict): ",
        json.dumps({**record, "before": {"/etc": 1}}): "is no record (a path has no state): ",
        "": "restore it from a backup, or remove it and run site.yml, which writes it again.",
    }.items():
        file.write_text(text)
        result = update(*ENTRIES)
        assert result["failed"]
        assert str(file) in result["msg"]
        assert said in result["msg"]
    assert sorted(path.name for path in host.iterdir()) == ["units"]


@pytest.mark.parametrize("check", [True, False])
def test_what_is_not_declared_is_refused_before_any_change(update: Update, host: Path, check: bool) -> None:
    declaration = {
        "role": "app",
        "file": "roles/app/meta/host.yml",
        "users": ["app"],
        "units": ["app.service"],
        "paths": [str(host / "etc/app"), str(host / "bin/app")],
        "shared": [str(host / "srv")],
        "data": {"samples": [str(host / "srv/data")]},
    }
    entries = [*ENTRIES, {"path": "srv", "state": "directory"}]
    units = {"other.service": ""}
    result = update(*entries, units=units, user="new", check=check, declaration=declaration)
    assert result["msg"] == (
        "roles/app/meta/host.yml does not declare the user new, "
        f"{host}/etc/plain, {host}/units/other.service: add it there."
    )
    assert [*host.iterdir()] == [host / "units"]
    result = update({"path": "srv/other", "content": ""}, declaration=declaration, check=check)
    assert "does not declare" in result["msg"]
    result = update(check=check, declaration={**declaration, "path": []})
    assert result["msg"].startswith("roles/app/meta/host.yml has path: use only users, units, paths, ")


# The action plugin.

PLAY = """
- name: Install the app
  hosts: all
  gather_facts: false
  roles: [app]
"""
TASKS = """
- name: Write the files
  service_files:
    owner: "{user}"
    group: "{group}"
    files:
      - {{path: "{host}/etc", state: directory}}
      - {{path: "{host}/etc/usual.conf", template: usual.j2}}
      - path: "{host}/etc/rules.conf"
        template: rules.j2
        variable_start_string: "[["
        variable_end_string: "]]"
      - {{path: "{host}/program", src: program.sh, mode: "0755"}}
      - {{path: "{host}/number", content: 8080}}
      - path: "{host}/former"
        state: absent
        content: "{{{{ 'x' if app_keeps else omit }}}}"
      - path: "{host}/kept"
        template: "{{{{ omit if app_keeps else 'usual.j2' }}}}"
        content: "{{{{ 'kept' if app_keeps else omit }}}}"
        mode: "{{{{ omit }}}}"
      - {{path: "{host}/key", content: "{secret}", secret: true, mode: "0600"}}
      - {{path: "{host}/copy", remote_src: "{host}/made"}}
    units: "{{{{ ['app.service'] if ansible_check_mode else [] }}}}"
  notify: Restart app
"""
TASK_WITHOUT_ROLE = "tasks: [{name: Write, service_files: {files: []}}]"
REFUSED = """
- name: Refuse
  service_files:
    files:
      - {entry}
  ignore_errors: true
"""


PARTS = {
    "library": "service_files.py",
    "action_plugins": "service_files.py",
    "module_utils": "host_record.py",
}


class Site:
    """A small checkout with one role, and a directory that stands for the host."""

    def __init__(self, path: Path, repo_root: Path) -> None:
        self.path = path
        self.host = path / "host"
        self.host.mkdir()
        (self.host / "former").write_text("old\n")
        (self.host / "made").write_text("made on the host\n")
        for folder, name in PARTS.items():
            (path / "playbooks" / folder).mkdir(parents=True)
            shutil.copy(repo_root / f"playbooks/{folder}/{name}", path / "playbooks" / folder)
        # The records of this machine are nobody's to write.
        module = path / "playbooks/module_utils/host_record.py"
        module.write_text(module.read_text().replace("/var/lib/bedplate", str(path / "state")))
        self.write("playbooks/site.yml", PLAY)
        role = "playbooks/roles/app"
        tasks = TASKS.format(user=USER, group=GROUP, host=self.host, secret=SECRET)
        self.write(f"{role}/tasks/main.yml", tasks)
        self.write(f"{role}/defaults/main.yml", f"app_port: 8080\napp_keeps: false\napp_host: {self.host}\n")
        self.write(f"{role}/meta/host.yml", 'paths: ["{{ app_host }}"]\nunits: [app.service]\n')
        self.write(
            f"{role}/handlers/main.yml",
            "- name: Restart app\n  ansible.builtin.debug: {msg: app is restarted}\n",
        )
        self.write(f"{role}/templates/usual.j2", "port: {{ app_port }}\n")
        self.write(f"{role}/templates/rules.j2", "[[ app_port ]] {{ $labels.host }}\n")
        self.write(f"{role}/files/program.sh", "#!/bin/sh\necho {{ not a template }}\n")
        unit = "[Service]\n{% block service %}{% endblock %}\n"
        self.write("templates/systemd/_base.service.j2", unit)
        unit = (
            "{% extends '_base.service.j2' %}\n{% set name = 'app' %}\n"
            "{% block service %}ExecStart=/opt/{{ name }} {{ app_port }}{% endblock %}\n"
        )
        self.write("templates/systemd/app.service.j2", unit)

    def write(self, name: str, text: str) -> None:
        """Write one file under the checkout."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def play(self, *args: str, fails: bool = False) -> str:
        """Run the role on this machine; return Ansible's output."""
        command = [sys.executable, "-m", "ansible", "playbook", "playbooks/site.yml", "-i", "box,", *args]
        extra = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(self.path / ".ansible")}
        run = subprocess.run(
            [*command, f"--extra-vars={json.dumps(extra)}"],
            cwd=self.path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert bool(run.returncode) == fails, run.stdout + run.stderr
        return run.stdout + run.stderr


@pytest.fixture
def site(tmp_path: Path, repo_root: Path) -> Site:
    return Site(tmp_path, repo_root)


def test_a_play_writes_the_files_of_a_role(site: Site) -> None:
    before = tree(site.host)
    checked = site.play("--check", "--diff", "-vvv")
    assert tree(site.host) == before
    assert "+port: 8080\n" in checked
    assert "+8080 {{ $labels.host }}\n" in checked
    assert "+ExecStart=/opt/app 8080\n" in checked
    assert "app is restarted" in checked

    written = site.play("--diff", "-vvv")
    assert "app is restarted" in written
    texts = {path.name: path.read_text() for path in site.host.rglob("*") if path.is_file()}
    assert texts == {
        "usual.conf": "port: 8080\n",
        "rules.conf": "8080 {{ $labels.host }}\n",
        "program": "#!/bin/sh\necho {{ not a template }}\n",
        "number": "8080",
        "kept": "port: 8080\n",
        "key": SECRET,
        "made": "made on the host\n",
        "copy": "made on the host\n",
    }

    for output in (checked, written):
        # It repeats the arguments, and they contain every text.
        assert "invocation" not in output
        assert SECRET not in output

    again = site.play()
    assert "changed=0" in again
    assert "app is restarted" not in again


def test_what_a_run_would_record_is_known_without_it(site: Site) -> None:
    keep = {"content": "{{ ansible_facts['bedplate_rendered'] }}", "dest": str(site.path / "rendered.json")}
    site.write(
        "playbooks/site.yml",
        f"{PLAY}  post_tasks: [{{name: Keep, ansible.builtin.copy: {json.dumps(keep)}}}]\n",
    )
    before = tree(site.host)
    output = site.play('--extra-vars={"__bedplate_expecting": true}', "-vvv")
    assert tree(site.host) == before
    assert "app is restarted" not in output
    (arguments,) = json.loads((site.path / "rendered.json").read_text())
    assert SECRET not in json.dumps(arguments)

    site.write("playbooks/site.yml", PLAY)
    site.play()
    recorded = json.loads((site.path / "state/record/app.json").read_text())["paths"]
    for state in recorded.values():
        state.pop("secret", None)
    # The text of a file of the host is known only there, and what is absent has no record.
    del recorded[f"{site.host}/copy"]["sha256"]
    expected = drift.rendered_paths(arguments)
    assert expected.pop(f"{site.host}/former") == {"state": "absent"}
    assert expected == recorded


def test_a_role_must_declare_what_its_task_writes(site: Site) -> None:
    file = site.path / "playbooks/roles/app/meta/host.yml"
    file.write_text("units: [app.service]\n")
    said = f"playbooks/roles/app/meta/host.yml does not declare {site.host}/etc, "
    assert said in site.play(fails=True)
    file.unlink()
    assert f"{file} is missing: declare there what the role leaves on a host." in site.play(fails=True)
    site.write("playbooks/site.yml", PLAY.replace("roles: [app]", TASK_WITHOUT_ROLE))
    assert "service_files: a task outside of a role needs `role`." in site.play(fails=True)
    assert not (site.host / "etc").exists()


@pytest.mark.parametrize(
    "entry", [{"content": "x", "template": "usual.j2"}, {}, {"content": "x", "state": "absent"}]
)
def test_an_entry_with_other_than_one_source_is_refused(site: Site, entry: dict[str, Any]) -> None:
    text = json.dumps({"path": "/no/such/file", **entry})
    site.write("playbooks/roles/app/tasks/main.yml", REFUSED.format(entry=text))
    output = site.play("-vvv")
    assert "/no/such/file: a file needs one of content, template, src, remote_src, others none." in output
    assert "invocation" not in output
