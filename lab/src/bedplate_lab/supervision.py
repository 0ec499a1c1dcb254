"""Starts and stops the systemd-nspawn process of a host, as a unit of systemd or under a shell."""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bedplate_lab import cgroups, fake_pci
from bedplate_lab.cgroups import HostGroup, Layout
from bedplate_lab.errors import LabError
from bedplate_lab.tools import read_json, run, say, succeeds, write_json

REBOOT = 133  # exit status of systemd-nspawn --keep-unit when its host reboots
# The shell enters the groups named before `--` and stays as supervisor: it starts nspawn again on reboot.
LOOP = f"""while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done; shift
while :; do "$@"; code=$?; [ $code = {REBOOT} ] || exit $code; done"""
# nspawn gives a host the v1 controllers read-only; remounted, the host's systemd enforces MemoryMax.
# Mounts that nspawn itself makes below /sys are hidden, so the host's init mounts the fake cards.
INIT = f"""#!/bin/sh
for controller in memory cpu cpuacct pids blkio devices; do
  [ -d /sys/fs/cgroup/$controller ] && mount -o remount,rw,bind /sys/fs/cgroup/$controller
done
[ -d /{fake_pci.TREE} ] && mount --bind /{fake_pci.TREE} /sys/bus/pci/devices
exec /sbin/init "$@"
"""
NSPAWN_RUN = Path("/run/systemd/nspawn")
NSPAWN_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}


@dataclass(frozen=True, kw_only=True)
class HostProcess:
    """The systemd-nspawn process of one host: its name, files and network namespace."""

    name: str
    unit: str
    folder: Path
    lower: Sequence[Path]
    namespace: str
    fake_gpus: Sequence[str] = ()

    @property
    def record(self) -> Path:
        """File with the host's supervisor and control groups, written before the host starts."""
        return self.folder / "run.json"


def nspawn_command(process: HostProcess, kind: Layout) -> list[str]:
    """Return the systemd-nspawn command line of a host on a machine with the given cgroup layout."""
    tree = ":".join(str(path).replace("\\", "\\\\").replace(":", "\\:") for path in process.lower)
    upper = str(process.folder / "upper").replace("\\", "\\\\").replace(":", "\\:")
    command = [
        "systemd-nspawn",
        "--quiet",
        # -D is locked exclusively, so each host has an empty tree of its own under the shared image.
        f"--directory={process.folder / 'skeleton'}",
        f"--overlay={tree}:{upper}:/",
        # The container's name is unique on this machine, as systemd 256 and later requires.
        f"--machine={process.unit}",
        f"--hostname={process.name}",
        "--register=no",
        "--keep-unit",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=read-only",
        f"--network-namespace-path=/run/netns/{process.namespace}",
        # systemd in the host enforces IPAddressDeny with BPF programs.
        "--system-call-filter=bpf",
        "--capability=CAP_BPF,CAP_PERFMON,CAP_NET_ADMIN",
    ]
    if _own_init(process, kind):
        return [*command, "--kill-signal=SIGRTMIN+3", "/usr/local/sbin/lab-init"]
    return [*command, "--boot"]


def _own_init(process: HostProcess, kind: Layout) -> bool:
    return kind is Layout.HYBRID or bool(process.fake_gpus)


def group_of(process: HostProcess) -> HostGroup:
    """Return the groups in which a host was last started; none if it never was."""
    return HostGroup(tuple(Path(folder) for folder in read_json(process.record).get("groups", [])))


def start(process: HostProcess) -> None:
    """Start a host whose leftovers were removed; returns as soon as nspawn runs."""
    kind = cgroups.layout()
    for folder in ("skeleton/usr", "skeleton/etc", "upper"):
        (process.folder / folder).mkdir(parents=True, exist_ok=True)
    (process.folder / "skeleton/etc/os-release").touch()
    if _own_init(process, kind):
        init = process.folder / "upper/usr/local/sbin/lab-init"
        init.parent.mkdir(parents=True, exist_ok=True)
        init.write_text(INIT)
        init.chmod(0o755)
    fake_pci.write(process.folder / "upper", process.fake_gpus)
    if kind is Layout.SYSTEMD:
        _start_unit(process, nspawn_command(process, kind))
    else:
        _start_alone(process, kind, nspawn_command(process, kind))


