"""The data behind page, text, API and metrics: all of them show one `Status`, which `judge` makes.

Field names are the API's. Units are seconds, bytes, tokens and ratios from 0 to 1; None means unknown, and an
empty tuple means that there is none.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

State = Literal["healthy", "degraded", "down"]
Health = Literal["ok", "warn", "bad", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: `what` is a clause without a full stop, `next` the command to type on `next_on`.

    `about` identifies the fault while it lasts, such as `engine gpu1`.
    """

    what: str
    next: str
    next_on: str
    since: datetime | None = None
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class LastError:
    """The last error of a hop, fixed or not, and the last poll that found it."""

    text: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One hop of the request path.

    A host and its gpu have the host's name, the others their kind as their name. `error` is the
    current error; `last_error` is kept after it is fixed, until the dashboard restarts.
    """

    kind: Literal["clients", "gateway", "queue", "litellm", "host", "gpu"]
    name: str
    state: Health
    detail: str
    version: str | None = None
    latency_seconds: float | None = None
    error: str | None = None
    last_error: LastError | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One service, polled directly: whether it answered, the time that took, and its error."""

    ok: bool
    latency_seconds: float
    error: str | None


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """An engine as its exporter reports it."""

    up: bool
    version: str | None
    latency_seconds: float | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Drain:
    """A host's engine gets no new request: who drained it, since when, and why (may be empty)."""

    who: str
    since: datetime
    why: str


@dataclass(frozen=True, kw_only=True)
class Pull:
    """A model that a deployment pulls now: bytes here and in all, bytes per second, seconds left."""

    model: str
    done_bytes: int
    total_bytes: int
    bytes_per_second: int
    left_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class HostStatus:
    """One inference host; `engine` is None if its exporter does not answer. Memory in bytes.

    `drained` is None while its engine gets requests, or while the gateway returns no metrics.
    """

    name: str
    ok: bool
    exporter: Part
    engine: EngineStatus | None
    models_declared: int
    models_present: int | None
    models_loaded: int | None
    memory_bytes: int | None
    undeclared: tuple[str, ...]
    drained: Drain | None = None
    pull: Pull | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One declared model on one host. Sizes in bytes, the context in tokens, seconds until it is unloaded.

    `unload_seconds` is None if the model is not loaded or is never unloaded.
    """

    host: str
    present: bool | None
    loaded: bool | None = None
    digest: str | None = None
    size_bytes: int | None = None
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    context_length: int | None = None
    unload_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The last request to a model: its time, its age at the poll, its sender, and whether it was answered."""

    at: datetime
    age_seconds: float
    by: Literal["request", "canary"]
    ok: bool


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One declared model with three checks: listed by the gateway, present on its engines, answered last.

    `answered` is None without a request since the gateway started. `tokens_per_second` is the mean speed of a
    request in the last minute, or of the last request before it.
    """

    name: str
    can_be_served: bool | None
    listed: bool | None
    placements: tuple[Placement, ...]
    answered: Answered | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; what it does not report is None. `throttling` is the reason, empty if there is none."""

    host: str
    vendor: str
    number: str
    name: str
    utilization_ratio: float | None
    memory_used_bytes: int | None
    memory_bytes: int | None
    temperature_celsius: float | None
    power_watts: float | None
    throttling: str | None = None


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """The number of requests refused for one reason in the traffic window."""

    reason: str
    status: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The gateway's traffic in the last `window_seconds` (60, or less after a start).

    Only ended requests for a model count. `success_ratio` is the share of them without a 5xx status, None
    without requests; the quantiles are None without requests that they measure.
    """

    window_seconds: float
    requests: int
    prompt_tokens: int
    completion_tokens: int
    requests_per_second: float
    tokens_in_per_second: float
    tokens_out_per_second: float
    ttft_p50_seconds: float | None
    ttft_p95_seconds: float | None
    latency_p50_seconds: float | None
    latency_p95_seconds: float | None
    success_ratio: float | None
    refused_429: int
    refused_503: int
    refusals: tuple[Refusals, ...]


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The requests of the last minute by their way to the engines.

    `litellm` went through LiteLLM, `direct` directly because a setting says so, `bypass` directly because
    LiteLLM did not answer.
    """

    litellm: int
    direct: int
    bypass: int


