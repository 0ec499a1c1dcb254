"""`traffic compare a.json b.json`: is the second run worse than the first, beyond a tolerance?"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from traffic.options import EXIT_FAILED, EXIT_OK, Parser, positive
from traffic.report import ClassReport, Report, metric
from traffic.target import CannotStartError

# What is compared, and whether more of it is worse.
COMPARED = {
    "first_token.p50": True,
    "first_token.p95": True,
    "inter_token.p50": True,
    "inter_token.p95": True,
    "end_to_end.p50": True,
    "end_to_end.p95": True,
    "queue_wait.p95": True,
    "answers_per_second": False,
    "completion_tokens_per_second": False,
    "good_ratio": False,
    "answered": False,
    "failed": True,
    "refused": True,
    "slots.missed": True,
}


@dataclass(frozen=True)
class Difference:
    """One number of both runs; `change` is in parts of the first, None where that is 0 or one is absent."""

    class_name: str
    metric: str
    first: float | None
    second: float | None
    change: float | None
    worse: bool


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="traffic compare",
        description="Compare two reports of `traffic run --json`, class by class.",
        epilog="Exit status: 0 the second is no worse; 1 it is, beyond the tolerance; 2 cannot compare.",
    )
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    parser.add_argument(
        "--tolerance",
        type=positive(float),
        default=10.0,
        metavar="P",
        help="per cent that a number may be worse (default: 10)",
    )
    parser.add_argument(
        "--tolerance-ms",
        type=positive(float),
        default=2.0,
        metavar="MS",
        help="a time that is worse by less is not worse at all (default: 2)",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Compare, print, and return the exit status."""
    first, second = _read(options.first), _read(options.second)
    differences = compare(first, second, options.tolerance / 100, options.tolerance_ms / 1000)
    table = Table("class", "number", "first", "second", "change", "")
    for one in differences:
        change = "-" if one.change is None else f"{100 * one.change:+.1f} %"
        table.add_row(
            Text(one.class_name),
            one.metric,
            _shown(one.first),
            _shown(one.second),
            change,
            Text("WORSE", style="bold red") if one.worse else "",
        )
    console = Console()
    console.print(table)
    worse = [one for one in differences if one.worse]
    console.print(
        f"{len(worse)} of {len(differences)} numbers are worse by more than {options.tolerance:g} %",
        highlight=False,
    )
    return EXIT_FAILED if worse else EXIT_OK


def compare(first: Report, second: Report, tolerance: float, least_seconds: float) -> list[Difference]:
    """Return how the numbers of the classes that both have differ; raises CannotStartError when none is."""
    old = {one.name: one for one in first.classes}
    names = [one.name for one in second.classes]
    if set(old) != set(names):
        raise CannotStartError(
            f"The runs have different classes ({', '.join(old)}; {', '.join(names)}): "
            "compare runs of one profile."
        )
    return [
        _difference(old[one.name], one, name, tolerance, least_seconds)
        for one in second.classes
        for name in COMPARED
        if metric(old[one.name], name) is not None or metric(one, name) is not None
    ]


def _difference(
    old: ClassReport, new: ClassReport, name: str, tolerance: float, least_seconds: float
) -> Difference:
    first, second = metric(old, name), metric(new, name)
    if first is None or second is None:
        # What only one run has is worse when the second lost it.
        return Difference(new.name, name, first, second, None, worse=second is None)
    gain = second - first if COMPARED[name] else first - second
    is_time = name.rpartition(".")[0] in {"first_token", "inter_token", "end_to_end", "queue_wait"}
    worse = gain > abs(first) * tolerance and not (is_time and gain < least_seconds)
    return Difference(new.name, name, first, second, (second - first) / first if first else None, worse)


def _read(path: Path) -> Report:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CannotStartError(f"The report {path} cannot be read ({error.strerror}).") from None
    try:
        return TypeAdapter(Report).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise CannotStartError(
            f"{path} is no report of `traffic run` with schema 2 ({place}: {first['msg']})."
        ) from None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
