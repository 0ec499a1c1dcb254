# SPDX-License-Identifier: Apache-2.0
"""The sockets that listen beyond loopback; uses only the standard library."""

from __future__ import annotations

import re
import subprocess
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from .units import socket_units, unit_of_cgroup

SS = ["ss", "--no-header", "--listening", "--numeric", "--processes", "--tcp", "--udp"]
TIMEOUT_SECONDS = 10
PROC = Path("/proc")


class Listener(NamedTuple):
    """One socket, as service_survey returns it."""

    protocol: str
    address: str
    port: int
    process: str
    pid: int
    unit: str


def is_loopback(address: str) -> bool:
    """Return whether only the host itself can reach the address."""
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def unit_of(pid: int, proc: Path = PROC) -> str:
    """Return the unit of a process, or '' if it has none or has ended."""
    try:
        return unit_of_cgroup((proc / str(pid) / "cgroup").read_text()) or ""
    except OSError:
        return ""


def activating_units() -> dict[int, str]:
    """Return the socket unit of each port on which systemd itself listens."""
    command = ["systemctl", "show", "--property=Id", "--property=Listen", "--", "*.socket"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    found: dict[int, str] = socket_units(done.stdout)
    return found


def parse(line: str, proc: Path = PROC) -> Listener:
    """Return the socket in one line of ss."""
    # The names of processes may contain spaces.
    protocol, _, _, _, local, _, *users = line.split(None, 6)
    address, _, port = local.rpartition(":")
    address = address.strip("[]").partition("%")[0].rstrip("]")
    holders = [(name, int(pid)) for name, pid in re.findall(r'\("(.*?)",pid=(\d+)', "".join(users))]
    # systemd also holds the sockets of activated services; prefer the process that uses the socket.
    process, pid = min(holders, key=lambda holder: holder[1] == 1, default=("", 0))
    # ss prints * for a socket that accepts both IPv6 and IPv4.
    return Listener(
        protocol, "::" if address == "*" else address, int(port), process, pid, unit_of(pid, proc)
    )


def listeners(output: str, proc: Path = PROC) -> list[Listener]:
    """Return the sockets beyond loopback in the output of ss, sorted, each address, port and unit once."""
    found: dict[tuple[object, ...], Listener] = {}
    for line in output.splitlines():
        listener = parse(line, proc)
        if not is_loopback(listener.address):
            found.setdefault((*listener[:3], listener.unit), listener)
    if any(listener.pid == 1 for listener in found.values()):
        sockets = activating_units()
        found = {
            key: listener._replace(unit=sockets.get(listener.port, "")) if listener.pid == 1 else listener
            for key, listener in found.items()
        }
    return sorted(found.values(), key=lambda listener: (listener.port, listener))
