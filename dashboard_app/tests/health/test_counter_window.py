"""The increase of counters: exact, across restarts, and only of the last minute."""

from bedplate_dashboard.health.counter_window import CounterWindow
from bedplate_dashboard.sources.prometheus_text import Samples

from dashboard_app.tests.observed import litellm_metrics

NAME = "litellm_request_total_latency_metric_count"


def counted(process: float, **series: int) -> Samples:
    """Return one counter with a series for each model."""
    return litellm_metrics(
        f"process_start_time_seconds {process}",
        *(f'{NAME}{{model="{model}"}} {value}' for model, value in series.items()),
    )


def increase(window: CounterWindow, now: float, seconds: float = 60.0) -> dict[str, float]:
    """Return the increase by model."""
    return {sample.labels["model"]: sample.value for sample in window.increase(now, seconds)[NAME]}


def test_an_increase_needs_two_polls() -> None:
    window = CounterWindow([NAME])
    window.add(counted(1, a=10), 0)
    assert (window.length(0), increase(window, 0)) == (0, {})
    window.add(counted(1, a=12, b=1), 2)
    assert (window.length(2), increase(window, 2)) == (2, {"a": 2, "b": 1})


def test_what_is_older_does_not_count() -> None:
    window = CounterWindow([NAME])
    for now in range(0, 200, 10):
        window.add(counted(1, a=now), now)
    assert (window.length(190), increase(window, 190)) == (60, {"a": 60})
    assert increase(window, 190, 20) == {"a": 20}


def test_a_restart_loses_no_count() -> None:
    window = CounterWindow([NAME])
    window.add(counted(1, a=10), 0)
    window.add(counted(2, a=3), 2)
    assert increase(window, 2) == {"a": 3}
