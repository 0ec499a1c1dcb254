"""Which paths and ports of the gateway are open, and to whom."""

from __future__ import annotations

import httpx
import pytest

from tests.support.stack import Stack


@pytest.mark.parametrize(
    "path", ["/health", "/metrics", "/docs", "/ui", "/v1", "/key/generate", "/v1/audio/speech"]
)
def test_unknown_paths_return_404(stack: Stack, path: str) -> None:
    for secret in ("", stack.key("bench")):
        with stack.client(secret) as client:
            for answer in (client.get(path), client.post(path, json={})):
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


def test_health_is_open(stack: Stack) -> None:
    with stack.client() as client:
        assert [client.get(f"/health/{what}").status_code for what in ("liveliness", "readiness")] == [
            200,
            200,
        ]


def test_only_monitoring_reads_the_metrics(stack: Stack) -> None:
    output = stack(f"curl --silent --fail {stack.metrics_url}")
    assert "bedplate_gateway_requests_total{" in output
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{httpx.URL(stack.url).host}:9464/metrics", trust_env=False)


def test_every_request_is_logged_in_the_journal(stack: Stack) -> None:
    with stack.client(stack.key("bench")) as client:
        answer = stack.chat(client, messages=[{"role": "user", "content": "marked-prompt-4711"}])
    output = stack("journalctl --unit bedplate-gateway --no-pager --lines 50")
    (line,) = [line for line in output.splitlines() if answer.headers["x-request-id"] in line]
    for part in (
        "status=200",
        "alias=bench",
        "class=normal",
        f"model={stack.model}",
        "engine=one",
        "tokens_out=1",
    ):
        assert part in line
    assert "marked-prompt-4711" not in output
    assert stack.key("bench") not in output
