"""The checks of preflight's first play on real inventories: what changed since an inventory was validated."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.playbooks.test_renamed import NEWEST

PLAY = """
- name: Preflight of the inventory
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Check the inventory
      ansible.builtin.import_tasks: tasks/preflight_inventory.yml
"""
HOSTS = """
all:
  hosts: {box: {}, gpu1: {}}
  children:
    inference: {hosts: {gpu1: }}
    gateway: {hosts: {box: }}
    monitoring: {hosts: {box: }}
"""
# What each inventory must name that is not validated.
FOR_ALL = {
    "edge_user",
    "gateway_memory_max",
    "gateway_queues",
    "gateway_refuse_truncation",
    "ollama_memory_max",
    "prometheus_memory_max",
}


class Checkout:
    """A copy of this repository's first play, with an inventory."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        (path / "playbooks").mkdir()
        (path / "playbooks/check.yml").write_text(PLAY)
        # Ansible looks for group_vars next to the play's real path, so the play is a copy, the rest symlinks.
        for name in ("action_plugins", "filter_plugins", "group_vars", "tasks", "renamed.yml"):
            (path / "playbooks" / name).symlink_to(root / "playbooks" / name)
        (path / "roles").symlink_to(root / "roles")
        self.write("hosts.yml", HOSTS)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the inventory."""
        file = self.path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def refused(self, *args: str) -> str:
        """Run the checks; return the message of the refusal, '' if there is none."""
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "mine", "playbooks/check.yml", *args]
        env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(self.path / ".ansible")}
        env |= {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
        done = subprocess.run(command, cwd=self.path, env=env, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return ""
        found = re.search(r'"msg": (".*")', done.stdout)
        assert found, done.stdout + done.stderr
        return str(json.loads(found[1]))


@pytest.fixture
def checkout(tmp_path: Path, repo_root: Path) -> Checkout:
    return Checkout(tmp_path, repo_root)


def names(message: str) -> set[str]:
    """Return the settings that a refusal names."""
    return set(re.findall(r"^\d{4}-\d{2}-\d{2}: (\w+) ", message, re.MULTILINE))


def test_a_new_user_is_not_bothered(checkout: Checkout, repo_root: Path) -> None:
    shutil.rmtree(checkout.path / "mine")
    shutil.copytree(repo_root / "inventory/example", checkout.path / "mine")
    assert checkout.refused() == ""


def test_an_inventory_without_the_line_is_refused_until_the_printed_line_is_in_it(checkout: Checkout) -> None:
    message = checkout.refused()
    assert names(message) == FOR_ALL
    *_, before, line = message.strip().splitlines()
    file = checkout.path / "mine/group_vars/all.yml"
    assert before.endswith(f"Then write this line into {file}:")
    assert line == f'bedplate_validated: "{NEWEST}"'
    # YAML reads it as a date without quotes.
    for pasted in (line, line.replace('"', "")):
        checkout.write("group_vars/all.yml", f"{pasted}\n")
        assert checkout.refused() == ""


def test_the_oldest_day_of_a_host_counts_and_its_file_is_named(checkout: Checkout) -> None:
    checkout.write("group_vars/all.yml", f"bedplate_validated: {NEWEST}\ngateway_extra_backends: []\n")
    assert checkout.refused() == ""
    file = checkout.write("host_vars/gpu1.yml", "bedplate_validated: 2026-11-27\nollama_memory_max: 9G\n")
    (checkout.path / "mine/group_vars/all.yml").write_text("gateway_extra_backends: []\n")
    message = checkout.refused()
    assert names(message) == FOR_ALL - {"ollama_memory_max"} | {"gateway_extra_backends"}
    assert "gateway_extra_backends (set for group all): " in message
    assert f"write this line into {file}:" in message


def test_what_a_vault_and_the_command_line_set_counts(checkout: Checkout) -> None:
    (checkout.path / "password").write_text("right\n")
    vault = checkout.write("group_vars/all/vault.yml", "gateway_max_body_bytes: 1000000\nedge_user: ops\n")
    arguments = ["--vault-password-file", "password"]
    encrypt = [sys.executable, "-m", "ansible", "vault", "encrypt", *arguments, str(vault)]
    subprocess.run(encrypt, cwd=checkout.path, capture_output=True, check=True)
    message = checkout.refused(*arguments, "-e", "bedplate_bind_address=127.0.0.1")
    assert names(message) == FOR_ALL - {"edge_user"} | {"gateway_max_body_bytes", "bedplate_bind_address"}
    assert "bedplate_bind_address (set on the command line (-e)): " in message
    assert f"write this line into {checkout.path}/mine/group_vars/all/main.yml:" in message
    assert checkout.refused(*arguments, "-e", f"bedplate_validated={NEWEST}") == ""
