"""The web application: page, plain text, API, events and metrics, all from one `Status`."""

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

from bedplate_dashboard.health.model import Status
from bedplate_dashboard.health.poller import Poller
from bedplate_dashboard.settings import VERSION, Settings, load_model_fits
from bedplate_dashboard.sources.history import SPANS, History
from bedplate_dashboard.web import assets, filters
from bedplate_dashboard.web.events import Events, TooManyStreamsError
from bedplate_dashboard.web.metrics import StatusMetrics

API_SCHEMA = 2
NO_STORE = "no-store"
STREAM_SEND_SECONDS = 10.0
"""A browser that reads nothing for this long, such as a sleeping one, is disconnected: it holds a thread."""

MIN_COMPRESSED_BYTES = 1024
COMPRESSED_TYPES = frozenset({"text/html", "text/plain", "application/json"})
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


def create_app(poller: Poller) -> Flask:
    """Return the WSGI application, with its `Events` and the poller as extensions; starts no thread."""
    settings = poller.settings
    app = Flask(__name__, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(filters.FILTERS)
    app.jinja_env.globals.update(gpu_share=filters.describe_gpu_share, describe_pull=filters.describe_pull)
    assets.register(app, assets.load())

    def render(template: str, **context: Any) -> str:
        return render_template(
            template, status=poller.status(), settings=settings, now=datetime.now(UTC), **context
        )

    def render_live() -> str:
        with app.app_context():
            return render("live.html", range="1h", kiosk=False)

    events = Events(poller, render_live)
    app.extensions["events"] = events
    app.extensions["poller"] = poller
    _add_pages(app, poller, render, render_live)
    _add_data(app, poller, History(settings), events)
    _add_events(app, events)
    _add_guards(app)
    return app


def _add_pages(
    app: Flask, poller: Poller, render: Callable[..., str], render_live: Callable[[], str]
) -> None:
    settings = poller.settings
    fits = load_model_fits(settings.model_fits)
    snippets = {"base_url": build_base_url(settings), "code": build_client_snippets(settings)}

    @app.get("/")
    def show_page() -> Response | tuple[Response, int]:
        form = request.args.get("format", "html")
        span = request.args.get("range", "1h")
        if span not in SPANS:
            return _text("range must be 1h or 1d.\n", 400)
        if form == "text":
            return _text(render("status.txt"))
        if form != "html":
            return _text("format must be html or text.\n", 400)
        text = render(
            "page.html", snippets=snippets, version=VERSION, range=span, kiosk="kiosk" in request.args
        )
        return Response(text, mimetype="text/html")

    @app.get("/models")
    def show_models() -> Response:
        """Show which models fit each host, and which of them it has."""
        states = describe_placements(poller.status())
        page = render("models.html", fits=fits, states=states, version=VERSION)
        return Response(page, mimetype="text/html")

    @app.get("/chat")
    def show_chat() -> Response:
        """Lead to the gateway's page: only there is the API of the same origin."""
        response = _text("The chat is the gateway's.\n", 302)
        response.headers["Location"] = f"{settings.public_gateway_url}/chat"
        return response

    @app.get("/live")
    def send_live() -> Response:
        """Return the changing part of the page, for browsers without an event stream."""
        return Response(render_live(), mimetype="text/html")


def _add_data(app: Flask, poller: Poller, history: History, events: Events) -> None:
    registry = CollectorRegistry()
    registry.register(StatusMetrics(poller, lambda: events.streams))

    @app.get("/api/status.json")
    def send_status() -> Response:
        return _json(status_to_json(poller.status(), poller.settings))

    @app.get("/api/history.json")
    def send_history() -> Response:
        span = request.args.get("range", "1h")
        if span not in SPANS:
            return _text("range must be 1h or 1d.\n", 400)
        return _json(history.fetch(span))

    @app.get("/healthz")
    def send_health() -> Response:
        return _text("ok\n")

    @app.get("/metrics")
    def send_metrics() -> Response:
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _add_events(app: Flask, events: Events) -> None:
    @app.get("/events")
    def stream_events() -> Response:
        compressed = request.accept_encodings.quality("gzip") > 0
        try:
            content = events.open(compressed=compressed)
        except TooManyStreamsError:
            response = _text("Too many open event streams; poll /live instead.\n", 503)
            response.headers["Retry-After"] = "30"
            return response
        response = Response(content, mimetype="text/event-stream")
        response.call_on_close(events.close)
        response.headers["X-Accel-Buffering"] = "no"
        if compressed:
            response.content_encoding = "gzip"
        if peer := request.environ.get("gunicorn.socket"):
            peer.settimeout(STREAM_SEND_SECONDS)
        return response


def _add_guards(app: Flask) -> None:
    @app.after_request
    def finish_response(response: Response) -> Response:
        response.headers.update(SECURITY_HEADERS)
        if request.endpoint != "static":
            response.headers["Cache-Control"] = NO_STORE
            _compress(response)
        return response

    @app.errorhandler(HTTPException)
    def report_http_error(error: HTTPException) -> Response:
        sentences = {
            404: "Not found; the dashboard is at /.",
            405: "The dashboard is read-only: use GET.",
        }
        response = _text(sentences.get(error.code or 500, f"{error.name}.") + "\n", error.code or 500)
        if error.code == 405:
            response.headers["Allow"] = "GET, HEAD"
        return response

    @app.errorhandler(Exception)
    def report_defect(error: Exception) -> Response:
        app.logger.error("a request failed", exc_info=error)
        return _text(
            "The dashboard failed to answer this request; see journalctl -u bedplate-dashboard -n 50.\n", 500
        )


def _compress(response: Response) -> None:
    """Compress a response if the client accepts gzip and it is large enough."""
    if response.is_streamed or response.mimetype not in COMPRESSED_TYPES:
        return
    response.vary.add("Accept-Encoding")
    content = response.get_data()
    if request.accept_encodings.quality("gzip") > 0 and len(content) >= MIN_COMPRESSED_BYTES:
        response.set_data(gzip.compress(content, 6, mtime=0))
        response.content_encoding = "gzip"


def status_to_json(status: Status, settings: Settings) -> dict[str, Any]:
    """Return the body of /api/status.json; `state` comes first, and parts are null before the first poll."""
    verdict = status.verdict
    parts: dict[str, Any] = dataclasses.asdict(verdict) if verdict else {}
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
        "base_url": build_base_url(settings),
        "faults": parts.get("faults"),
        "chain": parts.get("chain"),
        "gateway": parts.get("gateway"),
        "inference_hosts": parts.get("hosts"),
        "models": parts.get("models"),
        "gpus": parts.get("gpus"),
        "traffic": parts.get("traffic"),
        "limits": parts.get("limits"),
        "queue": parts.get("queue"),
        "litellm": parts.get("litellm"),
        "machines": parts.get("machines"),
        "prometheus": parts.get("prometheus"),
        "operations": parts.get("operations"),
    }


def describe_placements(status: Status) -> dict[tuple[str, str], str]:
    """Return whether each declared model is on each host, by host and model."""
    words = {True: "present", False: "missing", None: "unknown"}
    return {
        (place.host, model.name): "loaded" if place.loaded else words[place.present]
        for model in (status.verdict.models if status.verdict else ())
        for place in model.placements
    }


def build_base_url(settings: Settings) -> str:
    """Return what clients set as OPENAI_BASE_URL."""
    return f"{settings.public_gateway_url}/v1"


def build_client_snippets(settings: Settings) -> dict[str, str]:
    """Return examples to paste, by language; they contain the clients' address and no key."""
    model = next(iter(settings.declared_models), "MODEL")
    url = build_base_url(settings)
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
    body = json.dumps(document, default=filters.format_utc, ensure_ascii=False)
    return Response(body + "\n", mimetype="application/json")


def _text(body: str, status: int = 200) -> Response:
    return Response(body, status=status, mimetype="text/plain")
