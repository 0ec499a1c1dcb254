"""host_record: declarations, and what records of several roles say together."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils import host_record

UNITS = "/etc/systemd/system"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which everything of the host lies."""
    monkeypatch.setattr(host_record, "UNIT_DIRECTORY", tmp_path / "units")
    monkeypatch.setattr(host_record, "RECORDS", tmp_path / "state/record")
    monkeypatch.setattr(host_record, "FORMER_FILES", tmp_path / "state/before")
    monkeypatch.setattr(host_record, "OUR_FOLDERS", (f"{tmp_path}/opt/",))
    (tmp_path / "units").mkdir()
    return tmp_path


def begun(host: Path, role: str, **declared: list[str]) -> dict[str, str]:
    """Begin a role as a run does; return the states before, paths relative to the host."""
    declaration = host_record.declaration_from({"role": role, "file": f"{role}.yml", **declared})
    record = host_record.RoleRecord(declaration)
    record.begin([])
    return {name.removeprefix(f"{host}/"): state["state"] for name, state in record.record.before.items()}


@pytest.mark.parametrize(
    ("path", "covered", "recorded"),
    [
        ("/etc/app", True, True),
        ("/etc/app/deep/file", True, True),
        ("/etc/application", False, True),
        ("/etc", False, True),
        ("/srv", True, True),
        ("/srv/other", False, True),
        ("/run/app/socket", True, False),
        ("/var/lib/app", True, True),
        ("/var/lib/app/report.json", True, False),
        (f"{UNITS}/app.service", True, True),
        (f"{UNITS}/debian.service", True, True),
        (f"{UNITS}/app@one.timer", False, True),
        (f"{UNITS}/x.target.wants/app.service", True, True),
        (f"{UNITS}/x.target.wants/app@one.timer", True, True),
        (f"{UNITS}/app.service.wants", True, True),
        (f"{UNITS}/x.target.wants/other.service", False, True),
        (f"{UNITS}/x.target/app.service", False, True),
        ("/srv/x.target.wants/app.service", False, True),
    ],
)
def test_what_a_declaration_covers_and_what_is_recorded(path: str, covered: bool, recorded: bool) -> None:
    declaration = host_record.declaration_from(
        {
            "role": "app",
            "file": "host.yml",
            "units": ["app.service", "app@.timer"],
            "masks": ["debian.service"],
            "paths": ["/etc/app"],
            "shared": ["/srv"],
            "runtime": ["/run/app"],
            "data": {"usage": ["/var/lib/app"]},
        }
    )
    assert declaration.covers(path) is covered
    assert declaration.records(path) is recorded


def test_the_first_role_that_comes_says_what_was_there(host: Path) -> None:
    first = begun(host, "first", users=["app"], paths=[f"{host}/etc/app"], shared=[f"{host}/etc"])
    assert first == {"user app": "absent", "etc/app": "absent", "etc": "absent"}
    (host / "etc/app").mkdir(parents=True)
    assert begun(host, "second", users=["app"], paths=[f"{host}/etc/app"], shared=[f"{host}/etc"]) == first
    # The first record made the folder of the records.
    assert begun(host, "all", paths=[f"{host}/state"]) == {"state": "absent"}
    assert begun(host, "third", users=["root"], shared=[f"{host}/units"]) == {
        "user root": "present",
        "units": "directory",
    }


@pytest.mark.parametrize("sign", ["folder", "unit"])
def test_what_an_earlier_release_left_without_a_record_is_ours(host: Path, sign: str) -> None:
    if sign == "folder":
        (host / "opt/app/releases").mkdir(parents=True)
    else:
        (host / "units/app.service").write_text("# Managed by Bedplate.\n[Unit]\n")
    (host / "etc").mkdir()
    (host / "etc/app.conf").write_text("")
    declared = {
        "users": ["root"],
        "units": ["app.service"],
        "paths": [f"{host}/opt/app", f"{host}/etc/app.conf"],
        "shared": [f"{host}/etc", f"{host}/opt"],
        "whole": [f"{host}/opt/app/releases"],
    }
    before = begun(host, "app", **declared)
    # Others may use it.
    assert before.pop("etc") == "directory"
    assert set(before.values()) == {"absent"}
    # The record is there now, and so is what was before a path that is declared later.
    (host / "etc/new.conf").write_text("")
    assert begun(host, "app", paths=[f"{host}/etc/new.conf"])["etc/new.conf"] == "file"


def test_a_folder_that_is_left_for_a_file_of_the_users_is_no_earlier_release(host: Path) -> None:
    (host / "opt/app").mkdir(parents=True)
    assert begun(host, "app", paths=[f"{host}/opt/app"]) == {"opt/app": "directory"}


def test_whether_a_folder_of_data_was_empty_is_recorded(host: Path) -> None:
    for name in ("new/lost+found", "used/model"):
        (host / name).mkdir(parents=True)
    folders = [f"{host}/{name}" for name in ("new", "used", "none")]
    given = {"role": "app", "file": "app.yml", "data": {"models": folders}}
    record = host_record.RoleRecord(host_record.declaration_from(given))
    record.begin([])
    assert [record.record.before[folder].get("empty") for folder in folders] == [True, False, None]


def test_a_unit_of_another_is_kept(host: Path) -> None:
    (host / "units/app.service").write_text("[Unit]\n")
    assert begun(host, "app", units=["app.service"]) == {"units/app.service": "file"}
    assert (host / "state/before" / str(host)[1:] / "units/app.service").read_text() == "[Unit]\n"


def test_all_records_are_read_and_the_packages_are_none(host: Path) -> None:
    begun(host, "one", paths=[f"{host}/a"])
    begun(host, "two", paths=[f"{host}/b"])
    host_record.write_json(host_record.RECORDS / "packages.json", {"schema": 1, "installed": {}})
    found = host_record.load_record(host_record.RECORDS)
    assert sorted(found) == ["one", "two"]
    assert found["one"].before == {f"{host}/a": {"state": "absent"}}
    assert host_record.load_record(host / "none") == {}


def test_a_write_that_is_cut_leaves_the_former_record(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = host / "state/record/packages.json"
    host_record.write_json(file, {"schema": 1, "installed": {"zstd": "1.5"}})

    def power_cut(_number: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(host_record.os, "fsync", power_cut)
    with pytest.raises(OSError, match="power cut"):
        host_record.write_json(file, {"schema": 1, "installed": {}})
    assert host_record.load_packages(file.parent) == host_record.Packages({"zstd": "1.5"})
    # What is left of the new file disturbs no one.
    assert host_record.load_record(file.parent) == {}
    assert host_record.load_packages(host / "none") == host_record.Packages()
