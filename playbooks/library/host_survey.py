#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Reads a host before anything changes: ports, services, disks, addresses, packages and releases."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import pwd
import re
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.disks import in_time
from ansible.module_utils.units import socket_units, unit_of_cgroup

DOCUMENTATION = r"""
module: host_survey
short_description: Read a host's ports, services, disks and addresses without changing anything
description:
  - Returns the listeners on the given ports, the third-party services of the same kinds as Bedplate's, the
    free space of the given folders, which of the given paths exist, and which of the given addresses are
    the host's.
  - Reads /proc, the unit files and systemctl show. Needs root to find the process behind a port.
  - A unit file is Bedplate's if it has the line "# Managed by Bedplate.".
  - Before 2026-11-27 the gateway's unit was called litellm.service; its ExecStart identifies it.
options:
  ports:
    description: Ports that Bedplate uses on this host, each with its unit.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: TCP port.
        type: int
        required: true
      unit:
        description: Unit that should listen, with or without .service.
        type: str
        required: true
  paths:
    description: Absolute folders to measure. They need not exist.
    type: list
    elements: str
    default: []
  folders:
    description: Folders that a role would hand to its user.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The absolute path. It need not exist.
        type: str
        required: true
      user:
        description: The user.
        type: str
        required: true
      entries:
        description: Regular expression for the names in such a folder that was used before.
        type: str
        required: true
  stat_paths:
    description: Paths to look up.
    type: list
    elements: str
    default: []
  addresses:
    description: IPv4 addresses to try to listen on.
    type: list
    elements: str
    default: []
  packages:
    description: Debian packages to look up.
    type: list
    elements: str
    default: []
author: Bedplate
"""

EXAMPLES = r"""
- name: Read the host's ports, services, disks and addresses
  host_survey:
    ports: [{port: 8000, unit: bedplate-gateway}]
    paths: [/var/lib/ollama/models]
    stat_paths: [/etc/bedplate/bedplate-gateway/keys.json]
  register: preflight_host
"""

RETURN = r"""
listeners:
  description: Listeners on the given ports, one entry per port and process, sorted. Free ports have none.
  returned: always
  type: list
  elements: dict
  contains:
    port: {description: The port., type: int}
    pid: {description: Process; null if it is not visible., type: int}
    process: {description: Its name; null if it is not visible., type: str}
    unit: {description: Its systemd unit; null if it has none., type: str}
    ours:
      description: Whether it is one of Bedplate's expected units, or the gateway's former one.
      type: bool
former_gateway:
  description: The unit of a gateway that was installed under the former name; empty if there is none.
  returned: always
  type: str
third_party:
  description: Services of the same kinds that are not Bedplate's. Masked units are never listed; units of a
    distribution's package are listed only if they are active or enabled.
  returned: always
  type: list
  elements: dict
  contains:
    service: {description: 'One of ollama, litellm, prometheus, node-exporter.', type: str}
    unit: {description: The unit., type: str}
    fragment_path: {description: Its file., type: str}
    active: {description: Whether it runs or is starting., type: bool}
    enabled: {description: Whether it starts at boot., type: bool}
free_bytes:
  description: For each of paths, the bytes that an unprivileged user can still write there.
  returned: always
  type: dict
folder_problems:
  description: For each of folders that must not be handed over, the reason, by path.
  returned: always
  type: dict
silent_paths:
  description: Those of paths and folders whose file system did not answer in time.
  returned: always
  type: list
  elements: str
disk_bytes:
  description: For each of paths, the size of its file system in bytes.
  returned: always
  type: dict
exists:
  description: For each of stat_paths, whether it exists.
  returned: always
  type: dict
own_address:
  description: For each of addresses, whether it is an address of this host.
  returned: always
  type: dict
missing_packages:
  description: Those of packages that are not installed.
  returned: always
  type: list
  elements: str
package_lists_seconds:
  description: Age of apt's package lists; null if there are none.
  returned: always
  type: int
releases:
  description: For each folder in /opt/bedplate, the complete release that its link `current` points to. A
    folder without such a release is left out.
  returned: always
  type: dict
has_systemd:
  description: Whether systemd is the running init.
  returned: always
  type: bool
python_version:
  description: Version of the Python that ran this module.
  returned: always
  type: str
memory_bytes:
  description: Memory of the machine in bytes.
  returned: always
  type: int
"""

