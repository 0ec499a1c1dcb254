"""The report as a page."""

from pathlib import Path

from traffic.tests.traffic_fakes import engine
from traffic.tests.traffic_runs import Ran, profile


def test_a_run_without_requests_still_gets_an_html_page(tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    with engine() as (url, _):
        load = {"shape": "constant", "rate": 0.0001, "seconds": 1}
        ran = Ran(
            tmp_path,
            url,
            profile(tmp_path, {"name": "a", "load": load, "start_after_seconds": 5}),
            "--max-seconds",
            "0.2",
            "--html",
            str(page),
        )
    assert ran.only["slots"] == {"planned": 1, "sent": 0, "missed": 0, "unsent": 1}
    assert page.read_text().endswith("</html>\n")
