"""The judgement of thresholds."""

from typing import Any

import pytest
from bedplate_traffic.load.profile import Profile
from bedplate_traffic.load.stats import ClassStats, build_class_report
from bedplate_traffic.load.thresholds import judge
from bedplate_traffic.report.model import ClassReport, Judgement, RequestReport

LOAD = {"shape": "burst", "size": 4}


def profile(*thresholds: dict[str, Any]) -> Profile:
    classes = [{"name": name, "load": LOAD} for name in ("a", "b")]
    return Profile.model_validate({"max_seconds": 1, "classes": classes, "thresholds": list(thresholds)})


def reports(seconds: float, failed: int = 0) -> list[ClassReport]:
    """Return the reports of both classes: four answers in `seconds`, in `b` half of that, and failures."""
    results = []
    for traffic_class, end in zip(profile().classes, (seconds, seconds / 2), strict=True):
        stats = ClassStats(traffic_class, "m", [0.0] * 4)
        stats.requests = [
            RequestReport(
                class_name=traffic_class.name,
                number=number,
                outcome="answered",
                intended=0.0,
                send_lag=0.0,
                seconds=end,
            )
            for number in range(4)
        ]
        stats.outcomes.update({"answered": 4, "failed": failed})
        results.append(build_class_report(stats, 1.0))
    return results


@pytest.mark.parametrize(
    ("threshold", "judgement"),
    [
        ({"metric": "answered", "equals": 4}, Judgement("a: answered is exactly 4", True, 4)),
        ({"metric": "answered", "min": 5}, Judgement("a: answered is at least 5", False, 4)),
        (
            {"metric": "end_to_end.p50", "min": 1, "max": 3},
            Judgement("a: end_to_end.p50 is at least 1 and at most 3", True, 2.0),
        ),
        (
            {"metric": "end_to_end.p50", "max": {"class": "b", "times": 1.5}},
            Judgement("a: end_to_end.p50 is at most 1.5 x that of b (1.5)", False, 2.0),
        ),
        ({"metric": "queue_wait.max", "max": 9}, Judgement("a: queue_wait.max is at most 9", False, None)),
        (
            {"metric": "answered", "min": {"class": "b", "times": 1}},
            Judgement("a: answered is at least 1 x that of b (4)", True, 4),
        ),
    ],
)
def test_a_threshold_is_judged(threshold: dict[str, Any], judgement: Judgement) -> None:
    assert judge(profile({"class": "a", **threshold}), reports(2.0)) == [judgement]


def test_without_thresholds_every_request_must_be_answered() -> None:
    assert judge(profile(), reports(2.0)) == [Judgement("every request is answered", True, 0.0)]
    assert judge(profile(), reports(2.0, failed=1)) == [Judgement("every request is answered", False, 2.0)]
