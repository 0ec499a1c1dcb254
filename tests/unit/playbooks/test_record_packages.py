"""record_packages: what apt is going to add, from apt's own words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import host_record

SIMULATED = """\
NOTE: This is only a simulation!
Reading package lists...
Inst libzstd2 (1.5.7+dfsg-1 Debian:13.1/stable [amd64])
Inst libc6 [2.41-1] (2.41-12 Debian:13.1/stable [amd64])
Inst zstd (1.5.7+dfsg-1 Debian:13.1/stable [amd64])
Conf zstd (1.5.7+dfsg-1 Debian:13.1/stable [amd64])
"""
NEW = {"libzstd2": "1.5.7+dfsg-1", "zstd": "1.5.7+dfsg-1"}
Record = Callable[..., dict[str, Any]]


@pytest.fixture
def plugin(
    load_source: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    module = load_source("playbooks/library/record_packages.py")
    monkeypatch.setattr(module, "automatic", lambda names: [name for name in names if name == "nftables"])
    monkeypatch.setattr(module, "RECORDS", tmp_path)
    return module


def simulate(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a shell script be apt's simulation."""
    monkeypatch.setattr(plugin, "SIMULATE", ("sh", "-c", script))


def installed(folder: Path) -> Any:
    return json.loads((folder / "packages.json").read_text())


def test_new_packages_with_dependencies_are_recorded_and_upgrades_are_not(
    plugin: ModuleType, run_module: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(plugin, monkeypatch, f"cat <<'E'\n{SIMULATED}E")
    assert run_module(plugin, {"names": ["zstd"]}, check=True)["new"] == NEW
    assert [*tmp_path.iterdir()] == []
    assert run_module(plugin, {"names": ["zstd"]})["changed"] is False
    assert installed(tmp_path) == {"schema": 1, "installed": NEW, "requested": ["zstd"], "automatic": []}
    assert (tmp_path / "packages.json").stat().st_mode & 0o777 == 0o600
    # A later installation adds its own.
    simulate(plugin, monkeypatch, "echo 'Inst curl (8.14.1-2 Debian:13.1/stable [amd64])'")
    run_module(plugin, {"names": ["curl"]})
    assert installed(tmp_path)["installed"] == {**NEW, "curl": "8.14.1-2"}
    assert installed(tmp_path)["requested"] == ["curl", "zstd"]
    # Nothing is new, so nothing is written.
    inode = (tmp_path / "packages.json").stat().st_ino
    simulate(plugin, monkeypatch, "true")
    run_module(plugin, {"names": ["curl"]})
    assert (tmp_path / "packages.json").stat().st_ino == inode


def test_what_was_there_as_a_dependency_is_recorded_once(
    plugin: ModuleType, run_module: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(plugin, monkeypatch, f"cat <<'E'\n{SIMULATED}E")
    run_module(plugin, {"names": ["zstd", "nftables"]})
    assert installed(tmp_path)["automatic"] == ["nftables"]
    # apt has marked it as manually installed since.
    monkeypatch.setattr(plugin, "automatic", lambda _names: [])
    run_module(plugin, {"names": ["zstd", "nftables"]})
    assert installed(tmp_path)["automatic"] == ["nftables"]


def test_nothing_is_recorded_if_apt_refuses(
    plugin: ModuleType, run_module: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(plugin, monkeypatch, f"cat <<'E'\n{SIMULATED}E\nexit 100")
    assert run_module(plugin, {"names": ["zstd"]})["new"] == {}
    assert [*tmp_path.iterdir()] == []


def test_a_record_that_cannot_be_read_is_named(
    plugin: ModuleType, run_module: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(plugin, monkeypatch, "true")
    (tmp_path / "packages.json").write_text("")
    result = run_module(plugin, {"names": ["zstd"]})
    assert result["msg"].startswith(f"{tmp_path}/packages.json is no record (JSONDecodeError: ")


def test_the_real_apt_understands_the_simulation(plugin: ModuleType) -> None:
    assert "no-such-package" not in plugin.new_packages(["no-such-package"])
    assert plugin.automatic(["no-such-package"]) == []
    assert host_record.PACKAGES == "packages"
