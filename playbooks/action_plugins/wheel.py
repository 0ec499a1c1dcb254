# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel of a Python package on the control machine, once for each state of its source."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
module: wheel
short_description: Build the wheel of a Python package, unless its source has not changed
description:
  - Runs uv on the control machine; needs no connection. Check mode builds, too, because the wheel's content
    decides whether a host needs it.
  - The wheel lies in a folder of C(dest) whose name has a hash of the source. Of each package the newest
    wheels are kept.
options:
  source:
    description: The package's folder, with its pyproject.toml.
    type: path
    required: true
  dest:
    description: Folder for wheels.
    type: path
    required: true
author: Bedplate
"""

EXAMPLES = r"""
- name: Build the wheel
  wheel:
    source: /srv/bedplate/gateway
    dest: /srv/bedplate/dist
  register: wheel
"""

RETURN = r"""
path:
  description: The wheel's path on the control machine.
  returned: success
  type: str
checksum:
  description: Its SHA-256, in hexadecimal digits.
  returned: success
  type: str
version:
  description: The package's version, from the wheel's name.
  returned: success
  type: str
"""

KEPT = 3
BUILD_SECONDS = 300
IGNORED = re.compile(r"(^|/)(__pycache__|build|[^/]+\.egg-info|\.[^/]+)(/|$)")


def source_files(source: Path) -> Iterator[Path]:
    """Iterate over the files that can be part of the wheel, sorted."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and not IGNORED.search(str(path.relative_to(source))):
            yield path


def source_hash(source: Path, builder: str) -> str:
    """Return a hash of names and contents of the source's files, and of what builds the wheel."""
    digest = hashlib.sha256(builder.encode())
    for path in source_files(source):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(source)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def find_wheel(folder: Path) -> Path | None:
    """Return the wheel in a folder, or None."""
    return next(iter(sorted(folder.glob("*.whl"))), None)


def remove_old(dest: Path, package: str) -> None:
    """Remove all wheels of a package but the newest."""
    folders = sorted(dest.glob(f"{package}-*/"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def build(source: Path, dest: Path) -> Path:
    """Return the wheel of the source, built if it is missing; raises AnsibleActionFail with uv's message."""
    uv = Path(sys.executable).with_name("uv")
    folder = dest / f"{source.name}-{source_hash(source, f'{uv.resolve()} {sys.version_info[:2]}')}"
    if wheel := find_wheel(folder):
        os.utime(folder)
        return wheel
    dest.mkdir(exist_ok=True)
    # Another run may build the same wheel; the first one that renames its folder wins.
    with tempfile.TemporaryDirectory(dir=dest, prefix=".") as name:
        made = Path(name, "made")
        command = [
            str(uv),
            "build",
            "--color=never",
            "--offline",
            "--wheel",
            f"--out-dir={made}",
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS)
        if done.returncode or not find_wheel(made):
            raise AnsibleActionFail(f"uv cannot build {source}: {done.stderr.strip()[-2000:]}")
        try:
            made.rename(folder)
        except OSError:
            if not find_wheel(folder):
                raise
    remove_old(dest, source.name)
    wheel = find_wheel(folder)
    if not wheel:
        raise AnsibleActionFail(f"{folder} has lost its wheel: run the same command again.")
    return wheel


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Action plugin wheel."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the wheel's path, checksum and version."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        path = {"type": "path", "required": True}
        _, args = self.validate_argument_spec({"source": path, "dest": path})
        wheel = build(Path(args["source"]), Path(args["dest"]))
        checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
        result.update(changed=False, path=str(wheel), checksum=checksum, version=wheel.name.split("-")[1])
        return result
