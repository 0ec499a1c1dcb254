"""The dashboard's own metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .poller import Poller

STATES = ("healthy", "degraded", "down")


class StatusMetrics(Collector):
    """Reads the status at each scrape."""

    def __init__(self, poller: Poller, streams: Callable[[], int]) -> None:
        """Remember whom to ask for the status and for the number of event streams."""
        self._poller = poller
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        """Tell the state, the age and length of the last poll, how many there were, and who watches."""
        status = self._poller.status()
        states = GaugeMetricFamily(
            "bedplate_dashboard_state",
            "The state that the dashboard tells: 1 for the one that holds.",
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
                "How long the last poll took.",
                value=status.seconds,
            )
        verify = status.verdict.operations.verify if status.verdict else None
        if verify and verify.ok is not None and verify.at is not None:
            yield GaugeMetricFamily(
                "bedplate_dashboard_verify_ok", "1 if the last verify found nothing.", value=float(verify.ok)
            )
            yield GaugeMetricFamily(
                "bedplate_dashboard_verify_timestamp_seconds",
                "When the last verify ran.",
                value=verify.at.timestamp(),
            )
        yield CounterMetricFamily(
            "bedplate_dashboard_polls", "Polls since the start.", value=status.poll_number
        )
        yield GaugeMetricFamily(
            "bedplate_dashboard_streams", "Browsers that are sent events.", value=self._streams()
        )
