"""Measures `traffic` beside aiperf, guidellm and locust on one fake server; writes bench/traffic.md.

`bench/traffic/run.py [--quick] [TOOL ...]`. All numbers but the tools' own medians are measured from outside:
arrivals by the server, processor time and memory by the kernel.
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

from servers import ROOT, BenchError, Server, engine, fake_engine, gateway, get, say
from tools import TOOLS, Load, Seen, Tool, Traffic

REPORT = ROOT / "bench/traffic.md"
RATE, WARM_UP_SECONDS = 200, 2
TOKENS = 16
LONGEST_SECONDS = 300
# What the server is told to take in the last measurement, in seconds.
PROMPT_SECONDS, TOKEN_SECONDS, TRUE_TOKENS = 0.2, 0.02, 10

COLUMNS = (
    f"send lag p50 / p99 at {RATE}/s",
    "real rate",
    "processor time for 1,000 requests",
    "most on one core",
    "of the core",
    "memory at 10,000 requests",
    "first token: server's clock, and the tool's difference",
    "end to end, likewise",
)
NOTES = f"""\
The send lag is the server's: how much later a request came than on an even line through the earliest, after
{WARM_UP_SECONDS} s. Processor time and memory are those of all processes of a tool; the time is the
difference between a long and a short run, so that nobody's start counts. Where a tool used less than its
core, the server was the limit. The times of answers are each tool's own medians, against the medians of the
server's own clock, from a request's arrival to its first token and to its end. They should be
{1000 * (PROMPT_SECONDS + TOKEN_SECONDS):.0f} and
{1000 * (PROMPT_SECONDS + TRUE_TOKENS * TOKEN_SECONDS):.0f} ms; the server's timers count whole
milliseconds, so it takes one or two more, which is no tool's fault. locust has no open
loop: {RATE} users ask once a second each.

Three times locust is out of reach with a kept library: by py-spy, half of traffic's processor time is
aiohttp's (a request's start and its reading), a sixth the kernel's and the event loop's, a sixth the
reading of the tokens' JSON. A client of our own over httptools was tried, too: 0.42 s for 1,000 such requests
where aiohttp took 0.68 to 0.79 s and httpx 2.26 s (on a busy machine), so even that would not do. A user of
locust's keeps two times of an answer, traffic the time of each token.

traffic spends up to a millisecond awake before each request, since an event loop's timers count whole ones:
at {RATE} a second 17 % of a core, for a lag of 0.1 ms instead of 0.9.
"""


@dataclass(frozen=True)
class Ran:
    """One run of a tool. Times are seconds; `arrivals` and `truth` are by the server's monotonic clock."""

    processor_seconds: float
    peak_mib: float
    arrivals: list[float]
    truth: Seen
    seen: Seen


def run(tool: Tool, server: Server, load: Load, core: int | None = None) -> Ran:
    """Run a tool to its end, on one core where `core` says which."""
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
                process.wait(timeout=LONGEST_SECONDS)
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
        truth = Seen(
            statistics.median(one["first_token"] - one["arrived"] for one in arrivals),
            statistics.median(one["ended"] - one["arrived"] for one in arrivals),
        )
        moments = sorted(one["arrived"] for one in arrivals)
        return Ran(seconds, peak.mib, moments, truth, tool.seen(folder))


def _arrivals(server: Server) -> list[dict[str, float]]:
    status, text = get(f"{server.url}/fake/stats")
    if status != 200:
        raise BenchError("the fake server does not answer")
    return [one for one in json.loads(text)["arrivals"] if one["outcome"] == "served"]


class _Peak:
    """Watches how much memory a process and its descendants hold together, in MiB."""

    def __init__(self, pid: int) -> None:
        self.mib = 0.0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.mib = max(self.mib, sum(_pss_kib(pid) for pid in _tree(self._pid)) / 1024)


