"""Runs the rows of bench/gateway.md, all or those named: run.py [--quick] [ROW ...]."""

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import uvloop

from bench.gateway import disconnects, edge, labels, lanes, limits, overhead, priority, soak, throughput
from bench.gateway.report import Result, write_section
from tests.support.servers import BenchError, say


class Row(Protocol):
    """Measures one table."""

    def __call__(self, *, quick: bool) -> Awaitable[Result]:
        """Run it; quick is for trying, its numbers are not for the report."""


ROWS: dict[str, Row] = {
    "priority": priority.run,
    "priority-real": priority.run_real,
    "rpm": limits.run_rpm,
    "tpm": limits.run_tpm,
    "disconnects": disconnects.run,
    "disconnects-real": disconnects.run_real,
    "overhead": overhead.run,
    "overhead-real": overhead.run_real,
    "throughput": throughput.run,
    "edge": edge.run,
    "lanes": lanes.run,
    "lanes-real": lanes.run_real,
    "profile": throughput.run_profile,
    "labels": labels.run,
    "soak": soak.run,
}
# Programs of their own: a sentence and a table on standard output, exit status 0 when the aim was met.
PROGRAMS = {
    "restart": ("Restart and reload under load", ["restart_load.py"]),
    "malformed": ("Malformed requests", ["malformed.py"]),
    "malformed-edge": ("Malformed requests through the edge", ["malformed.py", "--edge"]),
}


def run_program(name: str, *, quick: bool) -> tuple[str, str, bool]:
    """Return title, text and verdict of a row that is a program."""
    title, (file, *options) = PROGRAMS[name]
    command = [sys.executable, str(Path(__file__).with_name(file)), *options, *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return title, done.stdout, done.returncode == 0


def measure(name: str, *, quick: bool) -> tuple[str, str, bool]:
    """Return title, text and verdict of a row."""
    if name in PROGRAMS:
        return run_program(name, quick=quick)
    run: Callable[..., Awaitable[Result]] = ROWS[name]

    async def one() -> Result:
        return await run(quick=quick)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(one())
    return result.title, result.markdown(), result.ok is not False


def main() -> None:
    """Run what was named, print it, and unless quick put it into the report."""
    known = [*ROWS, *PROGRAMS]
    parser = argparse.ArgumentParser(description="Run the benches of the gateway and of stock LiteLLM.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="shorter, and only printed")
    options = parser.parse_args()
    if unknown := [row for row in options.rows if row not in known]:
        parser.error(f"{unknown[0]!r} is no row; there is {', '.join(known)}")
    # So that the servers end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = []
    for name in options.rows or known:
        try:
            title, text, met = measure(name, quick=options.quick)
        except BenchError as error:
            say(f"{name}: {error}")
            failed.append(name)
            continue
        print(f"## {title}\n\n{text}\n", flush=True)
        if not options.quick:
            write_section(title, text)
        if not met:
            failed.append(name)
    if failed:
        sys.exit(f"not met: {', '.join(failed)}")


if __name__ == "__main__":
    main()
