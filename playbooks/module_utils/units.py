# SPDX-License-Identifier: Apache-2.0
"""To which unit of systemd a process or a socket belongs; uses only the standard library."""

from __future__ import annotations

import re


def unit_of_cgroup(text: str) -> str | None:
    """Return the systemd unit in the text of /proc/PID/cgroup, or None."""
    for line in text.splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers in ("", "name=systemd"):
            units = re.findall(r"[^/]+\.(?:service|scope)(?=/|$)", path.rpartition("/system.slice/")[2])
            if units:
                return str(units[0])
    return None


def socket_units(text: str) -> dict[int, str]:
    """Map ports to socket units from `systemctl show -p Id -p Listen` of all sockets."""
    found: dict[int, str] = {}
    for block in text.split("\n\n"):
        name = re.search(r"^Id=(.+)$", block, re.MULTILINE)
        for port in re.findall(r"^Listen=\S*:(\d+) \(Stream\)$", block, re.MULTILINE):
            if name:
                found[int(port)] = name[1]
    return found
