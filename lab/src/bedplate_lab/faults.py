"""Faults that a rack really has, one function each; each can be undone, or ends with the host."""

import re

from bedplate_lab import network
from bedplate_lab.errors import LabError
from bedplate_lab.hosts import Host, Hosts
from bedplate_lab.tools import run, succeeds

SIZE = re.compile(r"[1-9]\d*[kMG]")


def signal_service(hosts: Hosts, host: Host, service: str, signal: str) -> None:
    """Send a signal (KILL, STOP, CONT) to a service's main process."""
    pid = hosts.call(host, ["systemctl", "show", "--property=MainPID", "--value", service]).strip()
    if pid in ("", "0"):
        raise LabError(
            f"service {service!r} is not running on {host.name}; see `lab/lab exec {host.name} systemctl`"
        )
    hosts.call(host, ["kill", f"-{signal}", pid])


def set_online(hosts: Hosts, host: Host, online: bool) -> None:
    """Plug a host's network cable in or out."""
    hosts.leader(host)
    run(["ip", "link", "set", network.veth(hosts.lab, host.number), "up" if online else "down"])


def cut(hosts: Hosts, source: Host, target: Host, port: int) -> None:
    """Drop the packets of `source` to one TCP port of `target`; all others still pass."""
    table = hosts.lab.table
    rule = f"ip saddr {hosts.address(source)} ip daddr {hosts.address(target)} tcp dport {port} drop"
    run(
        ["nft", "-f", "-"],
        stdin=f"add table bridge {table}\n"
        f"add chain bridge {table} cut {{ type filter hook forward priority 0; }}\n"
        f"add rule bridge {table} cut {rule}\n",
    )


def heal(hosts: Hosts) -> None:
    """Undo every cut of the lab."""
    if succeeds(["nft", "list", "table", "bridge", hosts.lab.table]):
        run(["nft", "delete", "table", "bridge", hosts.lab.table])


def slow(hosts: Hosts, host: Host, rate: str | None) -> None:
    """Limit a host's outgoing traffic to `rate` (such as 1mbit); None removes the limit."""
    device = ["ip", "netns", "exec", network.namespace(hosts.lab, host.name), "tc", "qdisc"]
    hosts.leader(host)
    if rate is None:
        run([*device, "delete", "dev", "host0", "root"], check=False)
    else:
        run(
            [
                *device,
                "replace",
                "dev",
                "host0",
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                "32kbit",
                "latency",
                "400ms",
            ]
        )


def fill(hosts: Hosts, host: Host, folder: str, size: str) -> None:
    """Mount a full disk of `size` (such as 4M) over an existing folder of a host."""
    if not SIZE.fullmatch(size):
        raise LabError(f"the size {size!r} is not a number followed by k, M or G, such as 4M")
    hosts.call(host, ["test", "-d", folder])
    owner = hosts.call(host, ["stat", "--format=uid=%u,gid=%g,mode=%a", folder]).strip()
    hosts.call(host, ["mount", "-t", "tmpfs", "-o", f"size={size},{owner}", "lab-fill", folder])
    hosts.call(
        host, ["sh", "-c", 'head -c 1T /dev/zero >"$1/filled-by-lab" 2>/dev/null || true', "sh", folder]
    )


def unfill(hosts: Hosts, host: Host, folder: str) -> None:
    """Unmount the full disk from a folder."""
    hosts.call(host, ["umount", folder])
