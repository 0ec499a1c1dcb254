"""History: queried once for all readers and cached for a step; a missing Prometheus is one sentence."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources import collect, history
from bedplate_dashboard.sources.history import QUERIES, SPANS, History

from dashboard_app.tests.observed import FakeServer


class FakePrometheus:
    """Answers a range query with a point at its start and NaN at its end, other queries with a disk."""

    def __init__(self) -> None:
        self.queries: list[dict[str, str]] = []
        self.status = 200
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                parameters = {key: value[0] for key, value in parse_qs(parts.query).items()}
                fake.queries.append(parameters)
                disk = {"host": "gpu1", "mountpoint": "/srv"}
                series: list[dict[str, Any]] = [{"metric": disk, "value": [0, "12.5"]}]
                if parts.path == "/api/v1/query_range":
                    points = [[int(parameters["start"]), "1.5"], [int(parameters["end"]), "NaN"]]
                    series = [] if "gpu" in parameters["query"] else [{"metric": {}, "values": points}]
                body = json.dumps({"status": "success", "data": {"result": series}}).encode()
                self.send_response(fake.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = FakeServer(("127.0.0.1", 0), Handler)
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()


@pytest.fixture
def prometheus() -> Iterator[FakePrometheus]:
    fake = FakePrometheus()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def queried_settings(prometheus: FakePrometheus, settings: Settings) -> Settings:
    url = f"http://127.0.0.1:{prometheus.server.server_port}"
    return settings.model_copy(update={"prometheus_url": url})


@pytest.mark.parametrize(("name", "points"), [("1h", 181), ("1d", 181)])
def test_a_range(prometheus: FakePrometheus, queried_settings: Settings, name: Any, points: int) -> None:
    document = History(queried_settings).fetch(name)
    assert (document["schema"], document["range"], document["error"]) == (1, name, None)
    assert document["step_seconds"] == SPANS[name].step
    times = document["times"]
    assert (len(times), times[1] - times[0]) == (points, SPANS[name].step)
    assert 0 <= time.time() - times[-1] <= SPANS[name].step + 1
    assert document["series"].keys() == QUERIES.keys()
    assert document["series"]["requests_per_second"] == [1.5] + [None] * 180
    assert document["series"]["gpu_utilization_ratio"] == [None] * 181
    assert len(prometheus.queries) == len(QUERIES)
    window = {"1h": "[60s]", "1d": "[480s]"}[name]
    assert any(window in parameters["query"] for parameters in prometheus.queries)
    assert not any("$" in parameters["query"] for parameters in prometheus.queries)


def test_many_readers_share_one_query(prometheus: FakePrometheus, queried_settings: Settings) -> None:
    cached = History(queried_settings)
    readers = [threading.Thread(target=cached.fetch, args=("1h",)) for _ in range(20)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(prometheus.queries) == len(QUERIES)


def test_a_missing_prometheus_is_reported_and_queried_again(
    prometheus: FakePrometheus, queried_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = History(queried_settings)
    prometheus.status = 503
    document = cached.fetch("1h")
    assert document["error"] == "Could not read the history from Prometheus (HTTP 503)."
    assert (document["times"], document["series"]) == ([], {})
    prometheus.status = 200
    assert cached.fetch("1h") == document
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + history.FAILURE_SECONDS)
    assert cached.fetch("1h")["error"] is None


def test_how_fast_disks_fill(prometheus: FakePrometheus, queried_settings: Settings) -> None:
    async def ask() -> Any:
        async with collect.new_client(queried_settings) as client:
            return await history.query_days_left(client, queried_settings)

    assert asyncio.run(ask()) == {("gpu1", "/srv"): 12.5}
    prometheus.status = 500
    assert asyncio.run(ask()) == {}
