"""module_utils/drift_host.py: what is read from a host for the comparison."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import drift, drift_host, host_record


def test_a_path_has_its_state_hash_and_time(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("a")
    file.chmod(0o640)
    os.utime(file, (5, 5))
    link.symlink_to("file")
    found = drift_host.read_paths([str(file), str(link), str(tmp_path / "none")])
    state = found["paths"][str(file)]
    assert (state["state"], state["mode"]) == ("file", "0640")
    assert state["sha256"] == host_record.digest(b"a")
    assert found["paths"][str(link)] == {"state": "link", "target": "file", "to": host_record.look_at(file)}
    assert found["paths"][str(tmp_path / "none")] == {"state": "absent"}
    assert found["times"][str(file)] == 5


def test_a_release_names_what_changed_in_it(tmp_path: Path) -> None:
    release = tmp_path / "app/releases/1-abc"
    packages = release / "venv/lib/python3.11/site-packages"
    for name in ("httpx-1.0.dist-info", "my_app-0.1.0.dist-info", "pip-23.dist-info", "__pycache__"):
        (packages / name).mkdir(parents=True)
    (release / "requirements.txt").write_text(
        "httpx==1.0 \\\n    --hash=sha256:00\nuvicorn[standard]==2.0 ; sys_platform == 'win32'\n"
        "./my_app-0.1.0-py3-none-any.whl --hash=sha256:11\n"
    )
    (tmp_path / "app/current").symlink_to("releases/1-abc/venv")
    (tmp_path / "other").mkdir()
    before = time.time() - 100
    for path in release.rglob("*"):
        os.utime(path, (before, before))
    (folder, incomplete) = next(drift_host.read_releases(tmp_path))
    assert (folder, incomplete["complete"]) == (str(release), False)
    (release / ".complete").touch()
    os.utime(release / ".complete", (before + 1, before + 1))
    for name in ("evil.py", "__pycache__/evil.pyc"):
        (packages / name).touch()
    (release / ".lock").touch()
    (_, found) = next(drift_host.read_releases(tmp_path))
    assert found == {
        "complete": True,
        "newer": [str(packages / "evil.py")],
        "lock": {"httpx": ["1.0"], "uvicorn": ["2.0"], "my-app": ["0.1.0"]},
        "packages": {"httpx": "1.0", "my-app": "0.1.0"},
    }


def test_strays_are_what_no_role_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: tmp_path / name for name in ("etc", "opt", "libexec", "units")}
    for name, constant in zip(
        folders, ("CONFIGURATION", "PROGRAMS", "LIBEXEC", "UNIT_DIRECTORY"), strict=True
    ):
        folders[name].mkdir()
        monkeypatch.setattr(drift_host, constant, folders[name])
    files = {
        "etc/app.conf": "",
        "opt/app/x": "",
        "opt/stray/x": "",
        "libexec/bedplate-app": "",
        "libexec/bedplate-stray": "",
        "libexec/others": "",
        "units/app.service": "# Managed by Bedplate.\n",
        "units/app.service.wants/app-heal@x.timer": "",
        "units/app.service.wants/stray.service": "",
        "units/other.service.wants/x.service": "",
        "units/bedplate-stray.service": "",
        "units/marked.service": "# Managed by Bedplate.\n",
        "units/users.service": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    declaration = {
        "paths": [f"{tmp_path}/opt/app", f"{tmp_path}/libexec/bedplate-app"],
        "shared": [f"{tmp_path}/opt", f"{tmp_path}/libexec"],
        "units": ["app.service", "app-heal@.timer"],
    }
    found = drift_host.find_strays([declaration], {"app"})
    assert [path.removeprefix(f"{tmp_path}/") for path in found] == [
        # A record says what of these is expected.
        "etc/app.conf",
        "libexec/bedplate-stray",
        "opt/stray",
        "units/app.service.wants/stray.service",
        "units/bedplate-stray.service",
        "units/marked.service",
    ]
    assert drift_host.find_strays([declaration], set()) == []


SHOWN = """Id=app.service
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
DropInPaths=/run/x/service.d/z.conf /etc/x/app.service.d/x.conf /run/x/app.service.d/y.conf /usr/z.conf
NeedDaemonReload=yes
MainPID=7
ExecMainStartTimestamp=@100
StateChangeTimestamp=@200

