"""The report as one HTML page without scripts or external resources; pygal draws the plots as SVG.

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

from bedplate_traffic.report.model import ClassReport, Report, RequestReport
from bedplate_traffic.report.table import class_rows, format_number, format_seconds

SCRIPTS_AND_COMMENTS = re.compile("<script.*?</script>|<!--.*?-->", re.DOTALL)
MAX_DOTS = 800
MAX_BINS = 60
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


def render_html(report: Report) -> str:
    """Return the whole page."""
    page = Template((files("bedplate_traffic.report") / "page.html").read_text(encoding="utf-8"))
    verdict = "Interrupted" if report.interrupted else "Passed" if report.ok else "Failed"
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
        cards="".join(_render_card(class_report, index) for index, class_report in enumerate(report.classes)),
        thresholds="".join(
            f'<li class="{"good" if judgement.ok else "bad"}">{escape(judgement.threshold)}'
            f"<span>{escape(format_number(judgement.seen))}</span></li>"
            for judgement in report.thresholds
        ),
        plots="".join(
            f"<figure><figcaption>{title}</figcaption>{plot}</figure>" for title, plot in _draw_plots(report)
        ),
        table=_render_table(report.classes),
        errors=_render_errors(report.classes),
    )


def _render_card(report: ClassReport, index: int) -> str:
    facts = [
        ("answered", f"{report.answered}<small> of {report.slots.sent}</small>"),
        ("first token, p95", format_seconds(report.first_token.p95)),
        ("end to end, p95", format_seconds(report.end_to_end.p95)),
        ("tokens out", f"{format_number(report.completion_tokens_per_second)}<small>/s</small>"),
    ]
    if report.good_ratio is not None:
        facts.append(("within the SLO", f"{100 * report.good_ratio:.1f}<small> %</small>"))
    if report.queue_wait.count:
        facts.append(("queue wait, p95", format_seconds(report.queue_wait.p95)))
    bad = {
        "refused": report.refused,
        "failed": report.failed,
        "unfinished": report.unfinished,
        "slots missed": report.slots.missed,
    }
    facts += [(name, str(count)) for name, count in bad.items() if count]
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in facts)
    colour = COLOURS[index % len(COLOURS)]
    return (
        f'<section class="card" style="--own:{colour}"><h2>{escape(report.name)}</h2>'
        f"<p>{escape(report.load)}</p><dl>{shown}</dl></section>"
    )


def _render_table(classes: Sequence[ClassReport]) -> str:
    columns = [dict(class_rows(report)) for report in classes]
    titles = list(dict.fromkeys(title for column in columns for title in column))
    head = "".join(f"<th>{escape(report.name)}</th>" for report in classes)
    body = "".join(
        f"<tr><th>{escape(title)}</th>"
        + "".join(f"<td>{escape(column.get(title, '-'))}</td>" for column in columns)
        + "</tr>"
        for title in titles
    )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _render_errors(classes: Sequence[ClassReport]) -> str:
    lines = [
        f"<li><b>{escape(report.name)}</b> {count} x {escape(error)}</li>"
        for report in classes
        for error, count in report.errors.items()
    ]
    return f"<h2>Errors</h2><ul class=errors>{''.join(lines)}</ul>" if lines else ""


def _draw_plots(report: Report) -> Iterable[tuple[str, str]]:
    """Yield the title and the SVG of each plot."""
    by_class = {
        class_report.name: [request for request in report.requests if request.class_name == class_report.name]
        for class_report in report.classes
    }
    streamed = any(class_report.first_token.count for class_report in report.classes)
    yield "End to end: one dot per answer, by due time", _draw_dots(by_class, _seconds)
    if streamed:
        yield "First token: one dot per answer, by due time", _draw_dots(by_class, _first_token)
    yield "Share of answers within a time: end to end", _draw_percentiles(by_class, _seconds)
    if streamed:
        yield "Share of answers within a time: first token", _draw_percentiles(by_class, _first_token)
    yield "Outcomes of the requests, by due time", _draw_outcomes(report)
    if any(class_report.queue_wait.count for class_report in report.classes):
        yield "Wait in the gateway's queue", _draw_dots(by_class, lambda request: request.queue_wait)
    yield "Requests per second: due and sent", _draw_rates(report)
    yield "Share of requests within a send lag", _draw_percentiles(by_class, _lag_ms, "milliseconds")


def _seconds(request: RequestReport) -> float | None:
    return request.seconds if request.outcome == "answered" else None


def _first_token(request: RequestReport) -> float | None:
    return request.first_token if request.outcome == "answered" else None


def _lag_ms(request: RequestReport) -> float | None:
    return None if request.send_lag is None else 1000 * request.send_lag


def _draw_dots(
    by_class: dict[str, list[RequestReport]], value: Callable[[RequestReport], float | None]
) -> str:
    chart = _make_chart(
        pygal.XY, stroke=False, dots_size=2.2, x_title="seconds since the start", y_title="seconds"
    )
    for name, requests in by_class.items():
        dots = [(request.intended, number) for request in requests if (number := value(request)) is not None]
        # The slowest dot of each group stays, so that thinning hides no outlier.
        step = math.ceil(len(dots) / MAX_DOTS)
        chart.add(
            name, [max(dots[i : i + step], key=lambda dot: dot[1]) for i in range(0, len(dots), step or 1)]
        )
    return _render_svg(chart, by_class)


def _draw_percentiles(
    by_class: dict[str, list[RequestReport]],
    value: Callable[[RequestReport], float | None],
    unit: str = "seconds",
) -> str:
    chart = _make_chart(pygal.XY, show_dots=False, x_title=unit, y_title="% of them", range=(0, 100))
    for name, requests in by_class.items():
        ordered = sorted(number for request in requests if (number := value(request)) is not None)
        chart.add(
            name,
            [
                (ordered[max(0, math.ceil(share * len(ordered)) - 1)], 100 * share)
                for share in (PERCENTILES if ordered else ())
            ],
        )
    return _render_svg(chart, by_class)


def _draw_outcomes(report: Report) -> str:
    bins, width = _choose_bins(report)
    outcomes = [name for name in OUTCOMES if any(request.outcome == name for request in report.requests)]
    colours = [OUTCOMES[name] for name in outcomes]
    titles = {"x_title": "seconds since the start", "y_title": "requests"}
    chart = _make_chart(pygal.StackedBar, colours or COLOURS, spacing=1, **titles)
    chart.x_labels = [f"{index * width:g}" for index in range(bins)]
    chart.x_labels_major = [f"{index * width:g}" for index in range(0, bins, max(1, bins // 10))]
    chart.show_minor_x_labels = False
    for outcome in outcomes:
        counts = [0] * bins
        for request in report.requests:
            if request.outcome == outcome:
                counts[min(bins - 1, int(request.intended / width))] += 1
        chart.add(outcome, counts)
    return _render_svg(chart, outcomes, colours)


def _draw_rates(report: Report) -> str:
    bins, width = _choose_bins(report)
    titles = {"x_title": "seconds since the start", "y_title": "per second"}
    chart = _make_chart(pygal.XY, RATE_COLOURS, show_dots=False, **titles)
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
        # The due requests are an area, so that both lines show where they are equal.
        chart.add(name, steps, fill=name == "due")
    return _render_svg(chart, ("due", "sent"), RATE_COLOURS)


def _choose_bins(report: Report) -> tuple[int, float]:
    """Return the number of bins over the schedule, and their width, a round number of seconds."""
    last = max((request.intended for request in report.requests), default=0.0)
    width = next(
        (step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600) if last / step < MAX_BINS),
        math.ceil((last + 1) / MAX_BINS),
    )
    return int(last / width) + 1, width


def _make_chart(kind: Any, colours: Sequence[str] = COLOURS, **options: Any) -> Any:
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
        # pygal's script for tooltips would be loaded from another site.
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


def _render_svg(chart: Any, names: Iterable[str], colours: Sequence[str] = COLOURS) -> str:
    """Return the plot under an HTML legend, which wraps and is readable on a phone."""
    legend = "".join(
        f'<span style="--own:{colours[index % len(colours)]}">{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    # pygal adds the settings of its tooltip script, and an advertisement.
    svg = SCRIPTS_AND_COMMENTS.sub("", chart.render(is_unicode=True, disable_xml_declaration=True))
    return f'<p class="legend">{legend}</p>{svg}'
