"""The Debian packages that the lab needs on the machine under it."""

from __future__ import annotations

import subprocess

from .errors import LabError
from .tools import run, say

PACKAGES = ("mmdebstrap", "systemd-container", "nftables", "openssh-client", "zstd", "iproute2")


def missing() -> list[str]:
    """Return the packages that are not installed."""
    listed = run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *PACKAGES], check=False)
    return [package for package in PACKAGES if f"{package} installed" not in listed.splitlines()]


def require() -> None:
    """Raise LabError naming what is missing."""
    packages = missing()
    if packages:
        raise LabError(
            f"this machine lacks {', '.join(packages)}; run `lab/lab deps` to install what the lab needs"
        )


def install() -> None:
    """Install what is missing with apt-get; says nothing if nothing is."""
    packages = missing()
    if not packages:
        return
    say(f"installing {' '.join(packages)} with apt-get")
    apt = ["apt-get", "-q", "-o", "Dpkg::Use-Pty=0"]
    for command in ([*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *packages]):
        if subprocess.call(["env", "DEBIAN_FRONTEND=noninteractive", *command]) != 0:
            raise LabError(f"`{' '.join(command)}` failed; its lines above say why")
