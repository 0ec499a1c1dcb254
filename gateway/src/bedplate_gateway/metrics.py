"""The gateway's metrics. Every label's value is declared in the settings or fixed: clients add no series."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from bedplate_gateway import __version__
from bedplate_gateway.admission import LocalAdmission
from bedplate_gateway.record import NONE, Record
from bedplate_gateway.settings import CLASSES

# They would double the series, and nothing reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)

KNOWN_REFUSALS = {"queue_full": 429, "queue_timeout": 503, "engine_unavailable": 503, "engine_error": 502}


class Metrics:
    """Counts requests as they end, and asks admission for the rest at each scrape."""

    def __init__(self, admission: LocalAdmission, in_flight: Callable[[], int]) -> None:
        """Start at 0."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_Now(admission, in_flight))
        self._requests = Counter(
            "bedplate_gateway_requests",
            "Requests that ended.",
            ["alias", "model", "path", "status"],
            registry=registry,
        )
        self._refusals = Counter(
            "bedplate_gateway_refusals",
            "Requests that were not served, by reason and status.",
            ["reason", "status"],
            registry=registry,
        )
        # Known from the start, as the models' below, so that their first burst counts as an increase.
        for reason, status in KNOWN_REFUSALS.items():
            self._refusals.labels(reason, str(status))
        self._prompt = Counter(
            "bedplate_gateway_prompt_tokens", "Tokens in.", ["alias", "model"], registry=registry
        )
        self._completion = Counter(
            "bedplate_gateway_completion_tokens", "Tokens out.", ["alias", "model"], registry=registry
        )
        self._estimated = Counter(
            "bedplate_gateway_estimated_requests",
            "Requests whose tokens are an estimate, since the client left.",
            registry=registry,
        )
        self._retries = Counter(
            "bedplate_gateway_retries", "Tries after the first.", ["model"], registry=registry
        )
        self._truncations = Counter(
            "bedplate_gateway_truncations",
            "Prompts that filled the whole context.",
            ["model"],
            registry=registry,
        )
        self._wait = Histogram(
            "bedplate_gateway_wait_seconds", "Wait for a slot.", ["class"], buckets=SHORT, registry=registry
        )
        self._service = Histogram(
            "bedplate_gateway_service_seconds",
            "Time on the engine.",
            ["model"],
            buckets=LONG,
            registry=registry,
        )
        self._first = Histogram(
            "bedplate_gateway_time_to_first_token_seconds",
            "Time from arrival to the first byte of a streamed answer.",
            ["class", "model"],
            buckets=LONG,
            registry=registry,
        )
        self._seconds = Histogram(
            "bedplate_gateway_request_seconds",
            "Time from arrival to the end of the answer.",
            ["class", "model"],
            buckets=LONG,
            registry=registry,
        )
        self._last_request = Gauge(
            "bedplate_gateway_last_request_timestamp_seconds",
            "When a request that had a slot last ended with an answer, or for want of one.",
            ["alias", "model", "result"],
            registry=registry,
        )
        self._last_pace = Gauge(
            "bedplate_gateway_last_answer_tokens_per_second",
            "Tokens that the last answer gave in a second of the engine's time.",
            ["model"],
            registry=registry,
        )
        for seats in admission.scheduler.seats():
            for model in seats.models:
                self._retries.labels(model)
                self._truncations.labels(model)

    def count(self, record: Record) -> None:
        """Count a request that has ended."""
        alias, model = record.alias, record.model
        self._requests.labels(alias, model, record.path, str(record.status)).inc()
        if record.reason != NONE:
            self._refusals.labels(record.reason, str(record.status)).inc()
        if record.wait is None:
            return
        if result := _result(record):
            self._last_request.labels(alias, model, result).set(time.time())
        self._wait.labels(record.priority_class).observe(record.wait)
        self._prompt.labels(alias, model).inc(record.prompt_tokens)
        self._completion.labels(alias, model).inc(record.completion_tokens)
        if record.estimated:
            self._estimated.inc()
        if record.retries:
            self._retries.labels(model).inc(record.retries)
        if record.truncated:
            self._truncations.labels(model).inc()
        if record.service is not None:
            self._service.labels(model).observe(record.service)
            if record.completion_tokens and not record.estimated and record.service > 0:
                self._last_pace.labels(model).set(record.completion_tokens / record.service)
        if record.stream and record.first_byte is not None:
            self._first.labels(record.priority_class, model).observe(record.first_byte)
        self._seconds.labels(record.priority_class, model).observe(record.seconds)

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


