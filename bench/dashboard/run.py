"""Measure the dashboard of a lab host: weight, first sentence, many viewers; write bench/dashboard.md.

`bench/dashboard/run.py [VIEWERS ...]`. Viewers are connections to /events, compressed as for browsers. The
host is booted and installed in a lab of its own, or it is the running one of the lab that BEDPLATE_LAB names.
"""

import asyncio
import gzip
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import httpx
from playwright.sync_api import Browser, sync_playwright

from tests.support.browser import DESKTOP, start
from tests.support.hosts import running_hosts
from tests.support.servers import ROOT, BenchError, environment, say
from tests.support.stack import Stack

REPORT = ROOT / "bench/dashboard.md"
HOST = "one"
VIEWERS = (0, 1, 200)
WATCH_SECONDS = 60
LOADS = 15
NEWLINE = "\n"
# A slow phone connection: 150 ms, 1.6 Mbit/s down.
SLOW = {"offline": False, "latency": 150, "downloadThroughput": 200_000, "uploadThroughput": 94_000}
# Records the first frame that shows the sentence, in milliseconds since the navigation began.
FIRST_SENTENCE = """
window.firstSentence = new Promise((resolve) => {
  const check = () => {
    if (document.querySelector("#live .sentence")?.offsetHeight) resolve(performance.now());
    else requestAnimationFrame(check);
  };
  requestAnimationFrame(check);
});
"""
# CPU seconds and memory in KiB of the service's processes; shared pages count proportionally.
USAGE = r"""
import glob, os, pwd
user, ticks = pwd.getpwnam("bedplate-dashboard").pw_uid, os.sysconf("SC_CLK_TCK")
cpu = memory = 0
for folder in glob.glob("/proc/[0-9]*"):
    try:
        if os.stat(folder).st_uid != user:
            continue
        fields = open(folder + "/stat").read().rpartition(")")[2].split()
        rollup = open(folder + "/smaps_rollup").read()
    except (FileNotFoundError, ProcessLookupError):
        continue
    cpu += (int(fields[11]) + int(fields[12])) / ticks
    memory += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
print(cpu, memory)
"""
GRAFANA = """\
Grafana's size, as published: the login page of a Grafana 6 fetched 37.4 KB of HTML, 339 KB of CSS
and 1.9 MB of scripts, besides a `vendors~app` of 2.7 MB that was in the browser's cache
([#21074](https://github.com/grafana/grafana/issues/21074), 2019); a later one had an `app.js` of 3.4 MB and a
`vendor.js` of 1.4 MB ([#25001](https://github.com/grafana/grafana/issues/25001), 2020). It compresses only
where `enable_gzip` is set ([#86860](https://github.com/grafana/grafana/issues/86860)).
"""


class Host:
    """The lab host whose dashboard is measured."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.dashboard = stack.dashboard_url
        user, password = stack.login
        self.browser_options: dict[str, Any] = {
            "viewport": DESKTOP,
            "http_credentials": {"username": user, "password": password},
            # Chromium does not know the installation's CA.
            "ignore_https_errors": True,
        }

    def __call__(self, *command: str) -> str:
        """Run a command on the host."""
        done = subprocess.run(
            [ROOT / "lab/lab", "exec", HOST, *command], capture_output=True, text=True, check=True
        )
        return done.stdout

    def usage(self) -> tuple[float, float]:
        """Return the CPU seconds that the service has used, and its memory in MiB."""
        cpu, memory = self("/usr/bin/python3", "-c", USAGE).split()
        return float(cpu), float(memory) / 1024

    def metrics(self) -> str:
        """Return the dashboard's own metrics."""
        url = f"{self.dashboard}/metrics"
        return httpx.get(url, auth=self.stack.login, verify=self.stack.trusted(), trust_env=False).text

    def count_polls(self) -> tuple[int, int]:
        """Return the dashboard's polls as the gateway counts them, and as the dashboard itself does."""
        gateway = self("curl", "--silent", "--fail", "http://127.0.0.1:9464/metrics")
        requests = re.findall(
            r'^bedplate_gateway_requests_total\{alias="dashboard",[^}]*path="/v1/models"[^}]*\} (\S+)',
            gateway,
            re.MULTILINE,
        )
        polls = re.search(r"^bedplate_dashboard_polls_total (\S+)", self.metrics(), re.MULTILINE)
        if polls is None:
            raise BenchError("the dashboard's metrics lack bedplate_dashboard_polls_total")
        return int(sum(map(float, requests))), int(float(polls[1]))


