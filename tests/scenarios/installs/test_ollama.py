"""After a refused or interrupted installation of Ollama the old release keeps running."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.hosts import lab_artifact, run_lab, send_file
from tests.support.stack import Stack

# The installed archive under the version of another release.
NEXT_VERSION = {"ollama_version": "0.24.1"}
# Releases as of 0.30 run models with lib/ollama/llama-server.
TREE_VERSION = {"ollama_version": "0.30.0-fake"}
CURRENT = "readlink --canonicalize /opt/bedplate/ollama/current"
HALF_BYTES = 8_000_000


class Archives(NamedTuple):
    """Damaged copies of the installed archive: truncated, and with a fake llama-server."""

    half: Path
    tree: Path


@pytest.fixture(scope="module")
def engine() -> dict[str, str]:
    """Version, archive and checksum of the installed Ollama."""
    return lab_artifact("engine")


@pytest.fixture(scope="module")
def archives(engine: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Archives:
    folder = tmp_path_factory.mktemp("archives")
    made = Archives(folder / "half-ollama-linux-amd64.tar.zst", folder / "tree-ollama-linux-amd64.tar.zst")
    with Path(engine["archive"]).open("rb") as archive:
        made.half.write_bytes(archive.read(HALF_BYTES))
    tree = folder / "tree"
    (tree / "lib/ollama").mkdir(parents=True)
    tar = ("tar", "--zstd", f"--directory={tree}")
    subprocess.run([*tar, "--extract", f"--file={engine['archive']}"], check=True)
    server = tree / "lib/ollama/llama-server"
    server.write_text('#!/bin/sh\necho "this llama-server is fake"\n')
    server.chmod(0o755)
    subprocess.run([*tar, "--create", f"--file={made.tree}", "."], check=True)
    return made


@pytest.fixture(scope="module", autouse=True)
def _returns_to_the_inventorys_version(stack: Stack) -> Iterator[None]:
    yield
    stack.play("--tags", "ollama")


@contextmanager
def keeps_running(stack: Stack) -> Iterator[None]:
    """Check that the block changes neither the installed release nor its process."""
    state = f"{CURRENT} && systemctl show --property=MainPID,ActiveState ollama"
    before = stack(state)
    yield
    assert stack(state) == before


def test_a_truncated_archive_is_refused(stack: Stack, engine: dict[str, str], archives: Archives) -> None:
    settings = {**NEXT_VERSION, "ollama_archive": str(archives.half)}
    with keeps_running(stack):
        output = stack.play_fails("--tags", "ollama", settings=settings)
    assert f"expected {engine['checksum']}: download it again." in output


def test_a_truncated_download_is_refused(stack: Stack, archives: Archives) -> None:
    send_file(stack.name, archives.half, "/srv/ollama-linux-amd64.tar.zst")
    stack(
        "systemd-run --quiet --unit=half-archive --collect "
        "python3 -m http.server --bind=127.0.0.1 --directory=/srv 5001"
    )
    settings = {**NEXT_VERSION, "ollama_archive": "http://127.0.0.1:5001/ollama-linux-amd64.tar.zst"}
    with keeps_running(stack):
        output = stack.play_fails("--tags", "ollama", settings=settings)
    assert "correct the checksum or the address." in output


def test_a_full_disk_stops_the_installation_and_the_next_run_completes_it(
    stack: Stack, engine: dict[str, str]
) -> None:
    checksum = engine["checksum"].removeprefix("sha256:")
    release = f"/opt/bedplate/ollama/releases/0.24.1-{checksum[:8]}"
    stack(f"mkdir --parents {release}")
    run_lab("fault", "fill", stack.name, release, "4M")
    try:
        with keeps_running(stack):
            output = stack.play_fails("--tags", "ollama", settings=NEXT_VERSION)
        assert "No space left on device" in output
    finally:
        run_lab("fault", "unfill", stack.name, release)
    stack.play("--tags", "ollama", settings=NEXT_VERSION)
    assert stack(CURRENT).strip() == release
    running = stack("readlink /proc/$(systemctl show --property=MainPID --value ollama)/exe")
    assert running.strip() == f"{release}/bin/ollama"


def test_an_archive_without_llama_server_is_refused(stack: Stack) -> None:
    with keeps_running(stack):
        output = stack.play_fails("--tags", "ollama", settings=TREE_VERSION)
    assert "contains no lib/ollama/llama-server, which Ollama 0.30.0-fake needs to run a model" in output


def test_an_archive_with_llama_server_is_installed_completely(stack: Stack, archives: Archives) -> None:
    checksum = hashlib.sha256(archives.tree.read_bytes()).hexdigest()
    settings = {
        **TREE_VERSION,
        "ollama_archive": str(archives.tree),
        "ollama_archive_checksum": f"sha256:{checksum}",
    }
    stack.play("--tags", "ollama", settings=settings)
    assert "fake" in stack("/opt/bedplate/ollama/current/lib/ollama/llama-server")
