"""The control groups of a host: they list its processes, kill them, and pause them.

A machine has one of three layouts. `systemd`: PID 1 is systemd with the unified hierarchy, and makes the
group. `unified`: cgroup v2 without systemd. `hybrid`: the controllers are in v1 hierarchies and v2 only
groups processes; a host then needs a group in each of them, and its init makes the controllers writable.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from bedplate_lab.errors import LabError

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "blkio", "devices")


class Layout(Enum):
    """How this machine's control groups are arranged."""

    SYSTEMD = "systemd"
    UNIFIED = "unified"
    HYBRID = "hybrid"


def layout(root: Path = ROOT, run_systemd: Path = Path("/run/systemd/system")) -> Layout:
    """Detect the machine's layout; raise LabError where cgroup version 2 is missing."""
    if (root / "cgroup.controllers").exists():
        return Layout.SYSTEMD if run_systemd.is_dir() else Layout.UNIFIED
    if (root / "unified/cgroup.procs").exists():
        return Layout.HYBRID
    raise LabError(
        "this machine mounts no cgroup version 2 hierarchy, which the lab needs to supervise hosts; "
        "start it with systemd.unified_cgroup_hierarchy=1 on the kernel's command line"
    )


def own_groups(kind: Layout, cgroup_file: str, root: Path = ROOT) -> list[Path]:
    """Return the groups named in `cgroup_file`, the text of /proc/self/cgroup; the version 2 group first.

    The groups of hosts are made below this process's groups, so that its limits apply to the hosts too.
    """
    groups: list[Path] = []
    for line in cgroup_file.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            groups.insert(0, (root if kind is Layout.UNIFIED else root / "unified") / path.strip("/"))
        elif controllers == "name=systemd":
            groups.append(root / "systemd" / path.strip("/"))
        elif set(controllers.split(",")) & set(CONTROLLERS):
            groups.append(root / controllers / path.strip("/"))
    return [group for group in groups if group.is_dir()]


def delegate(group: Path) -> bool:
    """Enable the controllers for the children of the unified `group`; return whether memory is among them."""
    for controller in ("memory", "pids", "cpu", "io"):
        with suppress(OSError):  # a controller that the kernel lacks or uses in v1 must not stop the others
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
    return "memory" in (group / "cgroup.subtree_control").read_text().split()


def status(pid: int) -> dict[str, str]:
    """Return /proc/PID/status as fields, empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@dataclass(frozen=True)
class HostGroup:
    """The groups of one host; the first is the version 2 group, which lists the host's processes."""

    folders: tuple[Path, ...]

    def make(self) -> None:
        """Create the groups."""
        for folder in self.folders:
            folder.mkdir(exist_ok=True)

    def processes(self) -> Iterator[int]:
        """Yield the live processes of the host, including its supervisor."""
        if not self.folders:
            return
        for folder, _, _ in os.walk(self.folders[0]):
            with suppress(OSError):  # a group may be removed while its tree is walked
                for pid in Path(folder, "cgroup.procs").read_text().split():
                    if status(int(pid)).get("State", "Z")[0] not in "ZX":
                        yield int(pid)

    def leader(self) -> int | None:
        """Return this machine's process id of the host's PID 1, or None when the host is not running."""
        for pid in self.processes():
            ids = status(pid).get("NSpid", "").split()
            if len(ids) == 2 and ids[1] == "1":
                return pid
        return None

    def freeze(self, frozen: bool) -> None:
        """Freeze every process of the host, or thaw all of them."""
        (self.folders[0] / "cgroup.freeze").write_text("1" if frozen else "0")

    def frozen(self) -> bool:
        """Return whether the host is paused."""
        with suppress(OSError, IndexError):
            return (self.folders[0] / "cgroup.freeze").read_text().strip() == "1"
        return False

    def kill(self) -> None:
        """Kill every process of the host and wait until all are gone."""
        if not self.folders or not self.folders[0].is_dir():
            return
        with suppress(FileNotFoundError):
            (self.folders[0] / "cgroup.kill").write_text("1")
        if not self.wait_empty(5):
            left = sorted(set(self.processes()))
            raise LabError(
                f"processes {left} of a lab host do not end; see `ps -fp {left[0]}` and kill them by hand"
            )

    def wait_empty(self, seconds: float) -> bool:
        """Wait until no process is left; return False on a time-out."""
        deadline = time.monotonic() + seconds
        while any(True for _ in self.processes()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def remove(self) -> None:
        """Remove the empty groups, deepest first."""
        for top in self.folders:
            for folder, _, _ in os.walk(top, topdown=False):
                for attempt in range(50):
                    try:
                        Path(folder).rmdir()
                    except FileNotFoundError:
                        break
                    except OSError:
                        # Zombies that their parent has not reaped yet keep a group busy for a moment.
                        if attempt == 49:
                            raise
                        time.sleep(0.02)
                    else:
                        break
