# SPDX-License-Identifier: Apache-2.0
"""Filters for verify: which ports of the stack's hosts are open to whom, and whether that is as declared.

An opening (services.yml) is a port that a host means to have: {port, unit, address, clients}, where `clients`
are the addresses that may connect from elsewhere, or `any`. Every host lists its listeners
(library/service_survey.py) and connects to the ports of the others (library/port_connections.py), as the
control machine does. Hosts whose tasks failed have no openings and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

Check = dict[str, Any]
Entry = Mapping[str, Any]
HostVars = Mapping[str, Mapping[str, Any]]

CONTROL = ""
"""The control machine as the one that connects."""
SECONDS = 0.5
"""Long enough for an answer; what drops packets costs verify this time."""
CLIENT_SECONDS = 3.0
"""Where a connection is expected, it is worth waiting: the kernel repeats a lost packet after 1 s."""
MAX_NAMED = 20
"""How many listeners of other programs are named, and tried."""
# These sockets get the answers of DHCP servers.
DHCP_CLIENT_PORTS = (68, 546)


def check(name: str, ok: bool | None, seen: str, next_command: str) -> Check:
    """Return one check."""
    return {"name": name, "ok": ok, "seen": seen, "next": next_command}


def surveyed(hosts: Iterable[str], hostvars: HostVars) -> list[str]:
    """Return the hosts that have listed their listeners."""
    return [host for host in hosts if "listeners" in hostvars[host].get("__verify_survey", {})]


def is_loopback(address: str) -> bool:
    """Return whether only the host itself reaches the address; a name is none."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def shortened(parts: Sequence[str], unlisted: int = 0) -> str:
    """Join the first parts, and say how many more there are."""
    more = max(len(parts) - MAX_NAMED, 0) + unlisted
    return "; ".join([*parts[:MAX_NAMED], *([f"and {more} more"] if more else [])])


def unit_name(listener: Entry) -> str:
    """Return a listener's unit without its suffix."""
    return str(listener["unit"]).removesuffix(".service").removesuffix(".socket")


def endpoint(host: Entry, entry: Entry) -> tuple[str, int]:
    """Return address and port at which others try an opening or a listener of a host."""
    address = str(entry["address"])
    everywhere = is_loopback(address) or ip_address(address).is_unspecified
    return str(host["__bedplate_host_address"]) if everywhere else address, int(entry["port"])


def others(host: Entry) -> tuple[list[Entry], list[Entry]]:
    """Return the listeners that are no opening: those of the stack's services, and those of other programs.

    The SSH server and DHCP clients belong to every host and are left out.
    """
    meant = {("tcp", opening["address"], opening["port"]) for opening in host["__verify_openings"]}
    units = {opening["unit"] for opening in host["__verify_openings"]}
    misplaced, strangers = [], []
    for listener in host["__verify_survey"]["listeners"]:
        if (listener["protocol"], listener["address"], listener["port"]) in meant:
            continue
        if unit_name(listener) in units:
            misplaced.append(listener)
        elif not (
            # By unit, since the port of a user's ssh -R also belongs to a process sshd.
            unit_name(listener) in ("ssh", "sshd")
            or (listener["protocol"] == "udp" and listener["port"] in DHCP_CLIENT_PORTS)
        ):
            strangers.append(listener)
    return misplaced, strangers


def must_connect(opening: Entry, address: str) -> bool:
    """Return whether the host at the address has to reach the opening; `any` lets a firewall allow fewer."""
    return address in opening["clients"] and not is_loopback(opening["address"])


def may_connect(opening: Entry, address: str) -> bool:
    """Return whether the host at the address may reach the opening."""
    return must_connect(opening, address) or must_connect(opening, "any")


def connection_targets(hosts: Iterable[str], hostvars: HostVars, prober: str) -> list[dict[str, Any]]:
    """Return the ports of all other hosts that `prober` tries, as the module port_connections takes them."""
    own = hostvars[prober]["__bedplate_host_address"] if prober != CONTROL else ""
    targets: dict[tuple[str, str, int], float] = {}
    for name in surveyed(hosts, hostvars):
        if name == prober:
            continue
        host = hostvars[name]
        for opening in host["__verify_openings"]:
            wait = CLIENT_SECONDS if must_connect(opening, own) else SECONDS
            targets[name, *endpoint(host, opening)] = wait
        misplaced, strangers = others(host)
        for listener in [*misplaced, *strangers[:MAX_NAMED]]:
            if listener["protocol"] == "tcp" and not ip_address(listener["address"]).is_link_local:
                targets.setdefault((name, *endpoint(host, listener)), SECONDS)
    return [
        {"host": name, "address": address, "port": port, "seconds": seconds}
        for (name, address, port), seconds in targets.items()
    ]


def connections_to(name: str, hosts: Sequence[str], hostvars: HostVars) -> Iterator[tuple[str, str, Entry]]:
    """Iterate over the results of connections to a host: who tried, its address, and the result."""
    for prober in surveyed(hosts, hostvars):
        results = hostvars[prober].get("__verify_connections", {}).get("connections", [])
        address = str(hostvars[prober]["__bedplate_host_address"])
        yield from ((prober, address, result) for result in results if result["host"] == name)
    control = hostvars[name].get("__verify_control_connections", {}).get("connections", [])
    for result in control:
        # Over loopback the control machine is this host itself.
        if result["host"] == name and not is_loopback(result["source"]):
            yield "the control machine", "", result


