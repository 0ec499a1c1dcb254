"""Compares `traffic` with aiperf, guidellm and locust on one fake server; writes bench/traffic.md.

`bench/traffic/run.py [--quick] [TOOL ...]`. All numbers except the tools' own medians are measured from
outside: arrivals by the server, processor time and memory by the kernel.
"""

import argparse
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.traffic.tools import TOOLS, Load, Medians, Tool, Traffic
from tests.support.servers import ROOT, BenchError, Server, engine, fake_engine, gateway, get, say

REPORT = ROOT / "bench/traffic.md"
RATE, WARM_UP_SECONDS = 200, 2
TOKENS = 16
MAX_SECONDS = 300
# The server's configured times in the last measurement, in seconds.
PROMPT_SECONDS, TOKEN_SECONDS, TRUE_TOKENS = 0.2, 0.02, 10

COLUMNS = (
    f"send lag p50 / p99 at {RATE}/s",
    "real rate",
    "processor time for 1,000 requests",
    "highest rate on one core",
    "of the core",
    "memory at 10,000 requests",
    "first token: server's clock, and the tool's difference",
    "end to end: the same",
)
NOTES = f"""\
The send lag is measured by the server: the delay of each arrival against an even schedule through the
earliest arrival, after {WARM_UP_SECONDS} s. Processor time and memory are those of all processes of a tool;
the time is the difference between a long and a short run, so that start-up does not count. Where a tool used
less than its core, the server was the limit. The times of answers are each tool's own medians, compared with
the medians of the server's clock, from a request's arrival to its first token and to its end. They should be
{1000 * (PROMPT_SECONDS + TOKEN_SECONDS):.0f} and
{1000 * (PROMPT_SECONDS + TRUE_TOKENS * TOKEN_SECONDS):.0f} ms; the server's timers have a resolution of one
millisecond, so it takes one or two more. locust has no open loop: {RATE} users send one request per second
each.

Three times the efficiency of locust is out of reach with a maintained library: by py-spy, half of traffic's
processor time is spent in aiohttp (starting and reading requests), a sixth in the kernel and the event loop,
a sixth in parsing the tokens' JSON. A client of our own over httptools was tried, too: it took 0.42 s for
1,000 such requests where aiohttp took 0.68 to 0.79 s and httpx 2.26 s (on a busy machine), so even that is
not enough. A locust user records two times per answer, traffic the time of each token.

traffic busy-waits up to a millisecond before each request, because an event loop's timers have a resolution
of one millisecond: at {RATE} requests per second this takes 17 % of a core, and the lag is 0.1 instead of
0.9 ms.
"""


@dataclass(frozen=True, kw_only=True)
class ToolRun:
    """One run of a tool. Times are seconds; `arrivals` and `actual` are by the server's monotonic clock."""

    processor_seconds: float
    peak_mib: float
    arrivals: list[float]
    actual: Medians
    reported: Medians


def run(tool: Tool, server: Server, load: Load, core: int | None = None) -> ToolRun:
    """Run a tool to its end, on the given core, or on all of them."""
    before = len(_arrivals(server))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        command = tool.command(server.url, load, folder)
        argv = ["taskset", "--cpu-list", str(core), *command.argv] if core is not None else command.argv
        environ = {"PATH": os.environ["PATH"], "HOME": str(folder), **command.environ}
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        log = folder / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                argv, env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            peak = _Peak(process.pid)
            try:
                process.wait(timeout=MAX_SECONDS)
            finally:
                peak.end()
                process.kill()
                process.wait()
        arrivals = _arrivals(server)[before:]
        if len(arrivals) < load.count:
            raise BenchError(
                f"{tool.name} sent {len(arrivals)} of {load.count} requests:\n{log.read_text()[-2000:]}"
            )
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        actual = Medians(
            statistics.median(arrival["first_token"] - arrival["arrived"] for arrival in arrivals),
            statistics.median(arrival["ended"] - arrival["arrived"] for arrival in arrivals),
        )
        moments = sorted(arrival["arrived"] for arrival in arrivals)
        return ToolRun(
            processor_seconds=seconds,
            peak_mib=peak.mib,
            arrivals=moments,
            actual=actual,
            reported=tool.read_medians(folder),
        )