MARKER = "# Managed by Bedplate."
LISTEN = "0A"
# Common unit names of these programs, Bedplate's and others'.
SERVICES = {
    "ollama.service": "ollama",
    "snap.ollama.listener.service": "ollama",
    "litellm.service": "litellm",
    "litellm-proxy.service": "litellm",
    "prometheus.service": "prometheus",
    "snap.prometheus.prometheus.service": "prometheus",
    "node-exporter.service": "node-exporter",
    "node_exporter.service": "node-exporter",
    "prometheus-node-exporter.service": "node-exporter",
}
FORMER_GATEWAY = re.compile(r"^ExecStart=\S*/bedplate-litellm\b", re.MULTILINE)
"""ExecStart of the gateway's unit when it was called litellm.service; the LiteLLM proxy has another."""
PACKAGED = ("/usr/lib/systemd/", "/lib/systemd/")
PROC = Path("/proc")
PROGRAMS = Path("/opt/bedplate")
# The first that exists says when apt last fetched its lists, as Ansible's module apt has it.
PACKAGE_LISTS = (Path("/var/lib/apt/periodic/update-success-stamp"), Path("/var/lib/apt/lists"))
UNIT_FILES = Path("/etc/systemd/system")
SYSTEM_FOLDERS = frozenset(
    [
        "",
        "bin",
        "boot",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "run",
        "sbin",
        "sys",
        "tmp",
        "usr",
    ]
)
"""Nothing in them is handed to a user who does not own it."""
HIDDEN_FOLDERS = frozenset(["home", "root"])
"""The services' sandbox hides them."""
SHARED_FOLDERS = frozenset(["media", "mnt", "opt", "srv", "var"])
"""Folders in them may be handed over, and folders of folders in /var."""


class Unit(NamedTuple):
    """A service unit as systemctl shows it; `ours` means its file has the marker."""

    service: str
    unit: str
    fragment_path: str
    active: bool
    enabled: bool
    masked: bool
    ours: bool

    @property
    def third_party(self) -> bool:
        """Whether it is not Bedplate's and conflicts with it."""
        packaged = self.fragment_path.startswith(PACKAGED)
        return not self.ours and not self.masked and (self.active or self.enabled or not packaged)


def listening_inodes(ports: Iterable[int], proc: Path = PROC) -> dict[str, int]:
    """Map the inode of each listening socket on one of the ports to its port."""
    wanted = set(ports)
    found: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        path = proc / "net" / table
        # tcp6 is missing if IPv6 is disabled.
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        for fields in (line.split() for line in lines):
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == LISTEN and port in wanted:
                found[fields[9]] = port
    return found


def holders(inodes: Iterable[str], proc: Path = PROC) -> dict[str, list[int]]:
    """Map socket inodes to the visible processes that hold them."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, list[int]] = {}
    for process in (
        sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()) if wanted else []
    ):
        for link in links_of(proc / str(process) / "fd") & wanted.keys():
            found.setdefault(wanted[link], []).append(process)
    return found


def links_of(folder: Path) -> set[str]:
    """Return the targets of a folder's links, without those that vanish or are not readable."""
    found = set()
    with contextlib.suppress(OSError):
        for link in folder.iterdir():
            with contextlib.suppress(OSError):
                found.add(str(link.readlink()))
    return found


def units(text: str) -> list[Unit]:
    """Return the known services from the blocks of `systemctl show`, without absent ones."""
    found: dict[str, Unit] = {}
    for block in text.split("\n\n"):
        shown = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name, state = shown.get("Id", ""), shown.get("LoadState")
        if name not in SERVICES or state in (None, "not-found"):
            continue
        path = shown.get("FragmentPath", "")
        found[name] = Unit(
            service=SERVICES[name],
            unit=name,
            fragment_path=path,
            active=shown.get("ActiveState") in ("active", "activating", "reloading"),
            enabled=shown.get("UnitFileState") in ("enabled", "enabled-runtime"),
            masked=state == "masked",
            ours=is_ours(path),
        )
    return sorted(found.values())


