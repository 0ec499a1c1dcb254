#!/usr/bin/python3
"""Writes facts of the host that no exporter has to a text file for the node exporter (host-facts.timer)."""

import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REBOOT_REQUIRED = Path("/run/reboot-required")
BOOT = Path("/boot")


def reboot_required(now: float, uptime: float) -> bool:
    """Return whether a package requires a restart, or a kernel was installed since the last one (seconds)."""
    # The inode's change time is the time of the installation; the modification time is the package's.
    return REBOOT_REQUIRED.exists() or any(
        kernel.stat().st_ctime > now - uptime for kernel in BOOT.glob("vmlinuz-*")
    )


def kernel_is_newest(running: str) -> bool | None:
    """Return whether no installed kernel is newer than the running one; None if none is installed."""

    def version(release: str) -> list[int]:
        return [int(number) for number in re.findall(r"[0-9]+", release)]

    installed = [kernel.name.removeprefix("vmlinuz-") for kernel in BOOT.glob("vmlinuz-*")]
    return version(running) >= max(map(version, installed)) if installed else None


def security_updates() -> int | None:
    """Return how many packages lack a security update, as of the last `apt-get update`; None if apt fails."""
    done = subprocess.run(
        ["apt-get", "--simulate", "dist-upgrade"],
        env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
        capture_output=True,
        text=True,
        check=False,
    )
    # Inst libssl3 [3.0.11-1] (3.0.13-1~deb12u1 Debian-Security:12/stable-security [amd64])
    found = re.findall(r"^Inst \S+ [^(\n]*\([^)\n]*-security\b", done.stdout, re.MULTILINE)
    return len(found) if done.returncode == 0 else None


def certificate_validity(pem: str) -> list[int]:
    """Return start and expiry of a certificate in PEM as Unix times; raises ValueError if it is damaged."""
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-startdate", "-enddate"],
        input=pem,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError(done.stderr.splitlines()[0] if done.stderr else "openssl printed nothing")
    return [ssl.cert_time_to_seconds(line.partition("=")[2]) for line in done.stdout.splitlines()]


def served_lines(endpoints: list[str]) -> Iterator[str]:
    """Yield the metrics' lines of the certificates that TLS servers show; one that shows none is left out."""
    served = {}
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        try:
            served[endpoint] = certificate_validity(ssl.get_server_certificate((host, int(port)), timeout=10))
        except (OSError, ValueError) as error:
            print(f"{endpoint} serves no certificate: {error}", file=sys.stderr)
    names = (
        "bedplate_host_served_certificate_start_timestamp_seconds",
        "bedplate_host_served_certificate_expiry_timestamp_seconds",
    )
    for place, name in enumerate(names):
        if served:
            yield f"# HELP {name} Unix time from which, or until which, the served certificate is valid."
            yield f"# TYPE {name} gauge"
        for endpoint, validity in served.items():
            yield f'{name}{{address="{endpoint}"}} {validity[place]}'


def newest_file_time(folder: Path) -> float:
    """Return the Unix time of the newest file below a directory, 0 if there is none."""
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)


def metric_lines(certificates: list[Path], served: list[str], backups: list[Path]) -> Iterator[str]:
    """Yield the metrics' lines; an unreadable certificate has the expiry 0, so that its alert fires."""
    name = "bedplate_host_reboot_required"
    yield f"# HELP {name} 1 if the host needs a restart."
    yield f"# TYPE {name} gauge"
    yield f"{name} {reboot_required(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)):d}"
    newest_kernel = kernel_is_newest(os.uname().release)
    if newest_kernel is not None:
        name = "bedplate_host_kernel_is_newest"
        yield f"# HELP {name} 1 if no installed kernel is newer than the running one."
        yield f"# TYPE {name} gauge"
        yield f"{name} {newest_kernel:d}"
    updates = security_updates()
    if updates is not None:
        name = "bedplate_host_security_updates"
        yield f"# HELP {name} Packages that lack a security update, as of the last apt-get update."
        yield f"# TYPE {name} gauge"
        yield f"{name} {updates}"
    name = "bedplate_host_certificate_expiry_timestamp_seconds"
    if certificates:
        yield f"# HELP {name} Unix time at which the certificate expires; 0 if it cannot be read."
        yield f"# TYPE {name} gauge"
    for path in certificates:
        try:
            _, expiry = certificate_validity(path.read_text())
        except (OSError, ValueError) as error:
            print(f"cannot read the certificate {path}: {error}", file=sys.stderr)
            expiry = 0
        yield f'{name}{{path="{path}"}} {expiry}'
    yield from served_lines(served)
    name = "bedplate_host_backup_timestamp_seconds"
    if backups:
        yield f"# HELP {name} Unix time of the newest file in the backup directory; 0 if there is none."
        yield f"# TYPE {name} gauge"
    for path in backups:
        yield f'{name}{{path="{path}"}} {newest_file_time(path):.0f}'


def main() -> None:
    """Write the file named by the first argument atomically; CERTIFICATES, SERVED and BACKUPS say of what."""
    target = Path(sys.argv[1])
    certificates = [Path(path) for path in os.environ.get("CERTIFICATES", "").split()]
    served = os.environ.get("SERVED", "").split()
    backups = [Path(path) for path in os.environ.get("BACKUPS", "").split()]
    new = target.with_suffix(".tmp")
    new.write_text("".join(f"{line}\n" for line in metric_lines(certificates, served, backups)))
    new.chmod(0o644)
    new.replace(target)


if __name__ == "__main__":
    main()
