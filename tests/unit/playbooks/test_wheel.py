"""wheel: one wheel for each state of a source, built by the real uv."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from ansible.errors import AnsibleActionFail


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/action_plugins/wheel.py")


@pytest.fixture
def source(tmp_path: Path, repo_root: Path) -> Path:
    """A copy of the exporter's source."""
    path = tmp_path / "exporter"
    shutil.copytree(repo_root / "exporter", path)
    return path


def test_a_wheel_is_built_once(plugin: ModuleType, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = source.parent / "dist"
    wheel = plugin.build(source, dest)
    assert wheel.name.startswith("bedplate_exporter-")
    assert [path.name for path in dest.iterdir()] == [wheel.parent.name]
    monkeypatch.setattr(plugin.subprocess, "run", None)
    assert plugin.build(source, dest) == wheel


def test_the_same_source_gives_the_same_bytes(plugin: ModuleType, source: Path) -> None:
    """Otherwise each control machine would install a release of its own."""
    first = plugin.build(source, source.parent / "one").read_bytes()
    assert plugin.build(source, source.parent / "two").read_bytes() == first


def test_any_change_of_the_source_gives_another_folder(plugin: ModuleType, source: Path) -> None:
    hashes = {plugin.source_hash(source, "uv")}
    module = next(source.rglob("*.py"))
    module.write_text(module.read_text() + "# one line more\n")
    hashes.add(plugin.source_hash(source, "uv"))
    module.rename(module.with_name("renamed.py"))
    hashes.add(plugin.source_hash(source, "uv"))
    hashes.add(plugin.source_hash(source, "another uv"))
    assert len(hashes) == 4


def test_what_python_and_tools_leave_there_does_not_count(plugin: ModuleType, source: Path) -> None:
    before = plugin.source_hash(source, "uv")
    for name in ("src/bedplate_exporter/__pycache__/a.pyc", ".ruff_cache/a", "src/a.egg-info/PKG-INFO"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left")
    assert plugin.source_hash(source, "uv") == before


def test_old_wheels_of_the_package_are_removed(plugin: ModuleType, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"gateway-{number}").mkdir()
        plugin.os.utime(tmp_path / f"gateway-{number}", (number, number))
    (tmp_path / "exporter-0").mkdir()
    plugin.remove_old(tmp_path, "gateway")
    assert {path.name for path in tmp_path.iterdir()} == {"gateway-4", "gateway-3", "gateway-2", "exporter-0"}


def test_a_source_that_cannot_be_built_is_one_sentence(plugin: ModuleType, source: Path) -> None:
    (source / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(AnsibleActionFail, match=r"uv cannot build .*exporter: "):
        plugin.build(source, source.parent / "dist")
    assert list((source.parent / "dist").iterdir()) == []
