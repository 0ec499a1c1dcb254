"""The last minute's traffic, computed from the increase of the gateway's and LiteLLM's counters."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.samples import Sample

from bedplate_dashboard.health.counter_window import CounterWindow
from bedplate_dashboard.health.model import Lanes, Refusals, Traffic
from bedplate_dashboard.health.thresholds import REFUSAL_SECONDS
from bedplate_dashboard.sources.metric_names import COUNTERS, LITELLM_COUNTERS
from bedplate_dashboard.sources.payloads import clean_label
from bedplate_dashboard.sources.prometheus_text import Samples

NO_MODEL = "-"
WARM_UP_MODEL = "warm-up"
"""The model of LiteLLM's first requests, which are its own."""

REFUSED = frozenset({429, 503})


@dataclass(frozen=True)
class RecentTraffic:
    """Traffic of the last minute, refusals of the last `REFUSAL_SECONDS`, and tokens per second by model.

    `lanes` counts the last minute, `bypassed` the last `REFUSAL_SECONDS`. The other two come from LiteLLM's
    own metrics; None without them.
    """

    traffic: Traffic | None = None
    refusals: tuple[Refusals, ...] = ()
    tokens_per_second: Mapping[str, float] = field(default_factory=dict)
    lanes: Lanes | None = None
    bypassed: int = 0
    litellm_added_seconds: float | None = None
    litellm_memory_bytes: float | None = None


class TrafficWindow:
    """The increase of the gateway's and LiteLLM's counters in the last minute, also across restarts."""

    def __init__(self) -> None:
        self._gateway = CounterWindow(COUNTERS)
        self._litellm = CounterWindow(LITELLM_COUNTERS)
        self._litellm_memory: float | None = None

    def add(self, metrics: Samples, now: float) -> None:
        """Add the gateway's metrics of one poll; `now` is in monotonic seconds."""
        self._gateway.add(metrics, now)

    def add_litellm(self, metrics: Samples | None, now: float) -> None:
        """Add LiteLLM's own metrics, None if it returned none; `now` is in monotonic seconds."""
        self._litellm_memory = metrics.value("process_resident_memory_bytes") if metrics else None
        if metrics:
            self._litellm.add(metrics, now)

    def summary(self, now: float) -> RecentTraffic:
        """Return the recent traffic; `now` is in monotonic seconds."""
        increase = self._gateway.increase(now)
        latest = self._gateway.increase(now, REFUSAL_SECONDS)
        seconds = self._gateway.length(now)
        return RecentTraffic(
            traffic=_compute_traffic(increase, seconds) if seconds else None,
            refusals=_list_refusals(latest),
            tokens_per_second=_compute_token_rates(increase),
            lanes=_count_lanes(increase) if seconds else None,
            bypassed=_count_lanes(latest).bypass,
            litellm_added_seconds=_compute_added_seconds(self._litellm.increase(now)),
            litellm_memory_bytes=self._litellm_memory,
        )


def _count_lanes(increase: Samples) -> Lanes:
    """Count the requests of each lane."""
    counts: Counter[str] = Counter()
    for sample in increase["bedplate_gateway_lane_requests_total"]:
        counts[sample.labels.get("lane", "")] += round(sample.value)
    return Lanes(litellm=counts["litellm"], direct=counts["direct"], bypass=counts["bypass"])


def _compute_added_seconds(increase: Samples) -> float | None:
    """Return the mean of the time that LiteLLM adds to a request: the whole of it less the engine's part."""

    def total(name: str) -> float:
        return sum(
            sample.value for sample in increase[name] if sample.labels.get("requested_model") != WARM_UP_MODEL
        )

    requests = total("litellm_request_total_latency_metric_count")
    # The two sums can be compared only if they have the same requests.
    if not requests or requests != total("litellm_llm_api_latency_metric_count"):
        return None
    spent = total("litellm_request_total_latency_metric_sum") - total("litellm_llm_api_latency_metric_sum")
    return max(0.0, spent / requests)


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
