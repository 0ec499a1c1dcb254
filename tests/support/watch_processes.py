#!/usr/bin/python3
"""Looks for secrets in the arguments and the environment of every process until standard input ends.

The first line of standard input is a JSON object with secrets by name. Each find is one line of JSON on
standard output: the process id, where (argv or environ), the secret's name, and the text with all secrets
masked. The last line has the number of rounds and the longest time of one. It needs root and only Python.
On the machine that runs the lab it sees the processes of the hosts, too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

PAUSE_SECONDS = 0.002
MAX_BYTES = 2**18
SHOWN = 600


def read(path: str) -> bytes:
    """Return the beginning of a file of /proc, or nothing if its process is gone."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(file, MAX_BYTES)
    except OSError:
        return b""
    finally:
        os.close(file)


class Watcher:
    """Reads the arguments of all processes, and the environment of those whose arguments are new."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self.secrets = {name: secret.encode() for name, secret in secrets.items()}
        self.known: dict[str, bytes] = {}
        self.reported: set[tuple[str, str, str]] = set()

    def look(self, own: str) -> None:
        """Read all processes once."""
        seen: dict[str, bytes] = {}
        for pid in os.listdir("/proc"):  # noqa: PTH208 - names are enough, hundreds of times a second
            if not pid.isdigit() or pid == own:
                continue
            seen[pid] = arguments = read(f"/proc/{pid}/cmdline")
            # A new program has new arguments, and only a new program has a new environment.
            if arguments and self.known.get(pid) != arguments:
                self.check(pid, "argv", arguments)
                self.check(pid, "environ", read(f"/proc/{pid}/environ"))
        self.known = seen

    def check(self, pid: str, where: str, text: bytes) -> None:
        """Print each secret in a text, once for each process."""
        for name, secret in self.secrets.items():
            if secret in text and (pid, where, name) not in self.reported:
                self.reported.add((pid, where, name))
                shown = text
                for each, value in self.secrets.items():
                    shown = shown.replace(value, f"<{each}>".encode())
                start = max(0, shown.find(f"<{name}>".encode()) - SHOWN // 2)
                found = {
                    "pid": int(pid),
                    "where": where,
                    "secret": name,
                    "text": shown[start : start + SHOWN].decode(errors="replace").replace("\0", " "),
                }
                print(json.dumps(found), flush=True)


def main() -> None:
    """Look until standard input ends."""
    watcher = Watcher(json.loads(sys.stdin.readline()))
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    own, rounds, longest, before = str(os.getpid()), 0, 0.0, time.monotonic()
    print(json.dumps({"started": True}), flush=True)
    while not ended.wait(PAUSE_SECONDS):
        watcher.look(own)
        now = time.monotonic()
        rounds, longest, before = rounds + 1, max(longest, now - before), now
    print(json.dumps({"rounds": rounds, "longest_seconds": round(longest, 3)}), flush=True)


if __name__ == "__main__":
    main()
