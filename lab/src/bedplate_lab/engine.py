"""The lab's engine: a real Ollama, built from the Go module proxy and packed like a release archive.

Upstream's archives are unreachable from a closed network and have 1.4 GB. Ollama is also a Go module, and up
to 0.24.0 its CPU engine builds with cgo. The module lacks the `vendor/` folder of its C++ part, which
Debian's development packages replace, and the version string, which the linker sets.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bedplate_lab import deps
from bedplate_lab.access import HostAccess
from bedplate_lab.errors import LabError
from bedplate_lab.lifecycle import HostLifecycle
from bedplate_lab.paths import Lab, cache_folder
from bedplate_lab.records import HostRecords, HostSpec
from bedplate_lab.tools import locked, read_json, require_root, run, say, write_json

DEFAULT_VERSION = "0.24.0"
OLDEST_SAFE, NEWEST_SINGLE_FILE = (0, 17, 1), (0, 24, 0)
BUILDER_LAB = "engine"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
X86_64_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
GO_NAMES = ("GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOPROXY", "GOPRIVATE", "GOINSECURE")
RECIPE = """\
set -eu
export DEBIAN_FRONTEND=noninteractive
echo '== installing the compilers'
apt-get -q update
apt-get -q install -y --no-install-recommends golang-go g++ nlohmann-json3-dev libstb-dev libminiaudio-dev
# The sources say "miniaudio/miniaudio.h"; Debian has the file without the folder.
mkdir -p /root/include/miniaudio
ln -sf /usr/include/miniaudio.h /root/include/miniaudio/miniaudio.h
echo '== compiling'
export CGO_ENABLED=1 CGO_CPPFLAGS=-I/root/include CGO_LDFLAGS=-static
export CGO_CFLAGS="-O3 $MARCH" CGO_CXXFLAGS="-O3 $MARCH"
go install -tags netgo,osusergo \\
  -ldflags "-s -w -X github.com/ollama/ollama/version.Version=$VERSION \\
  -X github.com/ollama/ollama/server.mode=release" github.com/ollama/ollama@v$VERSION
"""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An archive that the ollama role can install."""

    version: str
    archive: str
    checksum: str
    how: str
    """`given` on the command line, or `built` here."""


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file as `sha256:<hex>`."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def march(architecture: str, cpu_flags: set[str]) -> str:
    """Return the compiler's option for a CPU with the given flags, empty where none is needed."""
    return "-march=x86-64-v3" if architecture == "amd64" and cpu_flags >= X86_64_V3 else ""


