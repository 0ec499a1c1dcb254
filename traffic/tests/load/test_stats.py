"""The numbers of a class."""

from pathlib import Path

from bedplate_traffic.fake_engine.server import Behaviour

from traffic.tests.traffic_fakes import engine
from traffic.tests.traffic_runs import Ran, burst, profile


def test_goodput_counts_answers_within_the_slo(tmp_path: Path) -> None:
    with engine(Behaviour(concurrency=1, prompt_seconds=0.25, tokens=1)) as (url, _):
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=4)), "--slo-total", "0.7")
    assert (ran.only["good"], ran.only["good_ratio"]) == (2, 0.5)
    assert [request["good"] for request in ran.report["requests"]].count(True) == 2
