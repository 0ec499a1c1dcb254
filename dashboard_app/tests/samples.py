"""One `Status` for each look that the page can have; `AT` is the moment at which they hold."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from bedplate_dashboard.status import (
    Alert,
    Answered,
    Canary,
    CheckStatus,
    Disk,
    EngineStatus,
    Fault,
    Gpu,
    Hop,
    HostStatus,
    LastError,
    Limit,
    Machine,
    ModelStatus,
    Operations,
    Part,
    Placement,
    Queue,
    QueueClass,
    Refusals,
    ReportStatus,
    Service,
    Slots,
    Status,
    Traffic,
    Verdict,
    Version,
)

AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
HOSTILE = "<img src=x onerror=alert(1)>'\"&{{7*7}}"
DIGEST = "sha256:9077fe9d2ae1a4a41a868836b56b8163731a8fe16621397028c2c76f838c6907"
GIB = 1024**3


def before(**length: float) -> datetime:
    """The moment that lies this long before `AT`."""
    return AT - timedelta(**length)


def placement(host: str = "gpu1", **changes: object) -> Placement:
    """A loaded model."""
    return dataclasses.replace(
        Placement(
            host=host,
            present=True,
            loaded=True,
            digest=DIGEST,
            size_bytes=144_811_000,
            memory_bytes=401_000_000,
            gpu_memory_bytes=0,
            context_length=8192,
            unload_seconds=251.0,
        ),
        **changes,  # type: ignore[arg-type]
    )


def model(name: str, *placements: Placement, **changes: object) -> ModelStatus:
    """A model about which all is well."""
    return dataclasses.replace(
        ModelStatus(
            name=name,
            can_be_served=True,
            listed=True,
            placements=placements or (placement(),),
            answered=Answered(before(seconds=12), 12.0, "request", ok=True),
            tokens_per_second=61.4,
        ),
        **changes,  # type: ignore[arg-type]
    )


def host(name: str = "gpu1", **changes: object) -> HostStatus:
    """An inference host that works."""
    return dataclasses.replace(
        HostStatus(
            name=name,
            ok=True,
            exporter=Part(True, 0.006, None),
            engine=EngineStatus(True, "0.24.0", 0.003, None),
            models_declared=1,
            models_present=1,
            models_loaded=1,
            memory_bytes=401_000_000,
            undeclared=(),
        ),
        **changes,  # type: ignore[arg-type]
    )


SERVICES = (
    Service("bedplate-gateway", "active", 0),
    Service("ollama", "active", 0),
    Service("bedplate-exporter", "active", 0),
    Service("bedplate-dashboard", "active", 0),
    Service("node-exporter", "active", 0),
    Service("prometheus", "active", 1),
)


def machine(name: str = "gpu1", **changes: object) -> Machine:
    """A host with nothing wrong."""
    return dataclasses.replace(
        Machine(
            name=name,
            state="ok",
            error=None,
            disks=(Disk("/", 60 * GIB, 21 * GIB, 41.0), Disk("/boot", GIB, 700 * 1024**2)),
            memory_bytes=8 * GIB,
            memory_available_bytes=5 * GIB,
            services=SERVICES,
            reboot_required=False,
        ),
        **changes,  # type: ignore[arg-type]
    )


CHAIN = (
    Hop("clients", "clients", "ok", "1.8 requests/s at http://10.1.2.3:8000"),
    Hop("gateway", "gateway", "ok", "lists 1 of 1 models", "1.106.2", 0.004),
    Hop("queue", "queue", "ok", "nobody waits; 1 of 2 slots busy"),
    Hop(
        "host",
        "gpu1",
        "ok",
        "has 1 of 1 models, 1 loaded",
        "0.24.0",
        0.003,
        last_error=LastError("Ollama does not listen at http://127.0.0.1:11434", before(hours=3)),
    ),
    Hop("gpu", "gpu1", "ok", "no GPU"),
)

TRAFFIC = Traffic(
    window_seconds=60.0,
    requests=110,
    prompt_tokens=2892,
    completion_tokens=5850,
    requests_per_second=110 / 60,
    tokens_in_per_second=48.2,
    tokens_out_per_second=97.5,
    ttft_p50_seconds=0.18,
    ttft_p95_seconds=0.92,
    latency_p50_seconds=1.1,
    latency_p95_seconds=4.6,
    success_ratio=0.982,
    refused_429=8,
    refused_503=2,
    refusals=(Refusals("key_requests", 429, 8), Refusals("queue_timeout", 503, 2)),
)

LIMITS = (
    Limit("key", "default", "requests", 58, 100),
    Limit("key", "default", "tokens", 940, 1000),
    Limit("key", "batch", "requests", 0, 600),
    Limit("key", "dashboard", "requests", 30, 120),
    Limit("model", "smollm2:135m", "tokens", 5200, 20000),
)

QUEUE = Queue(
    classes=(QueueClass("high", 0, 0.0), QueueClass("normal", 0, 0.0), QueueClass("low", 0, 0.0)),
    slots_busy=1,
    slots=2,
    engines=(Slots("gpu1", "smollm2:135m", 1, 2),),
)

VERIFIED = tuple(
    CheckStatus("gpu1", f"promise {number}", True, "as promised", None) for number in range(1, 20)
)

OPERATIONS = Operations(
    verify=ReportStatus(True, before(hours=5), 19, 0, 0, (), VERIFIED),
    load_test=ReportStatus(
        True,
        before(days=2),
        3,
        0,
        0,
        (),
        (
            CheckStatus("gpu1", "exactly 100 of 150 requests pass", True, "passed == 100; seen: 100", None),
            CheckStatus("gpu1", "1000 tokens a minute", True, "tokens <= 1212; seen: 1166", None),
            CheckStatus("gpu1", "high overtakes low", True, "p95 <= 2 s; seen: 1.5", None),
        ),
    ),
    canary=(
        Canary("gpu1", "smollm2:135m", True, "answered", before(seconds=140), before(seconds=140), 0.31),
    ),
    versions=(
        Version("Ollama", "gpu1", "0.24.0", "0.24.0", True),
        Version("Gateway", "gpu1", "0.1.0", "0.1.0", True),
        Version("Prometheus", "gpu1", None, "2.53.3", None),
        Version("Dashboard", "gpu1", "0.1.0", "0.1.0", True),
    ),
    alerts=(),
)

_WELL = Verdict(
    state="healthy",
    reason="smollm2:135m can be served.",
    faults=(),
    gateway=Part(True, 0.004, None),
    prometheus=Part(True, 0.002, None),
    hosts=(host(),),
    models=(model("smollm2:135m"),),
    chain=CHAIN,
    gpus=(),
    traffic=TRAFFIC,
    limits=LIMITS,
    queue=QUEUE,
    machines=(machine(),),
    operations=OPERATIONS,
)


def status(verdict: Verdict, **changes: object) -> Status:
    """The status that goes with a verdict."""
    first = verdict.faults[0] if verdict.faults else None
    return dataclasses.replace(
        Status(
            state=verdict.state,
            reason=verdict.reason,
            next=first.next if first else None,
            next_on=first.next_on if first else None,
            since=before(hours=26),
            stale=False,
            at=before(seconds=0.4),
            age_seconds=0.4,
            seconds=0.021,
            verdict=verdict,
            poll_number=4711,
        ),
        **changes,  # type: ignore[arg-type]
    )


HEALTHY = status(_WELL)

QUIET = status(
    dataclasses.replace(
        _WELL,
        models=(
            model(
                "smollm2:135m",
                placement(
                    loaded=False,
                    memory_bytes=None,
                    gpu_memory_bytes=None,
                    context_length=None,
                    unload_seconds=None,
                ),
                answered=None,
                tokens_per_second=None,
            ),
        ),
        traffic=Traffic(60.0, 0, 0, 0, 0, 0, 0, None, None, None, None, None, 0, 0, ()),
        operations=dataclasses.replace(OPERATIONS, verify=ReportStatus(None), load_test=ReportStatus(None)),
    )
)
"""Just installed: nobody has asked, nothing was verified."""

_DISK_FULL = Fault(
    "the disk of gpu1 is full: 0.1 GB left on /", "du -xh / | sort -h | tail", "gpu1", before(minutes=4)
)
_ENGINE = Fault("the engine on gpu2 is down", "journalctl -u ollama -n 50", "gpu2", before(minutes=7))
_PROMETHEUS = Fault(
    "Prometheus does not answer (connection refused), so no history is kept",
    "journalctl -u prometheus -n 50",
    "the monitoring host",
    before(minutes=2),
)

DEGRADED = status(
    dataclasses.replace(
        _WELL,
        state="degraded",
        reason="1 of 2 declared models can be served: the engine on gpu2 is down, and 2 more faults.",
        faults=(_ENGINE, _DISK_FULL, _PROMETHEUS),
        prometheus=Part(False, 0.001, "connection refused"),
        hosts=(
            host(),
            host(
                "gpu2",
                ok=False,
                engine=EngineStatus(
                    False,
                    None,
                    1.0,
                    "Ollama did not answer /api/version within 1 s: look into `journalctl -u ollama`.",
                ),
                models_present=None,
                models_loaded=None,
                memory_bytes=None,
            ),
        ),
        models=(
            model("smollm2:135m"),
            model(
                "qwen3:8b",
                Placement("gpu2", None),
                can_be_served=False,
                listed=False,
                answered=Answered(before(minutes=8), 480.0, "canary", ok=False),
                tokens_per_second=None,
            ),
        ),
        chain=(
            *CHAIN[:1],
            Hop("gateway", "gateway", "warn", "lists 1 of 2 models", "1.106.2", 0.004),
            Hop("queue", "queue", "warn", "12 wait, the oldest for 31 s; 2 of 2 slots busy"),
            *CHAIN[3:],
            Hop(
                "host",
                "gpu2",
                "bad",
                "has 0 of 1 models",
                None,
                None,
                "Ollama did not answer /api/version within 1 s",
                LastError("Ollama did not answer /api/version within 1 s", AT),
            ),
            Hop("gpu", "gpu2", "unknown", "not seen"),
        ),
        queue=Queue(
            (QueueClass("high", 0, 0.0), QueueClass("normal", 3, 4.5), QueueClass("low", 9, 31.0)),
            2,
            2,
            (Slots("gpu1", "smollm2:135m", 2, 2), Slots("gpu2", "qwen3:8b", 0, 2)),
        ),
        machines=(
            machine(
                state="bad", disks=(Disk("/", 60 * GIB, 90_000_000, 0.1),), memory_available_bytes=GIB // 3
            ),
            machine(
                "gpu2",
                state="bad",
                services=(
                    Service("ollama", "failed", 5),
                    Service("bedplate-exporter", "active", 0),
                    Service("node-exporter", "active", 0),
                ),
                reboot_required=True,
            ),
        ),
        operations=Operations(
            verify=ReportStatus(
                False,
                before(minutes=3),
                17,
                1,
                1,
                (
                    CheckStatus(
                        "gpu2",
                        "Ollama holds qwen3:8b",
                        False,
                        "Ollama does not answer at http://10.1.2.4:11434",
                        "journalctl -u ollama -n 50",
                    ),
                    CheckStatus(
                        "gpu2",
                        "port 11434 is closed to others",
                        None,
                        "this machine installs itself, ask from another one",
                        "systemctl cat ollama",
                    ),
                ),
                (
                    *VERIFIED[:17],
                    CheckStatus(
                        "gpu2",
                        "Ollama holds qwen3:8b",
                        False,
                        "Ollama does not answer at http://10.1.2.4:11434",
                        "journalctl -u ollama -n 50",
                    ),
                ),
            ),
            load_test=ReportStatus(
                None, error="the report is not in the form that the playbook smoke.yml writes"
            ),
            canary=(
                Canary("gpu1", "smollm2:135m", True, "not_used", before(seconds=100), before(hours=2), 0.3),
                Canary("gpu1", "qwen3:8b", False, "failed", before(seconds=100), before(minutes=12), 1.8),
            ),
            versions=(
                Version("Ollama", "gpu1", "0.24.0", "0.24.0", True),
                Version("Ollama", "gpu2", "0.24.0", "0.23.1", False),
                Version("Gateway", "gpu1", "0.1.0", "0.1.0", True),
            ),
            alerts=None,
        ),
    ),
    since=before(minutes=7),
)

ALERTING = status(
    dataclasses.replace(
        _WELL,
        state="degraded",
        reason="smollm2:135m can be served, but users wait: requests of class normal wait for a slot.",
        faults=(
            Fault(
                "an alert is active: requests of class normal wait 45 s for a slot",
                "make traffic-quick",
                "the control machine",
                before(minutes=3),
            ),
        ),
        operations=dataclasses.replace(
            OPERATIONS,
            alerts=(
                Alert(
                    "DiskFull",
                    "critical",
                    before(hours=1),
                    "/ on gpu1 is 97 % full",
                    "du -xh / | sort -h | tail (on gpu1)",
                ),
                Alert(
                    "QueueSaturated",
                    "warning",
                    before(minutes=3),
                    "requests of class normal wait 45s for a slot",
                    "make traffic-quick",
                ),
            ),
        ),
    ),
    since=before(minutes=3),
)

_GATEWAY = Fault(
    "the gateway does not work (connection refused)",
    "journalctl -u bedplate-gateway -n 50",
    "the gateway host",
    before(seconds=9),
)
DOWN = status(
    dataclasses.replace(
        _WELL,
        state="down",
        reason="smollm2:135m cannot be served: the gateway does not work (connection refused).",
        faults=(_GATEWAY,),
        gateway=Part(False, 0.001, "connection refused"),
        models=(
            model(
                "smollm2:135m",
                can_be_served=False,
                listed=None,
                answered=Answered(before(seconds=41), 41.0, "request", ok=True),
                tokens_per_second=None,
            ),
        ),
        chain=(
            Hop("clients", "clients", "unknown", "http://10.1.2.3:8000"),
            Hop(
                "gateway",
                "gateway",
                "bad",
                "at http://127.0.0.1:8000",
                error="connection refused",
                last_error=LastError("connection refused", AT),
            ),
            Hop("queue", "queue", "unknown", "not seen"),
            *CHAIN[3:],
        ),
        traffic=None,
        limits=None,
        queue=None,
        machines=(
            machine(state="bad", services=(Service("bedplate-gateway", "inactive", 0), *SERVICES[1:])),
        ),
    ),
    since=before(seconds=9),
)

STALE = dataclasses.replace(
    HEALTHY,
    state="degraded",
    reason="The state is unknown: the last look found it healthy.",
    next="systemctl restart bedplate-dashboard",
    next_on="the monitoring host",
    since=before(seconds=8),
    stale=True,
    at=before(seconds=14),
    age_seconds=14.0,
)

STARTING = Status(
    state="degraded",
    reason="The dashboard has just started and has not asked the stack yet.",
    next=None,
    next_on=None,
    since=before(seconds=1),
    stale=True,
    at=None,
    age_seconds=1.0,
    seconds=None,
    verdict=None,
)

GPU = status(
    dataclasses.replace(
        _WELL,
        models=(
            model(
                "qwen3:8b",
                placement(
                    "gpu1",
                    size_bytes=5_200_000_000,
                    memory_bytes=6_100_000_000,
                    gpu_memory_bytes=6_100_000_000,
                ),
                tokens_per_second=104.0,
            ),
            model(
                "llama3.3:70b",
                placement(
                    "gpu1",
                    size_bytes=42_500_000_000,
                    memory_bytes=47_000_000_000,
                    gpu_memory_bytes=31_000_000_000,
                    unload_seconds=None,
                ),
                tokens_per_second=7.9,
            ),
        ),
        chain=(
            *CHAIN[:4],
            Hop("gpu", "gpu1", "warn", "3 GPUs", "580.95.05", error="1 GPU slows itself down (heat)"),
        ),
        gpus=(
            Gpu(
                "gpu1", "nvidia", "0", "NVIDIA H100 80GB HBM3", 0.97, 61 * GIB, 80 * GIB, 71.0, 640.0, "heat"
            ),
            Gpu("gpu1", "nvidia", "1", "NVIDIA GeForce GTX 1050", None, GIB, 2 * GIB, 41.0, None),
            Gpu("gpu1", "amd", "2", "AMD Radeon RX 7900 XTX", 0.0, 0, 24 * GIB, 38.0, 21.0, ""),
        ),
    )
)

_MANY = tuple(f"registry.example.org/team/model-with-a-long-name-{number}:70b-q4" for number in range(40))
MANY = status(
    dataclasses.replace(
        _WELL,
        reason="All 40 declared models can be served.",
        hosts=tuple(
            host(f"rack3-node{number}", models_declared=40, models_present=40) for number in range(1, 9)
        ),
        models=tuple(
            model(name, *(placement(f"rack3-node{number}", loaded=number == 1) for number in range(1, 9)))
            for name in _MANY
        ),
        chain=(
            *CHAIN[:3],
            *(
                Hop("host", f"rack3-node{number}", "ok", "has 40 of 40 models, 1 loaded", "0.24.0", 0.004)
                for number in range(1, 9)
            ),
            *(Hop("gpu", f"rack3-node{number}", "ok", "no GPU") for number in range(1, 9)),
        ),
        machines=tuple(machine(f"rack3-node{number}") for number in range(1, 9)),
        limits=tuple(
            Limit("key", f"team-{number}", unit, number, 100)
            for number in range(30)
            for unit in ("requests", "tokens")
        ),
    )
)

_HOSTILE_FAULT = Fault(
    f"the engine on gpu1 does not have {HOSTILE}",
    f"ansible-playbook site.yml --tags {HOSTILE}",
    HOSTILE,
    before(seconds=5),
)
NASTY = status(
    dataclasses.replace(
        _WELL,
        state="degraded",
        reason=f"0 of 1 declared models can be served: the engine on gpu1 does not have {HOSTILE}.",
        faults=(_HOSTILE_FAULT, _HOSTILE_FAULT),
        hosts=(host(HOSTILE, undeclared=(HOSTILE,), engine=EngineStatus(True, HOSTILE, 0.003, HOSTILE)),),
        models=(model(HOSTILE, placement(HOSTILE, digest=HOSTILE)),),
        chain=tuple(
            dataclasses.replace(
                hop,
                detail=HOSTILE,
                version=HOSTILE,
                error=HOSTILE,
                last_error=LastError(HOSTILE, before(seconds=3)),
            )
            for hop in CHAIN
        ),
        gpus=(Gpu(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0.5, 1, 2, 3.0, 4.0, HOSTILE),),
        traffic=dataclasses.replace(TRAFFIC, refusals=(Refusals(HOSTILE, 429, 1),)),
        limits=(Limit("key", HOSTILE, HOSTILE, 1, 2),),
        queue=Queue((QueueClass(HOSTILE, 1, 2.0),), 1, 1, (Slots(HOSTILE, HOSTILE, 1, 1),)),
        machines=(
            Machine(
                HOSTILE, "bad", HOSTILE, (Disk(HOSTILE, 2, 1),), services=(Service(HOSTILE, HOSTILE, 1),)
            ),
        ),
        operations=Operations(
            verify=ReportStatus(
                False, before(hours=1), 0, 1, 0, (CheckStatus(HOSTILE, HOSTILE, False, HOSTILE, HOSTILE),)
            ),
            load_test=ReportStatus(None, error=HOSTILE),
            canary=(Canary(HOSTILE, HOSTILE, False, HOSTILE, None, None, None),),
            versions=(Version(HOSTILE, HOSTILE, HOSTILE, HOSTILE, False),),
            alerts=(Alert(HOSTILE, HOSTILE, before(minutes=1), HOSTILE, HOSTILE),),
        ),
    )
)

SAMPLES = {
    "healthy": HEALTHY,
    "quiet": QUIET,
    "degraded": DEGRADED,
    "alerting": ALERTING,
    "down": DOWN,
    "stale": STALE,
    "starting": STARTING,
    "gpu": GPU,
    "many": MANY,
    "hostile": NASTY,
}