def is_ours(path: str) -> bool:
    """Return whether one line of the file is Bedplate's marker."""
    try:
        return MARKER in Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return False


def former_gateway(folder: Path = UNIT_FILES) -> str:
    """Return the unit of a gateway that was installed under its former name, or ''."""
    for path in sorted(folder.glob("*.service")):
        if is_ours(str(path)) and FORMER_GATEWAY.search(path.read_text(errors="replace")):
            return path.name
    return ""


def systemctl_show(names: Iterable[str], properties: Iterable[str]) -> str:
    """Return the output of `systemctl show` for these units, or '' if systemd does not run."""
    if not has_systemd():
        return ""
    command = ["systemctl", "show", *(f"--property={name}" for name in properties), "--", *names]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout


def keeps_sockets(unit: str) -> bool:
    """Return whether systemd holds sockets of this service in its file descriptor store."""
    return re.search("=[1-9]", systemctl_show([unit], ["NFileDescriptorStore"])) is not None


def has_systemd() -> bool:
    """Return whether systemd is the running init, as sd_booted(3) does."""
    return Path("/run/systemd/system").is_dir()


def stem(unit: str) -> str:
    """Return a unit's name without .service or .socket."""
    return unit.removesuffix(".service").removesuffix(".socket")


def listeners(
    expected: Mapping[int, str], third_party: Iterable[str], proc: Path = PROC, former: str = ""
) -> list[dict[str, Any]]:
    """Return the listeners on the expected ports (port to unit); units in `third_party` are never ours.

    Each expected unit is ours on each port, because an update may move a port to another unit. `former` is
    the unit of the gateway under its former name; it is ours, too.
    """
    inodes = listening_inodes(expected, proc)
    by_inode = holders(inodes, proc)
    sockets: dict[int, str] | None = None
    accepted = [
        *dict.fromkeys(f"{stem(unit)}.service" for unit in expected.values()),
        *filter(None, [former]),
    ]
    found: dict[tuple[int, int | None], dict[str, Any]] = {}
    for inode, port in inodes.items():
        # systemd also holds the sockets of activated services; prefer the process that uses the socket.
        pids = by_inode.get(inode, [])
        pid = next((pid for pid in pids if pid != 1), pids[0] if pids else None)
        process = unit = None
        try:
            process = (proc / str(pid) / "comm").read_text().strip() if pid else None
            unit = unit_of_cgroup((proc / str(pid) / "cgroup").read_text()) if pid else None
        except OSError:
            pass  # the process has ended
        if pid == 1:
            if sockets is None:
                sockets = socket_units(systemctl_show(["*.socket"], ["Id", "Listen"]))
            unit = sockets.get(port) or next(filter(keeps_sockets, accepted), None)
        ours = unit is not None and stem(unit) in map(stem, accepted) and unit not in set(third_party)
        found[port, pid] = {"port": port, "pid": pid, "process": process, "unit": unit, "ours": ours}
    return [found[key] for key in sorted(found, key=lambda key: (key[0], key[1] or 0))]


def disk_of(path: str) -> tuple[int, int]:
    """Return the bytes that an unprivileged user can still write at the path, and its file system's size.

    A path that does not exist yet will be on the file system of its nearest existing parent.
    """
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize, stats.f_blocks * stats.f_frsize


def is_system_folder(folder: Path) -> bool:
    """Return whether the operating system needs the folder as it is, whoever owns it."""
    top, *below = folder.parts[1:] or [""]
    return top in SYSTEM_FOLDERS | SHARED_FOLDERS and len(below) < (2 if top == "var" else 1)


