"""The hosts of a running lab, and running commands and scripts on them, for the tests of all scenarios."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_lab(*arguments: str) -> str:
    """Run a command of the lab on this machine and return its output."""
    done = subprocess.run(
        [ROOT / "lab/lab", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"lab/lab {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


def running_hosts() -> dict[str, dict[str, Any]]:
    """Return the Ansible variables of each host by its name."""
    hosts: dict[str, dict[str, Any]] = json.loads(run_lab("inventory", "--list"))["_meta"]["hostvars"]
    return hosts


def run_script(host: str, script: str, *, fails: bool = False, stdin: str = "", seconds: float = 300) -> str:
    """Run a script on a host without SSH and return its output; `fails` expects a non-zero exit status."""
    done = subprocess.run(
        [ROOT / "lab/lab", "exec", host, "bash", "-euo", "pipefail", "-c", script],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert (done.returncode != 0) == fails, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def send_file(host: str, file: Path, path: str) -> None:
    """Copy a file of this machine to a host."""
    command = [str(ROOT / "lab/lab"), "exec", host, "sh", "-c", f"cat >{path}"]
    with file.open("rb") as content:
        subprocess.run(command, stdin=content, timeout=300, check=True)


def lab_artifact(kind: str) -> dict[str, str]:
    """Return the record of the lab's `engine` (version, archive, checksum) or `model` (path, checksum)."""
    record: dict[str, str] = json.loads(run_lab(kind))
    return record


def users_environment() -> dict[str, str]:
    """Return the environment without the Ansible variables that molecule sets for its own runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return {**kept, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
