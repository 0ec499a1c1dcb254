"""One control group per host: it says which processes belong to a host, ends them, and pauses them.

Three kinds of machine are told apart. `systemd`: PID 1 is systemd with the unified hierarchy, and makes the
group. `unified`: cgroup v2 without systemd. `hybrid`: the controllers are in v1 hierarchies and v2 only
groups processes; a host then needs a group in each of them, and its init makes the controllers writable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .errors import LabError

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "blkio", "devices")


class Layout(Enum):
    """How this machine's control groups are arranged."""

    SYSTEMD = "systemd"
    UNIFIED = "unified"
    HYBRID = "hybrid"


def layout(root: Path = ROOT, run_systemd: Path = Path("/run/systemd/system")) -> Layout:
    """Detect the arrangement; raise LabError where version 2 is missing altogether."""
    if (root / "cgroup.controllers").exists():
        return Layout.SYSTEMD if run_systemd.is_dir() else Layout.UNIFIED
    if (root / "unified/cgroup.procs").exists():
        return Layout.HYBRID
    raise LabError(
        "this machine mounts no cgroup version 2 hierarchy, which lab hosts are supervised with; "
        "start it with systemd.unified_cgroup_hierarchy=1 on the kernel's command line"
    )


def own_groups(kind: Layout, cgroup_file: str, root: Path = ROOT) -> list[Path]:
    """Return the groups that `cgroup_file`, the text of /proc/self/cgroup, names; the version 2 one first.

    Hosts are made below this process's own, so that they stay inside the limits of whoever started them.
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
    """Ask the unified `group` to hand its controllers to its children; tell whether it hands on memory."""
    for controller in ("memory", "pids", "cpu", "io"):
        with suppress(OSError):  # one that the kernel lacks or holds elsewhere must not stop the others
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
    """The groups of one host; the first is the version 2 group, which decides what belongs to the host."""

    folders: tuple[Path, ...]

    def make(self) -> None:
        """Create the groups."""
        for folder in self.folders:
            folder.mkdir(exist_ok=True)

    def processes(self) -> Iterator[int]:
        """Yield the live processes of the host, its supervisor included."""
        if not self.folders:
            return
        for folder, _, _ in os.walk(self.folders[0]):
            with suppress(OSError):  # a group may go while its tree is walked
                for pid in Path(folder, "cgroup.procs").read_text().split():
                    if status(int(pid)).get("State", "Z")[0] not in "ZX":
                        yield int(pid)

    def leader(self) -> int | None:
        """Return the host's PID 1 as this machine numbers it, or None when the host is not running."""
        for pid in self.processes():
            numbers = status(pid).get("NSpid", "").split()
            if len(numbers) == 2 and numbers[1] == "1":
                return pid
        return None

    def freeze(self, frozen: bool) -> None:
        """Stop every process of the host in place, or let all go on."""
        (self.folders[0] / "cgroup.freeze").write_text("1" if frozen else "0")

    def frozen(self) -> bool:
        """Tell whether the host is paused."""
        with suppress(OSError, IndexError):
            return (self.folders[0] / "cgroup.freeze").read_text().strip() == "1"
        return False

    def kill(self) -> None:
        """End every process of the host at once and wait until all are gone."""
        if not self.folders or not self.folders[0].is_dir():
            return
        with suppress(FileNotFoundError):
            (self.folders[0] / "cgroup.kill").write_text("1")
        if not self.wait_empty(5):
            left = sorted(set(self.processes()))
            raise LabError(
                f"processes {left} of a lab host do not end; see `ps -fp {left[0]}` and end them by hand"
            )

    def wait_empty(self, seconds: float) -> bool:
        """Wait until no process is left; tell whether that came true in time."""
        deadline = time.monotonic() + seconds
        while any(True for _ in self.processes()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def remove(self) -> None:
        """Remove the emptied groups, deepest first."""
        for top in self.folders:
            for folder, _, _ in os.walk(top, topdown=False):
                for attempt in range(50):
                    try:
                        Path(folder).rmdir()
                    except FileNotFoundError:
                        break
                    except OSError:
                        # Zombies that their parent hasn't collected yet keep a group busy for a moment.
                        if attempt == 49:
                            raise
                        time.sleep(0.02)
                    else:
                        break
