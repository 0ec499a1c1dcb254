"""The results of a run so far, class by class, and the report that is built from them."""

import math
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bedplate_traffic.load.client import Exchange
from bedplate_traffic.load.profile import Burst, Closed, Constant, Poisson, Ramp, Slo, Step, TrafficClass
from bedplate_traffic.report.model import ClassReport, Outcome, RequestReport, RetryAfter, Slots, Spread

MAX_ERRORS = 20
DIGITS = 6
NO_SLO = Slo()
FRACTIONAL_SECONDS = re.compile(r"\d+\.\d+(?= s\b)")


@dataclass
class ClassStats:
    """The results of one class, collected while it runs."""

    traffic_class: TrafficClass
    model: str
    planned: Sequence[float]
    """The schedule; a closed loop's grows with each request."""
    requests: list[RequestReport] = field(default_factory=list)
    gaps: "array[float]" = field(default_factory=lambda: array("f"))
    """Seconds between the tokens of all answers."""
    in_flight: int = 0
    missed: int = 0
    retry_seen: int = 0
    retry_obeyed: int = 0
    retry_answered: int = 0
    refused_once: bool = False
    outcomes: Counter[Outcome] = field(default_factory=Counter)

    def add(self, number: int, intended: float, start: float, exchange: Exchange, end: "RequestEnd") -> None:
        """Add a request that has ended; `intended` and `start` are seconds of the monotonic clock."""
        completion, first = exchange.completion, exchange.first_token
        self.gaps.extend([later - earlier for earlier, later in pairwise(completion.token_times)])
        queue_ms = exchange.header_number("x-bedplate-queue-ms")
        request_id = exchange.headers.get("x-request-id")
        seconds = end.at - intended
        request = RequestReport(
            class_name=self.traffic_class.name,
            number=number,
            outcome=end.outcome,
            intended=round(intended - start, DIGITS),
            send_lag=None if end.first_sent is None else round(end.first_sent - intended, DIGITS),
            seconds=round(seconds, DIGITS),
            first_token=None if first is None else round(first - intended, DIGITS),
            status=exchange.status,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            queue_wait=None if queue_ms is None else queue_ms / 1000,
            retries=end.retries,
            good=_meets_slo(self.traffic_class.slo, exchange, intended, seconds, end.outcome),
            request_id=None if request_id is None else request_id[:100],
            error=exchange.error,
        )
        self.requests.append(request)
        self.outcomes[end.outcome] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnd:
    """How a request ended; times are seconds of the monotonic clock."""

    outcome: Outcome
    at: float
    first_sent: float | None
    retries: int


def _meets_slo(
    slo: Slo, exchange: Exchange, intended: float, seconds: float, outcome: Outcome
) -> bool | None:
    if slo == NO_SLO or outcome == "cancelled":
        return None
    times = exchange.completion.token_times
    return (
        outcome == "answered"
        and (slo.seconds is None or seconds <= slo.seconds)
        and (slo.first_token_seconds is None or not times or times[0] - intended <= slo.first_token_seconds)
        and (
            slo.inter_token_seconds is None
            or len(times) < 2
            or (times[-1] - times[0]) / (len(times) - 1) <= slo.inter_token_seconds
        )
    )


def compute_spread(values: Sequence[float]) -> Spread:
    """Return the spread of values; a percentile is the smallest value that at least so many do not exceed."""
    if not values:
        return Spread()
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], DIGITS)

    return Spread(
        count=len(ordered),
        mean=round(math.fsum(ordered) / len(ordered), DIGITS),
        p50=at(0.5),
        p90=at(0.9),
        p95=at(0.95),
        p99=at(0.99),
        max=round(ordered[-1], DIGITS),
    )


