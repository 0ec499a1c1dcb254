"""Prints new lines of the hosts' journals until Ctrl-C: follow.py HOSTS UNIT [UNIT ...].

HOSTS is the file that playbooks/connections.yml writes: how ssh reaches each host. With --requests instead of
units it prints one row for each request that a gateway has finished.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

GATEWAY = "bedplate-gateway.service"
OLD_LINES = 10
MAX_LINE_BYTES = 64 * 1024
COLUMNS = (
    ("time", 8),
    ("status", 6),
    ("alias", 16),
    ("class", 6),
    ("model", 28),
    ("engine", 12),
    ("lane", 7),
    ("wait", 8),
    ("ttft", 8),
    ("seconds", 9),
    ("tokens_in", 9),
    ("tokens_out", 10),
    ("reason", 20),
)
UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\U0010ffff]")
RED, YELLOW, RESET = "\033[31m", "\033[33m", "\033[0m"


class Host(NamedTuple):
    """How to reach a host. Port 0 and empty texts stand for ssh's own settings."""

    name: str
    local: bool
    address: str
    port: int
    user: str
    key: str
    options: str


def ssh_command(host: Host) -> list[str]:
    """Return what runs a command on another host, as Ansible reaches it."""
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", *shlex.split(host.options)]
    command += ["-p", str(host.port)] if host.port else []
    command += ["-l", host.user] if host.user else []
    command += ["-i", host.key] if host.key else []
    return [*command, host.address]


def journal_command(host: Host, units: Sequence[str], form: str) -> list[str]:
    """Return the command that follows the units' journal on the host."""
    journal = ["journalctl", "--follow", f"--lines={OLD_LINES}", f"--output={form}", "--no-hostname"]
    journal += [f"--unit={unit}" for unit in units]
    # Root needs no sudo, and a minimal host has none.
    words = ["sh", "-c", f'[ "$(id -u)" = 0 ] || set -- sudo -n; exec "$@" {shlex.join(journal)}']
    return words if host.local else [*ssh_command(host), shlex.join(words)]


def header() -> str:
    """Return the names of the columns."""
    return " ".join(name.replace("_", " ").ljust(width) for name, width in COLUMNS).rstrip()


def row(entry: str, *, color: bool = False) -> str | None:
    """Return the row of an entry of the gateway's journal, in journalctl's JSON; None if it is no request."""
    try:
        fields: dict[str, Any] = json.loads(entry)
        message = str(fields["MESSAGE"])
        seconds = int(fields["__REALTIME_TIMESTAMP"]) / 1e6
    except (ValueError, KeyError, TypeError):
        return None
    if not message.startswith("id="):
        return None
    found = dict(pair.split("=", 1) for pair in message.split(" ") if "=" in pair)
    found["time"] = time.strftime("%H:%M:%S", time.localtime(seconds))
    cells = [UNPRINTABLE.sub("?", found.get(name, "-"))[:width].ljust(width) for name, width in COLUMNS]
    text = " ".join(cells).rstrip()
    status = found.get("status", "")
    tint = {"4": YELLOW, "5": RED}.get(status[:1], "")
    return f"{tint}{text}{RESET}" if color and tint else text


def follow(host: Host, command: Sequence[str], *, prefix: str, requests: bool, color: bool) -> None:
    """Print what the command prints, line by line, and why it ended."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        read = process.stdout.readline if process.stdout else lambda _: b""
        while line := read(MAX_LINE_BYTES):
            text = line.decode(errors="replace").rstrip("\n")
            # What ssh or sudo says is no JSON.
            shown = (
                row(text, color=color) if requests and text.startswith("{") else UNPRINTABLE.sub("?", text)
            )
            if shown is not None:
                print(f"{prefix}{shown}", flush=True)
    print(f"{host.name}: the connection ended ({process.returncode}).", file=sys.stderr, flush=True)


def main(file: str, *arguments: str) -> None:
    """Follow the journals of all hosts side by side until they end or the user does."""
    # Ctrl-C ends ssh too, which is in the same group.
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    hosts = [Host(**entry) for entry in json.loads(Path(file).read_text())]
    Path(file).unlink()
    requests = arguments == ("--requests",)
    units, form = ([GATEWAY], "json") if requests else (arguments, "short-iso")
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = max(len(host.name) for host in hosts) + 2 if len(hosts) > 1 else 0
    if requests:
        print(" " * width + header(), flush=True)
    threads = [
        threading.Thread(
            target=follow,
            args=(host, journal_command(host, units, form)),
            kwargs={
                "prefix": f"{host.name}:".ljust(width) if width else "",
                "requests": requests,
                "color": color,
            },
        )
        for host in hosts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(
        "Every connection ended. make health shows whether the hosts are up; sudo must ask for no password."
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
