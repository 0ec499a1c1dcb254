"""Serves the samples on loopback, one port each, to look at the page without a stack; from 0, on free ones.

    PYTHONPATH=dashboard_app/src:dashboard_app/tests python dashboard_app/tests/sample_server.py 3900
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bedplate_dashboard import assets, wording
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.status import Status
from bedplate_dashboard.web import SECURITY_HEADERS, base_url, client_snippets
from flask import Flask, Response, jsonify, render_template, request
from samples import AT, SAMPLES
from werkzeug.serving import make_server

SETTINGS = Settings.model_validate(
    {
        "name": "rack3",
        "monitoring": "gpu1",
        "gateway": "gpu1",
        "gateway_url": "http://127.0.0.1:8000",
        "gateway_metrics_url": "http://127.0.0.1:9464",
        "public_gateway_url": "http://10.1.2.3:8000",
        "prometheus_url": "http://127.0.0.1:9090",
        "inference_hosts": [
            {"name": "gpu1", "exporter_url": "http://127.0.0.1:9101", "models": ["smollm2:135m"]}
        ],
        "scrape_seconds": 15,
        "node_exporters": [],
        "pinned_versions": [],
        "verify_report": "/nowhere",
        "smoke_report": "/nowhere",
        "login": False,
    }
)


def history(length: str) -> dict[str, Any]:
    """A made-up history with a gap and a burst."""
    step = {"1h": 20, "1d": 480}[length]
    now = AT.timestamp()
    times = [now - step * (180 - number) for number in range(181)]
    dice = random.Random(7)  # noqa: S311 - a made-up curve
    load = [
        3 + 2 * math.sin(number / 20) + dice.random() + (4 if 120 < number < 135 else 0)
        for number in range(181)
    ]
    series: dict[str, list[float | None]] = {
        "requests_per_second": [*load],
        "refused_429_per_second": [max(0, each - 6) / 2 for each in load],
        "refused_503_per_second": [0 for _ in load],
        "tokens_out_per_second": [31 * each + 20 * dice.random() for each in load],
        "tokens_in_per_second": [12 * each + 8 * dice.random() for each in load],
        "ttft_p50_seconds": [0.1 + each / 40 for each in load],
        "ttft_p95_seconds": [0.3 + each / 9 + dice.random() / 4 for each in load],
        "slots_busy": [float(min(4, round(each / 2))) for each in load],
        "queue_waiting": [float(max(0, round(each - 6))) for each in load],
    }
    for values in series.values():
        values[40:52] = [None] * 12
    return {
        "schema": 1,
        "range": length,
        "step_seconds": step,
        "error": None,
        "times": times,
        "series": series,
    }


def create(status: Status) -> Flask:
    """One sample as the dashboard would show it."""
    app = Flask("bedplate_dashboard", static_folder=None)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(wording.FILTERS)
    app.jinja_env.globals.update(share=wording.share)
    assets.register(app, assets.load())
    page = {"base_url": base_url(SETTINGS), "code": client_snippets(SETTINGS)}

    def live() -> str:
        return render_template("live.html", status=status, settings=SETTINGS, now=AT, range="1h", kiosk=False)

    @app.get("/")
    def index() -> Response:
        length = request.args.get("range", "1h")
        form = request.args.get("format", "html")
        text = render_template(
            "page.html" if form == "html" else "status.txt",
            status=status,
            settings=SETTINGS,
            now=AT,
            snippets=page,
            version="0.1.0",
            range=length,
            kiosk="kiosk" in request.args,
        )
        return Response(text, mimetype="text/html" if form == "html" else "text/plain")

    @app.get("/live")
    def part() -> str:
        return live()

    @app.get("/events")
    def events() -> Response:
        text = live()
        data = "".join(f"data: {line}\n" for line in text.splitlines())

        def stream() -> Iterator[str]:
            while True:
                yield f"event: live\n{data}\n"
                time.sleep(2)

        return Response(stream(), mimetype="text/event-stream")

    @app.get("/api/history.json")
    def past() -> Response:
        return jsonify(history(request.args["range"]))

    @app.after_request
    def guard(response: Response) -> Response:
        response.headers.update(SECURITY_HEADERS)
        return response

    return app


def main() -> None:
    """Serve until interrupted."""
    first = int(sys.argv[1])
    for port, (name, status) in enumerate(SAMPLES.items(), start=first):
        server = make_server("127.0.0.1", port if first else 0, create(status), threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write(f"{name} http://127.0.0.1:{server.server_port}/\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
