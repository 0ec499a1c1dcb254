"""The contents of a host's disk before its first start: name, keys, this machine's package configuration."""

from pathlib import Path

from bedplate_lab import this_machine
from bedplate_lab.records import Host, HostRecords
from bedplate_lab.tools import run, write_file


def write_keys(records: HostRecords) -> None:
    """Make missing keys of the lab and its hosts, and write known_hosts. The caller holds the lab's lock."""
    lab = records.lab
    if not lab.key.with_suffix(".pub").exists():
        _make_key(lab.key, f"lab {lab.name}")
    lines = []
    for host in records.all():
        key = _host_key(records, host)
        if not key.with_suffix(".pub").exists():
            _make_key(key, host.name)
        lines.append(f"{records.address(host)} {key.with_suffix('.pub').read_text()}")
    write_file(lab.known_hosts, "".join(lines), 0o600)


def seed(records: HostRecords, host: Host) -> None:
    """Write name, keys and this machine's package configuration into the host's writable tree."""
    root, key = records.folder(host) / "upper", _host_key(records, host)
    write_file(root / "etc/resolv.conf", this_machine.resolver())
    seeded = seeded_mark(records, host)
    if seeded.exists():
        return  # a restart changes nothing on the disk
    write_file(root / "etc/hostname", f"{host.name}\n")
    hosts = f"127.0.0.1 localhost\n::1 localhost\n{records.address(host)} {host.name}\n"
    write_file(root / "etc/hosts", hosts)
    write_file(root / "etc/machine-id", f"{host.machine_id}\n", 0o444)
    write_file(root / "etc/ssh/ssh_host_ed25519_key", key.read_text(), 0o600)
    write_file(root / "etc/ssh/ssh_host_ed25519_key.pub", key.with_suffix(".pub").read_text())
    public_key = records.lab.key.with_suffix(".pub").read_text()
    write_file(root / "root/.ssh/authorized_keys", public_key, 0o600)
    for private in (root / "root", root / "root/.ssh"):
        private.chmod(0o700)
    this_machine.seed(root)
    seeded.touch()


def seeded_mark(records: HostRecords, host: Host) -> Path:
    """Return the file that marks the host's disk as seeded; without it, the next start seeds it again."""
    return records.folder(host) / "seeded"


def _host_key(records: HostRecords, host: Host) -> Path:
    return records.folder(host) / "ssh_host_ed25519_key"


def _make_key(path: Path, comment: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an interrupted ssh-keygen leaves a private key without its public one
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])
