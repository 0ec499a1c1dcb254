"""make init reads a bare host over SSH, changes nothing, and writes an inventory that preflight accepts."""

from __future__ import annotations

import re
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
    listed = tmp_path / "models.txt"
    run = control.run(folder, {"models_file": str(listed)}, "playbooks/models.yml", "--tags", "gpu-probe")
    assert run.code == 0, run.output
    lines = listed.read_text().splitlines()
    assert re.fullmatch(r"plain: [0-9.]+ GB of memory, no GPU in use", lines[0])
    (declared,) = (line for line in lines[4:6] if line)
    (model,) = yaml.safe_load((folder / "group_vars/all.yml").read_text())["ollama_models"]
    assert re.fullmatch(rf"  {model['name']} +[0-9.]+ GB +[0-9.]+ GB  fits on the CPU.* slots", declared)
    assert plain.changes_since(MARK) == ""


def test_an_unsupported_system(plain: Host, tmp_path: Path) -> None:
    # Ansible reads Debian's point release from a file of its own.
    before = plain("cat /etc/debian_version").strip()
    with system(plain, DEBIAN_11):
        plain("echo 11.11 >/etc/debian_version")
        done = init(plain, tmp_path / "mine")
        plain(f"echo {before} >/etc/debian_version")
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"root@{plain.address} runs Debian 11.11, but Bedplate runs on Debian 12 and 13"
    )
    assert list(tmp_path.iterdir()) == []