def _tree(root: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _pss_kib(pid: int) -> int:
    """Return a process's memory with its share of what it has in common with others."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0


def lag(arrivals: Sequence[float]) -> list[float]:
    """Return how late each request came, in order of size, against the line of RATE through the earliest."""
    late = [moment - number / RATE for number, moment in enumerate(arrivals[WARM_UP_SECONDS * RATE :])]
    return sorted(one - min(late) for one in late)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that so many do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Row:
    """What was measured of one tool. Times are seconds."""

    name: str
    lag_p50: float
    lag_p99: float
    real_rate: float
    processor_per_1000: float
    most_per_second: float
    most_processor: float
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
    late = lag(open_loop.arrivals)
    real = (len(open_loop.arrivals) - 1) / (open_loop.arrivals[-1] - open_loop.arrivals[0])
    few, many = (500, 2_000) if quick else (1_000, 10_000)
    say(f"{tool.name}: {many} requests on one core")
    with fake_engine(concurrency=2000, tokens=TOKENS) as server:
        os.sched_setaffinity(server.pid, {1})
        short = run(tool, server, Load(count=few, tokens=TOKENS, concurrency=32), core=0)
        long = run(tool, server, Load(count=many, tokens=TOKENS, concurrency=32), core=0)
    seconds = long.processor_seconds - short.processor_seconds
    middle = long.arrivals[len(long.arrivals) // 5 : -len(long.arrivals) // 5]
    rate = (len(middle) - 1) / (middle[-1] - middle[0])
    say(f"{tool.name}: times that are known")
    with fake_engine(
        concurrency=100, prompt_seconds=PROMPT_SECONDS, seconds_per_token=TOKEN_SECONDS, tokens=TRUE_TOKENS
    ) as server:
        known = run(tool, server, Load(count=50 if quick else 100, tokens=TRUE_TOKENS, rate=10))
    return Row(
        name=tool.name,
        lag_p50=percentile(late, 0.5),
        lag_p99=percentile(late, 0.99),
        real_rate=real,
        processor_per_1000=1000 * seconds / (many - few),
        most_per_second=rate,
        most_processor=rate * seconds / (many - few),
        peak_mib=long.peak_mib,
        first_token=known.truth.first_token,
        first_token_error=known.seen.first_token - known.truth.first_token,
        end_to_end=known.truth.end_to_end,
        end_to_end_error=known.seen.end_to_end - known.truth.end_to_end,
    )


def counted() -> str:
    """Return a sentence that compares what the gateway counted with what `traffic` did, to the token."""
    say("traffic and the gateway's metrics")
    tool, load = Traffic(), Load(count=500, tokens=TOKENS, concurrency=8)
    with (
        fake_engine(concurrency=4, prompt_seconds=0.01, tokens=TOKENS) as engine_server,
        gateway([engine(engine_server.url, slots=4)], [{"alias": "bench"}]) as door,
        tempfile.TemporaryDirectory(prefix="bench-") as name,
    ):
        folder = Path(name)
        command = tool.command(door.url, load, folder)
        argv = [*command.argv, f"--key={door.keys['bench']}"]
        environ = {"PATH": os.environ["PATH"], **command.environ}
        subprocess.run(
            argv, env=environ, cwd=folder, check=True, capture_output=True, timeout=LONGEST_SECONDS
        )
        (ours,) = json.loads((folder / "report.json").read_text())["classes"]
        _, metrics = get(door.metrics_url)
    counters = (
        'requests_total{.*path="/v1/chat/.*}',
        "prompt_tokens_total{.*}",
        "completion_tokens_total{.*}",
    )
    theirs = [
        sum(float(value) for value in re.findall(rf"^bedplate_gateway_{one} (.+)$", metrics, re.M))
        for one in counters
    ]
    told = [ours["answered"], ours["prompt_tokens"], ours["completion_tokens"]]
    words = "the same" if theirs == told else f"**not** the same ({', '.join(f'{one:g}' for one in theirs)})"
    return (
        f"Through the gateway traffic counted {told[0]} answers with {told[1]} tokens in and {told[2]} out; "
        f"the gateway's metrics say {words}."
    )


def markdown(rows: Sequence[Row], missing: Sequence[str], quick: bool) -> str:
    """Return the whole page."""
    command = f"bench/traffic/run.py{' --quick' if quick else ''}"
    lines = [
        "# traffic beside other load generators",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end. {versions()}.",
        f"One fake server for all (`traffic fake-server`), streamed answers of {TOKENS} tokens.",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    lines += [
        f"| {row.name} | {1000 * row.lag_p50:.1f} / {1000 * row.lag_p99:.1f} ms | {row.real_rate:.1f}/s | "
        f"{row.processor_per_1000:.2f} s | {row.most_per_second:.0f}/s | {100 * row.most_processor:.0f} % | "
        f"{row.peak_mib:.0f} MiB | {1000 * row.first_token:.1f} {1000 * row.first_token_error:+.1f} ms | "
        f"{1000 * row.end_to_end:.1f} {1000 * row.end_to_end_error:+.1f} ms |"
        for row in rows
    ]
    lines += ["", *missing, *_aims(rows), NOTES]
    return "\n".join(lines)


def _aims(rows: Sequence[Row]) -> list[str]:
    """Return whether the aims were met; nothing where there is nobody to compare with."""
    ours = next((row for row in rows if row.name == "traffic"), None)
    others = [row for row in rows if row.name != "traffic"]
    if ours is None or not others:
        return []
    best = min(others, key=lambda row: row.processor_per_1000)
    times = best.processor_per_1000 / ours.processor_per_1000
    close = max(abs(ours.first_token_error), abs(ours.end_to_end_error)) <= 0.002
    word = {True: "met", False: "**not met**"}
    return [
        f"- 3 x the best other at equal processor time: {word[times >= 3]}, {times:.1f} x {best.name}",
        f"- send lag p99 under 5 ms at {RATE} a second: {word[ours.lag_p99 < 0.005]}",
        f"- times within 2 ms of the server's: {word[close]}",
        "",
    ]


def versions() -> str:
    """Return the locked versions of the tools."""
    found = []
    for name in ("aiperf", "guidellm", "locust"):
        wanted = (ROOT / f"requirements/{name}.in").read_text().splitlines()[-1]
        found.append(wanted.replace("==", " "))
    return ", ".join(found)


def main() -> int:
    """Measure what is asked for; the exit status is 1 where a tool could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests, to try the bench")
    names = [tool.name for tool in TOOLS]
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=", ".join(names))
    options = parser.parse_args()
    if unknown := set(options.tools) - set(names):
        parser.error(f"there is no {', '.join(unknown)}: there is {', '.join(names)}")
    rows, missing, text = [], [], ""
    sentence = counted()
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
