"""The report of a run: its JSON form, and the metrics that thresholds and comparisons name."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

Outcome = Literal["answered", "refused", "failed", "cancelled", "unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The distribution of a duration in seconds; all fields but `count` are null where `count` is 0."""

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


@dataclass(slots=True, kw_only=True)
class RequestReport:
    """One request. Moments are seconds since the run's start, durations seconds."""

    class_name: str
    number: int
    """Its position in the class's schedule, from 0."""
    outcome: Outcome
    intended: float
    send_lag: float | None
    """From the intended moment to the first byte sent; null where none was."""
    seconds: float
    """From the intended moment to the end."""
    first_token: float | None = None
    """From the intended moment."""
    status: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_wait: float | None = None
    """The response header x-bedplate-queue-ms, in seconds."""
    retries: int = 0
    good: bool | None = None
    """Whether it was answered within the SLO; null where there is none, or it was cancelled on purpose."""
    request_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAfter:
    """Refused requests whose response named a time for a retry."""

    seen: int = 0
    obeyed: int = 0
    """How often a request was sent again, not before that time."""
    answered: int = 0
    """Requests that were answered in the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The scheduled moments of a class, by what happened at them."""

    planned: int
    """In the schedule; in a closed loop, those that were used."""
    sent: int
    missed: int
    """Due while max_in_flight requests were unanswered."""
    unsent: int
    """Left over when the run ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassReport:
    """One class of a run."""

    name: str
    key: str | None
    model: str
    load: str
    slots: Slots
    answered: int
    refused: int
    """Status 429, or 503 with Retry-After, and not answered later."""
    failed: int
    cancelled: int
    """Disconnected by the client on purpose."""
    unfinished: int
    """Unanswered when the run ended."""
    intended_rate: float | None
    """Requests a second over the schedule; null in a closed loop."""
    real_rate: float | None
    """Requests a second from the first one sent to the last; null below two."""
    send_lag: Spread
    first_token: Spread
    inter_token: Spread
    end_to_end: Spread
    queue_wait: Spread
    prompt_tokens: int
    completion_tokens: int
    tokens_before_last: int
    """Prompt and completion tokens, without those of the last answer."""
    prompt_tokens_per_second: float
    completion_tokens_per_second: float
    answers_per_second: float
    good: int
    good_ratio: float | None
    """Of all requests that were sent and not cancelled on purpose; null where there is no SLO."""
    good_per_second: float | None
    status: dict[str, int]
    """Requests by status, `none` without a response, and by status class (`2xx`)."""
    retry_after: RetryAfter
    errors: dict[str, int]
    """The most common messages of failures and refusals, with their number."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One threshold, and the measured value."""

    threshold: str
    ok: bool
    seen: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run."""

    schema: Literal[2]
    ok: bool
    interrupted: bool
    at: str
    """When it started, UTC, ISO 8601."""
    seconds: float
    traffic_version: str
    url: str
    profile: str
    description: str
    seed: int
    classes: list[ClassReport]
    thresholds: list[Judgement]
    requests: list[RequestReport] = field(default_factory=list)


SPREADS = ("send_lag", "first_token", "inter_token", "end_to_end", "queue_wait")
_NUMBERS = (
    "answered",
    "refused",
    "failed",
    "cancelled",
    "unfinished",
    "intended_rate",
    "real_rate",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "tokens_before_last",
    "prompt_tokens_per_second",
    "completion_tokens_per_second",
    "answers_per_second",
    "good",
    "good_ratio",
    "good_per_second",
    "slots.planned",
    "slots.sent",
    "slots.missed",
    "slots.unsent",
    "retry_after.seen",
    "retry_after.obeyed",
    "retry_after.answered",
    "status.2xx",
    "status.4xx",
    "status.5xx",
    "status.429",
    "status.none",
)


def metric_names() -> list[str]:
    """Return the metrics that thresholds may name."""
    return [*_NUMBERS, *(f"{spread}.{part.name}" for spread in SPREADS for part in fields(Spread))]


def metric_value(report: ClassReport, name: str) -> float | None:
    """Return the value of one of `metric_names`; a status without requests is 0."""
    if name == "total_tokens":
        return report.prompt_tokens + report.completion_tokens
    first, _, second = name.partition(".")
    value: Any = getattr(report, first)
    if second:
        value = value.get(second, 0) if isinstance(value, dict) else getattr(value, second)
    number: float | None = value
    return number
