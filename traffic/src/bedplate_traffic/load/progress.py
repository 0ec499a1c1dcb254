"""Shows the progress of a run: a live table in a terminal, a line every few seconds elsewhere."""

import asyncio
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bedplate_traffic.load.runner import Run
from bedplate_traffic.load.stats import ClassStats

LIVE_SECONDS, LINE_SECONDS = 0.5, 5.0


async def show_progress(run: Run, console: Console) -> None:
    """Show the run's progress until this task is cancelled."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(LINE_SECONDS)
            console.print(format_line(run), soft_wrap=True, markup=False, highlight=False)
    with Live(_build_table(run), console=console, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(LIVE_SECONDS)
            live.update(_build_table(run), refresh=True)


def format_line(run: Run) -> str:
    """Return the progress in one line."""
    states = [
        f"{stats.traffic_class.name}: {len(stats.requests)} of {len(stats.planned)} done, "
        f"{stats.in_flight} in flight, {_unanswered(stats)} not answered"
        for stats in run.classes
    ]
    return f"{_elapsed(run):.0f} s; " + "; ".join(states)


def _build_table(run: Run) -> Table:
    table = Table("class", "done", "in flight", "not answered", "missed", "first token", "end to end")
    for stats in run.classes:
        last = next((request for request in reversed(stats.requests) if request.outcome == "answered"), None)
        first = f"{last.first_token:.2f} s" if last and last.first_token is not None else "-"
        table.add_row(
            stats.traffic_class.name,
            f"{len(stats.requests)} of {len(stats.planned)}",
            str(stats.in_flight),
            str(_unanswered(stats)),
            str(stats.missed),
            first,
            f"{last.seconds:.2f} s" if last else "-",
        )
    table.caption = f"{_elapsed(run):.0f} s of at most {run.profile.max_seconds:g} s"
    return table


def _elapsed(run: Run) -> float:
    return max(0.0, time.monotonic() - run.start)


def _unanswered(stats: ClassStats) -> int:
    return stats.outcomes["failed"] + stats.outcomes["refused"]
