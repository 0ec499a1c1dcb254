"""make init reads a bare host over SSH, changes nothing, and writes an inventory that preflight accepts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from tests.scenarios.refusals.refusing import ROOT, Control, Host
from tests.scenarios.refusals.test_refused_hosts import system
from tests.support.hosts import users_environment

DEBIAN_11 = (
    'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="11"\nPRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\n'
)
MARK = Path("/var/lib/before-init")


def init(host: Host, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run make init for the host; where its keys are comes from the environment, as from a user's ~/.ssh."""
    environment = {
        **users_environment(),
        "ANSIBLE_PRIVATE_KEY_FILE": str(host.vars["ansible_ssh_private_key_file"]),
        "ANSIBLE_SSH_COMMON_ARGS": str(host.vars["ansible_ssh_common_args"]),
    }
    command = [
        sys.executable,
        "scripts/init.py",
        "--yes",
        f"--host=root@{host.address}",
        f"--inventory={folder}",
    ]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_bare_host(control: Control, plain: Host, tmp_path: Path) -> None:
    plain(f"touch {MARK}")
    folder = tmp_path / "mine"
    done = init(plain, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"Next: make deploy INVENTORY={folder}\n")
    assert plain.changes_since(MARK) == ""
    # The way to the host is not in the inventory here.
    hosts = yaml.safe_load((folder / "hosts.yml").read_text())
    hosts["all"]["hosts"]["plain"].update(plain.vars)
    (folder / "hosts.yml").write_text(yaml.safe_dump(hosts))
    control.run(folder).accepted()
    assert "exists and stays as it is" in init(plain, folder).stderr


def test_an_unsupported_system(plain: Host, tmp_path: Path) -> None:
    with system(plain, DEBIAN_11):
        done = init(plain, tmp_path / "mine")
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"root@{plain.address} runs Debian 11, but Bedplate runs on Debian 12 and 13"
    )
    assert list(tmp_path.iterdir()) == []