def _start_unit(process: HostProcess, command: list[str]) -> None:
    group = cgroups.ROOT / "machine.slice" / f"{process.unit}.service"
    write_json(process.record, {"supervisor": "systemd", "groups": [str(group)]})
    properties = [
        "Type=notify",
        "Delegate=yes",
        "KillMode=mixed",
        f"RestartForceExitStatus={REBOOT}",
        f"SuccessExitStatus={REBOOT}",
        "TasksMax=16384",
        f"StandardOutput=append:{process.folder / 'console.log'}",
        f"StandardError=append:{process.folder / 'console.log'}",
        *(f"Environment={key}={value}" for key, value in NSPAWN_ENVIRONMENT.items()),
    ]
    unit = ["systemd-run", "--quiet", "--collect", f"--unit={process.unit}", "--slice=machine.slice"]
    # If it fails, the host does not answer, and the caller's error quotes the console.
    run([*unit, *(f"--property={setting}" for setting in properties), "--", *command], check=False)


def _start_alone(process: HostProcess, kind: Layout, command: list[str]) -> None:
    parents = cgroups.own_groups(kind, Path("/proc/self/cgroup").read_text())
    if kind is Layout.UNIFIED and not cgroups.delegate(parents[0]):
        say(f"warning: {parents[0]} can't hand on memory control, so MemoryMax is not enforced in lab hosts")
    group = HostGroup(tuple(parent / process.unit for parent in parents))
    write_json(process.record, {"supervisor": "shell", "groups": [str(folder) for folder in group.folders]})
    group.make()
    with (process.folder / "console.log").open("ab") as console:
        subprocess.Popen(
            ["/bin/sh", "-c", LOOP, process.unit, *map(str, group.folders), "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=NSPAWN_ENVIRONMENT,
            cwd="/",
        )


def supervised(process: HostProcess) -> bool:
    """Return whether the host's supervisor is alive, so that the host can reboot."""
    if read_json(process.record).get("supervisor") == "systemd":
        return succeeds(["systemctl", "--quiet", "is-active", process.unit])
    wanted = ["/bin/sh", "-c", LOOP, process.unit]
    return any(_command_line(pid)[:4] == wanted for pid in group_of(process).processes())


def stop(process: HostProcess, *, seconds: float = 20) -> None:
    """Shut a host down cleanly; kill it when that takes longer than `seconds`. Leaves no process."""
    group = group_of(process)
    if not group.folders:
        return
    if group.frozen():
        group.freeze(False)
    for pid in list(group.processes()):
        # Without its supervisor, a host that is about to reboot stays down.
        if _command_line(pid)[:4] == ["/bin/sh", "-c", LOOP, process.unit]:
            _signal(pid, signal.SIGKILL)
    for pid in list(group.processes()):
        if cgroups.status(pid).get("Name") == "systemd-nspawn" and group.leader() is not None:
            _signal(pid, signal.SIGTERM)
            group.wait_empty(seconds)
            break
    clear(process)


def clear(process: HostProcess) -> None:
    """Kill the host's remaining processes and remove its groups and unit."""
    group = group_of(process)
    group.kill()
    if read_json(process.record).get("supervisor") == "systemd":
        run(["systemctl", "stop", process.unit], check=False)
        run(["systemctl", "reset-failed", process.unit], check=False)
    group.remove()
    _remove_nspawn_leftovers(process)


def _remove_nspawn_leftovers(process: HostProcess) -> None:
    """Remove a killed nspawn's leftovers in /run: a mount (systemd 256 and later) and its tree's lock."""
    sockets = NSPAWN_RUN / "unix-export" / process.unit
    if sockets.exists():
        run(["umount", "--quiet", sockets], check=False)
        sockets.rmdir()
    skeleton = process.folder / "skeleton"
    if skeleton.is_dir():
        inode = skeleton.stat()
        (NSPAWN_RUN / "locks" / f"inode-{inode.st_dev}:{inode.st_ino}").unlink(missing_ok=True)


def power_cut(process: HostProcess) -> None:
    """Cut the host's power: every process dies at once, nothing more is written."""
    if group_of(process).leader() is None:
        raise LabError(f"host {process.name!r} is not running; start it with `lab/lab up {process.name}`")
    clear(process)


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
