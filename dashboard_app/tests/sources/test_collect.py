"""Polling: each kind of failure is distinguished within its deadline, and hostile text becomes harmless."""

import asyncio
import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources import collect
from bedplate_dashboard.sources.collect import Observation, ReportFile, read_report
from bedplate_dashboard.sources.prometheus_text import Samples

from dashboard_app.tests.observed import LITELLM_SCRAPE, FakeServer

Answer = Callable[[BaseHTTPRequestHandler], None]
ALERT = {
    "labels": {"alertname": "DiskFull", "severity": "critical", "host": "gpu1"},
    "annotations": {"summary": "/ is full", "next": "df -h"},
    "state": "firing",
    "activeAt": "2026-03-01T12:00:00.123456789Z",
    "value": "4e-02",
}
METRICS = b"""# HELP bedplate_gateway_info Always 1.
bedplate_gateway_info{version="0.1.0"} 1.0
bedplate_gateway_slots{engine="gpu1",model="small:1b"} 2.0
node_memory_MemTotal_bytes 8.0e+09
somebody_elses{broken
"""
STATE = {"schema": 1, "at": "2026-03-01T12:00:00Z", "engine": {"up": True}, "models": [{"name": "small:1b"}]}


def send(status: int, body: object) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return answer


def drip(request: BaseHTTPRequestHandler) -> None:
    """Send a byte now and then, so that no single read ever times out."""
    request.send_response(200)
    request.end_headers()
    for _ in range(100):
        request.wfile.write(b" ")
        time.sleep(0.05)


