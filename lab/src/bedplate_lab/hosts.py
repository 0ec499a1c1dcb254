"""Lab hosts: their records, starting, stopping, saving, and running commands in them."""

import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from bedplate_lab import cgroups, images, network, supervision, this_machine
from bedplate_lab.errors import LabError
from bedplate_lab.paths import CHECKOUT, Lab, check_name, known_labs
from bedplate_lab.tools import locked, read_json, run, say, write_file, write_json

GROUPS = ("inference", "gateway", "monitoring")
DEFAULT_SUITE = "trixie"
HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SSH_SECONDS = 30


@dataclass
class Host:
    """One host of a lab, as its record on disk describes it."""

    name: str
    number: int
    suite: str
    lower: list[str]
    groups: list[str]
    fake_gpus: list[str] = field(default_factory=list)
    machine_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Hosts:
    """The hosts of one lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    # --- records

    def all(self) -> list[Host]:
        """Return every host that has a record, running or not, by name."""
        records = [read_json(file) for file in sorted(self.lab.hosts.glob("*/host.json"))]
        return [Host(**record) for record in records if record]

    def get(self, name: str) -> Host:
        """Return one host; raise LabError naming the known ones if there is none of that name."""
        for host in self.all():
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.all()) or "none"
        raise LabError(
            f"there is no host {name!r} in lab {self.lab.name!r} (hosts: {known}); see `lab/lab list`"
        )

    def folder(self, host: Host) -> Path:
        """Return the folder that holds a host's record, keys and writable tree."""
        return self.lab.hosts / host.name

    def address(self, host: Host) -> IPv4Address:
        """Return a host's address."""
        subnet = network.subnet(self.lab)
        if subnet is None:
            raise LabError(f"lab {self.lab.name!r} has no network yet; run `lab/lab up {host.name}` first")
        return network.host_address(subnet, host.number)

    def process(self, host: Host) -> supervision.HostProcess:
        """Return a host's systemd-nspawn process."""
        name = network.namespace(self.lab, host.name)
        lower = [Path(path) for path in host.lower]
        return supervision.HostProcess(
            host.name, f"bedplate-{self.lab.id}-{host.name}", self.folder(host), lower, name, host.fake_gpus
        )

    def group(self, host: Host) -> cgroups.HostGroup:
        """Return the control groups that a host runs in."""
        return supervision.group_of(self.process(host))

    def state(self, host: Host) -> str:
        """Return `running`, `paused`, `unsupervised` (runs, but can't reboot) or `stopped`."""
        group = self.group(host)
        if group.leader() is None:
            return "stopped"
        if group.frozen():
            return "paused"
        return "running" if supervision.supervised(self.process(host)) else "unsupervised"

    def running(self) -> list[Host]:
        """Return the hosts that run and are not paused."""
        return [host for host in self.all() if self.state(host) in ("running", "unsupervised")]

    # --- up and down

    def up(
        self,
        names: Sequence[str],
        *,
        suite: str | None,
        groups: Sequence[str] | None,
        layer: str | None,
        fake_gpus: Sequence[str] | None = None,
    ) -> None:
        """Boot the named hosts in parallel and wait until each answers on SSH; skip running ones."""
        for name in names:
            check_name("the host name", name)
        self.lab.write_record()
        if layer is None and not all((self.lab.hosts / name / "host.json").exists() for name in names):
            images.base(suite or DEFAULT_SUITE)  # before the lab's lock is taken: this can take a minute
        boot = partial(self._up_one, suite=suite, groups=groups, layer=layer, fake_gpus=fake_gpus)
        with ThreadPoolExecutor(max_workers=8) as pool:
            for _ in pool.map(boot, dict.fromkeys(names)):
                pass

    def _up_one(
        self,
        name: str,
        *,
        suite: str | None,
        groups: Sequence[str] | None,
        layer: str | None,
        fake_gpus: Sequence[str] | None,
    ) -> None:
        started = time.monotonic()
        with locked(self.lab.state / f"{name}.lock", f"starts or stops {name}"):
            host = self._record(name, suite, groups, layer, fake_gpus)
            if self.state(host) == "running":
                with locked(self.lab.lock, "changes the lab's network"):
                    network.bring_up(self.lab)
                say(f"{name} is up already: {host.suite}, {self.address(host)}")
                return
            self._clean_up(host)
            missing = [path for path in host.lower if not Path(path).is_dir()]
            if missing:
                raise LabError(
                    f"{name} can't start without {missing[0]}; run `lab/lab down {name}` and then `up` again"
                )
            with locked(self.lab.lock, "changes the lab's network"):
                subnet = network.bring_up(self.lab)
                self._write_keys()
                network.plug_in(self.lab, host.name, host.number, subnet)
            self._seed(host)
            supervision.start(self.process(host))
            self._wait_for_ssh(host)
        say(f"{name} is up: {host.suite}, {self.address(host)}, {time.monotonic() - started:.1f} s")

    def _record(
        self,
        name: str,
        suite: str | None,
        groups: Sequence[str] | None,
        layer: str | None,
        fake_gpus: Sequence[str] | None,
    ) -> Host:
        """Return the host's record, created or updated."""
        with locked(self.lab.lock, "changes the lab's hosts"):
            file = self.lab.hosts / name / "host.json"
            if file.exists():
                host = Host(**read_json(file))
                if suite not in (None, host.suite) or layer is not None:
                    raise LabError(
                        f"host {name!r} exists already on {host.suite}; run `lab/lab down {name}` first, "
                        "then it can start on another suite or layer"
                    )
                host.groups = list(groups) if groups is not None else host.groups
            else:
                taken = {other.number for other in self.all()}
                number = next(number for number in range(200) if number not in taken)
                base, below = self._lower(suite, layer)
                host = Host(name, number, base, below, list(GROUPS if groups is None else groups))
            if fake_gpus is not None:
                host.fake_gpus = list(fake_gpus)
            write_json(file, asdict(host))
            return host

    def _lower(self, suite: str | None, layer: str | None) -> tuple[str, list[str]]:
        """Return suite and read-only trees, lowest first, of a new host."""
        if layer is None:
            return suite or DEFAULT_SUITE, [str(images.base(suite or DEFAULT_SUITE))]
        record = read_json(self.lab.layers / layer / "layer.json")
        if not record:
            known = ", ".join(sorted(path.name for path in self.lab.layers.glob("*"))) or "none"
            raise LabError(
                f"there is no layer {layer!r} (layers: {known}); make one with `lab/lab save HOST {layer}`"
            )
        if suite not in (None, record["suite"]):
            raise LabError(f"layer {layer!r} is on {record['suite']}, not on {suite}; omit --suite")
        return record["suite"], [*record["lower"], str(self.lab.layers / layer / "tree")]

    def _clean_up(self, host: Host) -> None:
        """Remove the leftovers of an earlier start of the host, even a half start; its disk stays."""
        supervision.stop(self.process(host))
        network.unplug(self.lab, host.name, host.number)

    def stop(self, host: Host) -> None:
        """Shut a host down cleanly; its disk stays, so that `up` boots it again."""
        with locked(self.lab.state / f"{host.name}.lock", f"starts or stops {host.name}"):
            self._clean_up(host)
            self._drop_network_if_last()

    def power_cut(self, host: Host) -> None:
        """Cut a host's power; its disk stays as it was at that moment."""
        with locked(self.lab.state / f"{host.name}.lock", f"starts or stops {host.name}"):
            supervision.power_cut(self.process(host))
            network.unplug(self.lab, host.name, host.number)

    def pause(self, host: Host, paused: bool) -> None:
        """Freeze every process of a host, or thaw them."""
        group = self.group(host)
        if group.leader() is None:
            raise LabError(f"host {host.name!r} is not running; start it with `lab/lab up {host.name}`")
        group.freeze(paused)

    def down(self, host: Host) -> None:
        """Shut a host down and remove everything of it, including its disk."""
        with locked(self.lab.state / f"{host.name}.lock", f"starts or stops {host.name}"):
            self._clean_up(host)
            removed = self.lab.state / "removed" / f"{host.name}-{host.machine_id}"
            removed.parent.mkdir(exist_ok=True)
            with locked(self.lab.lock, "changes the lab's network"):
                self.folder(host).rename(removed)
                self._write_keys()
            shutil.rmtree(removed, ignore_errors=True)
            self._drop_network_if_last()
        say(f"{host.name} is down")

    def down_all(self) -> None:
        """Take down every host of the lab, and remove the leftovers of an interrupted `down`."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            for _ in pool.map(self.down, self.all()):
                pass
        shutil.rmtree(self.lab.state / "removed", ignore_errors=True)
        if self.lab.state.is_dir():
            self._drop_network_if_last()

    def _drop_network_if_last(self) -> None:
        with locked(self.lab.lock, "changes the lab's network"):
            ports = Path("/sys/class/net", self.lab.bridge, "brif")
            if not ports.is_dir() or not any(ports.iterdir()):
                network.take_down(self.lab)

    # --- seeding

    def _write_keys(self) -> None:
        """Make the lab's key and list the host keys for ssh. The caller holds the lab's lock."""
        if not self.lab.key.with_suffix(".pub").exists():
            _make_key(self.lab.key, f"lab {self.lab.name}")
        lines = []
        for host in self.all():
            key = self.folder(host) / "ssh_host_ed25519_key"
            if not key.with_suffix(".pub").exists():
                _make_key(key, host.name)
            lines.append(f"{self.address(host)} {key.with_suffix('.pub').read_text()}")
        write_file(self.lab.known_hosts, "".join(lines), 0o600)

    def _seed(self, host: Host) -> None:
        """Write name, keys and this machine's package configuration into the host's writable tree."""
        root, key = self.folder(host) / "upper", self.folder(host) / "ssh_host_ed25519_key"
        write_file(root / "etc/resolv.conf", this_machine.resolver())
        seeded = self.folder(host) / "seeded"
        if seeded.exists():
            return  # a restart changes nothing on the disk
        write_file(root / "etc/hostname", f"{host.name}\n")
        write_file(
            root / "etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n{self.address(host)} {host.name}\n"
        )
        write_file(root / "etc/machine-id", f"{host.machine_id}\n", 0o444)
        write_file(root / "etc/ssh/ssh_host_ed25519_key", key.read_text(), 0o600)
        write_file(root / "etc/ssh/ssh_host_ed25519_key.pub", key.with_suffix(".pub").read_text())
        write_file(root / "root/.ssh/authorized_keys", self.lab.key.with_suffix(".pub").read_text(), 0o600)
        for private in (root / "root", root / "root/.ssh"):
            private.chmod(0o700)
        this_machine.seed(root)
        seeded.touch()

    def _wait_for_ssh(self, host: Host) -> None:
        started, address = time.monotonic(), (str(self.address(host)), 22)
        while (waited := time.monotonic() - started) < SSH_SECONDS:
            try:
                with socket.create_connection(address, 1) as connection:
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                time.sleep(0.03)
            if waited > 2 and not any(True for _ in self.group(host).processes()):
                break
        console = self.folder(host) / "console.log"
        lines = console.read_text(errors="replace").strip().splitlines()[-1:] if console.exists() else []
        raise LabError(
            f"host {host.name!r} did not answer on SSH ({lines[0] if lines else 'its console is empty'}); "
            f"read {console}, then try `lab/lab down {host.name}` and `lab/lab up {host.name}`"
        )

    # --- access

    def leader(self, host: Host) -> int:
        """Return the process id of a host's init; raise LabError if the host is stopped or paused."""
        leader, state = self.group(host).leader(), self.state(host)
        if leader is None:
            raise LabError(f"host {host.name!r} is not running; start it with `lab/lab up {host.name}`")
        if state == "paused":
            raise LabError(f"host {host.name!r} is paused; resume it with `lab/lab fault resume {host.name}`")
        return leader

    def exec_command(self, host: Host, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` in a host, without SSH."""
        enter = [
            "nsenter",
            f"--target={self.leader(host)}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
        ]
        return [
            *enter,
            "--",
            "env",
            "-i",
            f"PATH={HOST_PATH}",
            "HOME=/root",
            "LANG=C.UTF-8",
            "TERM=dumb",
            *command,
        ]

    def call(self, host: Host, command: Sequence[str]) -> str:
        """Run `command` in a host and return what it printed; raise LabError when it fails."""
        return run(self.exec_command(host, command))

    def ssh_options(self) -> list[str]:
        """Return the ssh options that accept only the keys of this lab's hosts."""
        settings = [
            f"UserKnownHostsFile={self.lab.known_hosts}",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
        ]
        return [word for setting in settings for word in ("-o", setting)]

    def ssh_command(self, host: Host, command: Sequence[str]) -> list[str]:
        """Return the ssh command line for a host; raise LabError when the guard is missing."""
        network.check_guard(self.lab)
        return ["ssh", "-i", str(self.lab.key), *self.ssh_options(), f"root@{self.address(host)}", *command]

    # --- layers

    def save(self, host: Host, layer: str) -> None:
        """Save a stopped host's disk as a read-only layer for new hosts; the host then uses it too."""
        check_name("the layer name", layer)
        with locked(self.lab.state / f"{host.name}.lock", f"starts or stops {host.name}"):
            if self.state(host) != "stopped":
                raise LabError(
                    f"host {host.name!r} is {self.state(host)}; run `lab/lab stop {host.name}` first"
                )
            target = self.lab.layers / layer
            if target.exists():
                raise LabError(f"there is already a layer {layer!r}; save under another name")
            tree = self.folder(host) / "upper"
            if not tree.is_dir():
                raise LabError(f"host {host.name!r} has never run; start it with `lab/lab up {host.name}`")
            # A host's identity stays out of the layer; `up` gives each host its own.
            for path in [*tree.glob("etc/ssh/ssh_host_*"), tree / "etc/machine-id"]:
                path.unlink(missing_ok=True)
            shutil.rmtree(tree / "var/log/journal" / host.machine_id, ignore_errors=True)
            target.mkdir(parents=True)
            lower = list(host.lower)
            host.lower.append(str(target / "tree"))
            tree.rename(target / "tree")
            (self.folder(host) / "seeded").unlink()
            write_json(self.folder(host) / "host.json", asdict(host))
            write_json(target / "layer.json", {"suite": host.suite, "lower": lower})
        say(f"saved {host.name} as layer {layer}: boot from it with `lab/lab up NAME --from {layer}`")


def _make_key(path: Path, comment: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an interrupted ssh-keygen leaves a private key without its public one
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])


def labs_to_clean() -> list[Lab]:
    """Return the labs of this checkout, and of deleted checkouts, which can't clean up themselves."""
    return [lab for lab in known_labs() if lab.checkout == CHECKOUT or not lab.checkout.exists()]


def others_running() -> list[str]:
    """Return `checkout: host` for each running host of labs that belong to other checkouts."""
    running = []
    for lab in known_labs():
        if lab not in labs_to_clean():
            hosts = Hosts(lab)
            running += [
                f"{lab.checkout}: {host.name}" for host in hosts.all() if hosts.state(host) != "stopped"
            ]
    return running


def attach(command: Sequence[str]) -> int:
    """Run `command` with this terminal and return its exit status."""
    return subprocess.call(list(command))
