"""Serves the samples on loopback, one port each, to look at the page without a stack; from 0, on free ones.

PYTHONPATH=dashboard_app/src:dashboard_app/tests python dashboard_app/tests/sample_server.py 3900
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bedplate_dashboard.poller import Poller
from bedplate_dashboard.settings import Secrets, Settings
from bedplate_dashboard.status import Status
from bedplate_dashboard.web import create_app
from flask import Flask, Response, jsonify, request
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
        "other_models": [],
        "node_exporters": [],
        "pinned_versions": [],
        "verify_report": "/nowhere",
        "smoke_report": "/nowhere",
        "login": False,
    }
)
LOOK_SECONDS = 2.0


def later(value: Any, length: timedelta) -> Any:
    """A sample with all its moments moved."""
    if isinstance(value, datetime):
        return value + length
    if isinstance(value, tuple):
        return tuple(later(each, length) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{field.name: later(getattr(value, field.name), length) for field in dataclasses.fields(value)},
        )
    return value


class SamplePoller(Poller):
    """Finds the same every two seconds."""

    def __init__(self, sample: Status) -> None:
        """Ask nobody."""
        super().__init__(SETTINGS, Secrets("sk-secret"))
        self._sample = sample

    def status(self) -> Status:
        """Tell the sample as of now."""
        status: Status = later(self._sample, datetime.now(UTC) - AT)
        return status

    def wait(self, number: int, seconds: float) -> int:
        """Wait for the next two seconds."""
        latest = int(time.monotonic() / LOOK_SECONDS)
        if latest == number:
            time.sleep(min(seconds, (latest + 1) * LOOK_SECONDS - time.monotonic()))
        return int(time.monotonic() / LOOK_SECONDS)


def history(span: str) -> dict[str, Any]:
    """A made-up history with a gap and a burst."""
    step = {"1h": 20, "1d": 480}[span]
    now = math.floor(time.time() / step) * step
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
        "gpu_utilization_ratio": [min(1.0, each / 8) for each in load],
    }
    for values in series.values():
        values[40:52] = [None] * 12
    return {"schema": 1, "range": span, "step_seconds": step, "error": None, "times": times, "series": series}


def create(name: str) -> Flask:
    """The dashboard, showing one sample."""
    app = create_app(SamplePoller(SAMPLES[name]), Secrets("sk-secret"))

    def past() -> Response:
        told = history(request.args["range"])
        if name != "gpu":
            del told["series"]["gpu_utilization_ratio"]
        return jsonify(told)

    app.view_functions["past"] = past
    return app


def main() -> None:
    """Serve until interrupted."""
    first = int(sys.argv[1])
    for port, name in enumerate(SAMPLES, start=first):
        server = make_server("127.0.0.1", port if first else 0, create(name), threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write(f"{name} http://127.0.0.1:{server.server_port}/\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
