"""apt_components: which sources it adds to those of a host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DEB822 = """\
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: trixie-security
Components: main contrib non-free non-free-firmware

Types: deb
URIs: https://tools.example/apt
Suites: tools-trixie
Components: main
"""
CLASSIC = "deb [signed-by=/etc/key.gpg arch=amd64,arm64] http://mirror.example/debian bookworm main # ours\n"
WANTED = ["contrib", "non-free", "non-free-firmware"]


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/gpu_driver/library/apt_components.py")


def write(folder: Path, name: str, text: str) -> Path:
    (folder / "sources.list.d").mkdir(exist_ok=True)
    path = folder / "sources.list.d" / name
    path.write_text(text)
    return path


def test_missing_components_of_each_uri_of_the_release(module: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "debian.sources", DEB822)
    own = write(tmp_path, "bedplate-gpu.sources", "Types: deb\nURIs: http://old.example\n")
    added = module.missing_sources(module.read_sources(tmp_path, own), "trixie", WANTED)
    assert added == [
        {
            "Types": "deb",
            "URIs": "http://mirror.example/debian",
            "Suites": suite,
            "Components": "contrib non-free",
            "Signed-By": "/usr/share/keyrings/archive.gpg",
        }
        for suite in ("trixie", "trixie-updates")
    ]


def test_a_classic_file(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(CLASSIC)
    (added,) = module.missing_sources(module.read_sources(tmp_path, tmp_path / "own"), "bookworm", WANTED)
    assert added == {
        "Types": "deb",
        "URIs": "http://mirror.example/debian",
        "Suites": "bookworm",
        "Components": "contrib non-free non-free-firmware",
        "Signed-By": "/etc/key.gpg",
        "Architectures": "amd64 arm64",
    }


def test_a_disabled_source_is_ignored(module: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "debian.sources", f"Enabled: no\n{DEB822}")
    added = module.missing_sources(module.read_sources(tmp_path, tmp_path / "own"), "trixie", WANTED)
    assert added == []


def test_the_file_is_written_and_removed(
    module: ModuleType,
    tmp_path: Path,
    run_module: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "bedplate-gpu.sources"
    params = {"path": str(path), "components": WANTED}
    stanza = {"Types": "deb", "URIs": "http://m.example", "Suites": "s", "Components": "contrib"}
    monkeypatch.setattr(module, "missing_sources", lambda *_: [stanza, stanza])
    assert run_module(module, params, check=True)["changed"] is True
    assert not path.exists()
    assert run_module(module, params)["suites"] == ["s", "s"]
    text = "Types: deb\nURIs: http://m.example\nSuites: s\nComponents: contrib\n"
    assert path.read_text() == f"# Managed by Bedplate.\n{text}\n{text}"
    assert path.stat().st_mode & 0o777 == 0o644
    assert run_module(module, params)["changed"] is False
    monkeypatch.setattr(module, "missing_sources", lambda *_: [])
    assert run_module(module, params)["changed"] is True
    assert not path.exists()
