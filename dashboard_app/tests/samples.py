"""One `Status` for each kind of page; all of them describe the moment `AT`."""

import dataclasses
from datetime import UTC, datetime, timedelta

from bedplate_dashboard.health.model import (
    Alert,
    Answered,
    Canary,
    CheckStatus,
    Disk,
    Drift,
    EngineStatus,
    Fault,
    Gpu,
    Hop,
    HostStatus,
    Lanes,
    LastError,
    Limit,
    Litellm,
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
    """Return the time this long before `AT`."""
    return AT - timedelta(**length)


def placement(host: str = "gpu1", **changes: object) -> Placement:
    """Return a loaded model."""
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
    """Return a healthy model."""
    return dataclasses.replace(
        ModelStatus(
            name=name,
            can_be_served=True,
            listed=True,
            placements=placements or (placement(),),
            answered=Answered(at=before(seconds=12), age_seconds=12.0, by="request", ok=True),
            tokens_per_second=61.4,
        ),
        **changes,  # type: ignore[arg-type]
    )


def host(name: str = "gpu1", **changes: object) -> HostStatus:
    """Return a healthy inference host."""
    return dataclasses.replace(
        HostStatus(
            name=name,
            ok=True,
            exporter=Part(ok=True, latency_seconds=0.006, error=None),
            engine=EngineStatus(up=True, version="0.24.0", latency_seconds=0.003, error=None),
            models_declared=1,
            models_present=1,
            models_loaded=1,
            memory_bytes=401_000_000,
            undeclared=(),
        ),
        **changes,  # type: ignore[arg-type]
    )


SERVICES = (
    Service(name="bedplate-gateway", state="active", restarts=0),
    Service(name="litellm", state="active", restarts=0),
    Service(name="ollama", state="active", restarts=0),
    Service(name="bedplate-exporter", state="active", restarts=0),
    Service(name="bedplate-dashboard", state="active", restarts=0),
    Service(name="node-exporter", state="active", restarts=0),
    Service(name="prometheus", state="active", restarts=1),
)


def machine(name: str = "gpu1", **changes: object) -> Machine:
    """Return a healthy host."""
    return dataclasses.replace(
        Machine(
            name=name,
            state="ok",
            error=None,
            disks=(
                Disk(mountpoint="/", size_bytes=60 * GIB, available_bytes=21 * GIB, days_left=41.0),
                Disk(mountpoint="/boot", size_bytes=GIB, available_bytes=700 * 1024**2),
            ),
            memory_bytes=8 * GIB,
            memory_available_bytes=5 * GIB,
            services=SERVICES,
            reboot_required=False,
            drift=Drift(at=before(minutes=9), differences=0, first=""),
        ),
        **changes,  # type: ignore[arg-type]
    )


CHAIN = (
    Hop(kind="clients", name="clients", state="ok", detail="1.8 requests/s at http://10.1.2.3:8000"),
    Hop(
        kind="gateway",
        name="gateway",
        state="ok",
        detail="lists 1 of 1 models",
        version="0.1.0",
        latency_seconds=0.004,
    ),
    Hop(kind="queue", name="queue", state="ok", detail="no request waits; 1 of 2 slots busy"),
    Hop(
        kind="litellm",
        name="litellm",
        state="ok",
        detail="98 requests in the last minute, 12 direct; adds 21 ms; 443 MB",
        version="1.110.2",
    ),
    Hop(
        kind="host",
        name="gpu1",
        state="ok",
        detail="has 1 of 1 models, 1 loaded",
        version="0.24.0",
        latency_seconds=0.003,
        last_error=LastError(text="Ollama does not listen at http://127.0.0.1:11434", at=before(hours=3)),
    ),
    Hop(kind="gpu", name="gpu1", state="ok", detail="no GPU"),
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
    refusals=(
        Refusals(reason="key_requests", status=429, count=8),
        Refusals(reason="queue_timeout", status=503, count=2),
    ),
)

LIMITS = (
    Limit(scope="key", name="default", unit="requests", used=58, limit=100),
    Limit(scope="key", name="default", unit="tokens", used=940, limit=1000),
    Limit(scope="key", name="batch", unit="requests", used=0, limit=600),
    Limit(scope="key", name="dashboard", unit="requests", used=30, limit=120),
    Limit(scope="model", name="smollm2:135m", unit="tokens", used=5200, limit=20000),
)

QUEUE = Queue(
    classes=(
        QueueClass(name="high", waiting=0, oldest_seconds=0.0),
        QueueClass(name="normal", waiting=0, oldest_seconds=0.0),
        QueueClass(name="low", waiting=0, oldest_seconds=0.0),
    ),
    slots_busy=1,
    slots=2,
    engines=(Slots(engine="gpu1", model="smollm2:135m", busy=1, slots=2),),
)

VERIFIED = tuple(
    CheckStatus(host="gpu1", name=f"promise {number}", ok=True, seen="as promised", next=None)
    for number in range(1, 20)
)

OPERATIONS = Operations(
    verify=ReportStatus(
        ok=True, at=before(hours=5), passed=19, failed=0, not_asked=0, problems=(), checks=VERIFIED
    ),
    load_test=ReportStatus(
        ok=True,
        at=before(days=2),
        passed=3,
        failed=0,
        not_asked=0,
        problems=(),
        checks=(
            CheckStatus(
                host="gpu1",
                name="exactly 100 of 150 requests pass",
                ok=True,
                seen="passed == 100; seen: 100",
                next=None,
            ),
            CheckStatus(
                host="gpu1",
                name="1000 tokens a minute",
                ok=True,
                seen="tokens <= 1212; seen: 1166",
                next=None,
            ),
            CheckStatus(
                host="gpu1",
                name="high overtakes low",
                ok=True,
                seen="p95 <= 2 s; seen: 1.5",
                next=None,
            ),
        ),
    ),
    canary=(
        Canary(
            host="gpu1",
            model="smollm2:135m",
            ok=True,
            result="answered",
            at=before(seconds=140),
            answered_at=before(seconds=140),
            seconds=0.31,
        ),
    ),
    versions=(
        Version(component="Ollama", host="gpu1", pinned="0.24.0", running="0.24.0", ok=True),
        Version(component="Gateway", host="gpu1", pinned="0.1.0", running="0.1.0", ok=True),
        Version(component="LiteLLM", host="gpu1", pinned="1.110.2", running=None, ok=None),
        Version(component="Prometheus", host="gpu1", pinned=None, running="2.53.3", ok=None),
        Version(component="Dashboard", host="gpu1", pinned="0.1.0", running="0.1.0", ok=True),
    ),
    alerts=(),
)

_WELL = Verdict(
    state="healthy",
    reason="smollm2:135m can be served.",
    faults=(),
    gateway=Part(ok=True, latency_seconds=0.004, error=None),
    prometheus=Part(ok=True, latency_seconds=0.002, error=None),
    hosts=(host(),),
    models=(model("smollm2:135m"),),
    chain=CHAIN,
    gpus=(),
    traffic=TRAFFIC,
    limits=LIMITS,
    queue=QUEUE,
    machines=(machine(),),
    operations=OPERATIONS,
    litellm=Litellm(
        up=True,
        requests=Lanes(litellm=98, direct=12, bypass=0),
        added_seconds=0.021,
        memory_bytes=443_000_000,
    ),
)


def status(verdict: Verdict, **changes: object) -> Status:
    """Return the status of a verdict."""
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
        traffic=Traffic(
            window_seconds=60.0,
            requests=0,
            prompt_tokens=0,
            completion_tokens=0,
            requests_per_second=0,
            tokens_in_per_second=0,
            tokens_out_per_second=0,
            ttft_p50_seconds=None,
            ttft_p95_seconds=None,
            latency_p50_seconds=None,
            latency_p95_seconds=None,
            success_ratio=None,
            refused_429=0,
            refused_503=0,
            refusals=(),
        ),
        operations=dataclasses.replace(
            OPERATIONS, verify=ReportStatus(ok=None), load_test=ReportStatus(ok=None)
        ),
    )
)
"""Just installed: no request yet, nothing was verified."""

