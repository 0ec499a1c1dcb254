#!/usr/bin/python3
"""Asks a service for an answer and kills it if it hangs, and systemd starts it anew (bedplate-heal@.timer).

A service that is not active is left alone: stopped by hand, starting or reloading. So is one that works
without answering, such as an engine that loads a model, for the seconds that its settings give, and a drained
engine, since somebody works on it.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

SETTINGS = Path("/etc/bedplate/heal.json")
RESTARTS = Path("/run/bedplate-heal")
TEXTFILES = Path("/var/lib/node-exporter/textfile")
PROC = Path("/proc")
# make drain and make undrain write and remove it.
DRAINED = Path("/var/lib/bedplate/drained")
ENGINE = "ollama"
MISSES = 3
# From one question to the next; each is answered within ANSWER_SECONDS or missed.
PAUSE_SECONDS = 10.0
ANSWER_SECONDS = 8.0
SYSTEMCTL_SECONDS = 20
# A service that works uses more than this share of a core.
BUSY_SHARE = 0.05
# The wait before the second restart within an hour; it doubles with each.
BACKOFF_SECONDS = 60
HOUR = 3600


def answers(url: str) -> bool:
    """Return whether the service sends at least a byte in time, whatever its status says."""
    place = urlsplit(url)
    deadline = time.monotonic() + ANSWER_SECONDS
    answered = False
    with (
        contextlib.suppress(OSError),
        socket.create_connection((place.hostname, place.port), ANSWER_SECONDS) as connection,
    ):
        connection.sendall(f"GET {place.path} HTTP/1.0\r\nHost: {place.netloc}\r\n\r\n".encode())
        # To the end: some servers write a line about a client that leaves early.
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                break
            answered = True
    return answered


def systemctl(*words: str) -> str:
    """Return what systemctl prints."""
    done = subprocess.run(
        ["systemctl", *words], capture_output=True, text=True, check=True, timeout=SYSTEMCTL_SECONDS
    )
    return done.stdout.strip()


def running(unit: str) -> str:
    """Return the identity of the unit's present run; empty if it is not active."""
    state, _, run = systemctl("show", "--property=ActiveState,InvocationID", "--value", unit).partition("\n")
    return run if state == "active" else ""


def cpu_seconds(unit: str) -> float:
    """Return the CPU time of the unit's processes."""
    belongs = re.compile(rf"/{re.escape(unit)}(/|$)", re.MULTILINE)
    ticks = 0
    for process in PROC.glob("[0-9]*"):
        # It may have ended meanwhile.
        with contextlib.suppress(OSError):
            if belongs.search((process / "cgroup").read_text()):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def hangs(unit: str, url: str, busy_seconds: float) -> bool:
    """Ask until the service answers (false), or has missed enough questions without working (true)."""
    if answers(url):
        return False
    run = running(unit)
    started = time.monotonic()
    misses = 1
    while run and running(unit) == run:
        used, asked = cpu_seconds(unit), time.monotonic()
        time.sleep(max(0.0, PAUSE_SECONDS * misses - (asked - started)))
        if answers(url):
            return False
        misses += 1
        now = time.monotonic()
        busy = cpu_seconds(unit) - used > BUSY_SHARE * (now - asked)
        if misses >= MISSES and not (busy and now - started < busy_seconds):
            return running(unit) == run
    return False


def read_restarts(service: str) -> list[float]:
    """Return when this program restarted the service, in seconds since the boot."""
    try:
        return [float(line) for line in (RESTARTS / service).read_text().split()]
    except FileNotFoundError:
        return []


def wait_left(restarts: list[float], now: float) -> float:
    """Return the seconds until the service may be restarted again."""
    recent = [at for at in restarts if at > now - HOUR]
    return recent[-1] + BACKOFF_SECONDS * 2 ** (len(recent) - 1) - now if recent else 0.0


def warn(text: str) -> None:
    """Write a warning to the journal, as sd-daemon(3) says."""
    print(f"<4>{text}", file=sys.stderr)


def write_metric(service: str, restarts: int) -> None:
    """Write the counter for the node exporter."""
    name = "bedplate_heal_restarts_total"
    text = (
        f"# HELP {name} Times that bedplate-heal killed the service because it hung, since the boot.\n"
        f'# TYPE {name} counter\n{name}{{unit="{service}.service"}} {restarts}\n'
    )
    target = TEXTFILES / f"heal-{service}.prom"
    try:
        if not target.exists() or target.read_text() != text:
            new = target.with_suffix(".tmp")
            new.write_text(text)
            new.chmod(0o644)
            new.replace(target)
    except OSError as error:
        # A disk that is full or read-only must not keep a service from being healed.
        warn(f"{target} cannot be written ({error.strerror}); make room.")


def heal(service: str, settings: Mapping[str, object]) -> str:
    """Look at the service once, kill it if it hangs, and return a sentence on that, or nothing."""
    unit, url = f"{service}.service", str(settings["url"])
    journal = f"journalctl -u {service} -n 50"
    restarts = read_restarts(service)
    write_metric(service, len(restarts))
    if service == ENGINE and DRAINED.exists():
        return ""
    if not hangs(unit, url, float(str(settings["busy_seconds"]))):
        return ""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    left = wait_left(restarts, now)
    if left > 0:
        return f"{unit} hangs again, and may be killed in {left:.0f} s: {journal}"
    # Stopping a process that hangs takes its whole TimeoutStopSec. A kill never starts a stopped unit.
    systemctl("kill", "--signal=SIGKILL", unit)
    try:
        with (RESTARTS / service).open("a") as file:
            file.write(f"{now:.0f}\n")
    except OSError as error:
        # The next restart then does not wait longer.
        warn(f"{RESTARTS / service} cannot be written ({error.strerror}); make room.")
    write_metric(service, len(restarts) + 1)
    return f"{unit} did not answer at {url} and was killed, so that systemd starts it again: {journal}"


def main() -> None:
    """Look at the service that the first argument names."""
    service = sys.argv[1]
    said = heal(service, json.loads(SETTINGS.read_text())[service])
    if said:
        warn(said)


if __name__ == "__main__":
    main()
