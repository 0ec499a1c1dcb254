"""Helpers for all modules: run a command, replace a file atomically, hold a lock, print progress."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bedplate_lab.errors import LabError


def say(text: str) -> None:
    """Print one line of progress on standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], *, stdin: str | None = None, check: bool = True) -> str:
    """Run `command` and return its standard output.

    Raises LabError with the last line of the command's output when it fails and `check` is set, or when the
    command is missing.
    """
    words = [str(word) for word in command]
    try:
        process = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LabError(
            f"{words[0]} is not installed; run `lab/lab deps` to install what the lab needs"
        ) from None
    if check and process.returncode != 0:
        last_line = (process.stderr or process.stdout).strip().splitlines()[-1:] or ["no output"]
        shown = textwrap.shorten(" ".join(words), 120, placeholder=" …")
        raise LabError(f"`{shown}` failed with exit status {process.returncode}: {last_line[0]}")
    return process.stdout


def succeeds(command: Sequence[str | Path]) -> bool:
    """Return whether `command` exits with 0; its output is dropped."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace `path` by `text` atomically, so that neither a reader nor a crash leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    Path(name).chmod(mode)
    Path(name).rename(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in `path`, or an empty one when the file is missing or not JSON."""
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by `content` as indented JSON, atomically."""
    write_file(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def locked(path: Path, purpose: str) -> Iterator[None]:
    """Hold an exclusive lock on `path`, which the kernel drops when the process dies.

    `purpose` completes the sentence "waiting for another run of the lab that …".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        silent_until = time.monotonic() + 2
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > silent_until:
                    say(f"waiting for another run of the lab that {purpose}")
                    fcntl.flock(stream, fcntl.LOCK_EX)
                    break
                time.sleep(0.01)
            else:
                break
        yield


def require_root(verb: str) -> None:
    """Raise LabError unless this process is root."""
    if os.geteuid() != 0:
        raise LabError(
            f"`lab/lab {verb}` creates namespaces, mounts and cgroups, so it needs root; run it with sudo"
        )
