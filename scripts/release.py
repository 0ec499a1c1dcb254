"""Takes a release of Ollama into an inventory, with its checksums: make release, or release.py --help.

Reads the release's sha256sum.txt and writes the settings. site.yml downloads the archive and checks it.
"""

import argparse
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn

import yaml

ROOT = Path(__file__).resolve().parents[1]
KNOWN = ROOT / "roles/ollama/vars/main.yml"
SOURCE = "https://github.com/ollama/ollama/releases/download/v{version}"
VERSION = re.compile(r"\d+\.\d+\.\d+(?:-[0-9a-z.]+)?")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""The architectures of the archives, and what Ansible calls them."""
SUM = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(\S+)")
MAX_BYTES = 1024 * 1024
SECONDS = 30
SETTINGS = ("ollama_version", "ollama_archive_checksum", "ollama_rocm_archive_checksum")
ARCHIVE = re.compile(r"^ollama_archive:(.*)$", re.MULTILINE)
LINE = re.compile(rf"^({'|'.join(SETTINGS)}):(.*)$", re.MULTILINE)


class ReleaseError(Exception):
    """Why nothing was written: one sentence with the remedy."""


def fetch(url: str) -> str:
    """Return a text; raises ReleaseError."""
    try:
        with urllib.request.build_opener().open(url, timeout=SECONDS) as answer:
            body: bytes = answer.read(MAX_BYTES)
        return body.decode()
    except urllib.error.HTTPError as error:
        raise ReleaseError(f"{url} answers with HTTP status {error.code}: is there such a release?") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ReleaseError(
            f"{url} cannot be read ({reason}): copy the folder and set SOURCE=http://…"
        ) from None


def read_sums(text: str, url: str) -> dict[str, str]:
    """Return the checksums by file name; raises ReleaseError for a line that is none."""
    sums: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        match = SUM.fullmatch(line.strip())
        if not match:
            raise ReleaseError(f"{url} has a line that is no checksum: {line.strip()[:80]!r}.")
        sums[match[2]] = f"sha256:{match[1]}"
    return sums


def archive_sums(sums: dict[str, str], url: str) -> dict[str, str]:
    """Return the archives' checksums by architecture; raises ReleaseError where there is none."""
    found = {arch: sums[name] for arch in MACHINES if (name := f"ollama-linux-{arch}.tar.zst") in sums}
    if not found:
        raise ReleaseError(f"{url} has no checksum of ollama-linux-amd64.tar.zst, which Bedplate installs.")
    return found


def check_known(version: str, sums: dict[str, str]) -> bool:
    """Return whether the role's table has the release; raises ReleaseError where it has other checksums."""
    known: dict[str, str] = yaml.safe_load(KNOWN.read_text())["__ollama_checksums"].get(version, {})
    for arch in known.keys() & sums.keys():
        if known[arch] != sums[arch]:
            raise ReleaseError(
                f"The checksum of Ollama {version} for {arch} is {sums[arch]}, but {KNOWN.relative_to(ROOT)} "
                f"has {known[arch]}: one of them was replaced. Ask upstream before you use either."
            )
    return bool(known)


def find_file(inventory: Path) -> Path:
    """Return the file of the inventory that has the settings, or should; raises ReleaseError."""
    files = [path for path in inventory.rglob("*") if path.suffix in {".yml", ".yaml"}]
    having = sorted(path for path in files if LINE.search(path.read_text()))
    if len(having) > 1:
        names = ", ".join(str(path) for path in having)
        raise ReleaseError(f"{names} set Ollama's release: keep it in one of them.")
    file = having[0] if having else inventory / "group_vars/all.yml"
    if not file.is_file():
        raise ReleaseError(f"There is no {file}: name the inventory, such as INVENTORY=inventory/mine.")
    return file


def new_text(text: str, values: dict[str, str | None]) -> str:
    """Return a file's text with these settings: replaced in their place, or at the end; None removes one."""
    for name, value in values.items():
        line = re.compile(rf"^{name}:.*\n?", re.MULTILINE)
        if len(line.findall(text)) > 1:
            raise ReleaseError(f"{name} is set twice in the file: keep one of them.")
        written = "" if value is None else f"{name}: {value}\n"
        if line.search(text):
            text = line.sub(lambda _, written=written: written, text)  # type: ignore[misc]
        elif written:
            text = f"{text.rstrip()}\n\n{written}" if name == "ollama_version" else f"{text}{written}"
    return text


def write(file: Path, text: str) -> None:
    """Replace a file at once; it keeps its mode."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as new:
        new.write(text)
    os.chmod(new.name, file.stat().st_mode & 0o777)  # noqa: PTH101 - by its name
    os.replace(new.name, file)  # noqa: PTH105


def take(version: str, inventory: Path, source: str) -> str:
    """Write a release into the inventory; return what to print. Raises ReleaseError."""
    if not VERSION.fullmatch(version):
        raise ReleaseError(f"VERSION is {version!r}: name a release, such as VERSION=0.35.1.")
    url = f"{source.format(version=version).rstrip('/')}/sha256sum.txt"
    file = find_file(inventory)
    text = file.read_text()
    if (archive := ARCHIVE.search(text)) and "ollama_version" not in archive[1]:
        raise ReleaseError(
            f"{file} sets ollama_archive to one release: set its version and checksum yourself, "
            "or name the release in it by {{ ollama_version }}."
        )
    sums = read_sums(fetch(url), url)
    archives = archive_sums(sums, url)
    by_machine = ", ".join(f"'{MACHINES[arch]}': '{checksum}'" for arch, checksum in archives.items())
    values: dict[str, str | None] = {"ollama_version": version}
    if check_known(version, archives):
        values["ollama_archive_checksum"] = None
    else:
        values["ollama_archive_checksum"] = f"\"{{{{ {{{by_machine}}}[ansible_facts['architecture']] }}}}\""
    if "ollama_rocm_archive_checksum:" in text:
        rocm = sums.get("ollama-linux-amd64-rocm.tar.zst")
        if rocm is None:
            raise ReleaseError(f"{url} has no checksum of ollama-linux-amd64-rocm.tar.zst: {file} needs it.")
        values["ollama_rocm_archive_checksum"] = rocm
    write(file, new_text(text, values))
    shown = "".join(f"\n  {arch} {checksum}" for arch, checksum in archives.items())
    return (
        f"{file} has Ollama {version}, with the checksums of {url}:{shown}\n"
        f"Next: ansible-playbook -i {inventory} site.yml --tags ollama"
    )


def main() -> NoReturn:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Take a release of Ollama into an inventory.")
    parser.add_argument("version")
    parser.add_argument("--inventory", type=Path, required=True, help="the folder to write in")
    parser.add_argument("--source", default=SOURCE, help="the address of the release's folder")
    options = parser.parse_args()
    try:
        print(take(options.version, options.inventory, options.source))
    except ReleaseError as error:
        sys.exit(str(error))
    sys.exit(0)


if __name__ == "__main__":
    main()