Id=app.timer
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
DropInPaths=
NeedDaemonReload=no
"""


def test_units_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_host, "run", lambda *_: SHOWN)
    monkeypatch.setattr(drift_host, "replaced_program", lambda pid: f"/usr/bin/{pid}")
    units, processes = drift_host.read_units(["app.service", "app.timer"])
    assert units["app.service"]["drop_ins"] == [
        "/etc/x/app.service.d/x.conf",
        "/run/x/app.service.d/y.conf",
    ]
    assert (units["app.service"]["stale"], units["app.timer"]["load"]) == (True, "not-found")
    assert processes == {"app.service": {"started": 100, "changed": 200, "replaced": "/usr/bin/7"}}
    assert drift_host.read_units([]) == ({}, {})


def test_a_program_that_was_replaced(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/exe").symlink_to("/usr/bin/app (deleted)")
    assert drift_host.replaced_program(7, tmp_path) == "/usr/bin/app"
    assert drift_host.replaced_program(8, tmp_path) == ""
    assert drift_host.replaced_program(os.getpid()) == ""


MOUNTS = """22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 8:17 / /var/lib/app\\040models rw - ext4 /dev/sdb1 ro,errors=remount-ro
31 22 8:1 /x /etc/bedplate/app/keys.json rw - tmpfs tmpfs rw
32 22 8:1 /x /srv ro - tmpfs tmpfs rw
"""


def test_mounts_in_our_paths_and_under_our_data() -> None:
    mounts = list(drift_host.read_mounts(MOUNTS))
    data = ["/var/lib/app models", "/srv/samples", "/var/lib/usage"]
    found = list(drift_host.watched_mounts(mounts, ["/etc/bedplate/app"], data))
    assert [(mount["point"], mount["read_only"], mount["inside"]) for mount in found] == [
        ("/var/lib/app models", True, True),
        ("/etc/bedplate/app/keys.json", False, True),
        ("/srv", True, False),
    ]


def test_models_that_nobody_declared(tmp_path: Path) -> None:
    for name in ("registry.ollama.ai/library/a/1", "registry.ollama.ai/me/b/2", "10.0.0.1:5000/library/c/3"):
        file = tmp_path / "manifests" / name
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    found = drift_host.read_models(tmp_path, [{"name": "a:1", "pull": "a:1"}])
    assert found["reasons"] == {"a:1": "its manifest is damaged"}
    assert found["undeclared"] == ["10.0.0.1:5000/library/c:3", "me/b:2"]
    assert found["owners"][str(tmp_path / "manifests/registry.ollama.ai")] == host_record.user_name(
        os.getuid()
    )


def test_an_expectation_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "expected.json"
    expected = drift.Expectation("one", {"app": {"declaration": {}}}, ["x"], {"listeners": [["tcp", 1]]})
    drift_host.save_expectation(file, expected)
    written = file.stat().st_mtime_ns
    assert drift_host.load_expectation(file) == expected
    assert file.stat().st_mode & 0o777 == 0o600
    drift_host.save_expectation(file, expected)
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({"schema": 1, "other": 1}), "cannot be read"),
        (json.dumps({"schema": 9}), "has schema 9, but this release knows 1"),
    ],
)
def test_an_expectation_that_cannot_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "expected.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(host_record.RecordError, match=message):
        drift_host.load_expectation(file)


def test_the_metrics_name_the_first_difference(tmp_path: Path) -> None:
    def difference(what: str, *, known: bool = False) -> Any:
        return drift.Difference(kind="file", what=what, expected="a", seen="b", remedy="c", known=known)

    file = tmp_path / "drift.prom"
    drift_host.write_status(file, [difference("/known", known=True), difference('/a"b\\c'), difference("/d")])
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "bedplate_host_drift_differences 2"
    assert lines[2] == 'bedplate_host_drift{kind="file",what="/a\\"b\\\\c"} 1'
    assert file.stat().st_mode & 0o777 == 0o644
    drift_host.write_status(file, [])
    assert "bedplate_host_drift{" not in file.read_text()


def test_a_disk_that_hangs_is_named_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(folder: str, *_: Any) -> dict[str, Any]:
        time.sleep(60 if folder == "/srv/models" else 0)
        return {}

    monkeypatch.setattr(drift_host, "DISK_SECONDS", 0.3)
    monkeypatch.setattr(drift_host, "read_folder", read)
    monkeypatch.setattr(drift_host, "read_root", lambda *_: {})
    monkeypatch.setattr(drift_host, "run", lambda *_: "")
    monkeypatch.setattr(drift_host, "read_users", lambda *_: {})
    declaration = {"data": {"models": ["/srv/models"], "samples": ["/srv/samples"]}}
    expected = drift.Expectation("one", {"app": {"declaration": declaration}})
    started = time.monotonic()
    seen = drift_host.look_at_host(expected, {}, ["/srv/models/x"])
    assert seen["silent"] == ["/srv/models"]
    assert time.monotonic() - started < 5
    monkeypatch.setattr(drift_host, "read_root", lambda *_: 1 / 0)
    with pytest.raises((ValueError, OSError)):
        drift_host.look_at_host(expected, {}, [])
