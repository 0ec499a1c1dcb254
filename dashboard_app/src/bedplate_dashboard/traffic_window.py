"""The last minute's traffic, out of counters that only grow: what each look adds is kept for a minute."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.samples import Sample

from .exposition import Exposition
from .foreign import word
from .status import Refusals, Traffic

WINDOW_SECONDS = 60.0
RECENT_SECONDS = 10.0
"""How long a refusal counts as going on."""

# Of the last minute their growth is told.
COUNTERS = (
    "bedplate_gateway_requests_total",
    "bedplate_gateway_refusals_total",
    "bedplate_gateway_prompt_tokens_total",
    "bedplate_gateway_completion_tokens_total",
    "bedplate_gateway_service_seconds_sum",
    "bedplate_gateway_time_to_first_token_seconds_bucket",
    "bedplate_gateway_request_seconds_bucket",
)
NO_MODEL = "-"
REFUSED = frozenset({429, 503})

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Lately:
    """The last minute's traffic, the last seconds' refusals, and the minute's tokens a second by model."""

    traffic: Traffic | None = None
    refusals: tuple[Refusals, ...] = ()
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)


class Window:
    """What was counted in the last minute, also across a restart of the gateway."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._last: dict[Series, float] | None = None
        self._process: float | None = None
        self._began = 0.0
        self._growth: deque[tuple[float, dict[Series, float]]] = deque()

    def add(self, metrics: Exposition, now: float) -> None:
        """Take one look's counters; `now` is monotonic seconds."""
        values = {
            (name, frozenset(sample.labels.items())): sample.value
            for name in COUNTERS
            for sample in metrics[name]
        }
        process = metrics.value("process_start_time_seconds")
        if self._last is None:
            self._began = now
        else:
            before = self._last if process == self._process else {}
            growth = {series: value - before.get(series, 0.0) for series, value in values.items()}
            self._growth.append((now, {series: value for series, value in growth.items() if value > 0}))
        self._last, self._process = values, process
        while self._growth and self._growth[0][0] <= now - WINDOW_SECONDS:
            self._growth.popleft()

    def _grown(self, now: float, seconds: float) -> Exposition:
        """Add up the last `seconds`."""
        total: dict[Series, float] = defaultdict(float)
        for at, growth in self._growth:
            if at > now - seconds:
                for series, value in growth.items():
                    total[series] += value
        found: dict[str, list[Sample]] = {}
        for (name, labels), value in total.items():
            found.setdefault(name, []).append(Sample(name, dict(labels), value))
        return Exposition({name: tuple(samples) for name, samples in found.items()})

    def lately(self, now: float) -> Lately:
        """Sum up."""
        grown = self._grown(now, WINDOW_SECONDS)
        # Before the second look there is nothing to tell.
        traffic = _traffic(grown, min(WINDOW_SECONDS, now - self._began)) if self._growth else None
        return Lately(traffic, _refusals(self._grown(now, RECENT_SECONDS)), _tokens_per_second(grown))


def _traffic(grown: Exposition, seconds: float) -> Traffic:
    """Tell what grew in `seconds`."""
    statuses: Counter[int] = Counter()
    for sample in grown["bedplate_gateway_requests_total"]:
        if sample.labels.get("model", NO_MODEL) != NO_MODEL:
            statuses[_status(sample)] += round(sample.value)
    requests = statuses.total()
    failed = sum(count for status, count in statuses.items() if status >= 500)
    tokens_in = round(_sum(grown["bedplate_gateway_prompt_tokens_total"]))
    tokens_out = round(_sum(grown["bedplate_gateway_completion_tokens_total"]))
    first = _buckets(grown["bedplate_gateway_time_to_first_token_seconds_bucket"])
    latency = _buckets(grown["bedplate_gateway_request_seconds_bucket"])
    return Traffic(
        window_seconds=seconds,
        requests=requests,
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
        requests_per_second=requests / seconds,
        tokens_in_per_second=tokens_in / seconds,
        tokens_out_per_second=tokens_out / seconds,
        ttft_p50_seconds=quantile(first, 0.5),
        ttft_p95_seconds=quantile(first, 0.95),
        latency_p50_seconds=quantile(latency, 0.5),
        latency_p95_seconds=quantile(latency, 0.95),
        success_ratio=1 - failed / requests if requests else None,
        refused_429=statuses[429],
        refused_503=statuses[503],
        refusals=_refusals(grown),
    )


def _tokens_per_second(grown: Exposition) -> dict[str, float]:
    """Tell the tokens out for each second of an engine's time, by model."""
    seconds: dict[str, float] = defaultdict(float)
    tokens: dict[str, float] = defaultdict(float)
    for sample in grown["bedplate_gateway_service_seconds_sum"]:
        seconds[sample.labels.get("model", NO_MODEL)] += sample.value
    for sample in grown["bedplate_gateway_completion_tokens_total"]:
        tokens[sample.labels.get("model", NO_MODEL)] += sample.value
    return {model: tokens[model] / spent for model, spent in seconds.items() if spent and tokens[model]}


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Estimate a quantile as Prometheus does: evenly within its bucket, which may have no end."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if not total:
        return None
    rank = share * total
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return lower


def _sum(samples: Iterable[Sample]) -> float:
    return sum(sample.value for sample in samples)


def _status(sample: Sample) -> int:
    status = sample.labels.get("status", "")
    return int(status) if status.isdecimal() else 0


def _buckets(samples: Iterable[Sample]) -> dict[float, float]:
    """Add up the buckets of all classes and models."""
    buckets: dict[float, float] = defaultdict(float)
    for sample in samples:
        buckets[float(sample.labels["le"])] += sample.value
    return buckets


def _refusals(grown: Exposition) -> tuple[Refusals, ...]:
    refusals = (
        Refusals(word(sample.labels.get("reason", "")), _status(sample), round(sample.value))
        for sample in grown["bedplate_gateway_refusals_total"]
        if _status(sample) in REFUSED
    )
    return tuple(sorted(refusals, key=lambda refusal: (-refusal.count, refusal.reason)))
