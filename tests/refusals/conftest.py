"""The scenario's hosts and a control machine without keys."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from refusing import MODEL, ROOT, Control, Host


@pytest.fixture(scope="session")
def hosts() -> dict[str, Host]:
    """The scenario's hosts by name."""
    listed = subprocess.run(
        [ROOT / "lab/lab", "inventory", "--list"], capture_output=True, text=True, check=True
    )
    found = json.loads(listed.stdout)["_meta"]["hostvars"]
    missing = {"plain", "other", "card"} - found.keys()
    assert not missing, f"no hosts {missing}: run molecule test --scenario-name refusals"
    return {name: Host(name, variables) for name, variables in found.items()}


@pytest.fixture(scope="session")
def plain(hosts: dict[str, Host]) -> Host:
    """The host on which nothing is ever installed."""
    return hosts["plain"]


@pytest.fixture(scope="session")
def other(hosts: dict[str, Host]) -> Host:
    """The host with strangers' services."""
    return hosts["other"]


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Control:
    """A control machine without keys."""
    return Control(tmp_path_factory.mktemp("control"))


@pytest.fixture(scope="session")
def one_box(control: Control, plain: Host) -> Path:
    """The inventory of a stack on the host plain, with nothing wrong in it."""
    return control.one_box(plain, {"ollama_models": [MODEL]})
