"""Runs commands in lab hosts, over SSH or from inside their namespaces."""

import subprocess
from collections.abc import Sequence

from bedplate_lab import network
from bedplate_lab.errors import LabError
from bedplate_lab.records import Host, HostRecords
from bedplate_lab.tools import run

HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
ENVIRONMENT = (f"PATH={HOST_PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb")


class HostAccess:
    """The ways into the hosts of one lab."""

    def __init__(self, records: HostRecords) -> None:
        self.records = records

    def leader(self, host: Host) -> int:
        """Return the process id of a host's init; raise LabError if the host is stopped or paused."""
        leader, state = self.records.group(host).leader(), self.records.state(host)
        if leader is None:
            raise LabError(f"host {host.name!r} is not running; start it with `lab/lab up {host.name}`")
        if state == "paused":
            raise LabError(f"host {host.name!r} is paused; resume it with `lab/lab fault resume {host.name}`")
        return leader

    def exec_command(self, host: Host, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` in a host, without SSH."""
        enter = ["nsenter", f"--target={self.leader(host)}", *NAMESPACES]
        return [*enter, "--", "env", "-i", *ENVIRONMENT, *command]

    def call(self, host: Host, command: Sequence[str]) -> str:
        """Run `command` in a host and return its standard output; raise LabError when it fails."""
        return run(self.exec_command(host, command))

    def ssh_options(self) -> list[str]:
        """Return the ssh options that accept only the keys of this lab's hosts."""
        settings = [
            f"UserKnownHostsFile={self.records.lab.known_hosts}",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
        ]
        return [word for setting in settings for word in ("-o", setting)]

    def ssh_command(self, host: Host, command: Sequence[str]) -> list[str]:
        """Return the ssh command line for a host; raise LabError when the guard is missing."""
        lab = self.records.lab
        network.check_guard(lab)
        target = f"root@{self.records.address(host)}"
        return ["ssh", "-i", str(lab.key), *self.ssh_options(), target, *command]


def attach(command: Sequence[str]) -> int:
    """Run `command` with this terminal and return its exit status."""
    return subprocess.call(list(command))
