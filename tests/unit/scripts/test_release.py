"""scripts/release.py: a release's checksums from its sha256sum.txt into an inventory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ARCHIVES = {"amd64": b"an archive", "arm64": b"another"}
AMD, ARM = (hashlib.sha256(content).hexdigest() for content in ARCHIVES.values())
SUMS = f"{AMD}  ./ollama-linux-amd64.tar.zst\n{ARM} *ollama-linux-arm64.tar.zst\n"
ALL = "---\n# Mine.\nbedplate_validated: 2026-11-28\n"
EXPRESSION = (
    f"{{{{ {{'x86_64': 'sha256:{AMD}', 'aarch64': 'sha256:{ARM}'}}[ansible_facts['architecture']] }}}}"
)


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def release(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("scripts/release.py")


@pytest.fixture(scope="module")
def download(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/download.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a release, which a server has."""
    made = tmp_path / "v9.9.9"
    made.mkdir()
    for arch, content in ARCHIVES.items():
        (made / f"ollama-linux-{arch}.tar.zst").write_bytes(content)
    (made / "sha256sum.txt").write_text(SUMS)
    return made


@pytest.fixture
def source(folder: Path) -> Iterator[str]:
    handler = partial(QuietHandler, directory=str(folder.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v{{version}}"
        server.shutdown()
        thread.join()


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """An inventory as make init writes it."""
    made = tmp_path / "mine"
    (made / "group_vars").mkdir(parents=True)
    (made / "hosts.yml").write_text("---\nall:\n  hosts: {}\n")
    (made / "group_vars/all.yml").write_text(ALL)
    (made / "group_vars/all.yml").chmod(0o640)
    return made


def test_a_new_release_is_added_and_a_newer_one_replaces_it(
    release: ModuleType, source: str, folder: Path, inventory: Path
) -> None:
    file = inventory / "group_vars/all.yml"
    said = release.take("9.9.9", inventory, source)
    assert f"amd64 sha256:{AMD}" in said
    assert said.endswith(f"Next: ansible-playbook -i {inventory} site.yml --tags ollama")
    assert file.read_text().startswith(f"{ALL}\nollama_version: 9.9.9\n")
    assert yaml.safe_load(file.read_text())["ollama_archive_checksum"] == EXPRESSION
    before = file.read_text()
    release.take("9.9.9", inventory, source)
    assert file.read_text() == before
    folder.rename(folder.with_name("v9.9.10"))
    file.write_text(f"{before}# The end.\n")
    release.take("9.9.10", inventory, source)
    assert file.read_text() == before.replace("9.9.9", "9.9.10") + "# The end.\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["all.yml"]


def test_the_written_checksum_is_that_of_the_archive(
    release: ModuleType, download: ModuleType, source: str, folder: Path, inventory: Path
) -> None:
    part = folder.parent / "part"
    url = source.format(version="9.9.9") + "/ollama-linux-amd64.tar.zst"
    release.take("9.9.9", inventory, source)
    assert f"sha256:{AMD}" in (inventory / "group_vars/all.yml").read_text()
    download.download(url, part, f"sha256:{AMD}", 10)
    # A wrong checksum in sha256sum.txt is taken, and site.yml refuses the archive.
    (folder / "sha256sum.txt").write_text(SUMS.replace(AMD, "0" * 64))
    release.take("9.9.9", inventory, source)
    assert f"sha256:{'0' * 64}" in (inventory / "group_vars/all.yml").read_text()
    with pytest.raises(download.DownloadError, match=f"has sha256:{AMD}, expected sha256:{'0' * 64}"):
        download.download(url, part, f"sha256:{'0' * 64}", 10)


def test_a_release_of_the_roles_table_needs_no_checksum(
    release: ModuleType, source: str, folder: Path, inventory: Path
) -> None:
    known = yaml.safe_load(release.KNOWN.read_text())["__ollama_checksums"]
    version, sums = next(iter(known.items()))
    file = inventory / "group_vars/all.yml"
    release.take("9.9.9", inventory, source)
    folder = folder.rename(folder.with_name(f"v{version}"))
    lines = [f"{value[7:]}  ./ollama-linux-{arch}.tar.zst\n" for arch, value in sums.items()]
    (folder / "sha256sum.txt").write_text("".join(lines))
    release.take(version, inventory, source)
    assert file.read_text() == f"{ALL}\nollama_version: {version}\n"
    (folder / "sha256sum.txt").write_text(lines[0].replace(lines[0][:64], "0" * 64))
    with pytest.raises(release.ReleaseError, match="one of them was replaced"):
        release.take(version, inventory, source)


def test_the_libraries_of_amd_follow_where_they_are_set(
    release: ModuleType, source: str, folder: Path, inventory: Path
) -> None:
    file = inventory / "group_vars/all.yml"
    file.write_text(f"{ALL}ollama_rocm_archive_checksum: sha256:{'1' * 64}\n")
    with pytest.raises(release.ReleaseError, match="has no checksum of ollama-linux-amd64-rocm"):
        release.take("9.9.9", inventory, source)
    (folder / "sha256sum.txt").write_text(f"{SUMS}{'2' * 64}  ./ollama-linux-amd64-rocm.tar.zst\n")
    release.take("9.9.9", inventory, source)
    assert f"ollama_rocm_archive_checksum: sha256:{'2' * 64}\n" in file.read_text()


@pytest.mark.parametrize(
    ("version", "sums", "settings", "message"),
    [
        ("1.2", SUMS, "", "VERSION is '1.2'"),
        ("9.9.9'; x", SUMS, "", "name a release, such as VERSION="),
        ("9.9.8", SUMS, "", "answers with HTTP status 404"),
        ("9.9.9", "", "", "has no checksum of ollama-linux-amd64.tar.zst"),
        ("9.9.9", f"{AMD}  ./ollama-linux-amd64.tgz\n", "", "has no checksum of ollama-linux-amd64.tar.zst"),
        ("9.9.9", f"{AMD[:-1]}  ./ollama-linux-amd64.tar.zst\n", "", "has a line that is no checksum"),
        ("9.9.9", "<html>Sign in</html>\n", "", "has a line that is no checksum"),
        ("9.9.9", SUMS, "ollama_archive: /srv/ollama.tar.zst\n", "sets ollama_archive to one release"),
        ("9.9.9", SUMS, "ollama_version: 1.1.1\nollama_version: 1.1.2\n", "is set twice"),
    ],
)
def test_nothing_is_written_otherwise(
    request: pytest.FixtureRequest, version: str, sums: str, settings: str, message: str
) -> None:
    release, source, folder, inventory = map(
        request.getfixturevalue, ("release", "source", "folder", "inventory")
    )
    file = inventory / "group_vars/all.yml"
    file.write_text(ALL + settings)
    (folder / "sha256sum.txt").write_text(sums)
    with pytest.raises(release.ReleaseError, match=message):
        release.take(version, inventory, source)
    assert file.read_text() == ALL + settings


def test_an_archive_of_a_mirror_follows_the_release(
    release: ModuleType, source: str, inventory: Path
) -> None:
    file = inventory / "group_vars/all.yml"
    archive = 'ollama_archive: "http://mirror/v{{ ollama_version }}/ollama-linux-amd64.tar.zst"\n'
    file.write_text(ALL + archive)
    release.take("9.9.9", inventory, source)
    assert file.read_text().startswith(f"{ALL}{archive}\nollama_version: 9.9.9\n")


def test_one_file_has_the_release(release: ModuleType, source: str, inventory: Path, tmp_path: Path) -> None:
    other = inventory / "group_vars/inference.yml"
    other.write_text("ollama_version: 1.1.1\n")
    release.take("9.9.9", inventory, source)
    assert "ollama_version: 9.9.9\n" in other.read_text()
    assert (inventory / "group_vars/all.yml").read_text() == ALL
    (inventory / "group_vars/all.yml").write_text("ollama_version: 1.1.1\n")
    with pytest.raises(release.ReleaseError, match="keep it in one of them"):
        release.take("9.9.9", inventory, source)
    with pytest.raises(release.ReleaseError, match=r"There is no .*all\.yml: name the inventory"):
        release.take("9.9.9", tmp_path / "none", source)


def test_an_address_that_does_not_answer_is_named(release: ModuleType, inventory: Path) -> None:
    with pytest.raises(release.ReleaseError, match=r"cannot be read \(.*refused\): copy the folder"):
        release.take("9.9.9", inventory, "http://127.0.0.1:1")