@dataclass(frozen=True, kw_only=True)
class Litellm:
    """LiteLLM as the gateway sees it (`up`, `requests`), and by its own metrics.

    `added_seconds` is the mean of what it adds to a request's time in the last minute.
    """

    up: bool | None
    requests: Lanes | None
    added_seconds: float | None
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How much of its limit for a minute a key or a model has used."""

    scope: Literal["key", "model"]
    name: str
    unit: str
    used: float
    limit: float


@dataclass(frozen=True, kw_only=True)
class QueueClass:
    """The requests of one priority class that wait for a slot, and how long the oldest has waited."""

    name: str
    waiting: int
    oldest_seconds: float


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Busy and available slots of one model on one engine."""

    engine: str
    model: str
    busy: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Waiting and running requests; `slots_busy` and `slots` are totals."""

    classes: tuple[QueueClass, ...]
    slots_busy: int
    slots: int
    engines: tuple[Slots, ...]


@dataclass(frozen=True, kw_only=True)
class Disk:
    """One file system; `days_left` until it is full at its recent growth, None if unknown or never."""

    mountpoint: str
    size_bytes: int
    available_bytes: int
    days_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Service:
    """One of the stack's units: systemd's ActiveState, and how often systemd restarted it automatically."""

    name: str
    state: str
    restarts: int | None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A host's last comparison with its inventory: when, how many differences, and the first (may be empty).

    No fault: after a repair it is known only at the next comparison, up to 15 minutes later.
    """

    at: datetime
    differences: int
    first: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One host as its node exporter reports it; without an answer only `error` is set."""

    name: str
    state: Health
    error: str | None
    disks: tuple[Disk, ...] = ()
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    services: tuple[Service, ...] = ()
    reboot_required: bool | None = None
    drift: Drift | None = None


@dataclass(frozen=True, kw_only=True)
class CheckStatus:
    """One check of a report; `ok` is None if it could not be carried out."""

    host: str
    name: str
    ok: bool | None
    seen: str
    next: str | None


@dataclass(frozen=True, kw_only=True)
class ReportStatus:
    """The last report of verify or the load test; `ok` is None without a readable report."""

    ok: bool | None
    at: datetime | None = None
    passed: int = 0
    failed: int = 0
    not_asked: int = 0
    problems: tuple[CheckStatus, ...] = ()
    checks: tuple[CheckStatus, ...] = ()
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Canary:
    """The canary's last run for one model.

    `result` is answered, failed, not_loaded or not_used; `answered_at` is the time of the last answer.
    """

    host: str
    model: str
    ok: bool
    result: str
    at: datetime | None
    answered_at: datetime | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Version:
    """The pinned and the running version of a component; `ok` is None unless both are known."""

    component: str
    host: str
    pinned: str | None
    running: str | None
    ok: bool | None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One active alert of Prometheus."""

    name: str
    severity: str
    since: datetime
    summary: str
    next: str | None


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Reports, canary, versions and alerts. `alerts` is None if Prometheus does not answer."""

    verify: ReportStatus
    load_test: ReportStatus
    canary: tuple[Canary, ...]
    versions: tuple[Version, ...]
    alerts: tuple[Alert, ...] | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement of one poll, whatever its age; None for what the gateway's metrics do not show.

    `litellm` is also None for a gateway without LiteLLM.
    """

    state: State
    reason: str
    faults: tuple[Fault, ...]
    gateway: Part
    prometheus: Part
    hosts: tuple[HostStatus, ...]
    models: tuple[ModelStatus, ...]
    chain: tuple[Hop, ...]
    gpus: tuple[Gpu, ...]
    traffic: Traffic | None
    limits: tuple[Limit, ...] | None
    queue: Queue | None
    machines: tuple[Machine, ...]
    operations: Operations
    litellm: Litellm | None = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state as of now; `age_seconds` is the age of the last poll, `poll_number` its number."""

    state: State
    reason: str
    next: str | None
    next_on: str | None
    since: datetime
    stale: bool
    at: datetime | None
    age_seconds: float
    seconds: float | None
    verdict: Verdict | None
    poll_number: int = 0
