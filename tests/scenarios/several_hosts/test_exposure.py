"""What verify says about ports that are open to too many, and what a service's own process cannot reach."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.hosts import run_script, running_hosts
from tests.support.stack import run_playbook

CLIENTS = "each port answers its clients only"
STRANGERS = "other programs that listen beyond loopback"
DECLARED = "the host is as the inventory declares"
# Moves the shell into the control group of a unit, on either hierarchy of the lab.
ENTER_GROUP = """
group=$(systemctl show --property=ControlGroup --value {unit})
test -n "$group"
root=/sys/fs/cgroup; test ! -d $root/unified || root=$root/unified
echo $$ >$root$group/cgroup.procs
"""
CONNECT = (
    "if timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null; "
    "then echo open; else echo closed; fi"
)
# Services that no client calls over the network, and their hosts.
CLOSED = [
    ("gateway1", "litellm"),
    ("gateway1", "bedplate-gateway"),
    ("monitor1", "prometheus"),
    ("monitor1", "bedplate-dashboard"),
]


@contextmanager
def stranger() -> Iterator[None]:
    """Run a web server on the gateway host, on all addresses of IPv4 and IPv6, as a unit of its own."""
    run_script("gateway1", "systemd-run --quiet --unit=stranger python3 -m http.server --bind :: 8099")
    run_script("gateway1", "until ss -Hltn sport = :8099 | grep -q .; do sleep 0.2; done")
    try:
        yield
    finally:
        run_script("gateway1", "systemctl stop stranger")


def verify(*, passes: bool, **settings: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Run verify and return its checks by host and name."""
    passed, output = run_playbook("playbooks/verify.yml", settings=settings)
    assert passed == passes, output
    report = json.loads(run_script("monitor1", "cat /var/lib/bedplate-dashboard/verify.json"))
    return {(check["host"], check["name"]): check for check in report["checks"]}


def failed(checks: dict[tuple[str, str], dict[str, Any]]) -> list[tuple[str, str]]:
    """Return host and name of each failed check."""
    return [key for key, check in checks.items() if check["ok"] is False]


def test_verify_names_a_stranger_and_a_port_without_its_guard() -> None:
    with stranger():
        # Without its rules, but with its table, whose loss something may repair meanwhile.
        run_script("gpu1", "nft flush chain inet bedplate_ollama input")
        try:
            found = verify(passes=False)
        finally:
            # The output of nft list lacks a condition (nfproto) and cannot be loaded again.
            run_script("gpu1", "nft --file /etc/bedplate/ollama/clients.nft")
        assert sorted(failed(found)) == [("gpu1", CLIENTS), ("gpu1", DECLARED)]
        assert found["gpu1", DECLARED]["seen"] == (
            "table inet bedplate_ollama: other rules instead of the rules of /etc/bedplate/ollama/clients.nft"
        )
        assert found["gpu1", CLIENTS]["seen"] == (
            "11434 (ollama) answers monitor1, which is not its client; "
            "11434 (ollama) answers the control machine, which is not its client"
        )
        assert found["gpu1", CLIENTS]["next"] == "systemctl cat ollama; nft list ruleset"
        seen = (
            r"python3 \(pid \d+, stranger\.service\) on \[::\]:8099, "
            r"which answers gpu1, monitor1, the control machine"
        )
        assert re.fullmatch(seen, found["gateway1", STRANGERS]["seen"])
        strict = verify(passes=False, verify_strict_exposure=True)
        assert failed(strict) == [("gateway1", STRANGERS)]
    assert failed(verify(passes=True, verify_strict_exposure=True)) == []


@pytest.fixture
def outside() -> Iterator[tuple[str, int]]:
    """Address and port of a listener on the control machine, which is no peer of any service."""
    address = running_hosts()["gateway1"]["ansible_host"]
    with socket.create_connection((address, 22)) as connection:
        own = connection.getsockname()[0]
    with socket.create_server((own, 0)) as server:
        yield own, server.getsockname()[1]


@pytest.mark.parametrize(("host", "unit"), CLOSED)
def test_a_planted_process_of_a_service_reaches_nothing_outside(
    host: str, unit: str, outside: tuple[str, int]
) -> None:
    """It runs in the service's control group, as code in one of the service's packages would."""
    address, port = outside
    connect = CONNECT.format(address=address, port=port)
    assert run_script(host, connect) == "open\n"
    assert run_script(host, ENTER_GROUP.format(unit=unit) + connect) == "closed\n"
    # Its peers stay reachable.
    engine = CONNECT.format(address=running_hosts()["gpu1"]["ansible_host"], port=22)
    assert run_script(host, ENTER_GROUP.format(unit=unit) + engine) == "open\n"


def test_a_planted_process_of_the_canary_reaches_nothing_outside(outside: tuple[str, int]) -> None:
    """The canary has a control group only while it runs, so its filter is copied."""
    connect = CONNECT.format(address=outside[0], port=outside[1])
    filters = run_script(
        "gateway1", "systemctl show --property=IPAddressDeny --property=IPAddressAllow traffic-canary"
    ).splitlines()
    assert len(filters) == 2
    options = " ".join(f"--property='{line}'" for line in filters)
    run = f'systemd-run --quiet --wait --pipe {{}} -- bash -c "{connect}"'
    assert run_script("gateway1", run.format("")) == "open\n"
    assert run_script("gateway1", run.format(options)) == "closed\n"