class FakeStack:
    """Fake gateway, exporter and Prometheus on one port; each answer can be replaced by a fault."""

    def __init__(self) -> None:
        self.authorization: str | None = None
        self.requested: list[str] = []
        self.answers: dict[str, Answer] = {
            "/v1/models": send(200, {"data": [{"id": "small:1b"}]}),
            "/state.json": send(200, STATE),
            "/-/ready": send(200, b"ready"),
            "/api/v1/alerts": send(200, {"status": "success", "data": {"alerts": [ALERT]}}),
            "/api/v1/status/buildinfo": send(200, {"status": "success", "data": {"version": "2.53.3"}}),
            "/api/v1/query": send(200, {"status": "success", "data": {"result": [{"value": [1, "7.5"]}]}}),
            "/metrics": send(200, METRICS),
        }
        stack = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stack.authorization = self.headers.get("Authorization", stack.authorization)
                with contextlib.suppress(OSError):  # the client may have disconnected, as it should
                    stack.requested.append(self.path)
                    stack.answers[self.path.partition("?")[0]](self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = FakeServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()


@pytest.fixture
def stack() -> Iterator[FakeStack]:
    fake = FakeStack()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def poll_stack(stack: FakeStack, config: dict[str, Any]) -> Callable[..., Observation]:
    def ask(**changes: str) -> Observation:
        urls = {
            "gateway_url": stack.url,
            "gateway_metrics_url": stack.url,
            "prometheus_url": stack.url,
            **changes,
        }
        nodes = [{"name": "gpu1", "url": stack.url}]
        hosts = [{"name": "gpu1", "exporter_url": stack.url, "models": ["small:1b"]}]
        settings = Settings.model_validate_json(
            json.dumps(config | urls | {"inference_hosts": hosts, "node_exporters": nodes})
        )

        async def once() -> Observation:
            async with collect.new_client(settings) as client:
                return await collect.collect(client, settings, "sk-dashboard")

        return asyncio.run(once())

    return ask


def test_every_service_answers(poll_stack: Callable[..., Observation], stack: FakeStack) -> None:
    observation = poll_stack()
    assert stack.authorization == "Bearer sk-dashboard"
    assert observation.gateway.models == {"small:1b"}
    assert observation.hosts[0].state is not None
    assert observation.hosts[0].state.models[0].name == "small:1b"
    assert observation.gateway.metrics.value("bedplate_gateway_slots", engine="gpu1") == 2
    assert observation.prometheus.contact.ok
    assert observation.prometheus.alerts is not None
    assert observation.prometheus.alerts[0].labels.alertname == "DiskFull"
    assert observation.prometheus.version == "2.53.3"
    assert observation.machines[0].metrics.value("node_memory_MemTotal_bytes") == 8e9
    # Every two seconds only the cheap collectors are requested.
    assert any(path.startswith("/metrics?collect[]=filesystem") for path in stack.requested)
    assert (observation.verify, observation.smoke) == (ReportFile(), ReportFile())
    assert len(stack.requested) == 8


@pytest.fixture
def read_litellm(stack: FakeStack, settings: Settings) -> Callable[[], Samples | None]:
    async def once() -> Samples | None:
        there = settings.model_copy(update={"gateway_metrics_url": stack.url})
        async with collect.new_client(settings) as client:
            return await collect.fetch_litellm(client, there)

    return lambda: asyncio.run(once())


def test_litellm_answers_through_the_gateway(
    stack: FakeStack, read_litellm: Callable[[], Samples | None]
) -> None:
    stack.answers["/metrics/litellm"] = send(200, LITELLM_SCRAPE.encode())
    metrics = read_litellm()
    assert metrics is not None
    assert metrics.value("process_resident_memory_bytes") == 458_809_344
    assert len(metrics["litellm_llm_api_latency_metric_sum"]) == 2
    # The metrics' address needs no key.
    assert stack.authorization is None


@pytest.mark.parametrize(
    "answer",
    [
        send(502, b"LiteLLM does not answer"),
        send(404, b""),
        send(200, b"process_resident_memory_bytes NaN"),
        send(200, b"\n" * (collect.METRICS_BYTES + 1)),
        drip,
    ],
    ids=["down", "earlier gateway", "invalid", "too much", "dripping"],
)
def test_litellm_without_a_usable_answer(
    stack: FakeStack,
    read_litellm: Callable[[], Samples | None],
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
) -> None:
    monkeypatch.setattr(collect, "ANSWER_SECONDS", 1.0)
    stack.answers["/metrics/litellm"] = answer
    assert read_litellm() is None


GATEWAY_FAULTS: dict[str, tuple[Answer, str, str]] = {
    "wrong key": (send(401, {}), "refused", "HTTP 401"),
    "over its limit": (send(429, {}), "refused", "HTTP 429"),
    "error": (send(500, {}), "failed", "HTTP 500"),
    "moved": (send(302, {}), "failed", "HTTP 302"),
    "no JSON": (send(200, b"<html>"), "failed", "answered without a model list"),
    "other JSON": (send(200, {"data": [{"id": 7}]}), "failed", "answered without a model list"),
    "too much": (send(200, b" " * 1_200_000), "failed", "answered with more than 1 MiB"),
    "hang-up": (
        lambda request: request.connection.close(),
        "failed",
        "closed the connection without an answer",
    ),
    "dripping": (drip, "failed", "no answer within 1 s"),
}


@pytest.mark.parametrize(("answer", "outcome", "error"), GATEWAY_FAULTS.values(), ids=GATEWAY_FAULTS)
def test_gateway_faults(
    *,
    poll_stack: Callable[..., Observation],
    stack: FakeStack,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    outcome: str,
    error: str,
) -> None:
    monkeypatch.setattr(collect, "ANSWER_SECONDS", 1.0)
    stack.answers["/v1/models"] = answer
    observation = poll_stack()
    assert (observation.gateway.contact.outcome, observation.gateway.contact.error) == (outcome, error)
    assert observation.gateway.models == frozenset()
    assert observation.prometheus.contact.ok
    assert observation.seconds < 3


def test_a_closed_port_is_a_failed_service(poll_stack: Callable[..., Observation]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        observation = poll_stack(prometheus_url=f"http://127.0.0.1:{free.getsockname()[1]}")
    assert (observation.prometheus.contact.outcome, observation.prometheus.contact.error) == (
        "failed",
        "connection refused",
    )


def test_a_name_that_does_not_resolve_is_an_unreachable_host(poll_stack: Callable[..., Observation]) -> None:
    observation = poll_stack(prometheus_url="http://no-such-host.invalid:9090")
    assert (observation.prometheus.contact.outcome, observation.prometheus.contact.error) == (
        "unreachable",
        "the host name does not resolve",
    )


def test_no_connection_is_an_unreachable_host() -> None:
    assert collect._explain(httpx.ConnectTimeout(""), 2.0) == ("unreachable", "no connection within 1.2 s")
    error = httpx.ConnectError("All connection attempts failed")
    error.__cause__ = OSError(113, "No route to host")
    assert collect._explain(error, 2.0) == ("unreachable", "no route to the host")


@pytest.mark.parametrize(
    "state",
    [
        b"{}",
        json.dumps(STATE | {"schema": 2}).encode(),
        json.dumps(STATE | {"models": [{"name": "a", "size_bytes": -1}]}).encode(),
        b'{"schema":1,"at":"2026-03-01T12:00:00Z","engine":{"up":true,"latency_seconds":NaN},"models":[]}',
    ],
)
def test_an_exporter_with_an_invalid_answer(
    poll_stack: Callable[..., Observation], stack: FakeStack, state: bytes
) -> None:
    stack.answers["/state.json"] = send(200, state)
    contact = poll_stack().hosts[0].contact
    assert (contact.outcome, contact.error) == ("failed", "answered without the engine's state")


@pytest.mark.parametrize("metrics", [b"bedplate_gateway_slots{ 1", b"bedplate_gateway_slots NaN"])
def test_invalid_metrics(poll_stack: Callable[..., Observation], stack: FakeStack, metrics: bytes) -> None:
    stack.answers["/metrics"] = send(200, metrics)
    contact = poll_stack().gateway.metrics_contact
    assert (contact.outcome, contact.error) == ("failed", "answered without metrics")


@pytest.mark.parametrize("body", [b"{}", b"<html>", b'{"data": {"alerts": [{}]}}'])
def test_prometheus_without_alerts_and_version(
    poll_stack: Callable[..., Observation], stack: FakeStack, body: bytes
) -> None:
    stack.answers["/api/v1/alerts"] = send(200, body)
    stack.answers["/api/v1/status/buildinfo"] = send(404, b"")
    observation = poll_stack()
    assert observation.prometheus.contact.ok
    assert (observation.prometheus.alerts, observation.prometheus.version) == (None, None)


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"data": {"result": [{"value": [1, "7.5"]}]}}, 7.5),
        ({"data": {"result": []}}, math.inf),
        ({"data": {"result": [{"value": [1, "soon"]}]}}, None),
        ({}, None),
    ],
)
def test_the_newest_sample_of_prometheus(
    poll_stack: Callable[..., Observation], stack: FakeStack, body: dict[str, Any], seconds: float | None
) -> None:
    stack.answers["/api/v1/query"] = send(200, body)
    assert poll_stack().prometheus.newest_seconds == seconds
    stack.answers["/-/ready"] = send(503, b"")
    assert poll_stack().prometheus.newest_seconds is None


def test_verify_report(tmp_path: Path) -> None:
    path = tmp_path / "verify.json"
    assert read_report(path, "verify.yml") == ReportFile()
    path.write_text('{"schema": 1, "ok": tr')
    assert (
        read_report(path, "verify.yml").error == "the report does not have the format that verify.yml writes"
    )
    check = {"host": "gpu1", "name": "active", "ok": None, "seen": "x", "next": "y"}
    path.write_text(json.dumps({"schema": 1, "ok": True, "at": "2026-03-01T12:00:00Z", "checks": [check]}))
    report = read_report(path, "verify.yml").report
    assert report is not None
    assert report.checks[0].ok is None
    path.unlink()
    path.mkdir()
    assert read_report(path, "verify.yml").error == "the report cannot be read (Is a directory)"
