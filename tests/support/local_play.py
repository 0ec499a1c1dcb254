"""Runs a playbook that reaches no host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_local_play(arguments: Iterable[str], folder: Path) -> None:
    """Run ansible-playbook in a folder, which also has the keys that it makes; fails with its output."""
    done = subprocess.run(
        [str(ROOT / ".venv/bin/python"), "-m", "ansible", "playbook", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "XDG_CONFIG_HOME": str(folder / "config"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
