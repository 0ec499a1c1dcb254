"""The report as a table for people, in the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from traffic.report import ClassReport, Report, Spread

MILLISECONDS_BELOW = 1.0


def seconds(value: float | None) -> str:
    """Return a duration as a person reads it."""
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if abs(value) < MILLISECONDS_BELOW else f"{value:.2f} s"


def number(value: float | None) -> str:
    """Return a number without digits that mean nothing."""
    if value is None:
        return "-"
    if 0 < abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}".rstrip("0").rstrip(".")


def three(spread: Spread) -> str:
    """Return the median, 95 % and the maximum of a spread."""
    return "-" if not spread.count else " / ".join(map(seconds, (spread.p50, spread.p95, spread.max)))


def rows(one: ClassReport) -> list[tuple[str, str]]:
    """Return what is said about a class, line by line."""
    slots = one.slots
    lines = [
        ("key", one.key or "the given one"),
        ("model", one.model),
        ("load", one.load),
        ("rate intended / real", f"{number(one.intended_rate)} / {number(one.real_rate)} per s"),
        (
            "slots sent / missed / unsent",
            f"{slots.sent} / {slots.missed} / {slots.unsent} of {slots.planned}",
        ),
        ("answered", f"{one.answered} ({number(one.answers_per_second)} per s)"),
        (
            "refused / failed / left / unfinished",
            f"{one.refused} / {one.failed} / {one.cancelled} / {one.unfinished}",
        ),
        ("status", _statuses(one)),
        ("send lag p50 / p99", f"{seconds(one.send_lag.p50)} / {seconds(one.send_lag.p99)}"),
        ("first token p50 / p95 / max", three(one.first_token)),
        ("between tokens p50 / p95 / max", three(one.inter_token)),
        ("end to end p50 / p95 / max", three(one.end_to_end)),
        ("tokens in / out", f"{one.prompt_tokens} / {one.completion_tokens}"),
        (
            "tokens per s in / out",
            f"{number(one.prompt_tokens_per_second)} / {number(one.completion_tokens_per_second)}",
        ),
    ]
    if one.queue_wait.count:
        lines.append(("wait in the queue p50 / p95 / max", three(one.queue_wait)))
    if one.good_ratio is not None:
        share = f"{100 * one.good_ratio:.1f} %"
        lines.append(("goodput", f"{one.good} within the SLO, {share}, {number(one.good_per_second)} per s"))
    if one.retry_after.seen:
        again = one.retry_after
        lines.append(
            ("Retry-After seen / obeyed / answered", f"{again.seen} / {again.obeyed} / {again.answered}")
        )
    return lines


def _statuses(one: ClassReport) -> str:
    return (
        ", ".join(f"{name}: {count}" for name, count in one.status.items() if not name.endswith("xx")) or "-"
    )


def show(report: Report, console: Console) -> None:
    """Print the table, the thresholds, and what went wrong."""
    table = Table(title=f"{report.profile} at {report.url}, {report.seconds:.1f} s", title_justify="left")
    table.add_column("")
    for one in report.classes:
        table.add_column(Text(one.name))
    columns = [dict(rows(one)) for one in report.classes]
    names = list(dict.fromkeys(name for column in columns for name in column))
    for name in names:
        table.add_row(name, *(Text(column.get(name, "-")) for column in columns))
    console.print(table)
    for one in report.classes:
        for error, count in one.errors.items():
            console.print(Text(f"{one.name}: {count} x {error}"))
    for judgement in report.thresholds:
        word = Text("  ok  " if judgement.ok else " FAIL ", style="green" if judgement.ok else "bold red")
        console.print(Text.assemble(word, f"{judgement.threshold}; seen: {number(judgement.seen)}"))
    if report.interrupted:
        console.print(Text("Stopped before its end: the numbers are of what was sent until then."))
