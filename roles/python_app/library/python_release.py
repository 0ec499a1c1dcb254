#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Installs a release of a Python program: a virtual environment whose packages are locked by their hashes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: python_release
short_description: Install a release of a Python program and point current to it
description:
  - Creates the virtual environment releases/RELEASE/venv with the bedplate role's uv, installs the packages
    into it, writes them to the disk and then marks the release as complete.
  - A complete release is not installed again. An incomplete one, which a power cut left, is.
  - Of several runs for the same release the later ones wait, so that a run can begin the installation in the
    background and a later task can end it.
options:
  directory:
    description: The program's folder, such as /opt/bedplate/litellm.
    type: path
    required: true
  release:
    description: Name of the release.
    type: str
    required: true
  requirements:
    description: Text of the lock file; each package has its hashes.
    type: str
    required: true
  wheel:
    description: The program's own wheel on the control machine; none if there is none.
    type: str
    default: ""
  wheel_checksum:
    description: The wheel's SHA-256, in hexadecimal digits.
    type: str
    default: ""
  wheel_content:
    description: Set by the action plugin. The wheel as base64.
    type: str
    default: ""
  proxies:
    description: Proxies with a password, by the scheme (http, https) of the addresses that they are for.
    type: dict
    default: {}
  current:
    description: Whether to point the link current to the release.
    type: bool
    default: true
author: Bedplate
"""

EXAMPLES = r"""
- name: Install the exporter
  python_release:
    directory: /opt/bedplate/bedplate-exporter
    release: 0.1.0-1bd89034
    requirements: "{{ lookup('ansible.builtin.file', 'requirements/exporter.txt') }}"
    wheel: /srv/bedplate/dist/bedplate_exporter-0.1.0-py3-none-any.whl
    wheel_checksum: 3f0bb4f6e1b4ee2a54d2ca1bc1a0ec0a8a53a7e20bd9f2f4a1e2a5f8d5f4c1aa
"""

RETURN = r"""
installed:
  description: Whether the release was installed by this run.
  returned: success
  type: bool
"""

UV = Path("/opt/bedplate/uv/current/bin/uv")
PYTHON = Path("/usr/bin/python3")
INSTALL_SECONDS = 1800
POLL_SECONDS = 0.2
NICE = 10
MAX_MESSAGE = 2000


class ReleaseError(Exception):
    """Why a release cannot be installed, in one sentence."""


@contextlib.contextmanager
def lock(path: Path, seconds: float = INSTALL_SECONDS) -> Iterator[IO[bytes]]:
    """Hold the lock of a release; raises ReleaseError if another run has it for too long."""
    with path.open("wb") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"another run has been installing {path.parent} for {seconds} s: stop it."
                    raise ReleaseError(message) from None
                time.sleep(POLL_SECONDS)
        yield file


def run(command: Sequence[str | Path], folder: Path, held: IO[bytes]) -> None:
    """Run a command, which keeps the lock even if this process ends; raises ReleaseError with its message."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            pass_fds=[held.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReleaseError(f"{folder} cannot be installed: {error}.") from None
    if done.returncode:
        said = done.stderr.strip()[-MAX_MESSAGE:] or f"{command[0]} ended with {done.returncode}"
        raise ReleaseError(f"{folder} cannot be installed: {said}")


@contextlib.contextmanager
def proxy_settings(folder: Path, proxies: Mapping[str, str]) -> Iterator[None]:
    """Have the proxies in a file that uv reads in its working directory, and only root can read."""
    file = folder / "uv.toml"
    # Also one that a power cut left.
    file.unlink(missing_ok=True)
    if proxies:
        file.touch(mode=0o600)
        file.write_text("".join(f"{scheme}-proxy = {json.dumps(url)}\n" for scheme, url in proxies.items()))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def install(folder: Path, requirements: str, proxies: Mapping[str, str], held: IO[bytes]) -> None:
    """Install the requirements into a new virtual environment; raises ReleaseError."""
    (folder / "requirements.txt").write_text(requirements)
    run([UV, "venv", "--quiet", "--clear", f"--python={PYTHON}", "venv"], folder, held)
    options = [
        "--quiet",
        "--no-cache",
        "--no-deps",
        "--require-hashes",
        "--compile-bytecode",
        # As all other downloads: also the CA of a company that the host trusts.
        "--system-certs",
        "--python=venv",
    ]
    with proxy_settings(folder, proxies):
        run([UV, "pip", "install", *options, "--requirement=requirements.txt"], folder, held)
    # After a power cut, .complete must not be there without the files that it stands for.
    run(["sync", "--file-system", folder], folder, held)
    (folder / ".complete").touch()


def point(link: Path, target: str) -> bool:
    """Make a link point to a target, at once; return whether it did not."""
    if link.is_symlink() and str(link.readlink()) == target:
        return False
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
    return True


def lock_text(requirements: str, wheel: str, checksum: str) -> str:
    """Return the lock file's text, with the program's own wheel."""
    return requirements.rstrip("\n") + "\n" + (f"./{wheel} --hash=sha256:{checksum}\n" if wheel else "")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            # Not secret, but too long for the host's journal, in which Ansible logs the options.
            "requirements": {"type": "str", "required": True, "no_log": True},
            "wheel": {"type": "str", "default": ""},
            "wheel_checksum": {"type": "str", "default": ""},
            "wheel_content": {"type": "str", "default": "", "no_log": True},
            "proxies": {"type": "dict", "default": {}, "no_log": True},
            "current": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    directory = Path(given["directory"])
    folder, link = directory / "releases" / given["release"], directory / "current"
    target = f"releases/{given['release']}/venv"
    if module.check_mode:
        stands = link.is_symlink() and str(link.readlink()) == target
        missing = not (folder / ".complete").exists()
        module.exit_json(changed=missing or (given["current"] and not stands), installed=False)
    # Services and Ansible's other tasks on the host come first.
    os.nice(NICE)
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with lock(folder / ".lock") as held:
            missing = not (folder / ".complete").exists()
            if missing:
                wheel = Path(given["wheel"]).name
                if wheel:
                    (folder / wheel).write_bytes(base64.b64decode(given["wheel_content"]))
                text = lock_text(given["requirements"], wheel, given["wheel_checksum"])
                install(folder, text, given["proxies"], held)
            pointed = given["current"] and point(link, target)
    except (ReleaseError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=missing or pointed, installed=missing)


if __name__ == "__main__":
    main()
