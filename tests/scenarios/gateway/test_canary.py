"""The canary loads no model, keeps none loaded, and exports its result as a metric."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.stack import Stack, wait_for


@pytest.fixture(scope="module", autouse=True)
def _timer_aside(stack: Stack) -> Iterator[None]:
    stack("systemctl stop traffic-canary.timer")
    yield
    stack.play("--tags", "traffic")


def result(stack: Stack) -> str:
    """Run the canary and return its result from the node exporter's metrics."""
    stack("systemctl start traffic-canary.service")
    metrics = stack("curl --silent --fail http://127.0.0.1:9100/metrics")
    (value,) = re.findall(r'^bedplate_traffic_canary_result{.*result="(\w+)"} 1$', metrics, re.MULTILINE)
    return str(value)


def loaded(stack: Stack) -> bool:
    """Return whether the gateway reports the model as loaded."""
    return bool(re.search(r"^bedplate_gateway_engine_loaded{.*} 1\.0$", metrics_of(stack), re.MULTILINE))


def metrics_of(stack: Stack) -> str:
    return stack(f"curl --silent --fail {stack.metrics_url}")


def test_it_tests_only_models_in_use(stack: Stack) -> None:
    with stack.client(stack.key("bench")) as client:
        assert stack.chat(client).status_code == 200
        wait_for(lambda: loaded(stack))
        assert result(stack) == "answered"
        assert result(stack) == "not_used"
        assert stack.chat(client).status_code == 200
        assert result(stack) == "answered"


def test_it_loads_nothing(stack: Stack) -> None:
    with stack.client(stack.key("bench")) as client:
        assert stack.chat(client).status_code == 200
    stack(f"/opt/bedplate/ollama/current/bin/ollama stop {stack.model}")
    wait_for(lambda: not loaded(stack))
    assert result(stack) == "not_loaded"
    assert stack.model not in stack("/opt/bedplate/ollama/current/bin/ollama ps")


def test_a_gateway_that_is_stopped_is_a_failure(stack: Stack) -> None:
    stack("systemctl stop bedplate-gateway")
    try:
        assert result(stack) == "failed"
    finally:
        stack("systemctl start bedplate-gateway")


def test_a_disabled_canary_is_removed(stack: Stack) -> None:
    assert stack.play("--tags", "traffic", settings={"traffic_canary_enabled": False}) > 0
    assert stack.play("--tags", "traffic", settings={"traffic_canary_enabled": False}) == 0
    paths = "/etc/systemd/system/traffic-canary.* /etc/bedplate/traffic-canary /var/lib/traffic-canary"
    metrics = "/var/lib/node-exporter/textfile/canary.prom /var/lib/node-exporter/canary"
    assert stack(f"ls -d {paths} {metrics} 2>/dev/null || true") == ""
    assert "canary" not in stack("systemctl list-timers --all --no-pager")
