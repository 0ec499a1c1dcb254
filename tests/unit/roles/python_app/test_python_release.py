"""python_release: complete, half and concurrent installations, with a fake uv and once with the real one."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FAKE_UV = """#!/bin/sh
echo "$@" >>"{log}"
case $1 in
  venv) rm -rf venv && mkdir venv ;;
  pip) {pip} ;;
esac
"""
LOCK = "aiohttp==3.9 --hash=sha256:00"
Release = Callable[..., dict[str, Any]]


@pytest.fixture
def plugin(load_source: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_source("roles/python_app/library/python_release.py")
    # It would hold for the rest of the tests.
    monkeypatch.setattr(module.os, "nice", lambda increment: increment)
    return module


class FakeUv:
    """A fake of uv that logs its commands; `pip` is the shell command of an installation."""

    def __init__(self, path: Path) -> None:
        self.path = path / "uv"
        self.log = path / "log"
        self.serve("touch venv/installed")

    def serve(self, pip: str) -> None:
        """Let an installation run this shell command."""
        self.path.write_text(FAKE_UV.format(log=self.log, pip=pip))
        self.path.chmod(0o755)
        self.log.write_text("")

    @property
    def commands(self) -> list[str]:
        """The first word of each command since the last `serve`."""
        return [line.split()[0] for line in self.log.read_text().splitlines()]


@pytest.fixture
def uv(plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeUv:
    fake = FakeUv(tmp_path)
    monkeypatch.setattr(plugin, "UV", fake.path)
    return fake


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "program"


@pytest.fixture
def release(plugin: ModuleType, program: Path, run_module: Callable[..., dict[str, Any]]) -> Release:
    """Run the module for a release of the program."""

    def run(name: str, *, check: bool = False, **params: Any) -> dict[str, Any]:
        given = {"directory": str(program), "release": name, "requirements": LOCK, **params}
        return run_module(plugin, given, check=check)

    return run


def test_a_release_is_installed_once_and_current_points_to_it(
    release: Release, uv: FakeUv, program: Path
) -> None:
    first = release("1")
    assert (first["changed"], first["installed"]) == (True, True)
    assert uv.commands == ["venv", "pip"]
    assert str((program / "current").readlink()) == "releases/1/venv"
    assert (program / "current/installed").exists()
    assert (program / "releases/1/requirements.txt").read_text() == LOCK + "\n"
    again = release("1")
    assert (again["changed"], again["installed"]) == (False, False)
    assert uv.commands == ["venv", "pip"]


def test_an_earlier_release_is_only_pointed_to(release: Release, uv: FakeUv, program: Path) -> None:
    release("1")
    release("2")
    uv.serve("exit 1")
    back = release("1")
    assert (back["changed"], back["installed"]) == (True, False)
    assert str((program / "current").readlink()) == "releases/1/venv"
    assert uv.commands == []


@pytest.mark.usefixtures("uv")
def test_a_background_run_leaves_current_to_the_role(release: Release, program: Path) -> None:
    release("1")
    assert release("2", current=False)["installed"] is True
    assert str((program / "current").readlink()) == "releases/1/venv"
    last = release("2")
    assert (last["changed"], last["installed"]) == (True, False)
    assert str((program / "current").readlink()) == "releases/2/venv"


def test_a_failed_installation_is_one_sentence_and_is_done_again(
    release: Release, uv: FakeUv, program: Path
) -> None:
    release("1")
    uv.serve("touch venv/half; echo 'error: no route to the index' >&2; exit 1")
    failed = release("2")
    assert failed["msg"] == f"{program}/releases/2 cannot be installed: error: no route to the index"
    assert str((program / "current").readlink()) == "releases/1/venv"
    uv.serve("touch venv/installed")
    assert release("2")["installed"] is True
    assert not (program / "current/half").exists()


def test_a_missing_uv_is_one_sentence(release: Release, uv: FakeUv, program: Path) -> None:
    uv.path.unlink()
    assert release("1")["msg"].startswith(f"{program}/releases/1 cannot be installed: [Errno 2] No such file")


def test_check_mode_changes_nothing(release: Release, uv: FakeUv, program: Path) -> None:
    assert release("1", check=True)["changed"] is True
    assert not program.exists()
    release("1")
    assert release("1", check=True)["changed"] is False
    release("2", current=False)
    assert release("2", check=True)["changed"] is True
    assert release("2", check=True, current=False)["changed"] is False
    assert uv.commands == ["venv", "pip"] * 2


def test_a_second_run_waits_for_the_first(plugin: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with (
        plugin.lock(path),
        pytest.raises(plugin.ReleaseError, match="another run has been installing"),
        plugin.lock(path, seconds=0.3),
    ):
        pass
    with plugin.lock(path, seconds=0):
        pass


def test_uv_keeps_the_lock_if_its_run_ends(plugin: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with plugin.lock(path) as held:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[held.fileno()])
    try:
        with pytest.raises(plugin.ReleaseError), plugin.lock(path, seconds=0):
            pass
    finally:
        child.kill()
        child.wait()
    with plugin.lock(path, seconds=0):
        pass


def test_the_real_uv_installs_the_wheel_by_its_hash(
    plugin: ModuleType, release: Release, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path(sys.executable).with_name("uv")
    monkeypatch.setattr(plugin, "UV", real)
    monkeypatch.setattr(plugin, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("UV_OFFLINE", "1")
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small.py", "NAME = 'small'")
        archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        archive.writestr(
            "small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("small-1.0.dist-info/RECORD", "")
    content = base64.b64encode(wheel.read_bytes()).decode()
    given = {"requirements": "# nothing else", "wheel": str(wheel), "wheel_content": content}
    refused = release("1", **given, wheel_checksum="0" * 64)
    assert "Hash mismatch" in refused["msg"]
    assert release("1", **given, wheel_checksum=hashlib.sha256(wheel.read_bytes()).hexdigest())["installed"]
    code = [str(program / "current/bin/python"), "-c", "import small; print(small.NAME)"]
    assert subprocess.run(code, capture_output=True, text=True, check=True).stdout == "small\n"


def test_uv_gets_the_proxys_password_in_a_file_of_root_and_nowhere_else(
    release: Release, uv: FakeUv, program: Path
) -> None:
    uv.serve(f"stat --format=%a uv.toml >{program}/mode; cp uv.toml {program}/seen; env >{program}/environ")
    proxy = "http://user:word-of-the-proxy@10.0.0.1:3128"
    done = release("1", proxies={"http": proxy, "https": proxy})
    assert done["installed"] is True
    assert (program / "mode").read_text() == "600\n"
    settings = tomllib.loads((program / "seen").read_text())
    assert settings == {"http-proxy": proxy, "https-proxy": proxy}
    assert not (program / "releases/1/uv.toml").exists()
    for shown in (str(done), uv.log.read_text(), (program / "environ").read_text()):
        assert "word-of-the-proxy" not in shown


def test_a_failed_installation_leaves_no_password(release: Release, uv: FakeUv, program: Path) -> None:
    uv.serve("exit 1")
    assert "cannot be installed" in release("1", proxies={"https": "http://user:word@10.0.0.1"})["msg"]
    assert not (program / "releases/1/uv.toml").exists()


def test_the_real_uv_reads_the_proxy_from_that_file(
    plugin: ModuleType, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "UV", Path(sys.executable).with_name("uv"))
    monkeypatch.setattr(plugin, "PYTHON", Path(sys.executable))
    for name in [name for name in os.environ if name.startswith("UV_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://index.example/simple")
    asked = b""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def answer() -> None:
            nonlocal asked
            connection, _ = server.accept()
            with connection:
                asked = connection.recv(4096)
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        proxy = f"http://user:word@127.0.0.1:{server.getsockname()[1]}"
        release("1", requirements=f"six==1.0 --hash=sha256:{'0' * 64}", proxies={"http": proxy})
        thread.join()
    assert asked.startswith(b"GET http://index.example/simple/six/ ")
    assert b"Basic " + base64.b64encode(b"user:word") in asked
