"""The readers' side: page, text for a terminal, API and metrics. All of it reads one `Status`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, render_template, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from werkzeug.exceptions import HTTPException

from . import __version__
from .poller import Poller
from .settings import Settings
from .state import Status

API_SCHEMA = 1
STATES = ("healthy", "degraded", "down")
NO_STORE = "no-store"
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class StatusMetrics(Collector):
    """The dashboard's own metrics, read from the status at each scrape."""

    def __init__(self, poller: Poller) -> None:
        """Remember whose status to tell."""
        self._poller = poller

    def collect(self) -> Iterator[Metric]:
        """Tell the state, the age and length of the last poll, and how many there were."""
        status = self._poller.status()
        states = GaugeMetricFamily(
            "bedplate_dashboard_state",
            "The state that the dashboard tells: 1 for the one that holds.",
            labels=["state"],
        )
        for name in STATES:
            states.add_metric([name], float(status.state == name))
        yield states
        yield GaugeMetricFamily(
            "bedplate_dashboard_poll_age_seconds", "Time since the last poll ended.", value=status.age_seconds
        )
        if status.seconds is not None:
            yield GaugeMetricFamily(
                "bedplate_dashboard_poll_duration_seconds",
                "How long the last poll took.",
                value=status.seconds,
            )
        verify = status.verdict.verify if status.verdict else None
        if verify and verify.ok is not None and verify.at is not None:
            yield GaugeMetricFamily(
                "bedplate_dashboard_verify_ok", "1 if the last verify found nothing.", value=float(verify.ok)
            )
            yield GaugeMetricFamily(
                "bedplate_dashboard_verify_timestamp_seconds",
                "When the last verify ran.",
                value=verify.at.timestamp(),
            )
        yield CounterMetricFamily(
            "bedplate_dashboard_polls", "Polls since the start.", value=self._poller.polls
        )


def create_app(poller: Poller) -> Flask:
    """Make the WSGI application; it starts nothing."""
    settings = poller.settings
    app = Flask(__name__)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(age=age, ms=milliseconds, size=size, utc=utc)
    app.jinja_env.globals.update(share=share)
    registry = CollectorRegistry()
    registry.register(StatusMetrics(poller))
    snippets = client_snippets(settings)

    @app.get("/")
    def page() -> Response | tuple[Response, int]:
        form = request.args.get("format", "html")
        now = datetime.now(UTC)
        if form == "text":
            return _text(render_template("status.txt", status=poller.status(), settings=settings, now=now))
        if form != "html":
            return _text("format must be html or text.\n", 400)
        return Response(
            render_template(
                "page.html",
                status=poller.status(),
                settings=settings,
                now=now,
                snippets={"base_url": base_url(settings), "code": snippets},
                version=__version__,
            ),
            mimetype="text/html",
        )

    @app.get("/live")
    def live() -> Response:
        """Only the changing part of the page, for the script that keeps it fresh."""
        now = datetime.now(UTC)
        return Response(
            render_template("live.html", status=poller.status(), settings=settings, now=now),
            mimetype="text/html",
        )

    @app.get("/api/status.json")
    def api() -> Response:
        body = json.dumps(as_json(poller.status(), settings), default=utc, ensure_ascii=False)
        return Response(body + "\n", mimetype="application/json")

    @app.get("/healthz")
    def healthz() -> Response:
        return _text("ok\n")

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    @app.after_request
    def secure(response: Response) -> Response:
        response.headers.update(SECURITY_HEADERS)
        if request.endpoint != "static":
            response.headers["Cache-Control"] = NO_STORE
        return response

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        sentences = {
            404: "There is nothing at this address; the dashboard is at /.",
            405: "The dashboard can only be read: use GET.",
        }
        response = _text(sentences.get(error.code or 500, f"{error.name}.") + "\n", error.code or 500)
        if error.code == 405:
            response.headers["Allow"] = "GET, HEAD"
        return response

    @app.errorhandler(Exception)
    def fail(error: Exception) -> Response:
        app.logger.error("a request failed", exc_info=error)
        return _text("The dashboard made a mistake; see journalctl -u bedplate-dashboard -n 50.\n", 500)

    return app


def as_json(status: Status, settings: Settings) -> dict[str, Any]:
    """Shape the API's answer; `state` comes first. Parts that were not asked yet are null."""
    verdict = status.verdict
    seen: dict[str, Any] = dataclasses.asdict(verdict) if verdict else {}
    return {
        "state": status.state,
        "schema": API_SCHEMA,
        "at": status.at,
        "since": status.since,
        "reason": status.reason,
        "next": status.next,
        "next_on": status.next_on,
        "stale": status.stale,
        "age_seconds": round(status.age_seconds, 3),
        "poll_seconds": status.seconds,
        "name": settings.name,
        "base_url": base_url(settings),
        "faults": seen.get("faults"),
        "gateway": seen.get("gateway"),
        "inference_hosts": seen.get("hosts"),
        "models": seen.get("models"),
        "prometheus": seen.get("prometheus"),
        "verify": seen.get("verify"),
    }


def base_url(settings: Settings) -> str:
    """Tell what clients set as OPENAI_BASE_URL."""
    return f"{settings.public_gateway_url}/v1"


def client_snippets(settings: Settings) -> dict[str, str]:
    """Make the examples to paste, with the address that clients use and never with a key."""
    model = next(iter(settings.declared_models), "MODEL")
    url = base_url(settings)
    body = f"""{{"model": {json.dumps(model)},
       "messages": [{{"role": "user", "content": "Say hello."}}]}}"""
    curl = f"""curl {shlex.quote(f"{url}/chat/completions")} \\
  -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d {shlex.quote(body)}"""
    python = f"""from openai import OpenAI

# The key is read from OPENAI_API_KEY.
client = OpenAI(base_url={json.dumps(url)})
answer = client.chat.completions.create(
    model={json.dumps(model)},
    messages=[{{"role": "user", "content": "Say hello."}}],
)
print(answer.choices[0].message.content)"""
    return {"curl": curl, "Python": python}


def age(seconds: float) -> str:
    """Say a length of time in one unit: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"


def milliseconds(seconds: float | None) -> str:
    """Say a latency: 0.4 ms, 12 ms, 1.20 s."""
    if seconds is None:
        return ""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1000:.1f} ms"


def size(amount: int | None) -> str:
    """Say bytes as people buy memory: 270 MB, 4.9 GB."""
    if amount is None:
        return ""
    if amount < 1_000_000_000:
        return f"{amount / 1_000_000:.0f} MB"
    return f"{amount / 1_000_000_000:.1f} GB"


def share(gpu: int | None, memory: int | None) -> str:
    """Say where a loaded model lies: GPU, CPU, or how much of it on the GPU."""
    if not memory or gpu is None:
        return ""
    part = min(1.0, gpu / memory)
    return "CPU" if part == 0 else "GPU" if part == 1 else f"{part:.0%} GPU"


def utc(moment: datetime) -> str:
    """Write a time as RFC 3339 in UTC with whole seconds."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _text(body: str, status: int = 200) -> Response:
    return Response(body, status=status, mimetype="text/plain")
