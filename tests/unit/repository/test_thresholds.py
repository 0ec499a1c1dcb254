"""Thresholds that several parts know are the same in dashboard, page, alert rules, gateway and roles."""

import re
from pathlib import Path

import pytest
import yaml
from bedplate_dashboard.health import thresholds
from bedplate_gateway.metrics import LONG

ROOT = Path(__file__).resolve().parents[3]
ALERTS = ROOT / "roles/prometheus/templates/alerts.rules.yml.j2"
PAGE = ROOT / "dashboard_app/src/bedplate_dashboard/web/static/page.js"


def read_alert(name: str) -> str:
    """Return the expression of the first rule of an alert."""
    match = re.search(rf"- alert: {name}\n\s+expr: (.*?)\n\s+(?:for|labels):", ALERTS.read_text(), re.DOTALL)
    assert match, name
    return match[1]


def find_numbers(pattern: str, text: str) -> list[float]:
    """Return the numbers of a pattern's first group, of which there must be some."""
    numbers = [float(number) for number in re.findall(pattern, text)]
    assert numbers, pattern
    return numbers


@pytest.mark.parametrize(
    ("alert", "metric"),
    [("DiskFull", "node_filesystem_size_bytes"), ("MemoryPressure", "node_memory_MemTotal_bytes")],
)
def test_what_counts_as_full(alert: str, metric: str) -> None:
    assert find_numbers(rf"{metric} < ([0-9.]+)", read_alert(alert)) == [thresholds.FULL_RATIO]


def test_how_much_of_a_model_is_on_the_gpu() -> None:
    assert find_numbers(r"< ([0-9.]+) \*", read_alert("EngineOnCpu")) == [thresholds.GPU_RATIO]
    proof = (ROOT / "roles/gpu_driver/library/gpu_proof.py").read_text()
    assert find_numbers(r"(?m)^WHOLE = ([0-9.]+)$", proof) == [thresholds.GPU_RATIO]


def test_how_long_a_request_may_wait() -> None:
    expression = read_alert("QueueSaturated")
    assert find_numbers(r"> \[\[ ([0-9.]+) \*", expression) == [thresholds.LONG_WAIT_SECONDS]
    assert re.findall(r'class!="(\w+)"', expression) == [thresholds.UNLIMITED_WAIT_CLASS]


def test_refusals_that_count_raise_an_alert_too() -> None:
    (reasons,) = re.findall(r'reason=~"([\w|]+)"', read_alert("RequestsRefused"))
    assert set(reasons.split("|")) >= thresholds.SERVER_REFUSALS


def test_when_the_page_calls_itself_stale() -> None:
    page = PAGE.read_text()
    assert find_numbers(r"const PERIOD = (\d+);", page) == [1000 * thresholds.POLL_SECONDS]
    assert find_numbers(r"const STALE_AFTER = (\d+);", page) == [1000 * thresholds.STALE_SECONDS]


def test_the_promise_of_the_first_token_is_a_bound_of_the_gateways_histogram() -> None:
    tasks = yaml.safe_load((ROOT / "roles/prometheus/tasks/validate.yml").read_text())
    checks = [check for task in tasks for check in task.get("loop", [])]
    (check,) = [check for check in checks if "prometheus_first_token_seconds" in check["that"]]
    (bounds,) = re.findall(r"in \[([0-9., ]+)\]", check["that"])
    assert tuple(map(float, bounds.split(","))) == LONG
    remedy = " ".join(check["remedy"].split())
    (named,) = re.findall(r"gateway's histogram: ([0-9., or]+)\.$", remedy)
    assert tuple(map(float, named.replace(" or ", ", ").split(", "))) == LONG
    defaults = yaml.safe_load((ROOT / "roles/prometheus/defaults/main.yml").read_text())
    assert defaults["prometheus_first_token_seconds"] in LONG
