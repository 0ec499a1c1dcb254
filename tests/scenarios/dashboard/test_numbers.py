"""The page's counts of a minute equal those of `traffic`, to the request and the token."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.browser import PageOpener
from tests.support.stack import ROOT, Stack

# A key with 100 requests a minute; the three more are refused.
ALIAS, REQUESTS, ALLOWED = "ratelimit", 103, 100
HISTOGRAMS = {
    "ttft": "bedplate_gateway_time_to_first_token_seconds",
    "latency": "bedplate_gateway_request_seconds",
}


def run_traffic(stack: Stack, report: Path) -> dict[str, Any]:
    """Send requests from four clients with `traffic`; return its report."""
    subprocess.run(
        [
            *(sys.executable, "-m", "bedplate_traffic", "run", "--concurrency=4", f"--requests={REQUESTS}"),
            *("--seconds=40", "--max-tokens=2", f"--model={stack.model}", f"--json={report}"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "traffic/src"),
            "OPENAI_BASE_URL": f"{stack.url}/v1",
            "OPENAI_API_KEY": stack.key(ALIAS),
            "SSL_CERT_FILE": str(stack.ca_file),
        },
        capture_output=True,
        check=False,
    )
    counted: dict[str, Any] = json.loads(report.read_text())["classes"][0]
    return counted


def count_up_to(stack: Stack) -> dict[tuple[str, float], float]:
    """Return the gateway's own counts: requests by histogram and upper bound in seconds."""
    counts: dict[tuple[str, float], float] = {}
    for family in text_string_to_metric_families(stack(f"curl -fsS {stack.metrics_url}")):
        for sample in family.samples:
            if sample.name == f"{family.name}_bucket":
                place = (family.name, float(sample.labels["le"]))
                counts[place] = counts.get(place, 0.0) + sample.value
    return counts


def find_bucket(grown: dict[tuple[str, float], float], histogram: str, share: float) -> tuple[float, float]:
    """Return the bounds of the bucket with the quantile of the requests since an earlier count."""
    bounds = sorted(bound for name, bound in grown if name == histogram)
    rank = share * grown[histogram, bounds[-1]]
    place = next(i for i, bound in enumerate(bounds) if grown[histogram, bound] >= rank)
    return (bounds[place - 1] if place else 0.0), bounds[place]


def test_numbers_of_a_minute(
    stack: Stack, open_page: PageOpener, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # The dashboard counts from its start, so earlier requests are excluded; the canary must not send any.
    stack("systemctl stop traffic-canary.timer traffic-canary; systemctl restart bedplate-dashboard")
    request.addfinalizer(lambda: stack("systemctl start traffic-canary.timer"))
    with open_page() as page:
        page.wait_until(lambda: page.live.locator("[data-what=requests]").count() > 0, 10)
        assert page.number("requests") == 0
        before = count_up_to(stack)
        counted = run_traffic(stack, tmp_path / "traffic.json")
        page.wait_until(lambda: page.number("requests") >= REQUESTS, 10)
        grown = {place: count - before.get(place, 0.0) for place, count in count_up_to(stack).items()}
        limit = page.card("limits").locator(f"[data-alias={ALIAS}]").first
        rows = [
            ("requests", page.number("requests"), counted["answered"] + counted["refused"]),
            ("refused with 429", page.number("refused_429"), counted["refused"]),
            ("refused with 503", page.number("refused_503"), 0),
            ("tokens in", page.number("tokens_in"), counted["prompt_tokens"]),
            ("tokens out", page.number("tokens_out"), counted["completion_tokens"]),
            ("used of 100 a minute", float(limit.get_attribute("data-value") or "nan"), ALLOWED),
        ]
        times = [
            (
                f"{name} {quantile}",
                page.number(f"{what}_{quantile}"),
                counted[spread][quantile],
                find_bucket(grown, HISTOGRAMS[what], share),
            )
            for name, what, spread in (
                ("first token", "ttft", "first_token"),
                ("end to end", "latency", "end_to_end"),
            )
            for quantile, share in (("p50", 0.5), ("p95", 0.95))
        ]
        print("\n| | the page | traffic |\n|---|---|---|")
        print("\n".join(f"| {name} | {shown:g} | {true:g} |" for name, shown, true, *_ in [*rows, *times]))
        assert [name for name, shown, true in rows if shown != true] == []
        assert [name for name, shown, _, (low, high) in times if not low <= shown <= high] == []
        # A client sees each token after the gateway; how much later depends on the load of the machine.
        assert [name for name, _, seen, (low, _) in times if seen < low] == []
        assert page.problems == []
