"""How far a run is: a live table in a terminal, a line now and then elsewhere."""

import asyncio
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from traffic.measure import Collected
from traffic.runner import Run

LIVE_SECONDS, LINE_SECONDS = 0.5, 5.0


async def follow(run: Run, console: Console) -> None:
    """Show the run's progress until this task is cancelled."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(LINE_SECONDS)
            console.print(line(run), soft_wrap=True, markup=False, highlight=False)
    with Live(_table(run), console=console, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(LIVE_SECONDS)
            live.update(_table(run), refresh=True)


def line(run: Run) -> str:
    """Return the state in one line."""
    states = [
        f"{one.traffic_class.name}: {len(one.requests)} of {len(one.planned)} done, "
        f"{one.in_flight} under way, {_unanswered(one)} not answered"
        for one in run.classes
    ]
    return f"{_elapsed(run):.0f} s; " + "; ".join(states)


def _table(run: Run) -> Table:
    table = Table("class", "done", "under way", "not answered", "missed", "first token", "end to end")
    for one in run.classes:
        last = next((entry for entry in reversed(one.requests) if entry.outcome == "answered"), None)
        first = f"{last.first_token:.2f} s" if last and last.first_token is not None else "-"
        table.add_row(
            one.traffic_class.name,
            f"{len(one.requests)} of {len(one.planned)}",
            str(one.in_flight),
            str(_unanswered(one)),
            str(one.missed),
            first,
            f"{last.seconds:.2f} s" if last else "-",
        )
    table.caption = f"{_elapsed(run):.0f} s of at most {run.profile.max_seconds:g} s"
    return table


def _elapsed(run: Run) -> float:
    return max(0.0, time.monotonic() - run.start)


def _unanswered(one: Collected) -> int:
    return one.outcomes["failed"] + one.outcomes["refused"]
