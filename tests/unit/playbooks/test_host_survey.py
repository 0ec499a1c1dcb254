"""host_survey: the readings against made /proc trees, and the whole module on this machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = (
    "   0: {address}:{port:04X} 00000000:0000 {state} 00000000:00000000 "
    "00:00000000 00000000     0        0 {inode} 1\n"
)


@pytest.fixture(scope="module")
def survey(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/host_survey.py")


class FakeProc:
    """A made /proc with sockets and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "net").mkdir()
        (path / "net/tcp").write_text(HEADER)

    def socket(self, port: int, inode: int, *, state: str = "0A", table: str = "tcp") -> None:
        """Add a row to a socket table."""
        path = self.path / "net" / table
        address = "0100007F" if table == "tcp" else "0" * 32
        text = path.read_text() if path.exists() else HEADER
        path.write_text(text + ROW.format(address=address, port=port, state=state, inode=inode))

    def process(self, pid: int, name: str, cgroup: str, *inodes: int) -> None:
        """Add a process that holds sockets."""
        folder = self.path / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text(f"{name}\n")
        (folder / "cgroup").write_text(cgroup)
        for number, inode in enumerate(inodes):
            (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/ollama.service\n", "ollama.service"),
        ("9:name=systemd:/system.slice/ollama.service\n8:pids:/x.service\n0::/\n", "ollama.service"),
        ("0::/system.slice/system-app.slice/app@1.service/worker\n", "app@1.service"),
        ("0::/machine.slice/machine-a.scope/payload/system.slice/litellm.service\n", "litellm.service"),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/ollama.service\n", "user@0.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("0::/init.scope\n", "init.scope"),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_unit_of_cgroup(survey: ModuleType, text: str, unit: str | None) -> None:
    assert survey.unit_of_cgroup(text) == unit


def test_a_port_of_ours_and_one_of_somebody_else(survey: ModuleType, proc: FakeProc) -> None:
    proc.socket(8000, 11)
    proc.socket(9090, 12, table="tcp6")
    proc.socket(22, 13)
    proc.socket(8000, 14, state="01")
    proc.process(7, "python3", "0::/system.slice/bedplate-gateway.service\n", 11)
    proc.process(9, "nginx", "0::/system.slice/nginx.service\n", 12, 13)
    found = survey.listeners({8000: "bedplate-gateway", 9090: "prometheus.service", 3001: "x"}, [], proc.path)
    assert found == [
        {"port": 8000, "pid": 7, "process": "python3", "unit": "bedplate-gateway.service", "ours": True},
        {"port": 9090, "pid": 9, "process": "nginx", "unit": "nginx.service", "ours": False},
    ]


def test_the_expected_unit_of_somebody_else_is_not_ours(survey: ModuleType, proc: FakeProc) -> None:
    proc.socket(11434, 11)
    proc.process(7, "ollama", "0::/system.slice/ollama.service\n", 11)
    (found,) = survey.listeners({11434: "ollama"}, ["ollama.service"], proc.path)
    assert found["ours"] is False


def test_a_process_that_cannot_be_seen(survey: ModuleType, proc: FakeProc) -> None:
    proc.socket(11434, 11)
    (found,) = survey.listeners({11434: "ollama"}, [], proc.path)
    assert found == {"port": 11434, "pid": None, "process": None, "unit": None, "ours": False}


def test_many_processes_on_one_socket_are_one_listener(survey: ModuleType, proc: FakeProc) -> None:
    proc.socket(3001, 11)
    proc.process(1, "systemd", "0::/init.scope\n", 11)
    for pid in (30, 31):
        proc.process(pid, "gunicorn", "0::/system.slice/bedplate-dashboard.service\n", 11)
    (found,) = survey.listeners({3001: "bedplate-dashboard"}, [], proc.path)
    assert (found["pid"], found["ours"]) == (30, True)


def test_a_socket_that_waits_in_systemd(
    survey: ModuleType, proc: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = (
        "Id=cockpit.socket\nListen=[::]:9090 (Stream)\n\n"
        "Id=d.socket\nListen=/run/d (Stream)\nListen=127.0.0.1:8000 (Stream)\n"
    )
    assert survey.socket_units(shown) == {9090: "cockpit.socket", 8000: "d.socket"}
    monkeypatch.setattr(survey, "systemctl_show", lambda *_: shown)
    proc.socket(9090, 11, table="tcp6")
    proc.process(1, "systemd", "0::/init.scope\n", 11)
    (found,) = survey.listeners({9090: "prometheus"}, [], proc.path)
    assert (found["unit"], found["ours"]) == ("cockpit.socket", False)


def test_a_socket_that_systemd_stores_for_a_service(
    survey: ModuleType, proc: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {"bedplate-gateway.service": "NFileDescriptorStore=2\n"}
    monkeypatch.setattr(survey, "systemctl_show", lambda names, _: shown.get(names[0], ""))
    proc.socket(8000, 11)
    proc.process(1, "systemd", "0::/init.scope\n", 11)
    (found,) = survey.listeners({8000: "bedplate-gateway"}, [], proc.path)
    assert (found["unit"], found["ours"]) == ("bedplate-gateway.service", True)
    shown["bedplate-gateway.service"] = "NFileDescriptorStore=0\n"
    (found,) = survey.listeners({8000: "bedplate-gateway"}, [], proc.path)
    assert (found["unit"], found["ours"]) == (None, False)


def test_the_gateway_under_its_former_name_is_ours(
    survey: ModuleType, proc: FakeProc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = "# Managed by Bedplate.\n[Service]\nExecStart=/opt/bedplate/litellm/current/bin/"
    (tmp_path / "other.service").write_text("[Service]\nExecStart=/usr/bin/bedplate-litellm\n")
    (tmp_path / "proxy.service").write_text(f"{marked}litellm --config config.yaml\n")
    assert survey.former_gateway(tmp_path) == ""
    (tmp_path / "litellm.service").write_text(f"{marked}bedplate-litellm gateway.json\n")
    former = survey.former_gateway(tmp_path)
    assert former == "litellm.service"
    proc.socket(8000, 11)
    proc.socket(9090, 12)
    proc.process(7, "python3", "0::/system.slice/litellm.service\n", 11, 12)
    expected = {8000: "bedplate-gateway", 9090: "prometheus"}
    assert [found["ours"] for found in survey.listeners(expected, [], proc.path)] == [False, False]
    found = survey.listeners(expected, [], proc.path, former)
    assert [listener["ours"] for listener in found] == [True, True]
    # While it starts again, systemd holds its socket.
    monkeypatch.setattr(survey, "keeps_sockets", lambda unit: unit == former)
    monkeypatch.setattr(survey, "systemctl_show", lambda *_: "")
    proc.socket(9464, 13)
    proc.process(1, "systemd", "0::/init.scope\n", 13)
    assert survey.listeners({9464: "bedplate-gateway"}, [], proc.path, former)[0]["ours"] is True


def block(
    unit: str, path: Path | str, *, load: str = "loaded", active: str = "inactive", file: str = "disabled"
) -> str:
    return f"Id={unit}\nLoadState={load}\nActiveState={active}\nFragmentPath={path}\nUnitFileState={file}\n"


def test_whose_unit_it_is(survey: ModuleType, tmp_path: Path) -> None:
    ours = tmp_path / "bedplate-gateway.service"
    ours.write_text("# Managed by Bedplate.\n[Unit]\n")
    theirs = tmp_path / "ollama.service"
    theirs.write_text("[Unit]\nDescription=not # Managed by Bedplate.\n")
    shown = "\n".join(
        [
            block("ollama.service", theirs),
            block("bedplate-gateway.service", ours, active="active", file="enabled"),
            block("node_exporter.service", "/etc/systemd/system/node_exporter.service", active="activating"),
            block("prometheus.service", "/usr/lib/systemd/system/prometheus.service"),
            block(
                "prometheus-node-exporter.service", "/dev/null", load="masked", active="active", file="masked"
            ),
            block("litellm-proxy.service", "", load="not-found", file=""),
            block("ssh.service", "/etc/systemd/system/ssh.service", active="active"),
        ]
    )
    third_party = {
        unit.unit: (unit.service, unit.active, unit.enabled)
        for unit in survey.units(shown)
        if unit.third_party
    }
    assert third_party == {
        "ollama.service": ("ollama", False, False),
        "node_exporter.service": ("node-exporter", True, False),
    }


@pytest.mark.parametrize(
    ("active", "file"), [("active", "disabled"), ("inactive", "enabled"), ("failed", "enabled")]
)
def test_a_packaged_unit_counts_when_it_is_used(survey: ModuleType, active: str, file: str) -> None:
    shown = block("prometheus.service", "/lib/systemd/system/prometheus.service", active=active, file=file)
    (unit,) = survey.units(shown)
    assert unit.third_party


def test_the_disk_of_a_folder_to_come(survey: ModuleType, tmp_path: Path) -> None:
    stats = os.statvfs(tmp_path)
    free, size = survey.disk_of(str(tmp_path / "not/there/yet"))
    assert size > free
    assert abs(free - stats.f_bavail * stats.f_frsize) < 2**30


def test_a_disk_that_does_not_answer_is_not_waited_for(survey: ModuleType) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        survey.in_time(lambda: time.sleep(60), 0.2)
    assert time.monotonic() - started < 5
    assert survey.in_time(lambda: [1, "a"], 5) == [1, "a"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/etc",
            "/etc/ollama",
            "/usr",
            "/usr/local/share/x",
            "/var",
            "/var/lib",
            "/var/x",
            "/srv",
            "/mnt",
        ),
        *("/opt", "/sys/x", "/run/x", "/proc/1", "/boot/models", "/home", "/home/ada/models", "/root/models"),
    ],
)
def test_a_folder_of_the_system_is_not_handed_over(survey: ModuleType, path: str) -> None:
    assert survey.folder_problem(path, "ollama", "blobs|manifests") in (
        "a folder of the operating system",
        "which the service's sandbox hides",
    )


def test_a_folder_of_the_system_that_is_the_users_is_handed_over_but_for_the_first(
    survey: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ollama's own script installs models into /usr/share/ollama."""
    monkeypatch.setattr(survey, "owner_of", lambda _: "ollama")
    assert survey.folder_problem("/usr/share", "ollama", "blobs|manifests") == ""
    assert survey.folder_problem("/usr", "ollama", "blobs|manifests") == "a folder of the operating system"


def test_a_folder_with_files_of_others_is_not_handed_over(
    survey: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SYSTEM_FOLDERS", frozenset({"etc"}))

    def problem(path: Path) -> str:
        found: str = survey.folder_problem(str(path), "ollama", "blobs|manifests")
        return found

    folder = tmp_path / "models"
    assert problem(folder) == ""
    folder.mkdir()
    (folder / "lost+found").mkdir()
    assert problem(folder) == ""
    (folder / "blobs").mkdir()
    (folder / "manifests").mkdir()
    assert problem(folder) == ""
    for name in "dcab":
        (folder / name).touch()
    assert problem(folder) == "which contains a, b, c and more"
    assert problem(folder / "a") == "which is no folder"
    (tmp_path / "link").symlink_to("/etc")
    assert problem(tmp_path / "link") == "a folder of the operating system"
    monkeypatch.setattr(survey, "owner_of", lambda _: "ollama")
    assert problem(folder) == ""


def test_the_whole_module_here(
    survey: ModuleType, run_module: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET6) as six:
        six.bind(("::1", 0))
        six.listen()
        ports = [server.getsockname()[1], six.getsockname()[1]]
        params = {
            "ports": [{"port": port, "unit": "bedplate-gateway"} for port in ports],
            "paths": [str(tmp_path / "models"), "/"],
            "folders": [
                {"path": path, "user": "ollama", "entries": "blobs"} for path in ("/etc", "/srv/models")
            ],
            "stat_paths": [str(tmp_path), str(tmp_path / "keys.json")],
            # The second is one for documentation, the third none at all.
            "addresses": ["127.0.0.1", "203.0.113.7", "10.999.1.1"],
        }
        result = run_module(survey, params, check=True)
    assert result["changed"] is False
    # The two families may get one number, which the survey lists once.
    assert [item["port"] for item in result["listeners"]] == sorted(set(ports))
    assert {item["pid"] for item in result["listeners"]} == {os.getpid()}
    assert not any(item["ours"] for item in result["listeners"])
    assert result["disk_bytes"].keys() == result["free_bytes"].keys()
    assert result["free_bytes"].keys() == {str(tmp_path / "models"), "/"}
    assert result["folder_problems"] == {"/etc": "a folder of the operating system"}
    assert result["silent_paths"] == []
    assert result["exists"] == {str(tmp_path): True, str(tmp_path / "keys.json"): False}
    assert result["own_address"] == {"127.0.0.1": True, "203.0.113.7": False, "10.999.1.1": False}
    assert result["memory_bytes"] > 2**27
    assert result["python_version"].startswith("3.")


def test_a_relative_path_is_refused(survey: ModuleType, run_module: Callable[..., dict[str, Any]]) -> None:
    result = run_module(survey, {"paths": ["models"]})
    assert result["failed"] is True
    assert result["msg"] == "paths must be absolute, got 'models'; give the folder's full path."


def test_a_program_has_the_complete_release_that_current_points_to(
    survey: ModuleType, tmp_path: Path
) -> None:
    for program, release in (("uv", "1.0"), ("ollama", "0.24"), ("half", "2")):
        (tmp_path / program / "releases" / release).mkdir(parents=True)
    (tmp_path / "uv/releases/1.0/venv").mkdir()
    (tmp_path / "uv/current").symlink_to("releases/1.0/venv")
    (tmp_path / "uv/releases/1.0/.complete").touch()
    (tmp_path / "ollama/current").symlink_to("releases/0.24")
    (tmp_path / "ollama/releases/0.24/.complete").touch()
    (tmp_path / "half/current").symlink_to("releases/2/venv")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/current").mkdir()
    assert survey.releases(tmp_path) == {"ollama": "0.24", "uv": "1.0"}


def test_missing_packages_are_named(survey: ModuleType) -> None:
    """Every Debian has dpkg installed; a known package that was removed counts as missing."""
    assert survey.missing_packages([]) == []
    assert survey.missing_packages(["dpkg", "no-such-package"]) == ["no-such-package"]


def test_package_lists_have_an_age(survey: ModuleType, tmp_path: Path) -> None:
    stamp, lists = tmp_path / "stamp", tmp_path / "lists"
    assert survey.package_lists_seconds([stamp, lists]) is None
    lists.mkdir()
    os.utime(lists, (0, 0))
    assert survey.package_lists_seconds([stamp, lists]) > 86400 * 365
    stamp.touch()
    assert 0 <= survey.package_lists_seconds([stamp, lists]) < 60


def test_a_hung_disk_is_reported(
    survey: ModuleType,
    run_module: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hang(_: Callable[[], Any]) -> Any:
        raise TimeoutError

    monkeypatch.setattr(survey, "in_time", hang)
    folder = {"path": "/srv/samples", "user": "prometheus", "entries": "wal"}
    result = run_module(
        survey, {"paths": ["/srv/models"], "folders": [folder, {**folder, "path": "/srv/models"}]}
    )
    assert result["silent_paths"] == ["/srv/models", "/srv/samples"]
    assert (result["free_bytes"], result["folder_problems"]) == ({}, {})
