"""A host leaves the installation: the others no longer know it, and on a dead one nothing is removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.host_state import HostState, differences, look
from tests.support.hosts import run_lab, run_script, running_hosts
from tests.support.stack import Stack, wait_for

REMOVE = "playbooks/remove_host.yml"
NAME = "gpu2"
Confirmed = Callable[..., dict[str, Any]]


def on_host(script: str) -> str:
    return run_script(NAME, script)


@pytest.fixture(scope="module")
def bare(stack: Stack) -> Iterator[HostState]:
    """A second inference host as it was before it joined the installation."""
    run_lab("up", NAME, "--suite", "trixie", "--groups", "inference")
    before = look(on_host)
    stack.play()
    yield before
    run_lab("down", NAME)


@pytest.fixture(scope="module")
def address(bare: HostState) -> str:
    assert bare.files
    return str(running_hosts()[NAME]["ansible_host"])


@pytest.fixture
def settings(confirmed: Confirmed) -> dict[str, Any]:
    given = {name: value for name, value in confirmed().items() if name != "uninstall"}
    return {**given, "remove_host": NAME}


def knows(stack: Stack, address: str) -> dict[str, bool]:
    """Return which services of the host `one` name the address in their configuration."""
    files = {
        "gateway": "/etc/bedplate/bedplate-gateway/gateway.json",
        "litellm": "/etc/bedplate/litellm/config.yaml",
        "prometheus": "/etc/bedplate/prometheus/prometheus.yml",
        "dashboard": "/etc/bedplate/bedplate-dashboard/config.json",
    }
    return {name: f"{address}:" in stack(f"cat {file}") for name, file in files.items()}


def test_a_host_of_a_group_is_refused(stack: Stack, address: str, settings: dict[str, Any]) -> None:
    assert all(knows(stack, address).values())
    output = stack.play_fails(playbook=REMOVE, settings=settings)
    assert f"{NAME} still is in inference: take its name out of there in your inventory" in output
    output = stack.play_fails(playbook=REMOVE, settings={**settings, "remove_host": "gpu3"})
    assert "remove_host is 'gpu3', which is no host of the inventory" in output


def test_a_dead_host_leaves(stack: Stack, address: str, settings: dict[str, Any], tmp_path: Path) -> None:
    variables = running_hosts()[NAME]
    run_lab("fault", "power-cut", NAME)
    # The lab's inventory has only running hosts.
    inventory = tmp_path / "dead.json"
    inventory.write_text(json.dumps({"all": {"hosts": {NAME: variables}}}))
    output = stack.play_fails(
        f"--inventory={inventory}", playbook=REMOVE, settings={**settings, "uninstall_confirm": ""}
    )
    assert f"{NAME} does not answer: nothing is removed on it." in output
    assert all(knows(stack, address).values())
    stack.play(f"--inventory={inventory}", playbook=REMOVE, settings=settings)
    assert not any(knows(stack, address).values())
    wait_for(lambda: stack.status()["state"] == "healthy", 60)


def test_it_comes_back_and_leaves_alive(
    stack: Stack, bare: HostState, address: str, settings: dict[str, Any]
) -> None:
    run_lab("up", NAME, "--groups", "leaving")
    assert "active" in on_host("systemctl is-active ollama || true")
    stack.play(playbook=REMOVE, settings=settings)
    assert not any(knows(stack, address).values())
    left = differences(bare, look(on_host))
    print("\nleft:", *left, sep="\n  ")
    assert left == []
    assert stack.play(playbook=REMOVE, settings=settings) == 0
