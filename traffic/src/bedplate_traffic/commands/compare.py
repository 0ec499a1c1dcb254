"""`traffic compare a.json b.json`: reports whether the second run is worse than the first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bedplate_traffic.arguments import EXIT_FAILED, EXIT_OK, Parser, positive
from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.report.model import ClassReport, Report, metric_value

# The compared metrics, and whether more is worse.
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
TIMES = {"first_token", "inter_token", "end_to_end", "queue_wait"}


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The command line."""

    first: Path
    second: Path
    tolerance_percent: float
    tolerance_ms: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of both runs; `change` is relative to the first, None where that is 0 or one is absent."""

    class_name: str
    metric: str
    first: float | None
    second: float | None
    change: float | None
    worse: bool


def parse(arguments: Sequence[str]) -> CompareOptions:
    """Return the command's options; exits with a message where they are wrong."""
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
        help="a time that is worse by less does not count as worse (default: 2)",
    )
    values = parser.parse_args(arguments)
    return CompareOptions(
        first=values.first,
        second=values.second,
        tolerance_percent=values.tolerance,
        tolerance_ms=values.tolerance_ms,
    )


def run(options: CompareOptions) -> int:
    """Compare, print, and return the exit status."""
    first, second = _read_report(options.first), _read_report(options.second)
    differences = compare(first, second, options.tolerance_percent / 100, options.tolerance_ms / 1000)
    table = Table("class", "number", "first", "second", "change", "")
    for difference in differences:
        change = "-" if difference.change is None else f"{100 * difference.change:+.1f} %"
        table.add_row(
            Text(difference.class_name),
            difference.metric,
            _format(difference.first),
            _format(difference.second),
            change,
            Text("WORSE", style="bold red") if difference.worse else "",
        )
    console = Console()
    console.print(table)
    worse = [difference for difference in differences if difference.worse]
    console.print(
        f"{len(worse)} of {len(differences)} numbers are worse by more than {options.tolerance_percent:g} %",
        highlight=False,
    )
    return EXIT_FAILED if worse else EXIT_OK


def compare(first: Report, second: Report, tolerance: float, min_seconds: float) -> list[Difference]:
    """Return the differences of the metrics, class by class; raises CannotStartError for other classes.

    `tolerance` is a fraction; a time that is worse by less than `min_seconds` does not count as worse.
    """
    old = {report.name: report for report in first.classes}
    names = [report.name for report in second.classes]
    if set(old) != set(names):
        raise CannotStartError(
            f"The runs have different classes ({', '.join(old)}; {', '.join(names)}): "
            "compare runs of one profile."
        )
    return [
        _compare_metric(old[report.name], report, metric, tolerance, min_seconds)
        for report in second.classes
        for metric in COMPARED
        if metric_value(old[report.name], metric) is not None or metric_value(report, metric) is not None
    ]


def _compare_metric(
    old: ClassReport, new: ClassReport, metric: str, tolerance: float, min_seconds: float
) -> Difference:
    first, second = metric_value(old, metric), metric_value(new, metric)
    if first is None or second is None:
        # A metric of only one run is worse when the second run lost it.
        change, worse = None, second is None
    else:
        increase = second - first if COMPARED[metric] else first - second
        is_time = metric.rpartition(".")[0] in TIMES
        worse = increase > abs(first) * tolerance and not (is_time and increase < min_seconds)
        change = (second - first) / first if first else None
    return Difference(
        class_name=new.name, metric=metric, first=first, second=second, change=change, worse=worse
    )


def _read_report(path: Path) -> Report:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CannotStartError(f"The report {path} cannot be read ({error.strerror}).") from None
    try:
        return TypeAdapter(Report).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(f"{part}." for part in first["loc"]).removesuffix(".")
        problem = f"{field}: {first['msg']}" if field else first["msg"]
        raise CannotStartError(
            f"{path} is not a report of `traffic run` with schema 2 ({problem})."
        ) from None


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
