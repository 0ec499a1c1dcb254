"""playbooks/filter_plugins/exposure.py: what verify says about listeners and connections."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from ipaddress import IPv4Address
from types import ModuleType
from typing import Any

import pytest

LISTENING = "Bedplate's services listen on their addresses only"
STRANGERS = "other programs that listen beyond loopback"
CLIENTS = "each port answers its clients only"
ADDRESSES = {"gpu1": "10.0.0.1", "gate": "10.0.0.2", "watch": "10.0.0.3"}
CONTROL_ADDRESS = "10.0.0.9"
EVERYWHERE = str(IPv4Address(0))
HOSTS = list(ADDRESSES)
Hosts = dict[str, dict[str, Any]]


def opening(port: int, unit: str, address: str, *clients: str) -> dict[str, Any]:
    """Return a port that a host means to have."""
    return {"port": port, "unit": unit, "address": address, "clients": list(clients)}


def listener(
    port: int, unit: str = "", address: str = EVERYWHERE, process: str = "web", protocol: str = "tcp"
) -> dict[str, Any]:
    """Return an entry of service_survey."""
    return {
        "protocol": protocol,
        "address": address,
        "port": port,
        "process": process,
        "pid": 7 if process else 0,
        "unit": unit,
    }


def connection(host: str, port: int, source: str = "", error: str = "") -> dict[str, Any]:
    """Return a result of port_connections."""
    return {"host": host, "port": port, "source": source, "error": error}


SSH = [
    listener(22, "ssh.service", process="sshd"),
    listener(22, "ssh.service", "::", "sshd"),
    listener(22, "ssh.socket", "::", "systemd"),
]
DHCP = listener(68, "networking.service", process="dhclient", protocol="udp")


@pytest.fixture(scope="module")
def exposure(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/filter_plugins/exposure.py")


@pytest.fixture
def hosts(exposure: ModuleType) -> Hosts:
    """An engine, a gateway and a monitoring host, as a correct stack reports them."""
    openings = {
        "gpu1": [
            opening(11434, "ollama", "10.0.0.1", "10.0.0.2", "10.0.0.1"),
            opening(9101, "bedplate-exporter", "10.0.0.1", "10.0.0.3", "10.0.0.1"),
        ],
        "gate": [
            opening(8000, "bedplate-gateway", "10.0.0.2", "any"),
            opening(4000, "litellm", "127.0.0.1"),
        ],
        "watch": [opening(9090, "prometheus", "127.0.0.1", "any")],
    }
    found: Hosts = {}
    for name, address in ADDRESSES.items():
        own = [
            listener(entry["port"], f"{entry['unit']}.service", entry["address"], entry["unit"])
            for entry in openings[name]
            if not entry["address"].startswith("127.")
        ]
        found[name] = {
            "__bedplate_host_address": address,
            "__verify_openings": openings[name],
            "__verify_survey": {"listeners": [*SSH, DHCP, *own], "count": len(SSH) + 1 + len(own)},
        }
    connect(exposure, found)
    return found


def connect(exposure: ModuleType, hosts: Hosts) -> None:
    """Add the results of the connections that a correct stack allows."""
    for prober, address in (*ADDRESSES.items(), ("", CONTROL_ADDRESS)):
        results = []
        for target in exposure.connection_targets(HOSTS, hosts, prober):
            openings = hosts[target["host"]]["__verify_openings"]
            allowed = any(
                entry["port"] == target["port"]
                and not entry["address"].startswith("127.")
                and {"any", address} & {*entry["clients"]}
                for entry in openings
            )
            results.append(connection(target["host"], target["port"], address if allowed else ""))
        for name in HOSTS if prober == "" else [prober]:
            key = "__verify_control_connections" if prober == "" else "__verify_connections"
            hosts[name][key] = {"connections": results}


def listen(hosts: Hosts, name: str, *listeners: dict[str, Any]) -> None:
    """Add listeners to a host."""
    shown = hosts[name]["__verify_survey"]
    shown["listeners"] = [*shown["listeners"], *listeners]
    shown["count"] += len(listeners)


def answer(hosts: Hosts, prober: str, host: str, port: int, source: str) -> None:
    """Set the source of one connection; empty for none."""
    key = "__verify_connections" if prober else "__verify_control_connections"
    results = hosts[prober or host][key]["connections"]
    kept = [entry for entry in results if (entry["host"], entry["port"]) != (host, port)]
    hosts[prober or host][key] = {"connections": [*kept, connection(host, port, source)]}


Checks = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def checks(exposure: ModuleType, hosts: Hosts) -> Checks:
    """The checks of one host by their name."""

    def run(name: str, *, strict: bool = False, play: list[str] | None = None) -> dict[str, dict[str, Any]]:
        entries = exposure.exposure_checks(play or HOSTS, hosts, name, strict)
        assert [entry["name"] for entry in entries] == [LISTENING, STRANGERS, CLIENTS]
        return {entry["name"]: entry for entry in entries}

    return run


def test_a_correct_stack(checks: Checks) -> None:
    shown = {name: {key: (row["ok"], row["seen"]) for key, row in checks(name).items()} for name in HOSTS}
    assert shown == {
        "gpu1": {
            LISTENING: (True, "10.0.0.1:11434, 10.0.0.1:9101"),
            STRANGERS: (True, "none"),
            CLIENTS: (True, "open: 11434 to gate; 9101 to watch; none to the control machine"),
        },
        "gate": {
            LISTENING: (True, "10.0.0.2:8000"),
            STRANGERS: (True, "none"),
            CLIENTS: (True, "open: 8000 to gpu1, watch, the control machine"),
        },
        "watch": {
            LISTENING: (True, "loopback only"),
            STRANGERS: (True, "none"),
            CLIENTS: (True, "open: none to gpu1, gate, the control machine"),
        },
    }


def test_every_port_of_the_others_is_tried(exposure: ModuleType, hosts: Hosts) -> None:
    listen(
        hosts,
        "gpu1",
        listener(8080, "web.service"),
        listener(8081, "web.service", "::"),
        listener(8082, "web.service", "10.5.0.1"),
        listener(8083, "web.service", "fe80::1"),
        listener(53, "dns.service", protocol="udp"),
        listener(11435, "ollama.service"),
    )
    tried = {
        (target["host"], target["address"], target["port"]): target["seconds"]
        for target in exposure.connection_targets(HOSTS, hosts, "gate")
    }
    assert tried == {
        # Longer where an answer is expected.
        ("gpu1", "10.0.0.1", 11434): 3.0,
        ("gpu1", "10.0.0.1", 9101): 0.5,
        ("gpu1", "10.0.0.1", 11435): 0.5,
        ("gpu1", "10.0.0.1", 8080): 0.5,
        ("gpu1", "10.0.0.1", 8081): 0.5,
        ("gpu1", "10.5.0.1", 8082): 0.5,
        # A port on loopback is tried at the host's address.
        ("watch", "10.0.0.3", 9090): 0.5,
    }
    assert {target["host"] for target in exposure.connection_targets(HOSTS, hosts, "")} == {*HOSTS}


def test_the_listeners_of_other_programs_that_are_tried_are_bounded(
    exposure: ModuleType, hosts: Hosts, checks: Checks
) -> None:
    listen(hosts, "watch", *(listener(port, "web.service") for port in range(2000, 2300)))
    hosts["watch"]["__verify_survey"]["count"] += 50
    ports = {target["port"] for target in exposure.connection_targets(HOSTS, hosts, "gate")}
    assert {port for port in ports if port in range(2000, 2300)} == {*range(2000, 2020)}
    seen = checks("watch")[STRANGERS]["seen"]
    assert seen.count("web (pid 7, web.service)") == 20
    assert seen.endswith("; and 330 more")


def test_a_port_that_answers_everybody(hosts: Hosts, checks: Checks) -> None:
    answer(hosts, "watch", "gpu1", 11434, ADDRESSES["watch"])
    answer(hosts, "", "gpu1", 11434, CONTROL_ADDRESS)
    assert checks("gpu1")[CLIENTS] == {
        "name": CLIENTS,
        "ok": False,
        "seen": "11434 (ollama) answers watch, which is not its client; "
        "11434 (ollama) answers the control machine, which is not its client",
        "next": "systemctl cat ollama; nft list ruleset",
    }
    assert checks("gate")[CLIENTS]["ok"]


def test_a_control_machine_that_is_a_client(hosts: Hosts, checks: Checks) -> None:
    """Its address counts, so it may be a gateway that is reached over SSH."""
    answer(hosts, "", "gpu1", 11434, ADDRESSES["gate"])
    assert checks("gpu1")[CLIENTS]["ok"]


def test_a_port_on_loopback_that_answers(hosts: Hosts, checks: Checks) -> None:
    """Something forwards it; `any` is for the network's address only."""
    answer(hosts, "gate", "watch", 9090, ADDRESSES["gate"])
    check = checks("watch")[CLIENTS]
    assert (check["ok"], check["seen"]) == (False, "9090 (prometheus) answers gate, which is not its client")


