"""The dashboard's own metrics."""

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bedplate_dashboard.health.poller import Poller

STATES = ("healthy", "degraded", "down")


class StatusMetrics(Collector):
    """Metrics of the poller's status at scrape time; `count_streams` returns the open event streams."""

    def __init__(self, poller: Poller, count_streams: Callable[[], int]) -> None:
        self._poller = poller
        self._count_streams = count_streams

    def collect(self) -> Iterator[Metric]:
        """Yield the state, age, duration and number of polls, the last verify, and the event streams."""
        status = self._poller.status()
        states = GaugeMetricFamily(
            "bedplate_dashboard_state",
            "1 for the state that the dashboard shows, 0 for the other states.",
            labels=["state"],
        )
        for name in STATES:
            states.add_metric([name], float(status.state == name))
        yield states
        yield GaugeMetricFamily(
            "bedplate_dashboard_poll_age_seconds", "Time since the last poll ended.", value=status.age_seconds
        )
        if status.seconds is not None:
            yield GaugeMetricFamily(
                "bedplate_dashboard_poll_duration_seconds",
                "Duration of the last poll.",
                value=status.seconds,
            )
        verify = status.verdict.operations.verify if status.verdict else None
        if verify and verify.ok is not None and verify.at is not None:
            yield GaugeMetricFamily(
                "bedplate_dashboard_verify_ok", "1 if the last verify run passed.", value=float(verify.ok)
            )
            yield GaugeMetricFamily(
                "bedplate_dashboard_verify_timestamp_seconds",
                "Unix time of the last verify run.",
                value=verify.at.timestamp(),
            )
        yield CounterMetricFamily(
            "bedplate_dashboard_polls", "Polls since the dashboard started.", value=status.poll_number
        )
        yield GaugeMetricFamily(
            "bedplate_dashboard_streams",
            "Open event streams, one for each browser.",
            value=self._count_streams(),
        )