def owner_of(folder: Path) -> str:
    """Return the name of the folder's owner."""
    number = folder.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def folder_problem(path: str, user: str, entries: str) -> str:
    """Return why a folder must not be handed to a user; empty if it may.

    It may if it is the user's, if it is absent or empty, or if all names in it match `entries`.
    """
    folder = Path(path).resolve()
    top = (*folder.parts, "")[1]
    if top in HIDDEN_FOLDERS:
        return "which the service's sandbox hides"
    if is_system_folder(folder):
        return "a folder of the operating system"
    if folder.exists() and not folder.is_dir():
        return "which is no folder"
    if folder.is_dir() and owner_of(folder) == user:
        return ""
    if top in SYSTEM_FOLDERS:
        return "a folder of the operating system"
    # A new file system has lost+found.
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    strange = [name for name in names if name != "lost+found" and not re.fullmatch(entries, name)]
    return f"which contains {', '.join(strange[:3])}{' and more' * (len(strange) > 3)}" if strange else ""


def own_address(address: str) -> bool:
    """Return whether a service of this host can listen on the IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:  # another host's address, or not an address
            return False
    return True


def missing_packages(names: Iterable[str]) -> list[str]:
    """Return the Debian packages that are not installed."""
    wanted = list(names)
    if not wanted:
        return []
    command = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n", *wanted]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    return [name for name in wanted if f"{name} installed" not in shown.splitlines()]


def package_lists_seconds(paths: Iterable[Path] = PACKAGE_LISTS) -> int | None:
    """Return the age of apt's package lists in seconds; None if there are none."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            return max(0, int(time.time() - path.stat().st_mtime))
    return None


def releases(programs: Path = PROGRAMS) -> dict[str, str]:
    """Map each program to the name of the complete release that its link `current` points to."""
    found = {}
    for link in sorted(programs.glob("*/current")):
        # current points to releases/NAME, or to a folder in it.
        match = re.match(r"releases/([^/]+)", str(link.readlink())) if link.is_symlink() else None
        if match and (link.parent / match[0] / ".complete").exists():
            found[link.parent.name] = match[1]
    return found


def memory_bytes(proc: Path = PROC) -> int:
    """Return the machine's memory in bytes."""
    (total,) = re.findall(r"^MemTotal:\s+(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE)
    return int(total) * 1024


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "ports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "port": {"type": "int", "required": True},
                    "unit": {"type": "str", "required": True},
                },
            },
            "paths": {"type": "list", "elements": "str", "default": []},
            "folders": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {name: {"type": "str", "required": True} for name in ("path", "user", "entries")},
            },
            "stat_paths": {"type": "list", "elements": "str", "default": []},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    for path in module.params["paths"]:
        if not path.startswith("/"):
            module.fail_json(msg=f"paths must be absolute, got {path!r}; give the folder's full path.")
    shown = units(
        systemctl_show(SERVICES, ["Id", "LoadState", "FragmentPath", "ActiveState", "UnitFileState"])
    )
    third_party = [unit for unit in shown if unit.third_party]
    expected = {item["port"]: item["unit"] for item in module.params["ports"]}
    former = former_gateway()
    disks, folder_problems, silent = {}, {}, []
    for path in module.params["paths"]:
        try:
            disks[path] = in_time(functools.partial(disk_of, path))
        except TimeoutError:
            silent.append(path)
    for folder in module.params["folders"]:
        if folder["path"] in silent:
            continue
        try:
            if problem := in_time(functools.partial(folder_problem, **folder)):
                folder_problems[folder["path"]] = problem
        except TimeoutError:
            silent.append(folder["path"])
    module.exit_json(
        changed=False,
        folder_problems=folder_problems,
        silent_paths=silent,
        listeners=listeners(expected, [unit.unit for unit in third_party], former=former),
        former_gateway=former,
        third_party=[
            {
                "service": unit.service,
                "unit": unit.unit,
                "fragment_path": unit.fragment_path,
                "active": unit.active,
                "enabled": unit.enabled,
            }
            for unit in third_party
        ],
        free_bytes={path: free for path, (free, _) in disks.items()},
        disk_bytes={path: size for path, (_, size) in disks.items()},
        exists={path: Path(path).exists() for path in module.params["stat_paths"]},
        own_address={address: own_address(address) for address in module.params["addresses"]},
        missing_packages=missing_packages(module.params["packages"]),
        package_lists_seconds=package_lists_seconds(),
        releases=releases(),
        has_systemd=has_systemd(),
        python_version=platform.python_version(),
        memory_bytes=memory_bytes(),
    )


if __name__ == "__main__":
    main()
