# SPDX-License-Identifier: Apache-2.0
"""To which unit of systemd a process belongs; uses only the standard library."""

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
