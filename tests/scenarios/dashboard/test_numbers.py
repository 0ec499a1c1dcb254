"""The page's counts of a minute equal those of `traffic`, to the request and the token."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bedplate_gateway.metrics import LONG

from tests.support.browser import PageOpener
from tests.support.stack import ROOT, Stack

# A key with 100 requests a minute; the three more are refused.
ALIAS, REQUESTS, ALLOWED = "ratelimit", 103, 100
PATH_SECONDS = 0.02
"""A client sees each time up to so much later than the gateway, whose time the page shows."""


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


def same_bucket(shown: float, true: float) -> bool:
    """Return whether the shown time lies in the histogram bucket of the true one, less the path."""
    bounds = [0.0, *LONG]
    low = max(bound for bound in bounds if bound <= max(0.0, true - PATH_SECONDS))
    high = min(bound for bound in bounds if bound >= true)
    return low <= shown <= high


def test_numbers_of_a_minute(
    stack: Stack, open_page: PageOpener, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # The dashboard counts from its start, so earlier requests are excluded; the canary must not send any.
    stack("systemctl stop traffic-canary.timer traffic-canary; systemctl restart bedplate-dashboard")
    request.addfinalizer(lambda: stack("systemctl start traffic-canary.timer"))
    with open_page() as page:
        page.wait_until(lambda: page.live.locator("[data-what=requests]").count() > 0, 10)
        assert page.number("requests") == 0
        counted = run_traffic(stack, tmp_path / "traffic.json")
        page.wait_until(lambda: page.number("requests") >= REQUESTS, 10)
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
            (f"{name} {quantile}", page.number(f"{what}_{quantile}"), counted[spread][quantile])
            for name, what, spread in (
                ("first token", "ttft", "first_token"),
                ("end to end", "latency", "end_to_end"),
            )
            for quantile in ("p50", "p95")
        ]
        print("\n| | the page | traffic |\n|---|---|---|")
        print("\n".join(f"| {name} | {shown:g} | {true:g} |" for name, shown, true in rows + times))
        assert [name for name, shown, true in rows if shown != true] == []
        assert [name for name, shown, true in times if not same_bucket(shown, true)] == []
        assert page.problems == []
