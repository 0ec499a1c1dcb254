"""control_file: a file is whole, readable and written only where it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/action_plugins/control_file.py")


def test_a_file_is_written_once(plugin: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert plugin.write(path, "{}\n")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("{}\n", 0o644)
    before = path.stat().st_ino
    assert not plugin.write(path, "{}\n")
    assert path.stat().st_ino == before
    assert plugin.write(path, "[]\n")
    assert path.read_text() == "[]\n"


def test_what_cannot_be_replaced_leaves_nothing_behind(plugin: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(IsADirectoryError):
        plugin.write(tmp_path / "report.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