_DISK_FULL = Fault(
    what="the disk of gpu1 is full: 0.1 GB left on /",
    next="du -xh / | sort -h | tail",
    next_on="gpu1",
    since=before(minutes=4),
)
_ENGINE = Fault(
    what="the engine on gpu2 is down",
    next="journalctl -u ollama -n 50",
    next_on="gpu2",
    since=before(minutes=7),
)
_PROMETHEUS = Fault(
    what="Prometheus does not answer (connection refused), so no history is recorded",
    next="journalctl -u prometheus -n 50",
    next_on="the monitoring host",
    since=before(minutes=2),
)

DEGRADED = status(
    dataclasses.replace(
        _WELL,
        state="degraded",
        reason="1 of 2 declared models can be served: the engine on gpu2 is down, and 2 more faults.",
        faults=(_ENGINE, _DISK_FULL, _PROMETHEUS),
        prometheus=Part(ok=False, latency_seconds=0.001, error="connection refused"),
        hosts=(
            host(),
            host(
                "gpu2",
                ok=False,
                engine=EngineStatus(
                    up=False,
                    version=None,
                    latency_seconds=1.0,
                    error="Ollama did not answer /api/version within 1 s: look into `journalctl -u ollama`.",
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
                Placement(host="gpu2", present=None),
                can_be_served=False,
                listed=False,
                answered=Answered(at=before(minutes=8), age_seconds=480.0, by="canary", ok=False),
                tokens_per_second=None,
            ),
        ),
        chain=(
            *CHAIN[:1],
            Hop(
                kind="gateway",
                name="gateway",
                state="warn",
                detail="lists 1 of 2 models",
                version="0.1.0",
                latency_seconds=0.004,
            ),
            Hop(
                kind="queue",
                name="queue",
                state="warn",
                detail="12 requests wait, the oldest for 31 s; 2 of 2 slots busy",
            ),
            *CHAIN[3:],
            Hop(
                kind="host",
                name="gpu2",
                state="bad",
                detail="has 0 of 1 models",
                version=None,
                latency_seconds=None,
                error="Ollama did not answer /api/version within 1 s",
                last_error=LastError(text="Ollama did not answer /api/version within 1 s", at=AT),
            ),
            Hop(kind="gpu", name="gpu2", state="unknown", detail="unknown"),
        ),
        queue=Queue(
            classes=(
                QueueClass(name="high", waiting=0, oldest_seconds=0.0),
                QueueClass(name="normal", waiting=3, oldest_seconds=4.5),
                QueueClass(name="low", waiting=9, oldest_seconds=31.0),
            ),
            slots_busy=2,
            slots=2,
            engines=(
                Slots(engine="gpu1", model="smollm2:135m", busy=2, slots=2),
                Slots(engine="gpu2", model="qwen3:8b", busy=0, slots=2),
            ),
        ),
        machines=(
            machine(
                state="bad",
                disks=(Disk(mountpoint="/", size_bytes=60 * GIB, available_bytes=90_000_000, days_left=0.1),),
                memory_available_bytes=GIB // 3,
            ),
            machine(
                "gpu2",
                state="bad",
                services=(
                    Service(name="ollama", state="failed", restarts=5),
                    Service(name="bedplate-exporter", state="active", restarts=0),
                    Service(name="node-exporter", state="active", restarts=0),
                ),
                reboot_required=True,
                drift=Drift(at=before(minutes=4), differences=3, first="file /etc/bedplate/heal.json"),
            ),
        ),
        operations=Operations(
            verify=ReportStatus(
                ok=False,
                at=before(minutes=3),
                passed=17,
                failed=1,
                not_asked=1,
                problems=(
                    CheckStatus(
                        host="gpu2",
                        name="Ollama holds qwen3:8b",
                        ok=False,
                        seen="Ollama does not answer at http://10.1.2.4:11434",
                        next="journalctl -u ollama -n 50",
                    ),
                    CheckStatus(
                        host="gpu2",
                        name="port 11434 is closed to others",
                        ok=None,
                        seen="this machine installs itself, ask from another one",
                        next="systemctl cat ollama",
                    ),
                ),
                checks=(
                    *VERIFIED[:17],
                    CheckStatus(
                        host="gpu2",
                        name="Ollama holds qwen3:8b",
                        ok=False,
                        seen="Ollama does not answer at http://10.1.2.4:11434",
                        next="journalctl -u ollama -n 50",
                    ),
                ),
            ),
            load_test=ReportStatus(
                ok=None, error="the report does not have the format that smoke.yml writes"
            ),
            canary=(
                Canary(
                    host="gpu1",
                    model="smollm2:135m",
                    ok=True,
                    result="not_used",
                    at=before(seconds=100),
                    answered_at=before(hours=2),
                    seconds=0.3,
                ),
                Canary(
                    host="gpu1",
                    model="qwen3:8b",
                    ok=False,
                    result="failed",
                    at=before(seconds=100),
                    answered_at=before(minutes=12),
                    seconds=1.8,
                ),
            ),
            versions=(
                Version(component="Ollama", host="gpu1", pinned="0.24.0", running="0.24.0", ok=True),
                Version(component="Ollama", host="gpu2", pinned="0.24.0", running="0.23.1", ok=False),
                Version(component="Gateway", host="gpu1", pinned="0.1.0", running="0.1.0", ok=True),
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
                what="an alert is active: requests of class normal wait 45 s for a slot",
                next="make traffic-quick",
                next_on="the control machine",
                since=before(minutes=3),
            ),
        ),
        operations=dataclasses.replace(
            OPERATIONS,
            alerts=(
                Alert(
                    name="DiskFull",
                    severity="critical",
                    since=before(hours=1),
                    summary="/ on gpu1 is 97 % full",
                    next="du -xh / | sort -h | tail (on gpu1)",
                ),
                Alert(
                    name="QueueSaturated",
                    severity="warning",
                    since=before(minutes=3),
                    summary="requests of class normal wait 45s for a slot",
                    next="make traffic-quick",
                ),
            ),
        ),
    ),
    since=before(minutes=3),
)

_GATEWAY = Fault(
    what="the gateway does not work (connection refused)",
    next="journalctl -u bedplate-gateway -n 50",
    next_on="the gateway host",
    since=before(seconds=9),
)
DOWN = status(
    dataclasses.replace(
        _WELL,
        state="down",
        reason="smollm2:135m cannot be served: the gateway does not work (connection refused).",
        faults=(_GATEWAY,),
        gateway=Part(ok=False, latency_seconds=0.001, error="connection refused"),
        models=(
            model(
                "smollm2:135m",
                can_be_served=False,
                listed=None,
                answered=Answered(at=before(seconds=41), age_seconds=41.0, by="request", ok=True),
                tokens_per_second=None,
            ),
        ),
        chain=(
            Hop(kind="clients", name="clients", state="unknown", detail="http://10.1.2.3:8000"),
            Hop(
                kind="gateway",
                name="gateway",
                state="bad",
                detail="at http://127.0.0.1:8000",
                error="connection refused",
                last_error=LastError(text="connection refused", at=AT),
            ),
            Hop(kind="queue", name="queue", state="unknown", detail="unknown"),
            Hop(kind="litellm", name="litellm", state="unknown", detail="unknown", version="1.110.2"),
            *CHAIN[4:],
        ),
        traffic=None,
        limits=None,
        queue=None,
        machines=(
            machine(
                state="bad",
                services=(Service(name="bedplate-gateway", state="inactive", restarts=0), *SERVICES[1:]),
            ),
        ),
    ),
    since=before(seconds=9),
)

_LITELLM = Fault(
    what="LiteLLM does not answer, so requests go directly to the engines meanwhile",
    next="journalctl -u litellm -n 50",
    next_on="the gateway host",
    since=before(minutes=3),
)
BYPASSED = status(
    dataclasses.replace(
        _WELL,
        state="degraded",
        reason=f"smollm2:135m can be served, but {_LITELLM.what}.",
        faults=(_LITELLM,),
        litellm=Litellm(
            up=False,
            requests=Lanes(litellm=0, direct=12, bypass=98),
            added_seconds=None,
            memory_bytes=None,
        ),
        chain=(
            *CHAIN[:3],
            Hop(
                kind="litellm",
                name="litellm",
                state="warn",
                detail="0 requests in the last minute, 98 around it, 12 direct",
                version="1.110.2",
                error="does not answer, so requests go directly to the engines",
                last_error=LastError(text="does not answer, so requests go directly to the engines", at=AT),
            ),
            *CHAIN[4:],
        ),
    ),
    since=before(minutes=3),
)
"""LiteLLM is down."""

RESTARTED = status(
    dataclasses.replace(
        _WELL,
        litellm=Litellm(
            up=True,
            requests=Lanes(litellm=81, direct=0, bypass=29),
            added_seconds=0.021,
            memory_bytes=443_000_000,
        ),
        chain=(
            *CHAIN[:3],
            Hop(
                kind="litellm",
                name="litellm",
                state="warn",
                detail="81 requests in the last minute, 29 around it; adds 21 ms; 443 MB",
                version="1.110.2",
                error="29 requests went directly to the engines",
            ),
            *CHAIN[4:],
        ),
    ),
)
"""LiteLLM was down for a moment and answers again."""

STALE = dataclasses.replace(
    HEALTHY,
    state="degraded",
    reason="The state is unknown: the last poll reported healthy.",
    next="systemctl restart bedplate-dashboard",
    next_on="the monitoring host",
    since=before(seconds=8),
    stale=True,
    at=before(seconds=14),
    age_seconds=14.0,
)

STARTING = Status(
    state="degraded",
    reason="The dashboard has just started and has not polled the stack yet.",
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
            # Of an earlier gateway, without LiteLLM.
            *CHAIN[:3],
            CHAIN[4],
            Hop(
                kind="gpu",
                name="gpu1",
                state="warn",
                detail="3 GPUs",
                version="580.95.05",
                error="1 GPU throttled (heat)",
            ),
        ),
        gpus=(
            Gpu(
                host="gpu1",
                vendor="nvidia",
                number="0",
                name="NVIDIA H100 80GB HBM3",
                utilization_ratio=0.97,
                memory_used_bytes=61 * GIB,
                memory_bytes=80 * GIB,
                temperature_celsius=71.0,
                power_watts=640.0,
                throttling="heat",
            ),
            Gpu(
                host="gpu1",
                vendor="nvidia",
                number="1",
                name="NVIDIA GeForce GTX 1050",
                utilization_ratio=None,
                memory_used_bytes=GIB,
                memory_bytes=2 * GIB,
                temperature_celsius=41.0,
                power_watts=None,
            ),
            Gpu(
                host="gpu1",
                vendor="amd",
                number="2",
                name="AMD Radeon RX 7900 XTX",
                utilization_ratio=0.0,
                memory_used_bytes=0,
                memory_bytes=24 * GIB,
                temperature_celsius=38.0,
                power_watts=21.0,
                throttling="",
            ),
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
            *CHAIN[:4],
            *(
                Hop(
                    kind="host",
                    name=f"rack3-node{number}",
                    state="ok",
                    detail="has 40 of 40 models, 1 loaded",
                    version="0.24.0",
                    latency_seconds=0.004,
                )
                for number in range(1, 9)
            ),
            *(
                Hop(kind="gpu", name=f"rack3-node{number}", state="ok", detail="no GPU")
                for number in range(1, 9)
            ),
        ),
        machines=tuple(machine(f"rack3-node{number}") for number in range(1, 9)),
        limits=tuple(
            Limit(scope="key", name=f"team-{number}", unit=unit, used=number, limit=100)
            for number in range(30)
            for unit in ("requests", "tokens")
        ),
    )
)

