"""Bare Debian images: built once per suite and recipe, cached as an archive and as an extracted tree."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bedplate_lab import this_machine
from bedplate_lab.errors import LabError
from bedplate_lab.paths import cache_folder
from bedplate_lab.tools import locked, run, say

SUITES = ("bookworm", "trixie")
# The packages of a Debian cloud image; everything else is installed by the roles.
PACKAGES = [
    *(
        "systemd",
        "systemd-sysv",
        "dbus",
        "libpam-systemd",
        "openssh-server",
        "python3",
        "python3-apt",
        "sudo",
    ),
    *("iproute2", "iputils-ping", "nftables", "ca-certificates", "procps", "curl", "less"),
]
OPTIONS = [
    "--variant=apt",
    "--skip=check/qemu",
    "--dpkgopt=force-unsafe-io",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    f"--include={','.join(PACKAGES)}",
    '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_*',
    '--customize-hook=truncate -s0 "$1"/etc/machine-id',
    # A host gets this machine's settings when it starts, so that the image holds no old ones.
    '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
]


def key(suite: str, sources: str) -> str:
    """Return the name under which an image is cached: its suite and a hash of its recipe."""
    recipe = "\n".join([suite, platform.machine(), sources, *OPTIONS])
    return f"{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def base(suite: str) -> Path:
    """Return the extracted tree of `suite`, building or extracting it first where needed.

    After an interruption, the next call continues from the last complete result; a concurrent call waits.
    """
    if suite not in SUITES:
        raise LabError(f"--suite {suite!r} is not one of {', '.join(SUITES)}")
    sources = this_machine.sources_for(suite, this_machine.codename(), this_machine.read_sources())
    name = key(suite, sources)
    folder = cache_folder() / "images"
    tree, archive = folder / name, folder / f"{name}.tar.zst"
    if tree.is_dir():
        return tree
    with locked(folder / f"{name}.lock", f"makes the {suite} image"):
        if tree.is_dir():
            return tree
        for leftover in folder.glob(f"{name}.tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)
        workplace = Path(tempfile.mkdtemp(dir=folder, prefix=f"{name}.tmp"))
        try:
            if not archive.exists():
                _build(suite, sources, workplace).rename(archive)
            extracted = workplace / "tree"
            extracted.mkdir()
            attributes = ["--xattrs", "--xattrs-include=*", "--numeric-owner"]
            run(["tar", "--zstd", "-xpf", archive, *attributes, "-C", extracted])
            extracted.chmod(0o755)
            # Ansible's cache_valid_time would take the image's age for the age of package lists.
            os.utime(extracted / "var/lib/apt/lists", (0, 0))
            extracted.rename(tree)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    return tree


def _build(suite: str, sources: str, workplace: Path) -> Path:
    """Run mmdebstrap in its own tmpfs and return the archive."""
    say(f"building the {suite} image: usually 40 s on 2 cores, once")
    started = time.monotonic()
    (workplace / "sources").write_text(sources)
    (workplace / "apt.conf").write_text(this_machine.apt_settings())
    scratch, archive, log = (
        workplace / "scratch",
        workplace / "image.tar.zst",
        workplace.parent / f"{suite}.log",
    )
    scratch.mkdir()
    # Its own mount and PID namespaces: when this process dies, mmdebstrap and its mounts go too. Its own
    # session, because mmdebstrap kills its process group when something fails.
    isolate = "setpriv --pdeathsig KILL unshare --propagation private --pid --fork --kill-child --mount-proc"
    # Debian mounts /dev/shm nodev, so a Debian system can't be unpacked there; hence its own tmpfs.
    script = 'mount -t tmpfs -o mode=0755 tmpfs "$1" && shift && exec "$@"'
    command = [*isolate.split(), "sh", "-c", script, "sh", str(scratch), "mmdebstrap", *OPTIONS]
    command += [f"--aptopt={workplace / 'apt.conf'}", suite, str(archive), str(workplace / "sources")]
    environment = os.environ | {"TMPDIR": str(scratch)}
    with log.open("w") as stream:
        code = subprocess.call(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
    if code != 0:
        errors = [line for line in log.read_text().splitlines() if line.startswith("E:")] or ["see the log"]
        raise LabError(f"building the {suite} image failed ({errors[0]}); the whole log is {log}")
    say(f"built the {suite} image in {time.monotonic() - started:.0f} s")
    return archive
