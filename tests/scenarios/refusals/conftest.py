"""The scenario's hosts and a control machine without keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.refusals.refusing import MODEL, Control, Host
from tests.support.hosts import running_hosts


@pytest.fixture(scope="session")
def hosts() -> dict[str, Host]:
    """The scenario's hosts by name."""
    running = running_hosts()
    missing = {"plain", "other", "card"} - running.keys()
    assert not missing, f"no hosts {missing}: run molecule test --scenario-name refusals"
    return {name: Host(name, variables) for name, variables in running.items()}


@pytest.fixture(scope="session")
def plain(hosts: dict[str, Host]) -> Host:
    """The host on which nothing is installed."""
    return hosts["plain"]


@pytest.fixture(scope="session")
def other(hosts: dict[str, Host]) -> Host:
    """The host with third-party services."""
    return hosts["other"]


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Control:
    """A control machine without keys."""
    return Control(tmp_path_factory.mktemp("control"))


@pytest.fixture(scope="session")
def one_box(control: Control, plain: Host) -> Path:
    """A valid inventory with the whole stack on the host plain."""
    return control.one_box(plain, {"ollama_models": [MODEL]})
