"""The report as a table in the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bedplate_traffic.report.model import ClassReport, Report, Spread

MILLISECONDS_BELOW = 1.0


def format_seconds(value: float | None) -> str:
    """Return a duration with its unit: milliseconds below one second, else seconds."""
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if abs(value) < MILLISECONDS_BELOW else f"{value:.2f} s"


def format_number(value: float | None) -> str:
    """Return a number without meaningless digits."""
    if value is None:
        return "-"
    if 0 < abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}".rstrip("0").rstrip(".")


def format_spread(spread: Spread) -> str:
    """Return the median, the 95th percentile and the maximum."""
    return "-" if not spread.count else " / ".join(map(format_seconds, (spread.p50, spread.p95, spread.max)))


def class_rows(report: ClassReport) -> list[tuple[str, str]]:
    """Return the rows of a class: titles and values."""
    slots = report.slots
    rows = [
        ("key", report.key or "the default"),
        ("model", report.model),
        ("load", report.load),
        (
            "rate intended / real",
            f"{format_number(report.intended_rate)} / {format_number(report.real_rate)} per s",
        ),
        (
            "slots sent / missed / unsent",
            f"{slots.sent} / {slots.missed} / {slots.unsent} of {slots.planned}",
        ),
        ("answered", f"{report.answered} ({format_number(report.answers_per_second)} per s)"),
        (
            "refused / failed / cancelled / unfinished",
            f"{report.refused} / {report.failed} / {report.cancelled} / {report.unfinished}",
        ),
        ("status", _format_statuses(report)),
        (
            "send lag p50 / p99",
            f"{format_seconds(report.send_lag.p50)} / {format_seconds(report.send_lag.p99)}",
        ),
        ("first token p50 / p95 / max", format_spread(report.first_token)),
        ("between tokens p50 / p95 / max", format_spread(report.inter_token)),
        ("end to end p50 / p95 / max", format_spread(report.end_to_end)),
        ("tokens in / out", f"{report.prompt_tokens} / {report.completion_tokens}"),
        (
            "tokens per s in / out",
            f"{format_number(report.prompt_tokens_per_second)} / "
            f"{format_number(report.completion_tokens_per_second)}",
        ),
    ]
    if report.queue_wait.count:
        rows.append(("queue wait p50 / p95 / max", format_spread(report.queue_wait)))
    if report.good_ratio is not None:
        share, rate = f"{100 * report.good_ratio:.1f} %", format_number(report.good_per_second)
        rows.append(("goodput", f"{report.good} within the SLO, {share}, {rate} per s"))
    if report.retry_after.seen:
        retries = report.retry_after
        rows.append(
            (
                "Retry-After received / obeyed / answered",
                f"{retries.seen} / {retries.obeyed} / {retries.answered}",
            )
        )
    return rows


def _format_statuses(report: ClassReport) -> str:
    counts = [f"{name}: {count}" for name, count in report.status.items() if not name.endswith("xx")]
    return ", ".join(counts) or "-"


def print_report(report: Report, console: Console) -> None:
    """Print the table, the errors and the thresholds."""
    table = Table(title=f"{report.profile} at {report.url}, {report.seconds:.1f} s", title_justify="left")
    table.add_column("")
    for class_report in report.classes:
        table.add_column(Text(class_report.name))
    columns = [dict(class_rows(class_report)) for class_report in report.classes]
    titles = list(dict.fromkeys(title for column in columns for title in column))
    for title in titles:
        table.add_row(title, *(Text(column.get(title, "-")) for column in columns))
    console.print(table)
    for class_report in report.classes:
        for error, count in class_report.errors.items():
            console.print(Text(f"{class_report.name}: {count} x {error}"))
    for judgement in report.thresholds:
        verdict = Text("  ok  ", style="green") if judgement.ok else Text(" FAIL ", style="bold red")
        value = format_number(judgement.seen)
        console.print(Text.assemble(verdict, f"{judgement.threshold}; measured: {value}"))
    if report.interrupted:
        console.print(Text("Interrupted: the numbers cover only the requests up to then."))