def build_class_report(stats: ClassStats, seconds: float) -> ClassReport:
    """Return the report of one class; `seconds` is the length of the run."""
    requests = stats.requests
    outcomes = stats.outcomes
    answered = [request for request in requests if request.outcome == "answered"]
    sent = sorted(request.intended + request.send_lag for request in requests if request.send_lag is not None)
    prompt = sum(request.prompt_tokens for request in requests)
    completion = sum(request.completion_tokens for request in requests)
    last = answered[-1] if answered else None
    judged = [request.good for request in requests if request.good is not None]
    planned = stats.planned
    closed = isinstance(stats.traffic_class.load, Closed)
    return ClassReport(
        name=stats.traffic_class.name,
        key=stats.traffic_class.key,
        model=stats.model,
        load=describe_load(stats.traffic_class),
        slots=Slots(
            planned=len(planned),
            sent=len(sent),
            missed=stats.missed,
            unsent=len(planned) - len(requests) - stats.missed,
        ),
        answered=outcomes["answered"],
        refused=outcomes["refused"],
        failed=outcomes["failed"],
        cancelled=outcomes["cancelled"],
        unfinished=outcomes["unfinished"],
        intended_rate=None if closed else _rate(planned),
        real_rate=_rate(sent),
        send_lag=compute_spread([request.send_lag for request in requests if request.send_lag is not None]),
        first_token=compute_spread(
            [request.first_token for request in answered if request.first_token is not None]
        ),
        inter_token=compute_spread(stats.gaps),
        end_to_end=compute_spread([request.seconds for request in answered]),
        queue_wait=compute_spread(
            [request.queue_wait for request in requests if request.queue_wait is not None]
        ),
        prompt_tokens=prompt,
        completion_tokens=completion,
        tokens_before_last=prompt + completion - (last.prompt_tokens + last.completion_tokens if last else 0),
        prompt_tokens_per_second=round(prompt / seconds, 3),
        completion_tokens_per_second=round(completion / seconds, 3),
        answers_per_second=round(len(answered) / seconds, 3),
        good=sum(judged),
        good_ratio=round(sum(judged) / len(judged), 4) if judged else None,
        good_per_second=round(sum(judged) / seconds, 3) if judged else None,
        status=_count_statuses(requests),
        retry_after=RetryAfter(
            seen=stats.retry_seen, obeyed=stats.retry_obeyed, answered=stats.retry_answered
        ),
        errors=_count_errors(requests),
    )


def describe_load(traffic_class: TrafficClass) -> str:
    """Return a class's load in words, such as `poisson 2/s for 60 s`."""
    load = traffic_class.load
    match load:
        case Constant():
            description = f"constant {load.rate:g}/s for {load.seconds:g} s"
        case Poisson():
            description = f"poisson {load.rate:g}/s for {load.seconds:g} s"
        case Ramp():
            description = f"ramp {load.from_rate:g} to {load.to_rate:g}/s in {load.seconds:g} s"
        case Step():
            description = (
                f"steps {', '.join(f'{rate:g}' for rate in load.rates)}/s, {load.seconds_each:g} s each"
            )
        case Burst():
            description = f"burst of {load.size}" + (
                f", {load.times} times, every {load.every_seconds:g} s" if load.times > 1 else ""
            )
        case Closed():
            description = f"{load.concurrency} at a time" + (
                f" for {load.seconds:g} s" if load.seconds else ""
            )
    after = traffic_class.start_after_seconds
    return description + (f", starting after {after:g} s" if after else "")


def _rate(moments: Sequence[float]) -> float | None:
    if len(moments) < 2 or moments[-1] <= moments[0]:
        return None
    return round((len(moments) - 1) / (moments[-1] - moments[0]), 3)


def _count_errors(requests: Sequence[RequestReport]) -> dict[str, int]:
    """Return the number of each error message; refusals that differ only in their seconds count as equal."""
    messages = Counter(
        FRACTIONAL_SECONDS.sub("…", request.error) if request.outcome == "refused" else request.error
        for request in requests
        if request.error
    )
    return dict(messages.most_common(MAX_ERRORS))


def _count_statuses(requests: Sequence[RequestReport]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for request in requests:
        if request.status is None:
            counts["none"] += 1
        else:
            counts[str(request.status)] += 1
            counts[f"{request.status // 100}xx"] += 1
    return dict(sorted(counts.items()))
