"""The last minute out of growing counters: whole counts, across restarts, and Prometheus' quantiles."""

from __future__ import annotations

import math

import pytest
from bedplate_dashboard.exposition import Exposition
from bedplate_dashboard.status import Refusals, Traffic
from bedplate_dashboard.traffic import Window, quantile
from observed import gateway_metrics


def counters(
    *,
    served: int = 0,
    refused: int = 0,
    timed_out: int = 0,
    tokens: tuple[int, int] = (0, 0),
    seconds: float = 0.0,
    process: float = 1.0,
) -> Exposition:
    """The gateway's counters; half of the served are streams that began within 0.5 s, the rest within 1 s."""
    request = 'alias="a",model="m",path="/v1/chat/completions"'
    lines = [
        f"process_start_time_seconds {process}",
        f'bedplate_gateway_requests_total{{{request},status="200"}} {served}',
        f'bedplate_gateway_requests_total{{{request},status="429"}} {refused}',
        f'bedplate_gateway_requests_total{{{request},status="503"}} {timed_out}',
        f'bedplate_gateway_requests_total{{alias="b",model="-",path="/v1/models",status="200"}} {served}',
        f'bedplate_gateway_refusals_total{{reason="key_requests",status="429"}} {refused}',
        f'bedplate_gateway_refusals_total{{reason="queue_timeout",status="503"}} {timed_out}',
        f'bedplate_gateway_refusals_total{{reason="no_key",status="401"}} {served}',
        f'bedplate_gateway_prompt_tokens_total{{alias="a",model="m"}} {tokens[0]}',
        f'bedplate_gateway_completion_tokens_total{{alias="a",model="m"}} {tokens[1]}',
        f'bedplate_gateway_service_seconds_sum{{model="m"}} {seconds}',
    ]
    for name in ("time_to_first_token", "request"):
        for bound, count in (("0.5", served / 2), ("1.0", served), ("+Inf", served)):
            labels = f'class="normal",model="m",le="{bound}"'
            lines.append(f"bedplate_gateway_{name}_seconds_bucket{{{labels}}} {count}")
    return gateway_metrics(*lines)


def told(window: Window, now: float) -> Traffic:
    """The last minute's traffic."""
    traffic = window.lately(now).traffic
    assert traffic is not None
    return traffic


def test_nothing_is_known_before_the_second_look() -> None:
    window = Window()
    assert window.lately(0).traffic is None
    window.add(counters(served=1000), 0)
    assert window.lately(0).traffic is None
    window.add(counters(served=1000), 2)
    assert told(window, 2).requests == 0
    assert told(window, 2).success_ratio is None


def test_the_last_minute() -> None:
    window = Window()
    window.add(counters(served=1000, tokens=(70, 70), seconds=5), 0)
    window.add(counters(served=1010, refused=3, timed_out=1, tokens=(170, 370), seconds=8), 2)
    window.add(counters(served=1016, refused=4, timed_out=2, tokens=(230, 670), seconds=11), 40)
    assert told(window, 40) == Traffic(
        window_seconds=40,
        requests=22,
        prompt_tokens=160,
        completion_tokens=600,
        requests_per_second=22 / 40,
        tokens_in_per_second=4.0,
        tokens_out_per_second=15.0,
        ttft_p50_seconds=0.5,
        ttft_p95_seconds=0.95,
        latency_p50_seconds=0.5,
        latency_p95_seconds=0.95,
        success_ratio=1 - 2 / 22,
        refused_429=4,
        refused_503=2,
        refusals=(Refusals("key_requests", 429, 4), Refusals("queue_timeout", 503, 2)),
    )
    assert window.lately(40).tokens_per_second == {"m": 100.0}
    assert window.lately(40).refusals == (
        Refusals("key_requests", 429, 1),
        Refusals("queue_timeout", 503, 1),
    )
    assert window.lately(51).refusals == ()


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    window = Window()
    for second in range(0, 200, 2):
        window.add(counters(served=second), second)
    assert (told(window, 198).requests, told(window, 198).window_seconds) == (60, 60)


def test_a_restart_loses_and_invents_nothing() -> None:
    window = Window()
    window.add(counters(served=100), 0)
    window.add(counters(served=107), 2)
    window.add(counters(served=3, process=2.0), 4)
    window.add(counters(served=110, process=2.0), 6)
    assert told(window, 6).requests == 117


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({1.0: 0.0, math.inf: 0.0}, 0.5, None),
        ({1.0: 10.0, 2.0: 10.0, math.inf: 10.0}, 0.5, 0.5),
        ({1.0: 0.0, 2.0: 10.0, math.inf: 10.0}, 0.95, 1.95),
        ({1.0: 5.0, 2.0: 5.0, math.inf: 10.0}, 0.95, 2.0),
    ],
)
def test_quantiles(buckets: dict[float, float], share: float, expected: float | None) -> None:
    assert quantile(buckets, share) == (expected if expected is None else pytest.approx(expected))