def _arrivals(server: Server) -> list[dict[str, float]]:
    status, text = get(f"{server.url}/fake/stats")
    if status != 200:
        raise BenchError("the fake server does not answer")
    return [arrival for arrival in json.loads(text)["arrivals"] if arrival["outcome"] == "served"]


class _Peak:
    """Watches the memory of a process and its descendants; `mib` is the maximum of their sum, in MiB."""

    def __init__(self, pid: int) -> None:
        self.mib = 0.0
        self._pid = pid
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            self.mib = max(self.mib, sum(_pss_kib(pid) for pid in _tree(self._pid)) / 1024)


def _tree(root: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    tree = {root}
    while children := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= children
    return tree


def _pss_kib(pid: int) -> int:
    """Return a process's memory, including its share of shared memory, in KiB; 0 when it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0


def lag(arrivals: Sequence[float]) -> list[float]:
    """Return the delay of each arrival against an even schedule through the earliest, in ascending order."""
    offsets = [moment - number / RATE for number, moment in enumerate(arrivals[WARM_UP_SECONDS * RATE :])]
    return sorted(offset - min(offsets) for offset in offsets)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of one tool. Times are seconds."""

    name: str
    lag_p50: float
    lag_p99: float
    real_rate: float
    processor_per_1000: float
    max_rate: float
    max_rate_processor: float
    peak_mib: float
    first_token: float
    first_token_error: float
    end_to_end: float
    end_to_end_error: float


def measure(tool: Tool, quick: bool) -> Row:
    """Measure one tool."""
    say(f"{tool.name}: {RATE} requests a second")
    with fake_engine(concurrency=2000, prompt_seconds=0.05, seconds_per_token=0.005, tokens=TOKENS) as server:
        open_loop = run(tool, server, Load(count=RATE * (8 if quick else 15), tokens=TOKENS, rate=RATE))
    lags = lag(open_loop.arrivals)
    real_rate = (len(open_loop.arrivals) - 1) / (open_loop.arrivals[-1] - open_loop.arrivals[0])
    few, many = (500, 2_000) if quick else (1_000, 10_000)
    say(f"{tool.name}: {many} requests on one core")
    with fake_engine(concurrency=2000, tokens=TOKENS) as server:
        os.sched_setaffinity(server.pid, {1})
        short = run(tool, server, Load(count=few, tokens=TOKENS, concurrency=32), core=0)
        long = run(tool, server, Load(count=many, tokens=TOKENS, concurrency=32), core=0)
    seconds = long.processor_seconds - short.processor_seconds
    middle = long.arrivals[len(long.arrivals) // 5 : -len(long.arrivals) // 5]
    rate = (len(middle) - 1) / (middle[-1] - middle[0])
    say(f"{tool.name}: requests with known times")
    with fake_engine(
        concurrency=100, prompt_seconds=PROMPT_SECONDS, seconds_per_token=TOKEN_SECONDS, tokens=TRUE_TOKENS
    ) as server:
        known = run(tool, server, Load(count=50 if quick else 100, tokens=TRUE_TOKENS, rate=10))
    return Row(
        name=tool.name,
        lag_p50=percentile(lags, 0.5),
        lag_p99=percentile(lags, 0.99),
        real_rate=real_rate,
        processor_per_1000=1000 * seconds / (many - few),
        max_rate=rate,
        max_rate_processor=rate * seconds / (many - few),
        peak_mib=long.peak_mib,
        first_token=known.actual.first_token,
        first_token_error=known.reported.first_token - known.actual.first_token,
        end_to_end=known.actual.end_to_end,
        end_to_end_error=known.reported.end_to_end - known.actual.end_to_end,
    )


def compare_counts() -> str:
    """Return a sentence that compares the gateway's counters with `traffic`'s report, to the token."""
    say("traffic and the gateway's metrics")
    tool, load = Traffic(), Load(count=500, tokens=TOKENS, concurrency=8)
    with (
        fake_engine(concurrency=4, prompt_seconds=0.01, tokens=TOKENS) as engine_server,
        gateway([engine(engine_server.url, slots=4)], [{"alias": "bench"}]) as gateway_server,
        tempfile.TemporaryDirectory(prefix="bench-") as name,
    ):
        folder = Path(name)
        command = tool.command(gateway_server.url, load, folder)
        argv = [*command.argv, f"--key={gateway_server.keys['bench']}"]
        environ = {"PATH": os.environ["PATH"], **command.environ}
        subprocess.run(argv, env=environ, cwd=folder, check=True, capture_output=True, timeout=MAX_SECONDS)
        (ours,) = json.loads((folder / "report.json").read_text())["classes"]
        _, metrics = get(gateway_server.metrics_url)
    counters = (
        'requests_total{.*path="/v1/chat/.*}',
        "prompt_tokens_total{.*}",
        "completion_tokens_total{.*}",
    )
    theirs = [
        sum(float(value) for value in re.findall(rf"^bedplate_gateway_{counter} (.+)$", metrics, re.M))
        for counter in counters
    ]
    counts = [ours["answered"], ours["prompt_tokens"], ours["completion_tokens"]]
    different = f"**not** the same ({', '.join(f'{count:g}' for count in theirs)})"
    return (
        f"Through the gateway, traffic counted {counts[0]} answers with {counts[1]} tokens in and "
        f"{counts[2]} out; the gateway's metrics have {'the same' if theirs == counts else different}."
    )


def markdown(rows: Sequence[Row], missing: Sequence[str], quick: bool) -> str:
    """Return the whole page."""
    command = f"bench/traffic/run.py{' --quick' if quick else ''}"
    lines = [
        "# traffic compared with other load generators",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end. {read_versions()}.",
        f"All use one fake server (`traffic fake-server`), with streamed answers of {TOKENS} tokens.",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    lines += [
        f"| {row.name} | {1000 * row.lag_p50:.1f} / {1000 * row.lag_p99:.1f} ms | {row.real_rate:.1f}/s | "
        f"{row.processor_per_1000:.2f} s | {row.max_rate:.0f}/s | {100 * row.max_rate_processor:.0f} % | "
        f"{row.peak_mib:.0f} MiB | {1000 * row.first_token:.1f} {1000 * row.first_token_error:+.1f} ms | "
        f"{1000 * row.end_to_end:.1f} {1000 * row.end_to_end_error:+.1f} ms |"
        for row in rows
    ]
    lines += ["", *missing, *_aims(rows), NOTES]
    return "\n".join(lines)


def _aims(rows: Sequence[Row]) -> list[str]:
    """Return whether the aims were met; nothing without another tool to compare with."""
    ours = next((row for row in rows if row.name == "traffic"), None)
    others = [row for row in rows if row.name != "traffic"]
    if ours is None or not others:
        return []
    best = min(others, key=lambda row: row.processor_per_1000)
    times = best.processor_per_1000 / ours.processor_per_1000
    close = max(abs(ours.first_token_error), abs(ours.end_to_end_error)) <= 0.002
    verdict = {True: "met", False: "**not met**"}
    return [
        f"- 3 x the best other at equal processor time: {verdict[times >= 3]}, {times:.1f} x {best.name}",
        f"- send lag p99 under 5 ms at {RATE} a second: {verdict[ours.lag_p99 < 0.005]}",
        f"- times within 2 ms of the server's: {verdict[close]}",
        "",
    ]


def read_versions() -> str:
    """Return the locked versions of the tools."""
    versions = []
    for name in ("aiperf", "guidellm", "locust"):
        requirement = (ROOT / f"requirements/{name}.in").read_text().splitlines()[-1]
        versions.append(requirement.replace("==", " "))
    return ", ".join(versions)


def main() -> int:
    """Measure the named tools, or all; the exit status is 1 where a tool could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests, to try the bench")
    names = [tool.name for tool in TOOLS]
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=", ".join(names))
    options = parser.parse_args()
    if unknown := set(options.tools) - set(names):
        parser.error(f"unknown tool {', '.join(unknown)}: use {', '.join(names)}")
    rows, missing, text = [], [], ""
    sentence = compare_counts()
    for tool in TOOLS:
        if options.tools and tool.name not in options.tools:
            continue
        try:
            rows.append(measure(tool, options.quick))
        except (BenchError, subprocess.SubprocessError, OSError, statistics.StatisticsError) as error:
            say(f"{tool.name} was not measured: {error}")
            missing.append(f"{tool.name} was not measured: {str(error).splitlines()[0]}.")
        text = markdown(rows, missing, options.quick)
        if not (options.quick or options.tools):
            # After each tool, so that a bench that is stopped leaves what it has.
            REPORT.write_text(f"{text}\n{sentence}\n")
    if options.quick or options.tools:
        sys.stdout.write(f"{text}\n{sentence}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
