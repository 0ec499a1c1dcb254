"""inventory_check: names that an inventory sets, judged by running real plays on real inventories."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

KNOWN = ["ollama_context_length", "ollama_models", "gateway_extra_backends", "bedplate_bind_address"]
RENAMED = [
    {"old": "litellm_port", "new": "gateway_port", "since": "2026-11-27"},
    {"old": "litellm_engines", "new": "gateway_engines", "since": "2026-11-27"},
    {"old": "ollama_turbo_mode", "why": "set ollama_num_parallel", "since": "2026-11-27"},
]
WIRED = {"gateway_engines": "gateway_extra_backends", "exporter_targets": "name the host in group inference"}

PLAY = """
- name: Check the names
  hosts: all
  gather_facts: false
  tasks:
    - name: Add a host as a play would
      ansible.builtin.add_host:
        name: added
        ollama_added: true
      changed_when: false
    - name: Look
      inventory_check:
        known: {known}
        wired: {wired}
        renamed: {renamed}
      run_once: true
      register: names
    - name: Tell
      ansible.builtin.copy:
        content: "{{{{ names | to_json }}}}"
        dest: "{out}"
        mode: "0600"
      delegate_to: localhost
      connection: local
      run_once: true
      check_mode: false
"""


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/action_plugins/inventory_check.py")


class Site:
    """A small checkout: site.yml imports playbooks/check.yml; group_vars lie beside both."""

    def __init__(self, path: Path, repo_root: Path) -> None:
        self.path = path
        self.out = path / "out.json"
        self.paste = ""
        self.write("site.yml", "- name: Import\n  ansible.builtin.import_playbook: playbooks/check.yml\n")
        play = PLAY.format(known=KNOWN, wired=json.dumps(WIRED), renamed=json.dumps(RENAMED), out=self.out)
        self.write("playbooks/check.yml", play)
        self.write("playbooks/group_vars/all.yml", "gateway_engines: [ours]\nollama_from_the_playbook: 1\n")
        self.write("group_vars/all.yml", "ollama_from_the_root: 1\n")
        plugins = path / "playbooks/action_plugins"
        plugins.mkdir()
        shutil.copy(repo_root / "playbooks/action_plugins/inventory_check.py", plugins)

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Write one file under the checkout, its folders included."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def check(self, *args: str) -> dict[str, dict[str, str]]:
        """Run site.yml with these arguments; return the findings by name."""
        command = [sys.executable, "-m", "ansible", "playbook", "site.yml", *args]
        env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(self.path / ".ansible")}
        run = subprocess.run(command, cwd=self.path, env=env, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        result: dict[str, Any] = json.loads(self.out.read_text())
        assert result["changed"] is False
        self.paste = result["paste"]
        return {finding["name"]: finding for finding in result["findings"]}


@pytest.fixture
def site(tmp_path: Path, repo_root: Path) -> Site:
    return Site(tmp_path, repo_root)


@pytest.mark.parametrize(
    ("word", "guess"),
    [
        ("ollama_context_lenght", "ollama_context_length"),
        ("olama_models", "ollama_models"),
        ("Ollama_Models", "ollama_models"),
        ("gateway_extra_backend", "gateway_extra_backends"),
        ("ollama_turbo", None),
        ("grafana_models", None),
        ("bind_address", None),
    ],
)
def test_nearest(plugin: ModuleType, word: str, guess: str | None) -> None:
    assert plugin.nearest(word, KNOWN) == guess


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "ollama_context_lenght",
            "typo",
            "ollama_context_lenght is set for group inference, but Bedplate has no such variable; "
            "did you mean ollama_context_length?",
        ),
        (
            "olama_models",
            "typo",
            "olama_models is set for group inference, but Bedplate has no such variable; "
            "did you mean ollama_models?",
        ),
        (
            "ollama_turbo",
            "typo",
            "ollama_turbo is set for group inference, but Bedplate has no such variable; "
            "remove it or rename it.",
        ),
        (
            "litellm_port",
            "renamed",
            "litellm_port is set for group inference, but it was renamed to gateway_port on 2026-11-27; "
            "write gateway_port instead.",
        ),
        (
            "litellm_engines",
            "renamed",
            "litellm_engines is set for group inference, but it was renamed to gateway_engines on 2026-11-27 "
            "and Bedplate sets it itself; remove it.",
        ),
        (
            "ollama_turbo_mode",
            "renamed",
            "ollama_turbo_mode is set for group inference, but it was removed on 2026-11-27; "
            "set ollama_num_parallel.",
        ),
        (
            "gateway_engines",
            "wired",
            "gateway_engines is set for group inference, but Bedplate sets it itself; "
            "set gateway_extra_backends instead.",
        ),
        (
            "exporter_targets",
            "wired",
            "exporter_targets is set for group inference, but Bedplate sets it itself; "
            "name the host in group inference.",
        ),
        (
            "__ollama_units",
            "internal",
            "__ollama_units is set for group inference, but names that begin with __ are Bedplate's own; "
            "remove it.",
        ),
    ],
)
def test_each_kind_has_its_sentence(plugin: ModuleType, name: str, kind: str, message: str) -> None:
    rows = [plugin.Renamed(**row) for row in RENAMED]
    found = plugin.check_names({name: ["group inference"]}, KNOWN, WIRED, rows)
    assert found == [("group inference", name, kind, message)]


@pytest.mark.parametrize("name", ["ollama_models", "ansible_user", "my_own_note", "__my_own", "region"])
def test_names_that_are_fine(plugin: ModuleType, name: str) -> None:
    assert plugin.check_names({name: ["group all"]}, KNOWN, WIRED) == []


def test_a_wired_name_stays_wired_where_it_is_also_known(plugin: ModuleType) -> None:
    found = plugin.check_names({"gateway_engines": ["host a"]}, [*KNOWN, "gateway_engines"], WIRED)
    assert [finding.kind for finding in found] == ["wired"]


def test_a_name_on_many_hosts_is_one_finding(plugin: ModuleType) -> None:
    places = {"ollama_turbo": ["host a", "host b", "host c"]}
    (found,) = plugin.check_names(places, KNOWN, WIRED)
    assert "is set for host a and 2 more places, but" in found.message


def test_group_names(plugin: ModuleType) -> None:
    found = plugin.check_groups(
        {"all": 3, "ungrouped": 0, "infrence": 1, "gateways": 1, "gateway": 1, "monitoring": 0}
    )
    assert [finding.message for finding in found] == [
        "the inventory has a group infrence, but group inference is missing; did you mean inference?"
    ]
    (found,) = plugin.check_groups({"inference": 1, "gateway": 1, "monitoring": 0, "Monitorin": 2})
    assert found.message.endswith("but group monitoring is empty; did you mean monitoring?")


def test_ini_inventory_and_its_group_vars(site: Site) -> None:
    site.write(
        "inventory/mine/hosts.ini",
        "[inference]\ngpu1 gateway_engines=x\n[infrence]\ngpu2\n[inference:vars]\n"
        "ollama_context_lenght=4096\n[gateway]\ngpu1\n[monitering]\ngpu1\n",
    )
    site.write("inventory/mine/group_vars/gateway/main.yml", "__gateway_port: 1\nollama_models: []\n")
    site.write("inventory/mine/host_vars/gpu1.yml", "bedplate_bind_adress: 127.0.0.1\n")
    found = site.check("-i", "inventory/mine/hosts.ini")
    assert {name: (f["kind"], f["host_or_group"]) for name, f in found.items()} == {
        "gateway_engines": ("wired", "host gpu1"),
        "ollama_context_lenght": ("typo", "group inference"),
        "__gateway_port": ("internal", "group gateway"),
        "bedplate_bind_adress": ("typo", "host gpu1"),
        "monitering": ("group", "group monitering"),
    }
    assert site.check("-i", "inventory/mine", "--check").keys() == found.keys()


def test_dynamic_inventory_and_extra_vars(site: Site) -> None:
    inventory = {
        "inference": {"hosts": ["gpu1"], "vars": {"gateway_engines": []}},
        "_meta": {"hostvars": {"gpu1": {"ollama_modells": []}}},
    }
    script = f"#!{sys.executable}\nimport json\nprint(json.dumps({inventory!r}))\n"
    site.write("inventory/lab/hosts", script, mode=0o755)
    site.write("settings.yml", "exporter_targets: []\n")
    extra = ("-e", "ollama_contxt_length=8", "-e", "@settings.yml", "-e", '{"ollama_models": []}')
    found = site.check("-i", "inventory/lab/hosts", *extra)
    assert {name: (f["kind"], f["host_or_group"]) for name, f in found.items()} == {
        "gateway_engines": ("wired", "group inference"),
        "ollama_modells": ("typo", "host gpu1"),
        "ollama_contxt_length": ("typo", "extra vars"),
        "exporter_targets": ("wired", "extra vars"),
    }
    assert "exporter_targets is set on the command line (-e), but" in found["exporter_targets"]["message"]


def test_encrypted_values_stay_closed(site: Site) -> None:
    site.write("password", "right\n")
    encrypt = [
        sys.executable,
        "-m",
        "ansible",
        "vault",
        "encrypt_string",
        "--vault-password-file",
        "password",
    ]
    encrypt += ["--name", "ollama_secrit", "hush"]
    made = subprocess.run(encrypt, cwd=site.path, capture_output=True, text=True, check=True)
    site.write("inventory/mine/group_vars/all.yml", made.stdout)
    site.write("inventory/mine/hosts.yml", "inference: {hosts: {gpu1: }}\n")
    # No vault password is given: naming the variable must not need one.
    assert list(site.check("-i", "inventory/mine/hosts.yml")) == ["ollama_secrit"]


def test_a_file_encrypted_as_a_whole_is_read(site: Site) -> None:
    site.write("password", "right\n")
    vault = site.write("inventory/mine/group_vars/all/vault.yml", "ollama_secrit: hush\n")
    site.write("inventory/mine/hosts.yml", "inference: {hosts: {gpu1: }}\n")
    encrypt = [
        sys.executable,
        "-m",
        "ansible",
        "vault",
        "encrypt",
        "--vault-password-file",
        "password",
        str(vault),
    ]
    subprocess.run(encrypt, cwd=site.path, capture_output=True, check=True)
    found = site.check("-i", "inventory/mine/hosts.yml", "--vault-password-file", "password")
    assert list(found) == ["ollama_secrit"]


def test_a_host_list_and_an_inventory_beside_the_playbooks(site: Site) -> None:
    assert site.check("-i", "gpu1,") == {}
    site.write("playbooks/hosts", "[inference]\ngpu1 ollama_modells=1\n")
    assert list(site.check("-i", "playbooks/hosts")) == ["ollama_modells"]


def test_old_names_are_renamed_by_the_command_that_is_printed(site: Site) -> None:
    hosts = site.write("mine/hosts.yml", "all: {hosts: {a: {litellm_port: 1}}}\n")
    variables = site.write("mine/group_vars/all.yml", "litellm_port: 2\nother_litellm_port: 3\n")
    site.write("mine/group_vars/inference.yml", "ollama_models: []\n")
    site.check("-i", "mine/hosts.yml", "-e", "litellm_engines=1")
    assert site.paste == (rf"sed -i 's/\blitellm_port\b/gateway_port/g' {hosts} {variables}")
    subprocess.run(site.paste, shell=True, check=True)  # noqa: S602 - what a user pastes into a shell
    assert variables.read_text() == "gateway_port: 2\nother_litellm_port: 3\n"
    assert "gateway_port: 1" in hosts.read_text()
    assert "litellm_port" not in site.check("-i", "mine/hosts.yml")
    assert site.paste == ""