def _result(record: Record) -> str | None:
    """Tell whether the model answered; None where the client left, or what it sent was no good."""
    if record.reason == "client_left":
        return None
    if record.status >= 500 or (record.status == 200 and record.reason != NONE):
        return "failed"
    return "answered" if record.status == 200 else None


class _Now(Collector):
    """What is so at the moment of the scrape."""

    def __init__(self, admission: LocalAdmission, in_flight: Callable[[], int]) -> None:
        self._admission = admission
        self._in_flight = in_flight

    def collect(self) -> Iterator[Metric]:
        """Iterate over the gauges."""
        now = self._admission.clock()
        scheduler = self._admission.scheduler
        running = GaugeMetricFamily(
            "bedplate_gateway_in_flight_requests", "Requests that have come and are not answered in full."
        )
        running.add_metric([], self._in_flight())
        yield running
        info = GaugeMetricFamily("bedplate_gateway_info", "Always 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        slots = GaugeMetricFamily(
            "bedplate_gateway_slots", "Requests that run at a time at most.", labels=["engine", "model"]
        )
        busy = GaugeMetricFamily(
            "bedplate_gateway_slots_busy", "Requests that run.", labels=["engine", "model"]
        )
        serves = GaugeMetricFamily(
            "bedplate_gateway_engine_serves",
            "1 if the engine answers and holds the model.",
            labels=["engine", "model"],
        )
        loaded = GaugeMetricFamily(
            "bedplate_gateway_engine_loaded",
            "1 if the model is in the engine's memory.",
            labels=["engine", "model"],
        )
        for seats in scheduler.seats():
            for name, model in seats.models.items():
                labels = [seats.engine.name, name]
                slots.add_metric(labels, model.slots)
                busy.add_metric(labels, seats.running.get(name, 0))
                serves.add_metric(labels, self._admission.engines.serves(seats.engine, name))
                loaded.add_metric(labels, self._admission.engines.loaded(seats.engine, name))
        yield from (slots, busy, serves, loaded)
        depth = GaugeMetricFamily("bedplate_gateway_queue_requests", "Requests that wait.", labels=["class"])
        oldest = GaugeMetricFamily(
            "bedplate_gateway_queue_oldest_wait_seconds", "How long the oldest has waited.", labels=["class"]
        )
        for name in CLASSES:
            depth.add_metric([name], scheduler.depth(name))
            arrived = min((ticket.arrived for ticket in scheduler.waiting(name)), default=now)
            oldest.add_metric([name], now - arrived)
        yield from (depth, oldest)
        limit = GaugeMetricFamily(
            "bedplate_gateway_limit", "What may be used in a minute.", labels=["scope", "name", "unit"]
        )
        used = GaugeMetricFamily(
            "bedplate_gateway_limit_used",
            "What was used in the last minute.",
            labels=["scope", "name", "unit"],
        )
        for budget in self._admission.limits.budgets():
            for unit, allowed in budget.limits.items():
                limit.add_metric([budget.scope, budget.name, unit], allowed)
                used.add_metric([budget.scope, budget.name, unit], budget.windows[unit].used(now))
        yield from (limit, used)
        lost = CounterMetricFamily(
            "bedplate_gateway_lost_leases", "Slots that nobody gave back and that were ended by time."
        )
        lost.add_metric([], self._admission.lost_leases)
        yield lost
