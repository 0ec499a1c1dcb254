"""The records of a lab's hosts on disk, and what follows from them: folders, addresses, states."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from bedplate_lab import cgroups, images, network, supervision
from bedplate_lab.errors import LabError
from bedplate_lab.paths import CHECKOUT, Lab, known_labs
from bedplate_lab.tools import locked, read_json, write_json

GROUPS = ("inference", "gateway", "monitoring")
DEFAULT_SUITE = "trixie"
MAX_HOSTS = 200


@dataclass(kw_only=True)
class Host:
    """One host of a lab, as its record on disk describes it."""

    name: str
    number: int
    suite: str
    lower: list[str]
    """The read-only trees under its disk, lowest first."""
    groups: list[str]
    fake_gpus: list[str] = field(default_factory=list)
    machine_id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """What hosts are started with; None keeps the record's value, or uses the default for a new host."""

    suite: str | None = None
    groups: Sequence[str] | None = None
    layer: str | None = None
    fake_gpus: Sequence[str] | None = None


class HostRecords:
    """The records of one lab's hosts."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

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

    def exists(self, name: str) -> bool:
        """Return whether a host has a record."""
        return self._file(name).exists()

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
        return supervision.HostProcess(
            name=host.name,
            unit=f"bedplate-{self.lab.id}-{host.name}",
            folder=self.folder(host),
            lower=[Path(path) for path in host.lower],
            namespace=network.namespace(self.lab, host.name),
            fake_gpus=host.fake_gpus,
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

    def write(self, host: Host) -> None:
        """Write a host's record."""
        write_json(self._file(host.name), asdict(host))

    def create_or_update(self, name: str, spec: HostSpec) -> Host:
        """Return the host of that name with the settings of `spec`, after writing its record.

        Raises LabError where an existing host has another suite, or the layer does not exist.
        """
        with locked(self.lab.lock, "changes the lab's hosts"):
            if self.exists(name):
                host = self.get(name)
                if spec.suite not in (None, host.suite) or spec.layer is not None:
                    raise LabError(
                        f"host {name!r} exists already on {host.suite}; run `lab/lab down {name}` first, "
                        "then it can start on another suite or layer"
                    )
                host.groups = list(spec.groups) if spec.groups is not None else host.groups
            else:
                taken = {other.number for other in self.all()}
                suite, lower = self._lower(spec)
                host = Host(
                    name=name,
                    number=next(number for number in range(MAX_HOSTS) if number not in taken),
                    suite=suite,
                    lower=lower,
                    groups=list(GROUPS if spec.groups is None else spec.groups),
                )
            if spec.fake_gpus is not None:
                host.fake_gpus = list(spec.fake_gpus)
            self.write(host)
            return host

    def _file(self, name: str) -> Path:
        return self.lab.hosts / name / "host.json"

    def _lower(self, spec: HostSpec) -> tuple[str, list[str]]:
        """Return suite and read-only trees, lowest first, of a new host."""
        if spec.layer is None:
            suite = spec.suite or DEFAULT_SUITE
            return suite, [str(images.base(suite))]
        record = read_json(self.lab.layers / spec.layer / "layer.json")
        if not record:
            known = ", ".join(sorted(path.name for path in self.lab.layers.glob("*"))) or "none"
            raise LabError(
                f"there is no layer {spec.layer!r} (layers: {known}); "
                f"make one with `lab/lab save HOST {spec.layer}`"
            )
        if spec.suite not in (None, record["suite"]):
            raise LabError(f"layer {spec.layer!r} is on {record['suite']}, not on {spec.suite}; omit --suite")
        return record["suite"], [*record["lower"], str(self.lab.layers / spec.layer / "tree")]


def labs_to_clean() -> list[Lab]:
    """Return the labs of this checkout, and of deleted checkouts, which can't clean up themselves."""
    return [lab for lab in known_labs() if lab.checkout == CHECKOUT or not lab.checkout.exists()]


def others_running() -> list[str]:
    """Return `checkout: host` for each running host of labs that belong to other checkouts."""
    running = []
    for lab in known_labs():
        if lab not in labs_to_clean():
            records = HostRecords(lab)
            running += [
                f"{lab.checkout}: {host.name}" for host in records.all() if records.state(host) != "stopped"
            ]
    return running