def test_a_port_that_ignores_its_client(hosts: Hosts, checks: Checks) -> None:
    answer(hosts, "watch", "gpu1", 9101, "")
    check = checks("gpu1")[CLIENTS]
    assert (check["ok"], check["seen"]) == (
        False,
        "9101 (bedplate-exporter) does not answer watch, its client",
    )


def test_a_stopped_service_is_another_checks_fault(hosts: Hosts, checks: Checks) -> None:
    answer(hosts, "watch", "gpu1", 9101, "")
    shown = hosts["gpu1"]["__verify_survey"]
    shown["listeners"] = [entry for entry in shown["listeners"] if entry["port"] != 9101]
    assert checks("gpu1")[CLIENTS]["ok"]


def test_a_firewall_before_a_port_for_all(hosts: Hosts, checks: Checks) -> None:
    answer(hosts, "", "gate", 8000, "")
    check = checks("gate")[CLIENTS]
    assert (check["ok"], check["seen"]) == (True, "open: 8000 to gpu1, watch; none to the control machine")


@pytest.mark.parametrize(
    ("address", "shown"),
    [(EVERYWHERE, "0.0.0.0:11434"), ("::", "[::]:11434"), ("fd00::1", "[fd00::1]:11434")],
)
def test_a_service_on_another_address(hosts: Hosts, checks: Checks, address: str, shown: str) -> None:
    listen(hosts, "gpu1", listener(11434, "ollama.service", address, "ollama"))
    found = checks("gpu1")
    assert found[LISTENING] == {
        "name": LISTENING,
        "ok": False,
        "seen": f"ollama listens on {shown}; ollama should listen on 10.0.0.1:11434 only",
        "next": "systemctl cat ollama; ss -ltnp sport = :11434",
    }
    assert found[STRANGERS]["seen"] == "none"


