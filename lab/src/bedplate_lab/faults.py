"""Faults that a rack really has, one function each; each can be undone, or ends with the host."""

import re

from bedplate_lab import network
from bedplate_lab.access import HostAccess
from bedplate_lab.errors import LabError
from bedplate_lab.records import Host, HostRecords
from bedplate_lab.tools import run, succeeds

SIZE = re.compile(r"[1-9]\d*[kMG]")


def signal_service(records: HostRecords, host: Host, service: str, signal: str) -> None:
    """Send a signal (KILL, STOP, CONT) to a service's main process."""
    access = HostAccess(records)
    pid = access.call(host, ["systemctl", "show", "--property=MainPID", "--value", service]).strip()
    if pid in ("", "0"):
        raise LabError(
            f"service {service!r} is not running on {host.name}; see `lab/lab exec {host.name} systemctl`"
        )
    access.call(host, ["kill", f"-{signal}", pid])


def set_online(records: HostRecords, host: Host, online: bool) -> None:
    """Plug a host's network cable in or out."""
    HostAccess(records).leader(host)
    run(["ip", "link", "set", network.veth(records.lab, host.number), "up" if online else "down"])


def cut(records: HostRecords, source: Host, target: Host, port: int) -> None:
    """Drop the packets of `source` to one TCP port of `target`; all others still pass."""
    table = records.lab.table
    rule = f"ip saddr {records.address(source)} ip daddr {records.address(target)} tcp dport {port} drop"
    run(
        ["nft", "-f", "-"],
        stdin=f"add table bridge {table}\n"
        f"add chain bridge {table} cut {{ type filter hook forward priority 0; }}\n"
        f"add rule bridge {table} cut {rule}\n",
    )


def heal(records: HostRecords) -> None:
    """Undo every cut of the lab."""
    if succeeds(["nft", "list", "table", "bridge", records.lab.table]):
        run(["nft", "delete", "table", "bridge", records.lab.table])


def slow(records: HostRecords, host: Host, rate: str | None) -> None:
    """Limit a host's outgoing traffic to `rate` (such as 1mbit); None removes the limit."""
    device = ["ip", "netns", "exec", network.namespace(records.lab, host.name), "tc", "qdisc"]
    HostAccess(records).leader(host)
    if rate is None:
        run([*device, "delete", "dev", "host0", "root"], check=False)
    else:
        limit = ["tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"]
        run([*device, "replace", "dev", "host0", "root", *limit])


def fill(records: HostRecords, host: Host, folder: str, size: str) -> None:
    """Mount a full disk of `size` (such as 4M) over an existing folder of a host."""
    if not SIZE.fullmatch(size):
        raise LabError(f"the size {size!r} is not a number followed by k, M or G, such as 4M")
    access = HostAccess(records)
    access.call(host, ["test", "-d", folder])
    owner = access.call(host, ["stat", "--format=uid=%u,gid=%g,mode=%a", folder]).strip()
    access.call(host, ["mount", "-t", "tmpfs", "-o", f"size={size},{owner}", "lab-fill", folder])
    access.call(
        host, ["sh", "-c", 'head -c 1T /dev/zero >"$1/filled-by-lab" 2>/dev/null || true', "sh", folder]
    )


def unfill(records: HostRecords, host: Host, folder: str) -> None:
    """Unmount the full disk from a folder."""
    HostAccess(records).call(host, ["umount", folder])
