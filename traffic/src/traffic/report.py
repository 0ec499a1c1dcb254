"""The report of a run: its form in JSON, and the numbers that thresholds and comparisons name."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

Outcome = Literal["answered", "refused", "failed", "cancelled", "unfinished"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How a number of seconds is spread; all but `count` are null where there is none."""

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


@dataclass(slots=True)
class RequestReport:
    """One request. Moments are seconds since the run's start, durations seconds."""

    class_name: str
    number: int
    """Its place in the class's schedule, from 0."""
    outcome: Outcome
    intended: float
    send_lag: float | None
    """Between the intended moment and the first byte sent; null where none was."""
    seconds: float
    """From the intended moment to the end."""
    first_token: float | None = None
    """From the intended moment."""
    status: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_wait: float | None = None
    """What x-bedplate-queue-ms says, in seconds."""
    retries: int = 0
    good: bool | None = None
    """Whether it was answered and kept to the SLO; null where there is none, or it was left on purpose."""
    request_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Refusals that said when to come again."""

    seen: int = 0
    obeyed: int = 0
    """So many times the request was sent again, and not before that time."""
    answered: int = 0
    """Requests that were answered in the end."""


@dataclass(frozen=True, slots=True)
class Slots:
    """What became of the moments at which something was to be sent."""

    planned: int
    """In the schedule; in a closed loop those that were taken."""
    sent: int
    missed: int
    """Came while max_in_flight requests were unanswered."""
    unsent: int
    """Left over when the run ended."""


@dataclass(frozen=True, slots=True)
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
    """Left by the client on purpose."""
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
    """Both kinds, without the last answer's."""
    prompt_tokens_per_second: float
    completion_tokens_per_second: float
    answers_per_second: float
    good: int
    good_ratio: float | None
    """Of all that were sent and not left on purpose; null where there is no SLO."""
    good_per_second: float | None
    status: dict[str, int]
    """Requests by status, `none` where none came, and by class (`2xx`)."""
    retry_after: RetryAfter
    errors: dict[str, int]
    """The most common words of failures and refusals, with their number."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One threshold, and what was seen."""

    threshold: str
    ok: bool
    seen: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run."""

    schema: Literal[2]
    ok: bool
    interrupted: bool
    at: str
    """When it began, UTC, ISO 8601."""
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
    """Return what thresholds may name."""
    return [*_NUMBERS, *(f"{spread}.{one.name}" for spread in SPREADS for one in fields(Spread))]


def metric(report: ClassReport, name: str) -> float | None:
    """Return one of the numbers of `metric_names`; a status that never came is 0."""
    if name == "total_tokens":
        return report.prompt_tokens + report.completion_tokens
    first, _, second = name.partition(".")
    value: Any = getattr(report, first)
    if second:
        value = value.get(second, 0) if isinstance(value, dict) else getattr(value, second)
    number: float | None = value
    return number
