"""Serve each sample page on a loopback port of its own, without a stack.

The argument is the first port; 0 takes free ports.

python -m dashboard_app.tests.sample_server 3900
"""

import dataclasses
import math
import random
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bedplate_dashboard.health.model import Status
from bedplate_dashboard.health.poller import Poller
from bedplate_dashboard.settings import Secrets, Settings
from bedplate_dashboard.web.app import create_app
from flask import Flask, Response, jsonify, request
from werkzeug.serving import make_server

from dashboard_app.tests.samples import AT, SAMPLES

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
            {"name": "gpu1", "exporter_url": "http://127.0.0.1:9101", "models": ["smollm2:135m"]},
            {"name": "gpu2", "exporter_url": "http://10.1.2.4:9101", "models": ["smollm2:135m"]},
        ],
        "scrape_seconds": 15,
        "other_models": [],
        "node_exporters": [],
        "pinned_versions": [],
        "model_fits": str(Path(__file__).with_name("sample_model_fits.json")),
        "verify_report": "/nowhere",
        "smoke_report": "/nowhere",
    }
)
POLL_SECONDS = 2.0


def shift(value: Any, length: timedelta) -> Any:
    """Return a sample with all its times moved by `length`."""
    if isinstance(value, datetime):
        return value + length
    if isinstance(value, tuple):
        return tuple(shift(each, length) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{field.name: shift(getattr(value, field.name), length) for field in dataclasses.fields(value)},
        )
    return value


class SamplePoller(Poller):
    """Returns the same sample as if it were polled every two seconds."""

    def __init__(self, sample: Status) -> None:
        super().__init__(SETTINGS, Secrets("sk-secret"))
        self._sample = sample

    def status(self) -> Status:
        """Return the sample as of now."""
        status: Status = shift(self._sample, datetime.now(UTC) - AT)
        return status

    def wait(self, number: int, seconds: float) -> int:
        """Wait for the next pretended poll."""
        latest = int(time.monotonic() / POLL_SECONDS)
        if latest == number:
            time.sleep(min(seconds, (latest + 1) * POLL_SECONDS - time.monotonic()))
        return int(time.monotonic() / POLL_SECONDS)


def make_history(span: str) -> dict[str, Any]:
    """Return a made-up history with a gap and a burst."""
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


def create_sample_app(name: str) -> Flask:
    """Return the dashboard for one sample."""
    app = create_app(SamplePoller(SAMPLES[name]))

    def send_history() -> Response:
        document = make_history(request.args["range"])
        if name != "gpu":
            del document["series"]["gpu_utilization_ratio"]
        return jsonify(document)

    app.view_functions["send_history"] = send_history
    return app


def main() -> None:
    """Serve until interrupted."""
    first = int(sys.argv[1])
    for port, name in enumerate(SAMPLES, start=first):
        server = make_server("127.0.0.1", port if first else 0, create_sample_app(name), threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write(f"{name} http://127.0.0.1:{server.server_port}/\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
