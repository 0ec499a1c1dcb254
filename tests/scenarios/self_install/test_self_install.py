"""A Debian 13 machine installs itself over a local connection, as docs/guide/getting-started.md says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.hosts import ROOT, lab_artifact, run_script, running_hosts, send_file

CHECKOUT = "/root/bedplate"
LONG_SECONDS = 1200.0
INVENTORY = {
    "hosts.yml": """
all:
  hosts: {one: {ansible_connection: local}}
  children:
    inference: {hosts: {one: {}}}
    gateway: {hosts: {one: {}}}
    monitoring: {hosts: {one: {}}}
""",
    "group_vars/all.yml": """
bedplate_validated: "9999-12-31"
ollama_version: "%(version)s"
ollama_archive: /root/engine.tar.zst
ollama_archive_checksum: "%(engine)s"
ollama_models:
  - {name: "smollm2:135m", gguf: /root/model.gguf, checksum: "%(model)s", parameters: {num_ctx: 4096}}
""",
}


class Machine:
    """The host `one`: calling it runs a script there, in the checkout."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, script: str) -> str:
        # A login reads /etc/environment, `lab/lab exec` does not.
        login = f"set -o allexport; source /etc/environment; set +o allexport; cd {CHECKOUT}"
        return run_script(self.name, f"{login}\n{script}", seconds=LONG_SECONDS)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The host with this checkout, the engine and the model in /root."""
    assert "one" in running_hosts(), (
        "there is no host `one`: run molecule create --scenario-name self_install"
    )
    machine = Machine("one")
    archive = tmp_path_factory.mktemp("checkout") / "checkout.tar"
    subprocess.run(["git", "archive", f"--output={archive}", "HEAD"], cwd=ROOT, check=True)
    run_script("one", f"mkdir {CHECKOUT}")
    send_file("one", archive, "/root/checkout.tar")
    engine, model = lab_artifact("engine"), lab_artifact("model")
    send_file("one", Path(engine["archive"]), "/root/engine.tar.zst")
    send_file("one", Path(model["path"]), "/root/model.gguf")
    machine("tar -xf /root/checkout.tar && mkdir -p inventory/mine/group_vars")
    values = {"version": engine["version"], "engine": engine["checksum"], "model": model["checksum"]}
    for path, text in INVENTORY.items():
        machine(f"cat >inventory/mine/{path} <<'END'\n{text % values if '%' in text else text}\nEND")
    machine("apt-get -q update && apt-get -q install --yes --no-install-recommends git make python3")
    return machine


def changed(output: str) -> int:
    """Return how many tasks a playbook changed."""
    return sum(int(number) for number in re.findall(r" changed=(\d+)", output))


def test_it_gets_the_newer_ansible_core(machine: Machine) -> None:
    machine("make install")
    version = machine(".venv/bin/ansible --version")
    print(version)
    assert version.startswith("ansible [core 2.21.")


def test_it_installs_and_verifies_itself(machine: Machine) -> None:
    assert changed(machine("make deploy INVENTORY=inventory/mine")) > 0


def test_a_second_run_changes_nothing(machine: Machine) -> None:
    assert changed(machine("make deploy INVENTORY=inventory/mine")) == 0


def test_the_linter_has_no_finding_with_that_version(machine: Machine) -> None:
    # What is linted is the repository, without the inventory of this test.
    machine("mv inventory/mine /root && git init --quiet && git add --all && make .venv/.dev")
    machine("scripts/lint ansible")
