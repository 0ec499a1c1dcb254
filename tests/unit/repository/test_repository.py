"""The repository contains complete lock files and checksums, and no paths of a development machine."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
INPUTS = sorted([*ROOT.glob("requirements/*.in"), *ROOT.glob("bench/requirements/*.in")])
LOCKS = [*(path.with_suffix(".txt") for path in INPUTS), ROOT / "roles/bedplate/files/uv.txt"]
# Programs that tests and benches run as a user would, each in an environment of its own.
STANDALONE = ("clients", "aider", "bench", "aiperf", "guidellm", "locust")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
# Split, so that this file does not contain them.
REGISTRIES = [
    f"{name}.{end}"
    for end, names in {
        "org": ("pypi", "pythonhosted", "npmjs", "golang", "debian"),
        "com": ("npmjs", "ubuntu"),
        "io": ("docker", "ghcr", "quay"),
    }.items()
    for name in names
]


def requirements(lock: Path) -> list[str]:
    """Return the requirements of a lock file, each with its hashes in one line."""
    lines = lock.read_text().replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_everything_by_hash(lock: Path) -> None:
    pins = requirements(lock)
    assert pins
    for line in pins:
        assert re.match(r"[a-z0-9][a-z0-9._-]*(\[[a-z,]+\])?==\S+", line), line
        assert HASH.search(line), line
        # No index, no URL, no other option.
        assert not re.search(r"--|://|@", HASH.sub("", line)), line


def test_litellm_is_installed_without_its_proprietary_part() -> None:
    for lock in LOCKS:
        assert not re.search(r"^litellm[-_]enterprise", lock.read_text(), re.MULTILINE), lock


def test_each_input_has_a_lock_with_its_requirements() -> None:
    for path in INPUTS:
        names = {re.split(r"[=\[]", line)[0] for line in requirements(path.with_suffix(".txt"))}
        for line in path.read_text().splitlines():
            if re.match(r"[A-Za-z]", line):
                assert re.split(r"[=\[ ;]", line)[0].lower() in names, f"{path.name}: {line}"


def test_a_package_has_one_version_in_what_hosts_and_developers_get() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for line in requirements(lock) if lock.stem not in STANDALONE else ():
            # A marker, such as one for a Python version, makes it another package.
            requirement, _, marker = HASH.sub("", line).partition(";")
            name, version = re.split(r"(?:\[.*\])?==", requirement.strip())
            versions.setdefault(f"{name} {marker.strip()}", set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_hosts_get_the_uv_of_the_control_machine() -> None:
    """The hosts' lock, the control machine's and the build backend pin the same version of uv."""
    hosts = (ROOT / "roles/bedplate/files/uv.txt").read_text()
    control = (ROOT / "requirements/control.txt").read_text()
    assert hosts == control[control.index("\nuv==") + 1 :], "run make lock"
    version = hosts.split()[0].removeprefix("uv==")
    backends = [path.read_text() for path in ROOT.glob("*/pyproject.toml")]
    assert len(backends) == 5
    assert all(f'requires = ["uv_build=={version}"]' in text for text in backends)


def test_the_five_packages_have_one_version() -> None:
    projects = [tomllib.loads(path.read_text())["project"] for path in ROOT.glob("*/pyproject.toml")]
    assert len(projects) == 5
    (version,) = {project["version"] for project in projects}
    # After a change `make lint` installs them again.
    installed = {importlib.metadata.version(project["name"]) for project in projects}
    assert installed == {version}
    for source in ROOT.glob("*/src/**/*.py"):
        assert f'"{version}"' not in source.read_text(), f"{source} repeats the version"


def test_ollama_checksums() -> None:
    variables = yaml.safe_load((ROOT / "roles/ollama/vars/main.yml").read_text())
    table = variables["__ollama_checksums"]
    versions = [tuple(int(part) for part in version.split(".")) for version in table]
    assert versions == sorted(versions, reverse=True)
    assert versions[-1] >= tuple(int(part) for part in variables["__ollama_minimum_version"].split("."))
    for version, row in table.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert row.keys() == {"amd64", "arm64"}, version
    sums = [checksum for row in table.values() for checksum in row.values()]
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", checksum) for checksum in sums)
    assert len(sums) == len(set(sums))
    default = yaml.safe_load((ROOT / "roles/ollama/defaults/main.yml").read_text())["ollama_version"]
    assert default in table


def test_no_registry_and_no_path_of_this_machine_is_named() -> None:
    words = [*map(re.escape, REGISTRIES), r"/work/[a-z]", r"/(home/[a-z]+|root)/\.(?!ansible)", r"\.pyenv"]
    strange = re.compile("|".join(words))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in listed.decode().split("\0") if name]
    assert len(files) > 100
    for path in files:
        if not path.is_file() or path.is_symlink() or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
            match = strange.search(line)
            assert not match, f"{path.relative_to(ROOT)}:{number} contains {match and match[0]}"