@contextmanager
def deployed() -> Iterator[Host]:
    """Yield a host with the whole stack."""
    os.environ.setdefault("BEDPLATE_LAB", "bench-dashboard")
    was_up = HOST in running_hosts()
    try:
        if not was_up:
            say("booting a lab host and installing the stack (3 minutes)")
            subprocess.run([ROOT / "lab/lab", "up", HOST], check=True)
            subprocess.run(
                [ROOT / ".venv/bin/ansible-playbook", "--inventory=inventory/lab", "site.yml"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        yield Host(Stack(HOST, running_hosts()[HOST]))
    finally:
        if not was_up:
            subprocess.run([ROOT / "lab/lab", "down"], check=True)


@dataclass
class Visit:
    """The bytes that one visit transferred, by path, headers included."""

    files: dict[str, int] = field(default_factory=dict)

    @property
    def kilobytes(self) -> float:
        """All of it in KB (1000 bytes)."""
        return sum(self.files.values()) / 1000


def measure_visits(browser: Browser, host: Host) -> tuple[Visit, Visit]:
    """Open the page for the first time and then once more; the event stream is not counted."""
    context = browser.new_context(**host.browser_options)
    page = context.new_page()
    devtools = context.new_cdp_session(page)
    devtools.send("Network.enable")
    paths: dict[str, str] = {}
    visit = Visit()

    def on_request(event: dict[str, dict[str, str]]) -> None:
        paths[str(event["requestId"])] = event["request"]["url"].removeprefix(host.dashboard)

    def on_finished(event: dict[str, float]) -> None:
        path = paths.get(str(event["requestId"]), "?")
        if not path.startswith(("/events", "/live")):
            visit.files[path] = visit.files.get(path, 0) + int(event["encodedDataLength"])

    devtools.on("Network.requestWillBeSent", on_request)
    devtools.on("Network.loadingFinished", on_finished)
    both = []
    for _ in range(2):
        visit = Visit()
        page.goto(f"{host.dashboard}/")
        page.locator("canvas").first.wait_for()
        page.wait_for_timeout(1500)
        both.append(visit)
    context.close()
    return both[0], both[1]


def time_first_sentence(browser: Browser, host: Host, *, slow: bool) -> tuple[float, float]:
    """Return median and worst time to the first sentence in seconds, with an empty cache."""
    times = []
    for _ in range(LOADS):
        context = browser.new_context(**host.browser_options)
        page = context.new_page()
        page.add_init_script(FIRST_SENTENCE)
        if slow:
            devtools = context.new_cdp_session(page)
            devtools.send("Network.enable")
            devtools.send("Network.emulateNetworkConditions", SLOW)
        page.goto(f"{host.dashboard}/", wait_until="commit")
        times.append(float(page.evaluate("window.firstSentence")) / 1000)
        context.close()
    return statistics.median(times), max(times)


@dataclass(kw_only=True)
class Watched:
    """The viewers' updates in `WATCH_SECONDS`, and the service's resource usage."""

    viewers: int
    lags: list[float]
    updates: int
    missed: int
    bytes_a_second: float
    cpu_share: float
    memory_mib: float
    gateway_polls: int
    polls: int


async def watch(host: Host, viewers: int) -> Watched:
    """Let so many viewers read the stream; a lag runs from the end of a poll to the last byte at a viewer."""
    arrivals: list[list[float]] = [[] for _ in range(viewers)]
    amounts = [0] * viewers
    polls: dict[int, float] = {}
    connector = aiohttp.TCPConnector(limit=0, ssl=host.stack.trusted())
    login = aiohttp.BasicAuth(*host.stack.login)
    async with aiohttp.ClientSession(connector=connector, auth=login, auto_decompress=False) as client:
        readers = [
            asyncio.create_task(_read(client, host.dashboard, number, arrivals, amounts))
            for number in range(viewers)
        ]
        await asyncio.sleep(5 + viewers / 100)
        for times in arrivals:
            times.clear()
        amounts[:] = [0] * viewers
        polls_before, usage = await asyncio.to_thread(host.count_polls), await asyncio.to_thread(host.usage)
        began = time.monotonic()
        sampler = asyncio.create_task(_sample(client, host.dashboard, polls))
        await asyncio.sleep(WATCH_SECONDS)
        ended = time.monotonic()
        polls_after = await asyncio.to_thread(host.count_polls)
        usage_after = await asyncio.to_thread(host.usage)
        for task in (*readers, sampler):
            if task.done():
                raise BenchError(f"a viewer was cut off: {task.exception() or 'the stream ended'}")
            task.cancel()
    moments = sorted(moment for moment in polls.values() if began < moment < ended - 1)
    lags: list[float] = []
    missed = 0
    for times in arrivals:
        for moment in moments:
            lag = next((arrival - moment for arrival in times if 0 <= arrival - moment < 1), None)
            if lag is None:
                missed += 1
            else:
                lags.append(lag)
    length = ended - began
    return Watched(
        viewers=viewers,
        lags=lags,
        updates=len(moments),
        missed=missed,
        bytes_a_second=sum(amounts) / max(1, viewers) / length,
        cpu_share=(usage_after[0] - usage[0]) / length,
        memory_mib=usage_after[1],
        gateway_polls=polls_after[0] - polls_before[0],
        polls=polls_after[1] - polls_before[1],
    )


async def _read(
    client: aiohttp.ClientSession, url: str, number: int, arrivals: list[list[float]], amounts: list[int]
) -> None:
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip"}
    limit = aiohttp.ClientTimeout(total=None, sock_read=30)
    async with client.get(f"{url}/events", headers=headers, timeout=limit) as response:
        response.raise_for_status()
        async for piece in response.content.iter_any():
            now = time.monotonic()
            amounts[number] += len(piece)
            times = arrivals[number]
            # Chunks of one update arrive close together; the last one counts.
            if times and now - times[-1] < 0.3:
                times[-1] = now
            else:
                times.append(now)


async def _sample(client: aiohttp.ClientSession, url: str, polls: dict[int, float]) -> None:
    """Record when each poll ended, by this machine's monotonic clock."""
    while True:
        requested = time.monotonic()
        async with client.get(f"{url}/api/status.json", headers={"Accept-Encoding": "identity"}) as response:
            status = json.loads(await response.read())
        # The poll ended at this time or later, so the latest estimate counts.
        moment = requested - float(status["age_seconds"])
        number = int(status["poll_number"])
        polls[number] = max(polls.get(number, -math.inf), moment)
        await asyncio.sleep(0.4)


def measure_litellm_ui() -> tuple[int, int, int]:
    """Return how many files the start page of LiteLLM's UI names, their bytes, and their bytes with gzip."""
    python = environment("bench")
    folder = next(python.parents[1].glob("lib/python3.*/site-packages/litellm/proxy/_experimental/out"))
    page = (folder / "index.html").read_text()
    named = {
        folder / address.split("?")[0].removeprefix("/litellm-asset-prefix").removeprefix("/ui").lstrip("/")
        for address in re.findall(r'(?:src|href)="(/[^"]+)"', page)
    }
    contents = [page.encode(), *(file.read_bytes() for file in sorted(named) if file.is_file())]
    return len(contents), sum(map(len, contents)), sum(len(gzip.compress(content, 6)) for content in contents)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of the values do not exceed; NaN when there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def format_ms(seconds: float) -> str:
    """Return a time in milliseconds."""
    return "" if math.isnan(seconds) else f"{seconds * 1000:.0f} ms"


def format_row(watched: Watched) -> str:
    """Return one row of the viewers' table."""
    cells = (
        f"{watched.viewers}",
        *(format_ms(percentile(watched.lags, share)) for share in (0.5, 0.95, 1)),
        f"{watched.missed}" if watched.viewers else "",
        f"{watched.cpu_share:.1%}",
        f"{watched.memory_mib:.0f} MiB",
        f"{watched.bytes_a_second / 1000:.2f} KB/s" if watched.viewers else "",
        f"{watched.polls}",
        f"{watched.gateway_polls}",
    )
    return f"| {' | '.join(cells)} |"


def describe_bytes(first: Visit, again: Visit) -> str:
    """Return the section on transferred bytes."""
    files = [
        f"| `{path.split('?')[0]}` | {size / 1000:.1f} KB | {again.files.get(path, 0) / 1000:.1f} KB |"
        for path, size in sorted(first.files.items(), key=lambda file: -file[1])
    ]
    count, whole, packed = measure_litellm_ui()
    return f"""## Weight over the wire

| file | first visit | again |
|---|---|---|
{NEWLINE.join(files)}
| **all** | **{first.kilobytes:.1f} KB** | **{again.kilobytes:.1f} KB** |

Bytes as Chromium received them, headers included; a KB is 1000 bytes. Aim: below 100 KB
({"met" if first.kilobytes < 100 else "**not met**"}).

LiteLLM's own UI, for comparison: the start page in the wheel of LiteLLM 1.106.2 names {count} files of
{whole / 1e6:.1f} MB, {packed / 1e6:.1f} MB with gzip, before any data comes.

{GRAFANA}"""


def describe_first_sentence(near: tuple[float, float], slow: tuple[float, float]) -> str:
    """Return the section on the first sentence."""
    return f"""## First sentence

| connection | median of {LOADS} first visits | worst |
|---|---|---|
| this machine's own | {format_ms(near[0])} | {format_ms(near[1])} |
| slow phone: 150 ms, 1.6 Mbit/s | {format_ms(slow[0])} | {format_ms(slow[1])} |

From the start of the navigation, with an empty cache, to the frame that shows the sentence.
"""


def describe_viewers(results: list[Watched]) -> str:
    """Return the section on viewers."""
    polls = [result.polls for result in results]
    same = max(polls) - min(polls) <= 1
    columns = (
        *("viewers", "update p50", "p95", "worst", "missed", "CPU of a core", "memory"),
        *("to each viewer", "polls", "of the gateway"),
    )
    return f"""## Viewers

| {" | ".join(columns)} |
{"|---" * len(columns)}|
{NEWLINE.join(map(format_row, results))}

{WATCH_SECONDS} s each. An update's time runs from the end of the poll to its last byte at the viewer. The
last column is the gateway's count of the dashboard's requests. The number of polls does not depend on
viewers, give or take one at the edge of the minute: {"yes" if same else "**no**"}.
"""


def main() -> None:
    """Measure, and write the page."""
    viewers = [int(word) for word in sys.argv[1:]] or list(VIEWERS)
    with deployed() as host:
        with sync_playwright() as playwright:
            browser = start(playwright)
            say("transferred bytes and first sentence")
            visited = measure_visits(browser, host)
            near = time_first_sentence(browser, host, slow=False)
            slow = time_first_sentence(browser, host, slow=True)
            browser.close()
        results = []
        for number in viewers:
            say(f"{number} viewers")
            results.append(asyncio.run(watch(host, number)))
    where = f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, Debian's Chromium"
    head = f"""# The dashboard: weight, first sentence, many viewers

`make bench-dashboard`, {where}. Lab host, browser and
viewers share {os.cpu_count()} cores; load average {os.getloadavg()[0]:.1f} at the end.
"""
    REPORT.write_text(
        "\n".join(
            (head, describe_bytes(*visited), describe_first_sentence(near, slow), describe_viewers(results))
        )
    )
    say(f"wrote {REPORT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