def exposure_checks(hosts: Sequence[str], hostvars: HostVars, name: str, strict: bool) -> list[Check]:
    """Return the checks of one host; `strict` fails for listeners of other programs."""
    if name not in surveyed(hosts, hostvars):
        return []
    host = hostvars[name]
    tried = [entry for entry in connections_to(name, hosts, hostvars) if not entry[2]["error"]]
    errors = [entry[2]["error"] for entry in connections_to(name, hosts, hostvars) if entry[2]["error"]]
    return [
        listening_check(host),
        stranger_check(host, tried, strict),
        clients_check(host, tried, errors),
    ]


def listening_check(host: Entry) -> Check:
    """Check that the stack's services listen on their addresses only; they never use IPv6."""
    wrong, _ = others(host)
    open_to_others = sorted(
        f"{opening['address']}:{opening['port']}"
        for opening in host["__verify_openings"]
        if not is_loopback(opening["address"])
    )
    seen = ", ".join(open_to_others) or "loopback only"
    next_command = "ss -ltnp"
    if wrong:
        unit = unit_name(wrong[0])
        where = ", ".join(
            f"{opening['address']}:{opening['port']}"
            for opening in host["__verify_openings"]
            if opening["unit"] == unit
        )
        seen = shortened([f"{unit_name(listener)} listens on {place(listener)}" for listener in wrong])
        seen += f"; {unit} should listen on {where} only"
        next_command = f"systemctl cat {unit}; ss -ltnp sport = :{wrong[0]['port']}"
    return check("Bedplate's services listen on their addresses only", not wrong, seen, next_command)


def stranger_check(host: Entry, tried: Sequence[tuple[str, str, Entry]], strict: bool) -> Check:
    """Name what else listens beyond loopback, and from where a connection succeeded."""
    _, found = others(host)
    named = [f"{program(listener)} on {place(listener)}{reached(listener, tried)}" for listener in found]
    # The host lists a bounded number of them.
    unlisted = host["__verify_survey"]["count"] - len(host["__verify_survey"]["listeners"])
    seen = shortened(named, unlisted)
    next_command = f"ss -ltunp sport = :{found[0]['port']}" if found else "ss -ltunp"
    return check(
        "other programs that listen beyond loopback", not (strict and found), seen or "none", next_command
    )


def program(listener: Entry) -> str:
    """Return the name of what listens."""
    if not listener["process"]:
        return "the kernel"
    details = ", ".join(filter(None, [f"pid {listener['pid']}", listener["unit"]]))
    return f"{listener['process']} ({details})"


def place(listener: Entry) -> str:
    """Return protocol, address and port of a listener."""
    address = f"[{listener['address']}]" if ":" in listener["address"] else listener["address"]
    protocol = "" if listener["protocol"] == "tcp" else f"{listener['protocol']} "
    return f"{protocol}{address}:{listener['port']}"


def reached(listener: Entry, tried: Sequence[tuple[str, str, Entry]]) -> str:
    """Return who could connect to a listener, as the end of a sentence."""
    probers = [
        prober for prober, _, result in tried if result["port"] == listener["port"] and result["source"]
    ]
    return f", which answers {', '.join(probers)}" if probers and listener["protocol"] == "tcp" else ""


def clients_check(host: Entry, tried: Sequence[tuple[str, str, Entry]], errors: Sequence[str]) -> Check:
    """Check that each port answers its clients and nobody else."""
    name = "each port answers its clients only"
    openings = {opening["port"]: opening for opening in host["__verify_openings"]}
    listening = {listener["port"] for listener in host["__verify_survey"]["listeners"]}
    if not tried:
        seen = (
            f"not checked: the control machine cannot connect to {errors[0]}; set bedplate_host_address"
            if errors
            else "not checked: verify runs on this host itself; run it from another machine"
        )
        return check(name, None, seen, "ss -ltnp")
    faults: list[tuple[Entry, str]] = []
    answers: dict[str, list[int]] = {prober: [] for prober, _, _ in tried}
    for prober, address, result in tried:
        opening = openings.get(result["port"])
        if opening is None:
            continue
        if result["source"]:
            answers[prober].append(result["port"])
            if not may_connect(opening, result["source"]):
                faults.append((opening, f"answers {prober}, which is not its client"))
        # What does not listen at all is another check's fault.
        elif must_connect(opening, address) and opening["port"] in listening:
            faults.append((opening, f"does not answer {prober}, its client"))
    if faults:
        unit = faults[0][0]["unit"]
        seen = shortened([f"{opening['port']} ({opening['unit']}) {what}" for opening, what in faults])
        return check(name, False, seen, f"systemctl cat {unit}; nft list ruleset")
    probers: dict[str, list[str]] = {}
    for prober, ports in answers.items():
        probers.setdefault(", ".join(map(str, sorted(ports))) or "none", []).append(prober)
    seen = shortened([f"{ports} to {', '.join(names)}" for ports, names in probers.items()])
    return check(name, True, f"open: {seen}", "ss -ltnp")


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"connection_targets": connection_targets, "exposure_checks": exposure_checks}
