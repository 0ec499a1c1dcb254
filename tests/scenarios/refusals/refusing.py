"""Hosts, inventories and playbook runs for the tests of preflight's refusals.

They run in the molecule scenario `refusals`, which boots the hosts `plain` and `other` in a lab of their own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.hosts import run_script, send_file, users_environment

ROOT = Path(__file__).resolve().parents[3]
GROUPS = ("inference", "gateway", "monitoring")
MODEL = {"name": "smollm2:135m", "pull": "smollm2:135m"}


class Host:
    """A lab host: calling it runs a script there, without SSH; `vars` is how Ansible reaches it."""

    def __init__(self, name: str, variables: dict[str, Any]) -> None:
        self.name = name
        self.vars = {key: value for key, value in variables.items() if key.startswith("ansible_")}
        self.address = str(variables["ansible_host"])

    def __call__(self, script: str) -> str:
        return run_script(self.name, script)

    def send(self, file: Path, path: str) -> None:
        """Copy a file of this machine to the host."""
        send_file(self.name, file, path)

    def changes_since(self, mark: Path) -> str:
        """Return the files that changed in the directories to which Bedplate writes."""
        return self(f"find /etc /opt /usr /var/lib /srv /home -xdev -newer {mark} ! -type d")


class Run(NamedTuple):
    """Exit status, output and changes of one playbook run; `message` has all printed errors."""

    code: int
    output: str
    message: str
    changed: int

    @property
    def sentence(self) -> str:
        """The message in one line."""
        return " ".join(self.message.split())

    def refused(self) -> str:
        """Return the message in one line; fails unless the run was refused and changed nothing."""
        assert (self.code, self.changed) == (2, 0), self.output
        return self.sentence

    def accepted(self) -> str:
        """Return the output; fails unless the run succeeded and changed nothing."""
        assert (self.code, self.changed) == (0, 0), self.output
        return self.output


class Control:
    """A control machine with its own directory for keys; writes inventories like a user's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "config/bedplate/bedplate/keys.json"

    def inventory(self, groups: Mapping[str, Iterable[Host]], settings: dict[str, Any]) -> Path:
        """Write an inventory with these settings for all hosts."""
        path = self.folder / f"inventory-{len(list(self.folder.iterdir()))}.json"
        children = {
            group: {"hosts": {host.name: host.vars for host in hosts}} for group, hosts in groups.items()
        }
        # No later change of a setting's meaning is the reason of a refusal.
        settings = {"bedplate_validated": "9999-12-31", **settings}
        path.write_text(json.dumps({"all": {"vars": settings, "children": children}}))
        return path

    def one_box(self, host: Host, settings: dict[str, Any]) -> Path:
        """Write an inventory with one host in all groups."""
        return self.inventory({group: [host] for group in GROUPS}, settings)

    def run(self, inventory: Path, settings: dict[str, Any] | None = None, *arguments: str) -> Run:
        """Run preflight, or the playbook in `arguments`, with settings on the command line."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook", f"--inventory={inventory}"),
                *([f"--extra-vars={json.dumps(settings)}"] if settings else []),
                *(arguments or ("playbooks/preflight.yml",)),
            ],
            cwd=ROOT,
            env={**users_environment(), "XDG_CONFIG_HOME": str(self.folder / "config")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        output = done.stdout + done.stderr
        errors = re.findall(
            r"\[ERROR\]: (?:Task failed: )?(?:Action failed: )?(.*?)\n(?:Origin|<<<)", output, re.DOTALL
        )
        changed = sum(int(number) for number in re.findall(r" changed=(\d+)", output))
        return Run(done.returncode, output, "\n".join(error.rstrip() for error in errors), changed)
