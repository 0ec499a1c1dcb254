"""The report as one page: no script, nothing from elsewhere, the plots as SVG by pygal.

pygal is small, pure Python, and its SVG obeys the page's style sheet, so that the page follows the
reader's light or dark theme. plotly would put 4 MB into every report, matplotlib 60 MB onto every host.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import pygal  # type: ignore[import-untyped]
from pygal.style import Style  # type: ignore[import-untyped]

from traffic.report import ClassReport, Report, RequestReport
from traffic.table import number, rows, seconds

SUPERFLUOUS = re.compile("<script.*?</script>|<!--.*?-->", re.DOTALL)
MOST_DOTS = 800
BINS = 60
COLOURS = ("#2f6fde", "#e0672b", "#1f9d70", "#a24fc9", "#c93a5c", "#8a7a1c", "#2a9db5", "#6b7280")
RATE_COLOURS = ("#98a2b380", "#2f6fde")
OUTCOMES = {
    "answered": "#1f9d70",
    "refused": "#e3a527",
    "failed": "#d23f3f",
    "cancelled": "#7a8699",
    "unfinished": "#a24fc9",
}
PERCENTILES = (*(share / 100 for share in range(1, 100)), 0.995, 0.999, 1.0)


def html(report: Report) -> str:
    """Return the whole page."""
    page = Template((files("traffic") / "report.html").read_text(encoding="utf-8"))
    verdict = "Stopped before its end" if report.interrupted else "Passed" if report.ok else "Failed"
    return page.substitute(
        title=escape(f"{report.profile} at {report.url}"),
        profile=escape(report.profile),
        description=escape(report.description),
        verdict=verdict,
        verdict_class="good" if report.ok else "bad",
        url=escape(report.url),
        at=escape(report.at.replace("T", " ").partition(".")[0]),
        length=f"{report.seconds:.1f} s",
        seed=report.seed,
        version=escape(report.traffic_version),
        cards="".join(_card(one, index) for index, one in enumerate(report.classes)),
        thresholds="".join(
            f'<li class="{"good" if judged.ok else "bad"}">{escape(judged.threshold)}'
            f"<span>{escape(number(judged.seen))}</span></li>"
            for judged in report.thresholds
        ),
        plots="".join(
            f"<figure><figcaption>{name}</figcaption>{plot}</figure>" for name, plot in _plots(report)
        ),
        table=_table(report.classes),
        errors=_errors(report.classes),
    )


def _card(one: ClassReport, index: int) -> str:
    facts = [
        ("answered", f"{one.answered}<small> of {one.slots.sent}</small>"),
        ("first token, p95", seconds(one.first_token.p95)),
        ("end to end, p95", seconds(one.end_to_end.p95)),
        ("tokens out", f"{number(one.completion_tokens_per_second)}<small>/s</small>"),
    ]
    if one.good_ratio is not None:
        facts.append(("within the SLO", f"{100 * one.good_ratio:.1f}<small> %</small>"))
    if one.queue_wait.count:
        facts.append(("queue, p95", seconds(one.queue_wait.p95)))
    bad = {
        "refused": one.refused,
        "failed": one.failed,
        "unfinished": one.unfinished,
        "slots missed": one.slots.missed,
    }
    facts += [(name, str(count)) for name, count in bad.items() if count]
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in facts)
    colour = COLOURS[index % len(COLOURS)]
    return (
        f'<section class="card" style="--own:{colour}"><h2>{escape(one.name)}</h2>'
        f"<p>{escape(one.load)}</p><dl>{shown}</dl></section>"
    )


def _table(classes: Sequence[ClassReport]) -> str:
    columns = [dict(rows(one)) for one in classes]
    names = list(dict.fromkeys(name for column in columns for name in column))
    head = "".join(f"<th>{escape(one.name)}</th>" for one in classes)
    body = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{escape(column.get(name, '-'))}</td>" for column in columns)
        + "</tr>"
        for name in names
    )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _errors(classes: Sequence[ClassReport]) -> str:
    lines = [
        f"<li><b>{escape(one.name)}</b> {count} x {escape(error)}</li>"
        for one in classes
        for error, count in one.errors.items()
    ]
    return f"<h2>What was said</h2><ul class=errors>{''.join(lines)}</ul>" if lines else ""


def _plots(report: Report) -> Iterable[tuple[str, str]]:
    by_class = {
        one.name: [request for request in report.requests if request.class_name == one.name]
        for one in report.classes
    }
    yield "End to end: a dot is an answer, at the moment it was due", _dots(by_class, _seconds)
    if any(one.first_token.count for one in report.classes):
        yield "First token", _dots(by_class, _first_token)
    yield "Share of answers within a time: end to end", _percentiles(by_class, _seconds)
    if any(one.first_token.count for one in report.classes):
        yield (
            "Share of answers within a time: first token",
            _percentiles(by_class, _first_token),
        )
    yield "What became of the requests, by the moment they were due", _outcomes(report)
    if any(one.queue_wait.count for one in report.classes):
        yield "Wait in the gateway's queue", _dots(by_class, lambda one: one.queue_wait)
    yield "Requests a second: due, and really sent", _rates(report)
    yield (
        "Share of requests within a send lag",
        _percentiles(by_class, _lag, "milliseconds"),
    )


def _seconds(request: RequestReport) -> float | None:
    return request.seconds if request.outcome == "answered" else None


def _first_token(request: RequestReport) -> float | None:
    return request.first_token if request.outcome == "answered" else None


def _lag(request: RequestReport) -> float | None:
    return None if request.send_lag is None else 1000 * request.send_lag


def _dots(by_class: dict[str, list[RequestReport]], value: Callable[[RequestReport], float | None]) -> str:
    chart = _chart(
        pygal.XY, stroke=False, dots_size=2.2, x_title="seconds since the start", y_title="seconds"
    )
    for name, requests in by_class.items():
        dots = [(request.intended, given) for request in requests if (given := value(request)) is not None]
        # The slowest of each group stays, so that thinning hides no outlier.
        step = math.ceil(len(dots) / MOST_DOTS)
        chart.add(
            name, [max(dots[i : i + step], key=lambda dot: dot[1]) for i in range(0, len(dots), step or 1)]
        )
    return _svg(chart, by_class)


def _percentiles(
    by_class: dict[str, list[RequestReport]],
    value: Callable[[RequestReport], float | None],
    unit: str = "seconds",
) -> str:
    chart = _chart(pygal.XY, show_dots=False, x_title=unit, y_title="% of them", range=(0, 100))
    for name, requests in by_class.items():
        ordered = sorted(given for request in requests if (given := value(request)) is not None)
        chart.add(
            name,
            [
                (ordered[max(0, math.ceil(share * len(ordered)) - 1)], 100 * share)
                for share in (PERCENTILES if ordered else ())
            ],
        )
    return _svg(chart, by_class)


def _outcomes(report: Report) -> str:
    bins, width = _bins(report)
    seen = [name for name in OUTCOMES if any(request.outcome == name for request in report.requests)]
    colours = [OUTCOMES[name] for name in seen]
    titles = {"x_title": "seconds since the start", "y_title": "requests"}
    chart = _chart(pygal.StackedBar, colours or COLOURS, spacing=1, **titles)
    chart.x_labels = [f"{index * width:g}" for index in range(bins)]
    chart.x_labels_major = [f"{index * width:g}" for index in range(0, bins, max(1, bins // 10))]
    chart.show_minor_x_labels = False
    for outcome in seen:
        counts = [0] * bins
        for request in report.requests:
            if request.outcome == outcome:
                counts[min(bins - 1, int(request.intended / width))] += 1
        chart.add(outcome, counts)
    return _svg(chart, seen, colours)


def _rates(report: Report) -> str:
    bins, width = _bins(report)
    titles = {"x_title": "seconds since the start", "y_title": "per second"}
    chart = _chart(pygal.XY, RATE_COLOURS, show_dots=False, **titles)
    sent = [
        request.intended + request.send_lag for request in report.requests if request.send_lag is not None
    ]
    for name, moments in (("due", [request.intended for request in report.requests]), ("sent", sent)):
        counts = [0] * bins
        for moment in moments:
            counts[max(0, min(bins - 1, int(moment / width)))] += 1
        steps = [
            (edge, count / width)
            for index, count in enumerate(counts)
            for edge in (index * width, (index + 1) * width)
        ]
        # The area is what was due, so that it shows also where both are the same.
        chart.add(name, steps, fill=name == "due")
    return _svg(chart, ("due", "sent"), RATE_COLOURS)


def _bins(report: Report) -> tuple[int, float]:
    """Return into how many parts of how many seconds the schedule is cut, round ones."""
    last = max((request.intended for request in report.requests), default=0.0)
    width = next(
        (step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600) if last / step < BINS),
        math.ceil((last + 1) / BINS),
    )
    return int(last / width) + 1, width


def _chart(kind: Any, colours: Sequence[str] = COLOURS, **options: Any) -> Any:
    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="#7a8699",
        foreground_strong="#7a8699",
        foreground_subtle="#7a869955",
        opacity=".85",
        opacity_hover="1",
        colors=tuple(colours),
        font_family="system-ui, sans-serif",
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=14,
        title_font_size=14,
        stroke_width=2,
    )
    return kind(
        style=style,
        # Its script for tooltips would come from elsewhere.
        js=[],
        width=640,
        height=300,
        margin=8,
        show_legend=False,
        no_data_text="nothing to show",
        include_x_axis=True,
        truncate_label=-1,
        **options,
    )


def _svg(chart: Any, names: Iterable[str], colours: Sequence[str] = COLOURS) -> str:
    """Return the plot under a legend of our own, which wraps and can be read on a telephone."""
    legend = "".join(
        f'<span style="--own:{colours[index % len(colours)]}">{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    # The settings of a script for tooltips, which is not there, and advertisement.
    drawn = SUPERFLUOUS.sub("", chart.render(is_unicode=True, disable_xml_declaration=True))
    return f'<p class="legend">{legend}</p>{drawn}'
