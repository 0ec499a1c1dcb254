"""The Debian packages that the lab needs on this machine."""

import subprocess

from bedplate_lab.errors import LabError
from bedplate_lab.tools import run, say

PACKAGES = ("mmdebstrap", "systemd-container", "nftables", "openssh-client", "zstd", "iproute2")


def missing() -> list[str]:
    """Return the packages that are not installed."""
    listed = run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *PACKAGES], check=False)
    return [package for package in PACKAGES if f"{package} installed" not in listed.splitlines()]


def require() -> None:
    """Raise LabError naming the missing packages, where there are any."""
    packages = missing()
    if packages:
        raise LabError(
            f"this machine lacks {', '.join(packages)}; run `lab/lab deps` to install what the lab needs"
        )


def install() -> None:
    """Install the missing packages with apt-get; silent if none is missing."""
    packages = missing()
    if not packages:
        return
    say(f"installing {' '.join(packages)} with apt-get")
    apt = ["apt-get", "-q", "-o", "Dpkg::Use-Pty=0"]
    for command in ([*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *packages]):
        if subprocess.call(["env", "DEBIAN_FRONTEND=noninteractive", *command]) != 0:
            raise LabError(f"`{' '.join(command)}` failed; the reason is in its output above")
