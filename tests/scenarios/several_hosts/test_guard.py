"""Ollama stays closed to all but its gateways: after flushes and a reboot, and while gateways change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.scenarios.several_hosts.connecting import connecting
from tests.support.alerts import wait_until
from tests.support.hosts import run_script
from tests.support.stack import run_playbook

PORT = 11434
SOON_SECONDS = 10


def gpu1(script: str, *, fails: bool = False) -> str:
    """Run a script on the inference host."""
    return run_script("gpu1", script, fails=fails)


def engine() -> str:
    """Return the process id of Ollama."""
    return gpu1("systemctl show --property=MainPID --value ollama").strip()


def open_to(addresses: dict[str, str]) -> set[str]:
    """Return the machines that can connect to Ollama."""
    clients = ("gateway1", "monitor1", "localhost")
    return {client for client, *_ in connecting((client, addresses["gpu1"], PORT) for client in clients)}


def deploy(**settings: Any) -> None:
    """Deploy Ollama with other settings."""
    passed, output = run_playbook("playbooks/inference.yml", "--tags=ollama", settings=settings)
    assert passed, output


@pytest.fixture
def same_engine() -> Iterator[None]:
    """Fail if Ollama restarts meanwhile."""
    before = engine()
    yield
    assert engine() == before


@pytest.mark.usefixtures("same_engine")
@pytest.mark.parametrize("command", ["reload", "restart", "stop", "start"])
def test_each_command_of_nftables_leaves_the_port_closed(command: str, addresses: dict[str, str]) -> None:
    # Enabled by the scenario, so that it flushed all tables at the reboot before.
    assert gpu1("systemctl is-enabled nftables") == "enabled\n"
    gpu1(f"systemctl {command} nftables")
    assert open_to(addresses) == {"gateway1"}
    assert ("table inet filter" in gpu1("nft list tables")) == (command != "stop")


@pytest.mark.usefixtures("same_engine")
def test_a_flush_by_hand_is_reported_and_repaired(addresses: dict[str, str]) -> None:
    gpu1("systemctl stop ollama-guard.timer; nft flush ruleset")
    # The table is all that closes the port.
    assert open_to(addresses) == {"gateway1", "monitor1", "localhost"}
    gpu1("systemctl start ollama-guard.timer")
    wait_until(lambda: open_to(addresses) == {"gateway1"}, SOON_SECONDS)
    # The journal and the alert's metric tell that it was missing.
    assert "The firewall table bedplate_ollama is missing" in gpu1("journalctl --unit ollama-guard --lines 5")
    failed = 'node_systemd_unit_state{name="ollama-guard.service",state="failed",type="oneshot"} 1'
    metrics = run_script("monitor1", f"curl --silent http://{addresses['gpu1']}:9100/metrics")
    assert failed in metrics.splitlines()
    # The next check finds it, and nothing is left to report.
    gpu1("systemctl start ollama-guard")
    assert gpu1("systemctl --failed --plain --no-legend") == ""


@pytest.mark.usefixtures("same_engine")
def test_a_restart_of_the_guard_does_not_restart_the_engine(addresses: dict[str, str]) -> None:
    gpu1("systemctl restart ollama-guard ollama-guard.timer")
    assert open_to(addresses) == {"gateway1"}


def test_the_engine_never_starts_without_the_table(addresses: dict[str, str]) -> None:
    gpu1("nft flush ruleset; systemctl restart ollama")
    assert open_to(addresses) == {"gateway1"}
    rules = "/etc/bedplate/ollama/clients.nft"
    gpu1(f"mv {rules} {rules}.away; systemctl restart ollama", fails=True)
    assert open_to(addresses) == set()
    gpu1(f"mv {rules}.away {rules}; systemctl reset-failed ollama; systemctl start ollama ollama-preload")
    assert open_to(addresses) == {"gateway1"}


def test_gateways_come_and_go(addresses: dict[str, str]) -> None:
    before = engine()
    deploy(ollama_allowed_clients=[addresses[name] for name in ("gpu1", "gateway1", "monitor1")])
    wait_until(lambda: open_to(addresses) == {"gateway1", "monitor1"}, SOON_SECONDS)
    assert engine() == before
    # A host that serves only itself has no guard.
    deploy(ollama_allowed_clients=[], ollama_listen_address="127.0.0.1")
    assert open_to(addresses) == set()
    gpu1("nft list table inet bedplate_ollama", fails=True)
    assert gpu1("systemctl list-units --all --plain --no-legend 'ollama-guard*'") == ""
    assert gpu1("find /etc -name 'ollama-guard*' -o -name clients.nft -o -name bedplate-ollama.conf") == ""
    deploy()
    assert open_to(addresses) == {"gateway1"}
    assert gpu1("systemctl is-active ollama-guard.timer") == "active\n"
