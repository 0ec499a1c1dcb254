"""The last minute's traffic, computed from counters: each poll's increase is kept for a minute."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.samples import Sample

from bedplate_dashboard.health.model import Refusals, Traffic
from bedplate_dashboard.health.thresholds import REFUSAL_SECONDS
from bedplate_dashboard.sources.metric_names import COUNTERS
from bedplate_dashboard.sources.payloads import clean_label
from bedplate_dashboard.sources.prometheus_text import Samples

WINDOW_SECONDS = 60.0
NO_MODEL = "-"
REFUSED = frozenset({429, 503})

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class RecentTraffic:
    """Traffic of the last minute, refusals of the last `REFUSAL_SECONDS`, and tokens per second by model."""

    traffic: Traffic | None = None
    refusals: tuple[Refusals, ...] = ()
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)


class TrafficWindow:
    """The increase of the counters in the last minute, also across a restart of the gateway."""

    def __init__(self) -> None:
        self._last: dict[Series, float] | None = None
        self._process: float | None = None
        self._began = 0.0
        self._growth: deque[tuple[float, dict[Series, float]]] = deque()

    def add(self, metrics: Samples, now: float) -> None:
        """Add the counters of one poll; `now` is in monotonic seconds."""
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

    def _sum_increase(self, now: float, seconds: float) -> Samples:
        """Return the increase over the last `seconds`."""
        total: dict[Series, float] = defaultdict(float)
        for at, growth in self._growth:
            if at > now - seconds:
                for series, value in growth.items():
                    total[series] += value
        found: dict[str, list[Sample]] = {}
        for (name, labels), value in total.items():
            found.setdefault(name, []).append(Sample(name, dict(labels), value))
        return Samples({name: tuple(samples) for name, samples in found.items()})

    def summary(self, now: float) -> RecentTraffic:
        """Return the recent traffic; `now` is in monotonic seconds."""
        increase = self._sum_increase(now, WINDOW_SECONDS)
        # An increase needs two polls.
        traffic = _compute_traffic(increase, min(WINDOW_SECONDS, now - self._began)) if self._growth else None
        return RecentTraffic(
            traffic=traffic,
            refusals=_list_refusals(self._sum_increase(now, REFUSAL_SECONDS)),
            tokens_per_second=_compute_token_rates(increase),
        )


def _compute_traffic(increase: Samples, seconds: float) -> Traffic:
    """Compute rates and quantiles from the increase over `seconds`."""
    statuses: Counter[int] = Counter()
    for sample in increase["bedplate_gateway_requests_total"]:
        if sample.labels.get("model", NO_MODEL) != NO_MODEL:
            statuses[_parse_status(sample)] += round(sample.value)
    requests = statuses.total()
    failed = sum(count for status, count in statuses.items() if status >= 500)
    tokens_in = round(_sum(increase["bedplate_gateway_prompt_tokens_total"]))
    tokens_out = round(_sum(increase["bedplate_gateway_completion_tokens_total"]))
    first = _sum_buckets(increase["bedplate_gateway_time_to_first_token_seconds_bucket"])
    latency = _sum_buckets(increase["bedplate_gateway_request_seconds_bucket"])
    return Traffic(
        window_seconds=seconds,
        requests=requests,
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
        requests_per_second=requests / seconds,
        tokens_in_per_second=tokens_in / seconds,
        tokens_out_per_second=tokens_out / seconds,
        ttft_p50_seconds=estimate_quantile(first, 0.5),
        ttft_p95_seconds=estimate_quantile(first, 0.95),
        latency_p50_seconds=estimate_quantile(latency, 0.5),
        latency_p95_seconds=estimate_quantile(latency, 0.95),
        success_ratio=1 - failed / requests if requests else None,
        refused_429=statuses[429],
        refused_503=statuses[503],
        refusals=_list_refusals(increase),
    )


def _compute_token_rates(increase: Samples) -> dict[str, float]:
    """Return the completion tokens per second of engine time, by model."""
    seconds: dict[str, float] = defaultdict(float)
    tokens: dict[str, float] = defaultdict(float)
    for sample in increase["bedplate_gateway_service_seconds_sum"]:
        seconds[sample.labels.get("model", NO_MODEL)] += sample.value
    for sample in increase["bedplate_gateway_completion_tokens_total"]:
        tokens[sample.labels.get("model", NO_MODEL)] += sample.value
    return {model: tokens[model] / spent for model, spent in seconds.items() if spent and tokens[model]}


def estimate_quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Estimate a quantile as Prometheus does: linear within a bucket, the lower bound for +Inf."""
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


def _parse_status(sample: Sample) -> int:
    status = sample.labels.get("status", "")
    return int(status) if status.isdecimal() else 0


def _sum_buckets(samples: Iterable[Sample]) -> dict[float, float]:
    """Add up the buckets of all classes and models, by upper bound."""
    buckets: dict[float, float] = defaultdict(float)
    for sample in samples:
        buckets[float(sample.labels["le"])] += sample.value
    return buckets


def _list_refusals(increase: Samples) -> tuple[Refusals, ...]:
    refusals = (
        Refusals(
            reason=clean_label(sample.labels.get("reason", "")),
            status=_parse_status(sample),
            count=round(sample.value),
        )
        for sample in increase["bedplate_gateway_refusals_total"]
        if _parse_status(sample) in REFUSED
    )
    return tuple(sorted(refusals, key=lambda refusal: (-refusal.count, refusal.reason)))