def test_a_listener_of_another_program_is_named(exposure: ModuleType, hosts: Hosts, checks: Checks) -> None:
    listen(
        hosts,
        "gate",
        listener(8080, "web.service"),
        listener(2222, "session-3.scope", process="sshd"),
        listener(53, "dns.service", process="dnsmasq", protocol="udp"),
        listener(51820, process="", protocol="udp"),
    )
    connect(exposure, hosts)
    answer(hosts, "gpu1", "gate", 8080, ADDRESSES["gpu1"])
    found = checks("gate")
    seen = (
        "web (pid 7, web.service) on 0.0.0.0:8080, which answers gpu1; "
        "sshd (pid 7, session-3.scope) on 0.0.0.0:2222; "
        "dnsmasq (pid 7, dns.service) on udp 0.0.0.0:53; the kernel on udp 0.0.0.0:51820"
    )
    assert (found[STRANGERS]["ok"], found[STRANGERS]["seen"]) == (True, seen)
    assert found[CLIENTS]["ok"]
    strict = checks("gate", strict=True)[STRANGERS]
    assert strict == {"name": STRANGERS, "ok": False, "seen": seen, "next": "ss -ltunp sport = :8080"}
    assert checks("gpu1", strict=True)[STRANGERS]["ok"]


def test_nobody_else_to_connect_from(hosts: Hosts, checks: Checks) -> None:
    """The control machine is the only host, or reaches it over loopback."""
    del hosts["gate"]["__verify_control_connections"]
    own = "not checked: verify runs on this host itself; run it from another machine"
    check = checks("gate", play=["gate"])[CLIENTS]
    assert (check["ok"], check["seen"]) == (None, own)
    local = [connection("gate", port, "127.0.0.1") for port in (8000, 4000)]
    hosts["gate"]["__verify_control_connections"] = {"connections": local}
    assert checks("gate", play=["gate"])[CLIENTS]["seen"] == own


def test_a_name_that_the_control_machine_does_not_know(hosts: Hosts, checks: Checks) -> None:
    unknown = [connection("gate", 8000, error="gate: Name or service not known")]
    hosts["gate"]["__verify_control_connections"] = {"connections": unknown}
    check = checks("gate", play=["gate"])[CLIENTS]
    assert (check["ok"], check["seen"]) == (
        None,
        "not checked: the control machine cannot connect to gate: Name or service not known; "
        "set bedplate_host_address",
    )


def test_a_host_that_failed_earlier_is_left_out(exposure: ModuleType, hosts: Hosts, checks: Checks) -> None:
    before = deepcopy(checks("gate"))
    hosts["gpu1"] = {"__bedplate_host_address": ADDRESSES["gpu1"]}
    assert exposure.exposure_checks(HOSTS, hosts, "gpu1", strict=False) == []
    assert {target["host"] for target in exposure.connection_targets(HOSTS, hosts, "")} == {"gate", "watch"}
    assert (
        before[CLIENTS]["seen"]
        != checks("gate")[CLIENTS]["seen"]
        == "open: 8000 to watch, the control machine"
    )