def check_version(version: str) -> str:
    """Return `version` if this recipe can build it; raise LabError otherwise."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise LabError(f"--version {version!r} is not a version like {DEFAULT_VERSION}")
    if not OLDEST_SAFE <= tuple(map(int, version.split("."))) <= NEWEST_SINGLE_FILE:
        raise LabError(
            "the lab builds Ollama 0.17.1 (the oldest safe version) to 0.24.0 (the last in one file), "
            f"not {version}; name an archive of it with --archive FILE"
        )
    return version


def use_archive(archive: Path, version: str) -> Engine:
    """Return an archive on this machine as an engine; raise LabError if the file does not exist."""
    if not archive.is_file():
        raise LabError(
            f"the engine archive {archive} does not exist; correct --archive or BEDPLATE_LAB_ENGINE_ARCHIVE"
        )
    say(f"engine: the given archive {archive}, assumed to be Ollama {version}")
    return Engine(version=version, archive=str(archive.resolve()), checksum=checksum(archive), how="given")


def find_or_build(version: str) -> Engine:
    """Return the cached archive of `version`, building it first where there is none."""
    check_version(version)
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise LabError(
            f"the lab builds Ollama on x86_64 and aarch64, not on {platform.machine()}; use --archive FILE"
        )
    option = march(architecture, _cpu_flags())
    recipe = hashlib.sha256("\n".join([RECIPE, architecture, option]).encode()).hexdigest()[:8]
    folder = cache_folder() / "engines" / f"{version}-{architecture}-{recipe}"
    archive = folder / f"ollama-linux-{architecture}.tar.zst"
    record = folder / "engine.json"
    if not record.exists():
        with locked(folder.with_name(f"{folder.name}.lock"), f"builds Ollama {version}"):
            if not record.exists():
                if architecture == "amd64" and not option:
                    say("this CPU lacks x86-64-v3 (AVX2): the engine is built without it, 4 times slower")
                require_root("engine")
                deps.require()
                _build(version, option, archive, folder.with_name(f"{folder.name}.log"))
                write_json(record, {"version": version, "checksum": checksum(archive)})
    say(f"engine: Ollama {version} for the CPU, built here from the Go module proxy and cached for good")
    digest = str(read_json(record)["checksum"])
    return Engine(version=version, archive=str(archive), checksum=digest, how="built")


def as_json(engine: Engine) -> dict[str, str]:
    """Return the JSON object that `lab/lab engine` prints."""
    return asdict(engine)


def _cpu_flags() -> set[str]:
    match = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(match[1].split()) if match else set()


def _go_settings() -> dict[str, str]:
    """Return this machine's settings of the Go module proxy and of HTTP proxies."""
    settings: dict[str, str] = {}
    file = Path(os.environ.get("GOENV") or Path.home() / ".config/go/env")
    if file.is_file():
        lines = (line.partition("=") for line in file.read_text().splitlines())
        settings = {name: value for name, _, value in lines if name in GO_NAMES}
    own = {name: os.environ[name] for name in GO_NAMES if os.environ.get(name)}
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy") and value}
    return {name: value for name, value in (settings | own | proxies).items() if "file://" not in value}


def _build(version: str, option: str, archive: Path, log: Path) -> None:
    """Build `version` in a throwaway host and move the complete archive into place."""
    say(f"building Ollama {version} from the Go module proxy: usually 5 minutes on 2 cores, once; log: {log}")
    started = time.monotonic()
    records = HostRecords(Lab(BUILDER_LAB))
    lifecycle = HostLifecycle(records)
    name = f"build-{version.replace('.', '-')}"
    for leftover in (host for host in records.all() if host.name == name):
        lifecycle.down(leftover)  # an interrupted build may still be running in it
    lifecycle.up([name], HostSpec(suite="trixie", groups=[]))
    host = records.get(name)
    try:
        settings = _go_settings() | {"VERSION": version, "MARCH": option}
        words = ["env", *(f"{key}={value}" for key, value in settings.items()), "bash", "-c", RECIPE]
        with (
            log.open("w") as stream,
            subprocess.Popen(
                HostAccess(records).exec_command(host, words),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as build,
        ):
            for line in build.stdout or ():
                stream.write(line)
                stream.flush()
                if line.startswith("== "):
                    say(f"  {line[3:].strip()} ({time.monotonic() - started:.0f} s so far)")
        if build.returncode != 0:
            last = log.read_text().strip().splitlines()[-1:] or ["nothing"]
            raise LabError(
                f"building Ollama {version} failed; its last line was {last[0]!r}, the whole log is {log}"
            )
        _pack(records.folder(host) / "upper/root/go/bin/ollama", archive)
    finally:
        lifecycle.down(host)
    say(f"built Ollama {version} in {time.monotonic() - started:.0f} s")


def _pack(binary: Path, archive: Path) -> None:
    """Pack `binary` like a release archive from before 0.30: one file, bin/ollama."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as workplace:
        inside = Path(workplace, "tree", "bin", "ollama")
        inside.parent.mkdir(parents=True)
        shutil.copyfile(binary, inside)
        inside.chmod(0o755)
        tree, packed = shlex.quote(str(inside.parents[1])), Path(workplace, "archive.tar.zst")
        # Fixed owner and time: the same binary always gives the same checksum.
        run(
            [
                "tar",
                "--zstd",
                "-cf",
                packed,
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--mtime=@0",
                "-C",
                tree,
                "bin",
            ]
        )
        packed.rename(archive)
