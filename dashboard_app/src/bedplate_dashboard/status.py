"""What every reader gets: page, text, API and metrics all show one `Status`.

Data only; `state` makes it. Seconds, bytes, tokens and ratios from 0 to 1; None means unknown, an empty tuple
that there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

State = Literal["healthy", "degraded", "down"]
Health = Literal["ok", "warn", "bad", "unknown"]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong (a clause without a full stop), what to type where, and since when.

    `about` is what it is about, in words that stay the same while it lasts, such as `engine gpu1`.
    """

    what: str
    next: str
    next_on: str
    since: datetime | None = None
    about: str = ""


@dataclass(frozen=True)
class LastError:
    """The last thing that went wrong at a hop, over or not: its words, and when it was last seen."""

    text: str
    at: datetime


@dataclass(frozen=True)
class Hop:
    """One step on the way of a request.

    Clients, gateway and queue have their kind as their name; a host and its gpu have the host's name.
    `error` is what is wrong now; `last_error` is kept after it is mended, until the dashboard starts anew.
    """

    kind: Literal["clients", "gateway", "queue", "host", "gpu"]
    name: str
    state: Health
    detail: str
    version: str | None = None
    latency_seconds: float | None = None
    error: str | None = None
    last_error: LastError | None = None


@dataclass(frozen=True)
class Part:
    """One service, asked directly: `ok`, the time to its answer, and why not."""

    ok: bool
    latency_seconds: float
    error: str | None


@dataclass(frozen=True)
class EngineStatus:
    """An engine as its exporter saw it at the last look."""

    up: bool
    version: str | None
    latency_seconds: float | None
    error: str | None


@dataclass(frozen=True)
class HostStatus:
    """One inference host; `engine` is None when its exporter gave no answer. Memory in bytes."""

    name: str
    ok: bool
    exporter: Part
    engine: EngineStatus | None
    models_declared: int
    models_present: int | None
    models_loaded: int | None
    memory_bytes: int | None
    undeclared: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """One declared model on one host; None where unknown. Bytes, tokens, seconds until it is unloaded.

    `unload_seconds` is None when it is not loaded and when it stays loaded for ever.
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


@dataclass(frozen=True)
class Answered:
    """The last time that somebody asked a model: when, how long before this look, who, and did it answer."""

    at: datetime
    age_seconds: float
    by: Literal["request", "canary"]
    ok: bool


@dataclass(frozen=True)
class ModelStatus:
    """One declared model and its three truths: listed by the gateway, present on its engines, answered.

    `answered` is None when nobody has asked since the gateway started. `tokens_per_second` is what one
    request got in the last minute, or the last one where there was none.
    """

    name: str
    can_be_served: bool | None
    listed: bool | None
    placements: tuple[Placement, ...]
    answered: Answered | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Gpu:
    """One GPU; what it does not tell is None. `throttling` is the reason, empty where there is none."""

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


@dataclass(frozen=True)
class Refusals:
    """Requests that were refused for one reason, in the window of the traffic."""

    reason: str
    status: int
    count: int


@dataclass(frozen=True)
class Traffic:
    """What went through the gateways in the last `window_seconds` (60, or less after a start).

    Counts are of requests for a model that ended. `success_ratio` is the share of them that did not end with
    5xx, None without any; times are None where nobody asked for what they measure.
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


@dataclass(frozen=True)
class Limit:
    """What a key or a model has used of what it may use in a minute."""

    scope: Literal["key", "model"]
    name: str
    unit: str
    used: float
    limit: float


@dataclass(frozen=True)
class QueueClass:
    """The requests of one class that wait for a slot, and for how long the oldest has."""

    name: str
    waiting: int
    oldest_seconds: float


@dataclass(frozen=True)
class Slots:
    """Requests that run on one engine for one model, of how many at a time."""

    engine: str
    model: str
    busy: int
    slots: int


@dataclass(frozen=True)
class Queue:
    """Who waits and what runs; `slots_busy` of `slots` in all."""

    classes: tuple[QueueClass, ...]
    slots_busy: int
    slots: int
    engines: tuple[Slots, ...]


@dataclass(frozen=True)
class Disk:
    """One file system; `days_left` at the pace of the last hours, None where it is unknown or endless."""

    mountpoint: str
    size_bytes: int
    available_bytes: int
    days_left: float | None = None


@dataclass(frozen=True)
class Service:
    """One of the stack's units: systemd's ActiveState, and how often systemd started it again by itself."""

    name: str
    state: str
    restarts: int | None


@dataclass(frozen=True)
class Machine:
    """One host as its node exporter tells it; where that does not answer: `error`, and the rest is empty."""

    name: str
    state: Health
    error: str | None
    disks: tuple[Disk, ...] = ()
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    services: tuple[Service, ...] = ()
    reboot_required: bool | None = None


@dataclass(frozen=True)
class CheckStatus:
    """One line of a report; `ok` is None where it could not be asked."""

    host: str
    name: str
    ok: bool | None
    seen: str
    next: str | None


@dataclass(frozen=True)
class ReportStatus:
    """The last report of verify or the load test; `ok` is None where there is none that can be read."""

    ok: bool | None
    at: datetime | None = None
    passed: int = 0
    failed: int = 0
    not_asked: int = 0
    problems: tuple[CheckStatus, ...] = ()
    checks: tuple[CheckStatus, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Canary:
    """The canary's last look at one model: answered, failed, not_loaded or not_used; and its last answer."""

    host: str
    model: str
    ok: bool
    result: str
    at: datetime | None
    answered_at: datetime | None
    seconds: float | None


@dataclass(frozen=True)
class Version:
    """A part's version as declared and as it runs; `ok` is None where one of them is not known."""

    component: str
    host: str
    pinned: str | None
    running: str | None
    ok: bool | None


@dataclass(frozen=True)
class Alert:
    """One active alert of Prometheus."""

    name: str
    severity: str
    since: datetime
    summary: str
    next: str | None


@dataclass(frozen=True)
class Operations:
    """What operators look for. `alerts` is None when Prometheus does not answer."""

    verify: ReportStatus
    load_test: ReportStatus
    canary: tuple[Canary, ...]
    versions: tuple[Version, ...]
    alerts: tuple[Alert, ...] | None


@dataclass(frozen=True)
class Verdict:
    """What one look at the stack means, whatever its age; None for what the gateway does not tell."""

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


@dataclass(frozen=True)
class Status:
    """The state as of now; `age_seconds` is the age of the last look, `poll_number` its number."""

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
