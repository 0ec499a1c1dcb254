"""Start and stop the systemd-nspawn process of a host, with systemd's help or without."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cgroups, fake_pci
from .cgroups import HostGroup, Layout
from .errors import LabError
from .tools import read_json, run, say, succeeds, write_json

REBOOT = 133  # exit status with which systemd-nspawn --keep-unit says that its host wants to boot again
# The shell enters the groups named before `--` and stays as supervisor: it starts nspawn again on reboot.
LOOP = f"""while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done; shift
while :; do "$@"; code=$?; [ $code = {REBOOT} ] || exit $code; done"""
# nspawn gives a host the v1 controllers read-only; remounted, the host's systemd enforces MemoryMax.
# What nspawn itself binds below /sys is hidden, so the fake cards are put there by the host.
INIT = f"""#!/bin/sh
for controller in memory cpu cpuacct pids blkio devices; do
  [ -d /sys/fs/cgroup/$controller ] && mount -o remount,rw,bind /sys/fs/cgroup/$controller
done
[ -d /{fake_pci.TREE} ] && mount --bind /{fake_pci.TREE} /sys/bus/pci/devices
exec /sbin/init "$@"
"""
NSPAWN_RUN = Path("/run/systemd/nspawn")
NSPAWN_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}


@dataclass(frozen=True)
class Machine:
    """What systemd-nspawn needs to know about a host."""

    name: str
    unit: str
    folder: Path
    lower: Sequence[Path]
    namespace: str
    fake_gpus: Sequence[str] = ()

    @property
    def record(self) -> Path:
        """File that says how the host was started, written before it is."""
        return self.folder / "run.json"


def nspawn_command(machine: Machine, kind: Layout) -> list[str]:
    """Return the systemd-nspawn command line of a host on a machine of the given kind."""
    tree = ":".join(str(path).replace("\\", "\\\\").replace(":", "\\:") for path in machine.lower)
    upper = str(machine.folder / "upper").replace("\\", "\\\\").replace(":", "\\:")
    command = [
        "systemd-nspawn",
        "--quiet",
        # -D is locked exclusively, so each host has an empty tree of its own under the shared image.
        f"--directory={machine.folder / 'skeleton'}",
        f"--overlay={tree}:{upper}:/",
        # The machine's name is unique on this machine; systemd 256 and later insists on it.
        f"--machine={machine.unit}",
        f"--hostname={machine.name}",
        "--register=no",
        "--keep-unit",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=read-only",
        f"--network-namespace-path=/run/netns/{machine.namespace}",
        # systemd in the host enforces IPAddressDeny with BPF programs.
        "--system-call-filter=bpf",
        "--capability=CAP_BPF,CAP_PERFMON,CAP_NET_ADMIN",
    ]
    if _own_init(machine, kind):
        return [*command, "--kill-signal=SIGRTMIN+3", "/usr/local/sbin/lab-init"]
    return [*command, "--boot"]


def _own_init(machine: Machine, kind: Layout) -> bool:
    return kind is Layout.HYBRID or bool(machine.fake_gpus)


def group_of(machine: Machine) -> HostGroup:
    """Return the groups that a host was last started in; none if it never was."""
    return HostGroup(tuple(Path(folder) for folder in read_json(machine.record).get("groups", [])))


def start(machine: Machine) -> None:
    """Start a host whose leftovers are gone; returns as soon as nspawn runs."""
    kind = cgroups.layout()
    for folder in ("skeleton/usr", "skeleton/etc", "upper"):
        (machine.folder / folder).mkdir(parents=True, exist_ok=True)
    (machine.folder / "skeleton/etc/os-release").touch()
    if _own_init(machine, kind):
        init = machine.folder / "upper/usr/local/sbin/lab-init"
        init.parent.mkdir(parents=True, exist_ok=True)
        init.write_text(INIT)
        init.chmod(0o755)
    fake_pci.write(machine.folder / "upper", machine.fake_gpus)
    if kind is Layout.SYSTEMD:
        _start_unit(machine, nspawn_command(machine, kind))
    else:
        _start_alone(machine, kind, nspawn_command(machine, kind))


def _start_unit(machine: Machine, command: list[str]) -> None:
    group = cgroups.ROOT / "machine.slice" / f"{machine.unit}.service"
    write_json(machine.record, {"supervisor": "systemd", "groups": [str(group)]})
    properties = [
        "Type=notify",
        "Delegate=yes",
        "KillMode=mixed",
        f"RestartForceExitStatus={REBOOT}",
        f"SuccessExitStatus={REBOOT}",
        "TasksMax=16384",
        f"StandardOutput=append:{machine.folder / 'console.log'}",
        f"StandardError=append:{machine.folder / 'console.log'}",
        *(f"Environment={key}={value}" for key, value in NSPAWN_ENVIRONMENT.items()),
    ]
    unit = ["systemd-run", "--quiet", "--collect", f"--unit={machine.unit}", "--slice=machine.slice"]
    # If it fails, the host doesn't answer, and the caller quotes the console.
    run([*unit, *(f"--property={setting}" for setting in properties), "--", *command], check=False)


def _start_alone(machine: Machine, kind: Layout, command: list[str]) -> None:
    parents = cgroups.own_groups(kind, Path("/proc/self/cgroup").read_text())
    if kind is Layout.UNIFIED and not cgroups.delegate(parents[0]):
        say(f"warning: {parents[0]} can't hand on memory control, so MemoryMax is not enforced in lab hosts")
    group = HostGroup(tuple(parent / machine.unit for parent in parents))
    write_json(machine.record, {"supervisor": "shell", "groups": [str(folder) for folder in group.folders]})
    group.make()
    with (machine.folder / "console.log").open("ab") as console:
        subprocess.Popen(
            ["/bin/sh", "-c", LOOP, machine.unit, *map(str, group.folders), "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=NSPAWN_ENVIRONMENT,
            cwd="/",
        )


def supervised(machine: Machine) -> bool:
    """Tell whether somebody will start the host again when it reboots."""
    if read_json(machine.record).get("supervisor") == "systemd":
        return succeeds(["systemctl", "--quiet", "is-active", machine.unit])
    wanted = ["/bin/sh", "-c", LOOP, machine.unit]
    return any(_command_line(pid)[:4] == wanted for pid in group_of(machine).processes())


def stop(machine: Machine, *, seconds: float = 20) -> None:
    """Shut a host down in order; end it by force when it takes longer than `seconds`. Leaves no process."""
    group = group_of(machine)
    if not group.folders:
        return
    if group.frozen():
        group.freeze(False)
    for pid in list(group.processes()):
        # A host that is about to reboot ends with 133; without its supervisor it can't come back.
        if _command_line(pid)[:4] == ["/bin/sh", "-c", LOOP, machine.unit]:
            _signal(pid, signal.SIGKILL)
    for pid in list(group.processes()):
        if cgroups.status(pid).get("Name") == "systemd-nspawn" and group.leader() is not None:
            _signal(pid, signal.SIGTERM)
            group.wait_empty(seconds)
            break
    clear(machine)


def clear(machine: Machine) -> None:
    """End whatever is left of a host and remove its groups and unit."""
    group = group_of(machine)
    group.kill()
    if read_json(machine.record).get("supervisor") == "systemd":
        run(["systemctl", "stop", machine.unit], check=False)
        run(["systemctl", "reset-failed", machine.unit], check=False)
    group.remove()
    _remove_nspawn_leftovers(machine)


def _remove_nspawn_leftovers(machine: Machine) -> None:
    """Remove what a killed nspawn leaves in /run: a mount (systemd 256 and later) and its tree's lock."""
    sockets = NSPAWN_RUN / "unix-export" / machine.unit
    if sockets.exists():
        run(["umount", "--quiet", sockets], check=False)
        sockets.rmdir()
    skeleton = machine.folder / "skeleton"
    if skeleton.is_dir():
        inode = skeleton.stat()
        (NSPAWN_RUN / "locks" / f"inode-{inode.st_dev}:{inode.st_ino}").unlink(missing_ok=True)


def power_cut(machine: Machine) -> None:
    """Take the host's power away: every process dies at once, nothing is written any more."""
    if group_of(machine).leader() is None:
        raise LabError(f"host {machine.name!r} is not running; start it with `lab/lab up {machine.name}`")
    clear(machine)


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