_HOSTILE_FAULT = Fault(
    what=f"the engine on gpu1 does not have {HOSTILE}",
    next=f"ansible-playbook site.yml --tags {HOSTILE}",
    next_on=HOSTILE,
    since=before(seconds=5),
)
NASTY = status(
    dataclasses.replace(
        _WELL,
        state="degraded",
        reason=f"0 of 1 declared models can be served: the engine on gpu1 does not have {HOSTILE}.",
        faults=(_HOSTILE_FAULT, _HOSTILE_FAULT),
        hosts=(
            host(
                HOSTILE,
                undeclared=(HOSTILE,),
                engine=EngineStatus(up=True, version=HOSTILE, latency_seconds=0.003, error=HOSTILE),
            ),
        ),
        models=(model(HOSTILE, placement(HOSTILE, digest=HOSTILE)),),
        chain=tuple(
            dataclasses.replace(
                hop,
                detail=HOSTILE,
                version=HOSTILE,
                error=HOSTILE,
                last_error=LastError(text=HOSTILE, at=before(seconds=3)),
            )
            for hop in CHAIN
        ),
        gpus=(
            Gpu(
                host=HOSTILE,
                vendor=HOSTILE,
                number=HOSTILE,
                name=HOSTILE,
                utilization_ratio=0.5,
                memory_used_bytes=1,
                memory_bytes=2,
                temperature_celsius=3.0,
                power_watts=4.0,
                throttling=HOSTILE,
            ),
        ),
        traffic=dataclasses.replace(TRAFFIC, refusals=(Refusals(reason=HOSTILE, status=429, count=1),)),
        limits=(Limit(scope="key", name=HOSTILE, unit=HOSTILE, used=1, limit=2),),
        queue=Queue(
            classes=(QueueClass(name=HOSTILE, waiting=1, oldest_seconds=2.0),),
            slots_busy=1,
            slots=1,
            engines=(Slots(engine=HOSTILE, model=HOSTILE, busy=1, slots=1),),
        ),
        machines=(
            Machine(
                name=HOSTILE,
                state="bad",
                error=HOSTILE,
                disks=(Disk(mountpoint=HOSTILE, size_bytes=2, available_bytes=1),),
                services=(Service(name=HOSTILE, state=HOSTILE, restarts=1),),
            ),
        ),
        operations=Operations(
            verify=ReportStatus(
                ok=False,
                at=before(hours=1),
                passed=0,
                failed=1,
                not_asked=0,
                problems=(CheckStatus(host=HOSTILE, name=HOSTILE, ok=False, seen=HOSTILE, next=HOSTILE),),
            ),
            load_test=ReportStatus(ok=None, error=HOSTILE),
            canary=(
                Canary(
                    host=HOSTILE,
                    model=HOSTILE,
                    ok=False,
                    result=HOSTILE,
                    at=None,
                    answered_at=None,
                    seconds=None,
                ),
            ),
            versions=(Version(component=HOSTILE, host=HOSTILE, pinned=HOSTILE, running=HOSTILE, ok=False),),
            alerts=(
                Alert(name=HOSTILE, severity=HOSTILE, since=before(minutes=1), summary=HOSTILE, next=HOSTILE),
            ),
        ),
    )
)

SAMPLES = {
    "healthy": HEALTHY,
    "quiet": QUIET,
    "degraded": DEGRADED,
    "alerting": ALERTING,
    "down": DOWN,
    "bypassed": BYPASSED,
    "restarted": RESTARTED,
    "stale": STALE,
    "starting": STARTING,
    "gpu": GPU,
    "many": MANY,
    "hostile": NASTY,
}
