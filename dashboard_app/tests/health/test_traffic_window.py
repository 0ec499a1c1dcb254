"""The last minute's traffic from counters: exact counts, across restarts, and Prometheus' quantiles."""

import math

import pytest
from bedplate_dashboard.health.model import Lanes, Refusals, Traffic
from bedplate_dashboard.health.traffic_window import TrafficWindow, estimate_quantile
from bedplate_dashboard.sources.prometheus_text import Samples

from dashboard_app.tests.observed import LITELLM_SCRAPE, gateway_metrics, litellm_metrics


def counters(
    *,
    served: int = 0,
    refused: int = 0,
    timed_out: int = 0,
    tokens: tuple[int, int] = (0, 0),
    seconds: float = 0.0,
    process: float = 1.0,
) -> Samples:
    """Return the gateway's counters; half of the served requests began within 0.5 s, the rest within 1 s."""
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


def summarize(window: TrafficWindow, now: float) -> Traffic:
    """Return the last minute's traffic."""
    traffic = window.summary(now).traffic
    assert traffic is not None
    return traffic


def test_nothing_is_known_before_the_second_poll() -> None:
    window = TrafficWindow()
    assert window.summary(0).traffic is None
    window.add(counters(served=1000), 0)
    assert window.summary(0).traffic is None
    window.add(counters(served=1000), 2)
    assert summarize(window, 2).requests == 0
    assert summarize(window, 2).success_ratio is None


def test_the_last_minute() -> None:
    window = TrafficWindow()
    window.add(counters(served=1000, tokens=(70, 70), seconds=5), 0)
    window.add(counters(served=1010, refused=3, timed_out=1, tokens=(170, 370), seconds=8), 2)
    window.add(counters(served=1016, refused=4, timed_out=2, tokens=(230, 670), seconds=11), 40)
    assert summarize(window, 40) == Traffic(
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
        refusals=(
            Refusals(reason="key_requests", status=429, count=4),
            Refusals(reason="queue_timeout", status=503, count=2),
        ),
    )
    assert window.summary(40).tokens_per_second == {"m": 100.0}
    assert window.summary(40).refusals == (
        Refusals(reason="key_requests", status=429, count=1),
        Refusals(reason="queue_timeout", status=503, count=1),
    )
    assert window.summary(51).refusals == ()


def test_requests_older_than_a_minute_do_not_count() -> None:
    window = TrafficWindow()
    for second in range(0, 200, 2):
        window.add(counters(served=second), second)
    assert (summarize(window, 198).requests, summarize(window, 198).window_seconds) == (60, 60)


def test_a_restart_of_the_gateway_changes_no_count() -> None:
    window = TrafficWindow()
    window.add(counters(served=100), 0)
    window.add(counters(served=107), 2)
    window.add(counters(served=3, process=2.0), 4)
    window.add(counters(served=110, process=2.0), 6)
    assert summarize(window, 6).requests == 117


def lanes(**counts: int) -> Samples:
    """Return the gateway's requests by lane."""
    return gateway_metrics(
        *(f'bedplate_gateway_lane_requests_total{{lane="{lane}"}} {count}' for lane, count in counts.items())
    )


def test_requests_by_lane() -> None:
    window = TrafficWindow()
    window.add(lanes(litellm=5, direct=1, bypass=0), 0)
    assert (window.summary(0).lanes, window.summary(0).bypassed) == (None, 0)
    window.add(lanes(litellm=9, direct=2, bypass=3), 2)
    assert window.summary(2).lanes == Lanes(litellm=4, direct=1, bypass=3)
    assert (window.summary(2).bypassed, window.summary(13).bypassed) == (3, 0)
    assert window.summary(13).lanes == Lanes(litellm=4, direct=1, bypass=3)


def latencies(model: str, total: tuple[float, float], engine: tuple[float, float]) -> list[str]:
    """Return LiteLLM's lines for one model: sum and count of the whole time and of the engine's."""
    labels = f'{{model="m",requested_model="{model}"}}'
    return [
        f"litellm_{name}_latency_metric_{part}{labels} {value}"
        for name, values in (("request_total", total), ("llm_api", engine))
        for part, value in zip(("sum", "count"), values, strict=True)
    ]


def test_what_litellm_adds_by_a_real_scrape() -> None:
    window = TrafficWindow()
    window.add_litellm(litellm_metrics("process_start_time_seconds 1"), 0)
    window.add_litellm(litellm_metrics(LITELLM_SCRAPE), 15)
    recent = window.summary(15)
    # 5.2885 s less the engine's 5.1530 s for 8 requests; the warm-up does not count.
    assert recent.litellm_added_seconds == pytest.approx(0.01694, abs=1e-5)
    assert recent.litellm_memory_bytes == 458_809_344


def test_what_litellm_adds_counts_the_last_minute_of_requests_with_both_times() -> None:
    window = TrafficWindow()
    window.add_litellm(litellm_metrics(*latencies("a", (100, 50), (10, 50))), 0)
    assert window.summary(0).litellm_added_seconds is None
    window.add_litellm(litellm_metrics(*latencies("a", (102, 54), (11.9, 54))), 15)
    assert window.summary(15).litellm_added_seconds == pytest.approx(0.025)
    # Clocks that differ a little must not show a negative time.
    window.add_litellm(litellm_metrics(*latencies("a", (103, 55), (13, 55))), 80)
    assert window.summary(80).litellm_added_seconds == 0
    window.add_litellm(litellm_metrics(*latencies("a", (104, 57), (13, 56))), 100)
    assert window.summary(100).litellm_added_seconds is None


def test_litellm_without_metrics() -> None:
    window = TrafficWindow()
    assert (window.summary(0).litellm_memory_bytes, window.summary(0).litellm_added_seconds) == (None, None)
    window.add_litellm(litellm_metrics("process_resident_memory_bytes 5e+08"), 0)
    window.add_litellm(None, 15)
    assert window.summary(15).litellm_memory_bytes is None


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
    assert estimate_quantile(buckets, share) == (expected if expected is None else pytest.approx(expected))
