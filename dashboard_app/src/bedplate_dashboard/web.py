"""The readers' side: page, text for a terminal, API, events and metrics. All of it reads one `Status`."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, render_template, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import HTTPException

from . import __version__, assets, login, wording
from .events import Events, Full
from .history import SPANS, History
from .metrics import StatusMetrics
from .poller import Poller
from .settings import Secrets, Settings
from .status import Status

API_SCHEMA = 2
NO_STORE = "no-store"
STREAM_SEND_SECONDS = 10.0
"""A browser that sleeps takes nothing; its thread is for others then."""

WORTH_PACKING_BYTES = 1024
PACKED_TYPES = frozenset({"text/html", "text/plain", "application/json"})
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def create_app(poller: Poller, secrets: Secrets) -> Flask:
    """Make the WSGI application, with its `Events` as the extension of that name; it starts nothing."""
    settings = poller.settings
    app = Flask(__name__, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(wording.FILTERS)
    app.jinja_env.globals.update(share=wording.share)
    assets.register(app, assets.load())
    if secrets.login:
        login.register(app, secrets.login, settings.name)

    def render(template: str, **words: Any) -> str:
        return render_template(
            template, status=poller.status(), settings=settings, now=datetime.now(UTC), **words
        )

    def render_live() -> str:
        with app.app_context():
            return render("live.html", range="1h", kiosk=False)

    events = Events(poller, render_live)
    app.extensions["events"] = events
    _add_pages(app, settings, render, render_live)
    _add_data(app, poller, History(settings, secrets), events)
    _add_events(app, events)
    _guard(app)
    return app


def _add_pages(
    app: Flask, settings: Settings, render: Callable[..., str], render_live: Callable[[], str]
) -> None:
    snippets = {"base_url": base_url(settings), "code": client_snippets(settings)}

    @app.get("/")
    def page() -> Response | tuple[Response, int]:
        form = request.args.get("format", "html")
        span = request.args.get("range", "1h")
        if span not in SPANS:
            return _text("range must be 1h or 1d.\n", 400)
        if form == "text":
            return _text(render("status.txt"))
        if form != "html":
            return _text("format must be html or text.\n", 400)
        text = render(
            "page.html", snippets=snippets, version=__version__, range=span, kiosk="kiosk" in request.args
        )
        return Response(text, mimetype="text/html")

    @app.get("/live")
    def live() -> Response:
        """Only the changing part of the page, for browsers that get no events."""
        return Response(render_live(), mimetype="text/html")


def _add_data(app: Flask, poller: Poller, history: History, events: Events) -> None:
    registry = CollectorRegistry()
    registry.register(StatusMetrics(poller, lambda: events.streams))

    @app.get("/api/status.json")
    def api() -> Response:
        return _json(as_json(poller.status(), poller.settings))

    @app.get("/api/history.json")
    def past() -> Response:
        span = request.args.get("range", "1h")
        if span not in SPANS:
            return _text("range must be 1h or 1d.\n", 400)
        return _json(history.document(span))

    @app.get("/healthz")
    def healthz() -> Response:
        return _text("ok\n")

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _add_events(app: Flask, events: Events) -> None:
    @app.get("/events")
    def stream() -> Response:
        packed = request.accept_encodings.quality("gzip") > 0
        try:
            content = events.open(packed=packed)
        except Full:
            response = _text("There are as many streams as may be; ask /live.\n", 503)
            response.headers["Retry-After"] = "30"
            return response
        response = Response(content, mimetype="text/event-stream")
        response.call_on_close(events.close)
        response.headers["X-Accel-Buffering"] = "no"
        if packed:
            response.content_encoding = "gzip"
        if peer := request.environ.get("gunicorn.socket"):
            peer.settimeout(STREAM_SEND_SECONDS)
        return response


def _guard(app: Flask) -> None:
    @app.after_request
    def secure(response: Response) -> Response:
        response.headers.update(SECURITY_HEADERS)
        if request.endpoint != "static":
            response.headers["Cache-Control"] = NO_STORE
            _pack(response)
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


def _pack(response: Response) -> None:
    """Compress an answer for whoever can read that."""
    if response.is_streamed or response.mimetype not in PACKED_TYPES:
        return
    response.vary.add("Accept-Encoding")
    content = response.get_data()
    if request.accept_encodings.quality("gzip") > 0 and len(content) >= WORTH_PACKING_BYTES:
        response.set_data(gzip.compress(content, 6, mtime=0))
        response.content_encoding = "gzip"


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
        "poll_number": status.poll_number,
        "name": settings.name,
        "base_url": base_url(settings),
        "faults": seen.get("faults"),
        "chain": seen.get("chain"),
        "gateway": seen.get("gateway"),
        "inference_hosts": seen.get("hosts"),
        "models": seen.get("models"),
        "gpus": seen.get("gpus"),
        "traffic": seen.get("traffic"),
        "limits": seen.get("limits"),
        "queue": seen.get("queue"),
        "machines": seen.get("machines"),
        "prometheus": seen.get("prometheus"),
        "operations": seen.get("operations"),
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


def _json(document: dict[str, Any]) -> Response:
    body = json.dumps(document, default=wording.utc, ensure_ascii=False)
    return Response(body + "\n", mimetype="application/json")


def _text(body: str, status: int = 200) -> Response:
    return Response(body, status=status, mimetype="text/plain")
