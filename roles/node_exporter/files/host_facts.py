#!/usr/bin/python3
"""Writes what no exporter tells of a host, as a file for the node exporter: host-facts.timer runs it."""

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
    """Whether a package asked for a restart, or a kernel was installed since the last one (seconds)."""
    # Its inode is new, however old the package made the file.
    return REBOOT_REQUIRED.exists() or any(
        kernel.stat().st_ctime > now - uptime for kernel in BOOT.glob("vmlinuz-*")
    )


def kernel_is_newest(running: str) -> bool | None:
    """Whether no installed kernel is newer than the running one; None where none is installed."""

    def version(release: str) -> list[int]:
        return [int(number) for number in re.findall(r"[0-9]+", release)]

    installed = [kernel.name.removeprefix("vmlinuz-") for kernel in BOOT.glob("vmlinuz-*")]
    return version(running) >= max(map(version, installed)) if installed else None


def certificate_ends(path: Path) -> int:
    """Return the second at which a PEM certificate ends; raises OSError or ValueError where there is none."""
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-enddate", "-in", path], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ValueError(done.stderr.splitlines()[0] if done.stderr else "openssl said nothing")
    return ssl.cert_time_to_seconds(done.stdout.strip().removeprefix("notAfter="))


def newest(folder: Path) -> float:
    """Return the second of the newest file below a folder, 0 where there is none."""
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)


def lines(certificates: list[Path], backups: list[Path]) -> Iterator[str]:
    """Yield the metrics; a certificate that cannot be read ended at 0, so that it is seen."""
    name = "bedplate_host_reboot_required"
    yield f"# HELP {name} 1 if the host waits for a restart."
    yield f"# TYPE {name} gauge"
    yield f"{name} {reboot_required(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)):d}"
    newest_kernel = kernel_is_newest(os.uname().release)
    if newest_kernel is not None:
        name = "bedplate_host_kernel_is_newest"
        yield f"# HELP {name} 1 if no installed kernel is newer than the running one."
        yield f"# TYPE {name} gauge"
        yield f"{name} {newest_kernel:d}"
    name = "bedplate_host_certificate_expiry_timestamp_seconds"
    if certificates:
        yield f"# HELP {name} When the certificate ends; 0 if it cannot be read."
        yield f"# TYPE {name} gauge"
    for path in certificates:
        try:
            ends = certificate_ends(path)
        except (OSError, ValueError) as error:
            print(f"{path} is no certificate that can be read: {error}", file=sys.stderr)
            ends = 0
        yield f'{name}{{path="{path}"}} {ends}'
    name = "bedplate_host_backup_timestamp_seconds"
    if backups:
        yield f"# HELP {name} When the newest file of the backups was written; 0 if there is none."
        yield f"# TYPE {name} gauge"
    for path in backups:
        yield f'{name}{{path="{path}"}} {newest(path):.0f}'


def main() -> None:
    """Write the file that the first argument names, whole or not at all; the environment lists the rest."""
    target = Path(sys.argv[1])
    certificates = [Path(path) for path in os.environ.get("CERTIFICATES", "").split()]
    backups = [Path(path) for path in os.environ.get("BACKUPS", "").split()]
    new = target.with_suffix(".tmp")
    new.write_text("".join(f"{line}\n" for line in lines(certificates, backups)))
    new.chmod(0o644)
    new.replace(target)


if __name__ == "__main__":
    main()
