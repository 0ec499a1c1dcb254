"""Renders the inventories of render/inventories with the real wiring and templates, without any host."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.support.local_play import run_local_play

ROOT = Path(__file__).resolve().parents[2]
RENDER = Path(__file__).parent / "render"
INVENTORIES = sorted(path.stem for path in (RENDER / "inventories").iterdir())


class Rendered(NamedTuple):
    """The files that the playbooks would write on one host, by file name, and its wired variables."""

    units: dict[str, str]
    files: dict[str, str]
    wiring: dict[str, Any]


class Stack(NamedTuple):
    """One inventory of tests/support/render/inventories and its rendered hosts."""

    name: str
    hosts: dict[str, Rendered]


def wired_names() -> dict[str, list[str]]:
    """Return the public variables that each file of playbooks/group_vars sets, by group."""
    return {
        file.stem: [name for name in yaml.safe_load(file.read_text()) if not name.startswith("__")]
        for file in sorted((ROOT / "playbooks" / "group_vars").rglob("*.yml"))
    }


def render(name: str, checkout: Path) -> Stack:
    """Render one inventory in the empty directory `checkout`; fails with Ansible's output."""
    playbooks = checkout / "playbooks"
    playbooks.mkdir()
    # Ansible looks for group_vars next to the play's real path, so the play is a copy, the rest symlinks.
    shutil.copy(RENDER / "render.yml", playbooks)
    for folder in ("filter_plugins", "group_vars"):
        (playbooks / folder).symlink_to(ROOT / "playbooks" / folder)
    for folder in ("gateway", "requirements", "roles", "templates"):
        (checkout / folder).symlink_to(ROOT / folder)
    inventory = RENDER / "inventories" / f"{name}.yml"
    extra = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "render_out": str(checkout / "out.json"),
        "render_names": wired_names(),
    }
    arguments = [f"--inventory={inventory}", f"--extra-vars={json.dumps(extra)}", "playbooks/render.yml"]
    run_local_play(arguments, checkout)
    result = json.loads((checkout / "out.json").read_text())
    return Stack(name, {host: Rendered(**texts) for host, texts in result.items()})
