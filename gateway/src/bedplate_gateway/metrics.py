"""The gateway's metrics. Label values are fixed or declared in the settings: no client can add a series.

The number of keys is not bounded, but that of series with a key's name is: Prometheus drops a whole scrape
with too many samples.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from itertools import chain, islice
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from bedplate_gateway.access_log import NONE, AccessRecord
from bedplate_gateway.admission.limits import Budget
from bedplate_gateway.admission.local import LocalAdmission
from bedplate_gateway.clock import ExpiryClock
from bedplate_gateway.engines.health import Engines
from bedplate_gateway.engines.litellm import Lane, LiteLLM
from bedplate_gateway.settings import PRIORITY_CLASSES
from bedplate_gateway.traces import Tracer

# They would double the series, and nothing reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]

Family = TypeVar("Family", Counter, Gauge, Histogram)
VERSION = version("bedplate-gateway")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)

MAX_KEY_SERIES = 2000
"""Of the counters and gauges of requests; later ones count for the alias OTHER_KEYS."""
MAX_LIMITED_KEYS = 200
"""The first so many keys with a limit have series of it, at most four each."""
OTHER_KEYS = "(other)"

KNOWN_REFUSALS = {"queue_full": 429, "queue_timeout": 503, "engine_unavailable": 503, "engine_error": 502}

# Name, help text, labels.
COUNTERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "bedplate_gateway_requests_total",
        "Total number of requests that ended.",
        ("alias", "model", "path", "status"),
    ),
    (
        "bedplate_gateway_refusals_total",
        "Total number of requests that were not served.",
        ("reason", "status"),
    ),
    ("bedplate_gateway_prompt_tokens_total", "Total number of prompt tokens.", ("alias", "model")),
    ("bedplate_gateway_completion_tokens_total", "Total number of completion tokens.", ("alias", "model")),
    (
        "bedplate_gateway_cost_dollars_total",
        "Total cost of answers in US dollars, at LiteLLM's prices.",
        ("alias", "model"),
    ),
    (
        "bedplate_gateway_fallbacks_total",
        "Total number of requests for the model that were sent to a fallback.",
        ("model",),
    ),
    (
        "bedplate_gateway_estimated_requests_total",
        "Total number of requests whose tokens were estimated.",
        (),
    ),
    ("bedplate_gateway_retries_total", "Total number of retries.", ("model",)),
    (
        "bedplate_gateway_lane_requests_total",
        "Total number of requests to engines: through LiteLLM, direct, or direct because LiteLLM is down.",
        ("lane",),
    ),
    (
        "bedplate_gateway_truncations_total",
        "Total number of prompts that filled the whole context.",
        ("model",),
    ),
)
GAUGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "bedplate_gateway_last_request_timestamp_seconds",
        "Unix time at which the last admitted request ended, by result.",
        ("alias", "model", "result"),
    ),
    (
        "bedplate_gateway_last_answer_tokens_per_second",
        "Completion tokens of the last answer per second on the engine.",
        ("model",),
    ),
)
# As above, then the bounds of the buckets in seconds.
HISTOGRAMS: tuple[tuple[str, str, tuple[str, ...], tuple[float, ...]], ...] = (
    ("bedplate_gateway_wait_seconds", "Time in the queue.", ("class",), SHORT),
    ("bedplate_gateway_service_seconds", "Time on the engine.", ("model",), LONG),
    (
        "bedplate_gateway_time_to_first_token_seconds",
        "Time from arrival to the first byte of a streamed answer.",
        ("class", "model"),
        LONG,
    ),
    (
        "bedplate_gateway_request_seconds",
        "Time from arrival to the end of the answer.",
        ("class", "model"),
        LONG,
    ),
)
SCRAPED_GAUGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("bedplate_gateway_in_flight_requests", "Number of requests without a complete answer.", ()),
    ("bedplate_gateway_info", "Version of the gateway; always 1.", ("version",)),
    ("bedplate_gateway_litellm_up", "Whether LiteLLM answers (1) or is bypassed (0).", ()),
    ("bedplate_gateway_slots", "Maximum number of concurrent requests.", ("engine", "model")),
    ("bedplate_gateway_slots_busy", "Number of running requests.", ("engine", "model")),
    (
        "bedplate_gateway_engine_serves",
        "Whether the engine is up and has the model (1) or not (0).",
        ("engine", "model"),
    ),
    (
        "bedplate_gateway_engine_loaded",
        "Whether the model is in the engine's memory (1) or not (0).",
        ("engine", "model"),
    ),
    (
        "bedplate_gateway_engine_drained",
        "Whether the engine is drained and gets no new request (1) or not (0).",
        ("engine",),
    ),
    (
        "bedplate_gateway_drain_timestamp_seconds",
        "Unix time since which the engine is drained.",
        ("engine", "who", "why"),
    ),
    ("bedplate_gateway_queue_requests", "Number of queued requests.", ("class",)),
    (
        "bedplate_gateway_queue_oldest_wait_seconds",
        "Time that the oldest queued request has waited.",
        ("class",),
    ),
    ("bedplate_gateway_limit", "Limit per minute.", ("scope", "name", "unit")),
    ("bedplate_gateway_limit_used", "Usage in the last minute.", ("scope", "name", "unit")),
    (
        "bedplate_gateway_usage_log_failed",
        "Whether the file that keeps the limits' usage across a restart cannot be written (1) or can (0).",
        (),
    ),
    (
        "bedplate_gateway_clock_offset_seconds",
        "Time by which the clock is behind (negative) or far ahead of the newest time seen, else 0.",
        (),
    ),
)


class Metrics:
    """Counts requests as they end, and reads the other metrics from admission at each scrape."""

    def __init__(
        self,
        admission: LocalAdmission,
        engines: Engines,
        litellm: LiteLLM,
        clock: ExpiryClock,
        in_flight: Callable[[], int],
    ) -> None:
        self.dropped_log_lines: Callable[[], int] = lambda: 0
        self.tracer: Tracer | None = None
        self._admission = admission
        self._engines = engines
        self._litellm = litellm
        self._clock = clock
        self._in_flight = in_flight
        self._key_series: set[tuple[str, ...]] = set()
        self._renderer = ThreadPoolExecutor(1, "metrics")
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._counters = {
            name: _series(Counter(name, text, labels, registry=registry), labels)
            for name, text, labels in COUNTERS
        }
        self._gauges = {
            name: _series(Gauge(name, text, labels, registry=registry), labels)
            for name, text, labels in GAUGES
        }
        self._histograms = {
            name: _series(Histogram(name, text, labels, buckets=buckets, registry=registry), labels)
            for name, text, labels, buckets in HISTOGRAMS
        }
        # Series that exist from the start, so that their first burst counts as an increase.
        for reason, status in KNOWN_REFUSALS.items():
            self._counters["bedplate_gateway_refusals_total"](reason, str(status))
        for lane in Lane:
            self._counters["bedplate_gateway_lane_requests_total"](lane)
        for slots in admission.scheduler.engine_slots():
            for model in slots.models:
                self._counters["bedplate_gateway_retries_total"](model)
                self._counters["bedplate_gateway_truncations_total"](model)

    def count(self, record: AccessRecord) -> None:
        """Count a request that has ended."""
        counters, gauges, histograms = self._counters, self._gauges, self._histograms
        alias, model, priority_class = record.alias, record.model, record.priority_class
        self._of_key(
            counters, "bedplate_gateway_requests_total", alias, model, record.path, str(record.status)
        ).inc()
        if record.reason != NONE:
            counters["bedplate_gateway_refusals_total"](record.reason, str(record.status)).inc()
        if record.lane != NONE:
            counters["bedplate_gateway_lane_requests_total"](record.lane).inc()
        if record.requested != NONE:
            counters["bedplate_gateway_fallbacks_total"](record.requested).inc()
        if record.cost:
            self._of_key(counters, "bedplate_gateway_cost_dollars_total", alias, model).inc(record.cost)
        if record.wait is None:
            return
        if result := _result(record):
            self._of_key(gauges, "bedplate_gateway_last_request_timestamp_seconds", alias, model, result).set(
                time.time()
            )
        histograms["bedplate_gateway_wait_seconds"](priority_class).observe(record.wait)
        self._of_key(counters, "bedplate_gateway_prompt_tokens_total", alias, model).inc(record.prompt_tokens)
        self._of_key(counters, "bedplate_gateway_completion_tokens_total", alias, model).inc(
            record.completion_tokens
        )
        if record.estimated:
            counters["bedplate_gateway_estimated_requests_total"]().inc()
        if record.retries:
            counters["bedplate_gateway_retries_total"](model).inc(record.retries)
        if record.truncated:
            counters["bedplate_gateway_truncations_total"](model).inc()
        if record.service is not None:
            histograms["bedplate_gateway_service_seconds"](model).observe(record.service)
            if record.completion_tokens and not record.estimated and record.service > 0:
                speed = record.completion_tokens / record.service
                gauges["bedplate_gateway_last_answer_tokens_per_second"](model).set(speed)
        if record.stream and record.first_byte is not None:
            histograms["bedplate_gateway_time_to_first_token_seconds"](priority_class, model).observe(
                record.first_byte
            )
        histograms["bedplate_gateway_request_seconds"](priority_class, model).observe(record.seconds)

    def read(self) -> list[Metric]:
        """Return the metrics that are computed at scrape time; call it in the event loop's thread."""
        families = {
            name: GaugeMetricFamily(name, text, labels=labels) for name, text, labels in SCRAPED_GAUGES
        }

        def add(name: str, value: float, *labels: str) -> None:
            families[name].add_metric(labels, value)

        now, scheduler, engines = self._admission.clock(), self._admission.scheduler, self._engines
        add("bedplate_gateway_in_flight_requests", self._in_flight())
        add("bedplate_gateway_info", 1, VERSION)
        lanes = set()
        for slots in scheduler.engine_slots():
            drain = engines.drain(slots.engine)
            add("bedplate_gateway_engine_drained", drain is not None, slots.engine.name)
            if drain:
                since = drain.since.timestamp()
                add(
                    "bedplate_gateway_drain_timestamp_seconds",
                    since,
                    slots.engine.name,
                    drain.who,
                    drain.why,
                )
            for name, model in slots.models.items():
                lanes.add(self._litellm.lane(slots.engine, name))
                add("bedplate_gateway_slots", model.slots, slots.engine.name, name)
                add("bedplate_gateway_slots_busy", slots.running.get(name, 0), slots.engine.name, name)
                add(
                    "bedplate_gateway_engine_serves",
                    engines.has(slots.engine, name),
                    slots.engine.name,
                    name,
                )
                add(
                    "bedplate_gateway_engine_loaded",
                    engines.loaded(slots.engine, name),
                    slots.engine.name,
                    name,
                )
        if lanes - {Lane.DIRECT}:
            add("bedplate_gateway_litellm_up", self._litellm.up)
        for priority_class in PRIORITY_CLASSES:
            oldest = min((ticket.arrived for ticket in scheduler.queued(priority_class)), default=now)
            add("bedplate_gateway_queue_requests", scheduler.depth(priority_class), priority_class)
            add("bedplate_gateway_queue_oldest_wait_seconds", now - oldest, priority_class)
        if usage_log := self._admission.usage_log:
            add("bedplate_gateway_usage_log_failed", usage_log.failed)
        add("bedplate_gateway_clock_offset_seconds", self._clock.offset)
        for budget in _shown(self._admission.limits.budgets()):
            for unit, limit in budget.limits.items():
                add("bedplate_gateway_limit", limit, budget.scope, budget.name, unit)
                add(
                    "bedplate_gateway_limit_used",
                    budget.windows[unit].used(now),
                    budget.scope,
                    budget.name,
                    unit,
                )
        lost = CounterMetricFamily(
            "bedplate_gateway_lost_leases",
            "Total number of slots that were freed because of their age.",
            value=self._admission.lost_leases,
        )
        dropped = CounterMetricFamily(
            "bedplate_gateway_log_dropped",
            "Total number of log lines that were dropped, because nobody read them in time.",
            value=self.dropped_log_lines(),
        )
        spans = CounterMetricFamily(
            "bedplate_gateway_spans",
            "Total number of spans that were sent to the receiver of traces, and of those that were dropped.",
            labels=["result"],
        )
        spans.add_metric(["sent"], self.tracer.sent if self.tracer else 0)
        spans.add_metric(["dropped"], self.tracer.dropped if self.tracer else 0)
        return [*families.values(), lost, dropped, spans]

    def render(self, read: Iterable[Metric]) -> bytes:
        """Return all metrics in Prometheus' text format, with those of `read`; any thread may call it."""
        return generate_latest(_Families(self._registry.collect(), read))

    async def scrape(self) -> bytes:
        """Return all metrics; a thread renders them, since that takes longer than a request may wait."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._renderer, self.render, self.read())

    def _of_key(
        self, families: Mapping[str, Callable[..., Family]], name: str, alias: str, *labels: str
    ) -> Family:
        """Return the series of a key, or that of all others where too many keys have one."""
        series = (name, alias, *labels)
        if alias != NONE and series not in self._key_series:
            if len(self._key_series) >= MAX_KEY_SERIES:
                alias = OTHER_KEYS
            else:
                self._key_series.add(series)
        return families[name](alias, *labels)


class _Families(Collector):
    """The families of a scrape, as prometheus_client wants them."""

    def __init__(self, *parts: Iterable[Metric]) -> None:
        self._parts = parts

    def collect(self) -> Iterable[Metric]:
        """Iterate over the families."""
        return chain(*self._parts)


def _series(family: Family, labels: tuple[str, ...]) -> Callable[..., Family]:
    """Return the function from label values to the series; it keeps each, since `labels` is slow."""
    return cache(family.labels) if labels else lambda: family


def _shown(budgets: Iterable[Budget]) -> list[Budget]:
    """Return the budgets of the models and of the first keys."""
    all_budgets = list(budgets)
    keys = islice((budget for budget in all_budgets if budget.scope == "key"), MAX_LIMITED_KEYS)
    return [*keys, *(budget for budget in all_budgets if budget.scope == "model")]


def _result(record: AccessRecord) -> str | None:
    """Return whether the model answered; None where the client disconnected or sent an invalid request."""
    if record.reason == "client_left":
        return None
    if record.status >= 500 or (record.status == 200 and record.reason != NONE):
        return "failed"
    return "answered" if record.status == 200 else None
