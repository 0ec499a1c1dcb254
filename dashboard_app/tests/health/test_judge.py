"""What each observation means: one row for each situation; an old poll is never healthy."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from bedplate_dashboard.health import judge as judging
from bedplate_dashboard.health.judge import Memory, Snapshot, advance, describe_now
from bedplate_dashboard.health.model import Refusals, Verdict
from bedplate_dashboard.health.thresholds import STALE_SECONDS
from bedplate_dashboard.health.traffic_window import RecentTraffic
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import (
    Contact,
    Observation,
)
from bedplate_dashboard.sources.payloads import ActiveAlert

from dashboard_app.tests.situations import (
    CARD,
    EMBED,
    ENGINE_DOWN,
    ON_GPU,
    SMALL,
    Change,
    disk,
    drained,
    engine,
    gateway,
    gateway_metrics_are,
    host,
    machine,
    no_metrics,
    prometheus,
    prometheus_stored,
    requested,
    units,
)

STARTED = datetime(2026, 3, 1, 11, 0, 0, tzinfo=UTC)


def judge(
    settings: Settings,
    observation: Observation,
    recent: RecentTraffic | None = None,
    memory: Memory | None = None,
) -> Verdict:
    return judging.judge(settings, observation, recent or RecentTraffic(), {}, memory or Memory())


BOTH = "small:1b", "embed"
NO_ROUTE = Contact("unreachable", 0.1, "no route to the host")

TABLE: dict[str, tuple[list[Change], str, str, str | None, str | None]] = {
    "all well": ([], "healthy", "All 2 declared models can be served.", None, None),
    "gateway stopped": (
        [gateway("failed", "connection refused")],
        "down",
        "None of 2 declared models can be served: the gateway does not work (connection refused).",
        "journalctl -u bedplate-gateway -n 50",
        "the gateway host",
    ),
    "gateway's host gone": (
        [gateway("unreachable", "no route to the host")],
        "down",
        "None of 2 declared models can be served: the gateway does not work (no route to the host).",
        "journalctl -u bedplate-gateway -n 50",
        "the gateway host",
    ),
    "key refused": (
        [gateway("refused", "HTTP 401")],
        "degraded",
        "It is unknown whether models can be served: the gateway refuses the dashboard's key (HTTP 401).",
        "ansible-playbook site.yml --tags keys",
        "the control machine",
    ),
    "one model not listed": (
        [gateway("answered", None, "small:1b")],
        "degraded",
        "1 of 2 declared models can be served: the gateway does not list embed.",
        "ansible-playbook site.yml --tags gateway",
        "the control machine",
    ),
    "no model listed": (
        [gateway("answered", None, "other")],
        "down",
        "None of 2 declared models can be served: the gateway does not list small:1b, embed.",
        "ansible-playbook site.yml --tags gateway",
        "the control machine",
    ),
    "spare host's engine down": (
        [host(1, "answered", None, ENGINE_DOWN)],
        "degraded",
        "All 2 declared models can be served, but the engine on gpu2 is down.",
        "journalctl -u ollama -n 50",
        "gpu2",
    ),
    "one engine down": (
        [host(0, "answered", None, ENGINE_DOWN)],
        "degraded",
        "1 of 2 declared models can be served: the engine on gpu1 is down.",
        "journalctl -u ollama -n 50",
        "gpu1",
    ),
    "every engine down, though the gateway lists all": (
        [host(0, "answered", None, ENGINE_DOWN), host(1, "answered", None, ENGINE_DOWN)],
        "down",
        "None of 2 declared models can be served: the engine on gpu1 is down, and 1 more fault.",
        "journalctl -u ollama -n 50",
        "gpu1",
    ),
    "model removed from its engine": (
        [host(0, "answered", None, engine(SMALL))],
        "degraded",
        "1 of 2 declared models can be served: the engine on gpu1 does not have embed.",
        "ansible-playbook site.yml --tags ollama",
        "the control machine",
    ),
    "every engine down, so that the gateway lists nothing": (
        [gateway("answered"), host(0, "answered", None, ENGINE_DOWN), host(1, "answered", None, ENGINE_DOWN)],
        "down",
        "None of 2 declared models can be served: the engine on gpu1 is down, and 1 more fault.",
        "journalctl -u ollama -n 50",
        "gpu1",
    ),
    "one exporter stopped": (
        [host(0, "failed", "connection refused")],
        "degraded",
        "All 2 declared models can be served, but the exporter on gpu1 does not work (connection refused), "
        "so its engine's state is unknown.",
        "journalctl -u bedplate-exporter -n 50",
        "gpu1",
    ),
    "engine hung": (
        [host(0, "answered", None, engine(fault="hung"))],
        "degraded",
        "1 of 2 declared models can be served: the engine on gpu1 hangs.",
        "journalctl -u ollama -n 50",
        "gpu1",
    ),
    "something else on the engine's port": (
        [host(1, "answered", None, engine(fault="broken"))],
        "degraded",
        "All 2 declared models can be served, but the engine on gpu2 returns invalid answers.",
        "journalctl -u ollama -n 50",
        "gpu2",
    ),
    "a wrong key, while the gateway's metrics show what is served": (
        [
            gateway("refused", "HTTP 401"),
            gateway_metrics_are(
                'bedplate_gateway_engine_serves{engine="gpu1",model="small:1b"} 1',
                'bedplate_gateway_engine_serves{engine="gpu1",model="embed"} 1',
            ),
        ],
        "degraded",
        "All 2 declared models can be served, but the gateway refuses the dashboard's key (HTTP 401).",
        "ansible-playbook site.yml --tags keys",
        "the control machine",
    ),
    "the gateway's metrics are closed": (
        [no_metrics],
        "degraded",
        "All 2 declared models can be served, but the gateway does not return its metrics (HTTP 403), "
        "so traffic and limits are unknown.",
        "journalctl -u bedplate-gateway -n 50",
        "the gateway host",
    ),
    "a disk is full": (
        [disk(90_000_000)],
        "degraded",
        "All 2 declared models can be served, but /srv on gpu1 is full (0.1 GB left).",
        "du -xh --max-depth 2 /srv | sort -h | tail",
        "gpu1",
    ),
    "a disk is not full": (
        [disk(50_000_000_000)],
        "healthy",
        "All 2 declared models can be served.",
        None,
        None,
    ),
    "the node exporter is stopped": (
        [machine(contact=Contact("failed", 0.1, "connection refused"))],
        "degraded",
        "All 2 declared models can be served, but the node exporter on gpu1 does not work "
        "(connection refused), so the state of its disks and services is unknown.",
        "journalctl -u node-exporter -n 50",
        "gpu1",
    ),
    "Alertmanager failed": (
        [units(alertmanager="failed", ollama="active")],
        "degraded",
        "All 2 declared models can be served, but alertmanager on gpu1 is failed.",
        "journalctl -u alertmanager -n 50",
        "gpu1",
    ),
    "a GPU is lost": (
        [host(1, "answered", None, engine(ON_GPU, drivers=(CARD | {"devices": 1},)))],
        "degraded",
        "All 2 declared models can be served, but gpu2 has 1 of 2 GPUs.",
        "dmesg | grep -i -e xid -e amdgpu | tail",
        "gpu2",
    ),
    "the GPU driver hangs": (
        [host(1, "answered", None, engine(ON_GPU, drivers=(CARD | {"failed": True, "devices": 0},)))],
        "degraded",
        "All 2 declared models can be served, but the GPU driver on gpu2 does not answer.",
        "nvidia-smi; dmesg | tail -n 50",
        "gpu2",
    ),
    "module and library differ": (
        [
            host(
                1,
                "answered",
                None,
                engine(
                    ON_GPU,
                    drivers=(
                        CARD
                        | {"driver_matches": False, "module_version": "550.1", "library_version": "550.2"},
                    ),
                ),
            )
        ],
        "degraded",
        "All 2 declared models can be served, but the GPU driver's module and library on gpu2 differ "
        "(550.1 and 550.2).",
        "reboot",
        "gpu2",
    ),
    "a model fell back to the processor": (
        [host(1, "answered", None, engine(ON_GPU | {"gpu_memory_bytes": 10}, drivers=(CARD,)))],
        "degraded",
        "All 2 declared models can be served, "
        "but small:1b on gpu2 is not entirely on the GPU, so it is slow.",
        "journalctl -u ollama | grep 'inference compute' | tail",
        "gpu2",
    ),
    "a model on the processor of a host without GPUs": (
        [host(1, "answered", None, engine(ON_GPU | {"gpu_memory_bytes": 0}))],
        "healthy",
        "All 2 declared models can be served.",
        None,
        None,
    ),
    "requests wait too long": (
        [
            gateway_metrics_are(
                'bedplate_gateway_queue_requests{class="normal"} 3',
                'bedplate_gateway_queue_oldest_wait_seconds{class="normal"} 31.4',
            )
        ],
        "degraded",
        "All 2 declared models can be served, but requests of class normal wait 31 s for a slot.",
        "journalctl -u bedplate-gateway -n 50",
        "the gateway host",
    ),
    "requests of class low wait": (
        [
            gateway_metrics_are(
                'bedplate_gateway_queue_requests{class="low"} 3',
                'bedplate_gateway_queue_oldest_wait_seconds{class="low"} 600',
            )
        ],
        "healthy",
        "All 2 declared models can be served.",
        None,
        None,
    ),
    "every exporter stopped, but the gateway sees the engines": (
        [host(0, "failed", "connection refused"), host(1, "failed", "connection refused")],
        "degraded",
        "All 2 declared models can be served, but the exporter on gpu1 does not work "
        "(connection refused), so its engine's state is unknown, and 1 more fault.",
        "journalctl -u bedplate-exporter -n 50",
        "gpu1",
    ),
    "every exporter stopped, and the gateway sees no engine": (
        [gateway("answered"), host(0, "failed", "refused"), host(1, "failed", "refused")],
        "down",
        "None of 2 declared models can be served: the exporter on gpu1 does not work (refused), "
        "so its engine's state is unknown, and 1 more fault.",
        "journalctl -u bedplate-exporter -n 50",
        "gpu1",
    ),
    "every inference host gone": (
        [host(0, "unreachable", "no route to the host"), host(1, "unreachable", "no route to the host")],
        "down",
        "None of 2 declared models can be served: the host gpu1 cannot be reached (no route to the host), "
        "and 1 more fault.",
        "ansible gpu1 -m ping",
        "the control machine",
    ),
    "a drained host": (
        [drained("gpu2")],
        "healthy",
        "All 2 declared models can be served; gpu2 is drained.",
        "make undrain HOST=gpu2",
        "the control machine",
    ),
    "a drained host is off, and one of its models has no other": (
        [drained("gpu1"), host(0, "unreachable", "no route to the host"), machine(contact=NO_ROUTE)],
        "degraded",
        "1 of 2 declared models can be served: requests for embed wait: "
        "gpu1 is drained by kim since 2026-03-01 11:02 UTC: new fan.",
        "make undrain HOST=gpu1",
        "the control machine",
    ),
    "every host is drained without a reason": (
        [drained("gpu1", "gpu2", why="")],
        "down",
        "None of 2 declared models can be served: requests for small:1b, embed wait: "
        "gpu1 is drained by kim since 2026-03-01 11:02 UTC, and 1 more fault.",
        "make undrain HOST=gpu1",
        "the control machine",
    ),
    "an engine fails while another one is drained": (
        [drained("gpu2"), host(0, "answered", None, ENGINE_DOWN), host(1, "failed", "connection refused")],
        "down",
        "None of 2 declared models can be served: requests for small:1b wait: "
        "gpu2 is drained by kim since 2026-03-01 11:02 UTC: new fan, and 1 more fault.",
        "make undrain HOST=gpu2",
        "the control machine",
    ),
    "who is drained is unknown without the gateway's metrics": (
        [drained("gpu2"), no_metrics, host(1, "answered", None, ENGINE_DOWN)],
        "degraded",
        "All 2 declared models can be served, but the gateway does not return its metrics (HTTP 403), "
        "so traffic and limits are unknown, and 1 more fault.",
        "journalctl -u bedplate-gateway -n 50",
        "the gateway host",
    ),
    "Prometheus stopped": (
        [prometheus("failed", "connection refused")],
        "degraded",
        "All 2 declared models can be served, but Prometheus does not answer (connection refused), "
        "so no history is recorded.",
        "journalctl -u prometheus -n 50",
        "the monitoring host",
    ),
    "Prometheus stores nothing": (
        [prometheus_stored(60.5)],
        "degraded",
        "All 2 declared models can be served, but Prometheus stores no samples, so no history is recorded "
        "and no alert is right.",
        "journalctl -u prometheus -n 50",
        "the monitoring host",
    ),
    "Prometheus stored four intervals ago": (
        [prometheus_stored(60.0)],
        "healthy",
        "All 2 declared models can be served.",
        None,
        None,
    ),
    "gateway first of many": (
        [
            prometheus("failed", "connection refused"),
            host(1, "answered", None, ENGINE_DOWN),
            gateway("failed", "no answer within 2 s"),
        ],
        "down",
        "None of 2 declared models can be served: the gateway does not work (no answer within 2 s), "
        "and 2 more faults.",
        "journalctl -u bedplate-gateway -n 50",
        "the gateway host",
    ),
}


@pytest.mark.parametrize(("changes", "state", "reason", "todo", "where"), TABLE.values(), ids=TABLE)
def test_state(
    *,
    settings: Settings,
    all_well: Observation,
    changes: list[Change],
    state: str,
    reason: str,
    todo: str | None,
    where: str | None,
) -> None:
    observation = all_well
    for change in changes:
        observation = change(observation)
    verdict = judge(settings, observation)
    status = describe_now(advance(None, verdict, observation, 100.0), 101.0, STARTED, 0.0)
    assert (status.state, status.reason, status.next, status.next_on) == (state, reason, todo, where)
    assert (state == "healthy") == (not verdict.faults)


def test_one_declared_model_is_named(settings: Settings, all_well: Observation) -> None:
    one = settings.model_copy(update={"inference_hosts": (settings.inference_hosts[1],)})
    observation = dataclasses.replace(all_well, hosts=all_well.hosts[1:])
    assert judge(one, observation).reason == "small:1b can be served."
    broken = gateway("failed", "HTTP 500")(observation)
    assert judge(one, broken).reason == "small:1b cannot be served: the gateway does not work (HTTP 500)."


def test_no_declared_model_is_reported(settings: Settings, all_well: Observation) -> None:
    bare = settings.inference_hosts[1].model_copy(update={"models": ()})
    none = settings.model_copy(update={"inference_hosts": (bare,)})
    verdict = judge(none, dataclasses.replace(all_well, hosts=all_well.hosts[1:]))
    assert (verdict.state, verdict.reason) == ("healthy", "No model is declared.")


def test_a_model_has_three_checks(settings: Settings, all_well: Observation) -> None:
    loaded = SMALL | {
        "loaded": True,
        "memory_bytes": 10,
        "gpu_memory_bytes": 4,
        "context_length": 4096,
        "expires_at": "2026-03-01T12:05:00Z",
    }
    observation = host(0, "answered", None, engine(loaded, EMBED, {"name": "extra:7b"}))(all_well)
    observation = host(1, "failed", "HTTP 500")(observation)
    verdict = judge(settings, observation)
    small = verdict.models[0]
    assert (small.name, small.listed, small.can_be_served) == ("small:1b", True, True)
    first, second = small.placements
    assert (first.host, first.present, first.loaded, first.unload_seconds) == ("gpu1", True, True, 300.0)
    assert (second.host, second.present, second.loaded) == ("gpu2", None, None)
    assert verdict.hosts[0].undeclared == ("extra:7b",)
    assert verdict.hosts[0].memory_bytes == 10


@pytest.fixture
def healthy(settings: Settings, all_well: Observation) -> Snapshot:
    return advance(None, judge(settings, all_well), all_well, 100.0)


def test_an_old_poll_is_never_healthy(healthy: Snapshot) -> None:
    fresh = describe_now(healthy, 100.0 + STALE_SECONDS, STARTED, 0.0)
    assert (fresh.state, fresh.stale) == ("healthy", False)
    old = describe_now(healthy, 100.1 + STALE_SECONDS, STARTED, 0.0)
    assert (old.state, old.stale, old.next) == ("degraded", True, "systemctl restart bedplate-dashboard")
    assert old.reason == "The state is unknown: the last poll reported healthy."
    assert old.since == healthy.at + timedelta(seconds=STALE_SECONDS)


def test_before_the_first_poll() -> None:
    fresh = describe_now(None, 51.0, STARTED, 50.0)
    assert (fresh.state, fresh.stale, fresh.next, fresh.at) == ("degraded", True, None, None)
    stuck = describe_now(None, 70.0, STARTED, 50.0)
    assert (stuck.next, stuck.since) == ("systemctl restart bedplate-dashboard", STARTED)


def test_the_reason_includes_the_state_of_the_unit(settings: Settings, all_well: Observation) -> None:
    here = settings.model_copy(update={"gateway": "gpu1"})
    stopped = units(**{"bedplate-gateway": "failed"})(gateway("failed", "connection refused")(all_well))
    assert "(bedplate-gateway is failed, connection refused)" in judge(here, stopped).reason


def test_a_model_of_another_server(settings: Settings, all_well: Observation) -> None:
    more = settings.model_copy(update={"other_models": ("big:70b",)})
    missing = judge(more, all_well)
    assert missing.reason == ("2 of 3 declared models can be served: the gateway does not list big:70b.")
    listed = gateway("answered", None, "small:1b", "embed", "big:70b")(all_well)
    assert judge(more, listed).reason == "All 3 declared models can be served."


def test_alerts_are_shown_and_not_judged(settings: Settings, all_well: Observation) -> None:
    alert = ActiveAlert.model_validate(
        {
            "labels": {"alertname": "QueueSaturated", "severity": "warning"},
            "annotations": {"summary": "requests wait"},
            "state": "firing",
            "activeAt": "2026-03-01T11:00:00Z",
        }
    )
    pending = alert.model_copy(update={"state": "pending"})
    # The dead man's switch, which always fires.
    labels = alert.labels.model_copy(update={"alertname": "Watchdog", "severity": "none"})
    watchdog = alert.model_copy(update={"labels": labels})
    observation = dataclasses.replace(
        all_well, prometheus=dataclasses.replace(all_well.prometheus, alerts=(pending, watchdog, alert))
    )
    verdict = judge(settings, observation)
    assert (verdict.state, verdict.reason) == (
        "healthy",
        "All 2 declared models can be served; 1 alert is active.",
    )
    assert verdict.operations.alerts is not None
    assert [shown.name for shown in verdict.operations.alerts] == ["QueueSaturated"]


@pytest.mark.parametrize(
    ("reason", "status", "state"),
    [("queue_full", 429, "degraded"), ("queue_timeout", 503, "degraded"), ("key_tokens", 429, "healthy")],
)
def test_only_refusals_caused_by_the_stack_count(
    settings: Settings, all_well: Observation, reason: str, status: int, state: str
) -> None:
    verdict = judge(
        settings, all_well, RecentTraffic(refusals=(Refusals(reason=reason, status=status, count=3),))
    )
    assert verdict.state == state
    assert ("3 requests were just refused" in verdict.reason) == (state == "degraded")


def test_the_third_check_is_the_last_answer(settings: Settings, all_well: Observation) -> None:
    assert judge(settings, all_well).models[0].answered is None
    answered = judge(settings, requested(12, "answered")(all_well)).models[0].answered
    assert answered is not None
    assert (answered.age_seconds, answered.by, answered.ok) == (12.0, "request", True)
    answered = judge(settings, requested(12, "answered", "canary")(all_well)).models[0].answered
    assert answered is not None
    assert answered.by == "canary"


def test_the_canarys_file_survives_a_gateway_restart(settings: Settings, all_well: Observation) -> None:
    name = "bedplate_traffic_canary_last_answer_timestamp_seconds"
    answered = judge(settings, machine(f'{name}{{model="small:1b"}} 1772366340')(all_well)).models[0].answered
    assert answered is not None
    assert (answered.age_seconds, answered.by) == (60.0, "canary")


def test_a_request_that_failed_without_a_known_fault(settings: Settings, all_well: Observation) -> None:
    verdict = judge(settings, requested(12, "failed")(all_well))
    assert (verdict.state, verdict.reason) == (
        "degraded",
        "1 of 2 declared models can be served: the last request for small:1b failed.",
    )
    assert (verdict.faults[0].next, verdict.faults[0].next_on) == ("journalctl -u ollama -n 50", "gpu1")
    assert judge(settings, requested(301, "failed")(all_well)).state == "healthy"
    # A fault that was found since then explains it, and is fixed.
    explained = Memory(unable={"small:1b": all_well.at - timedelta(seconds=20)})
    assert judge(settings, requested(12, "failed")(all_well), memory=explained).state == "healthy"
    earlier = Memory(unable={"small:1b": all_well.at - timedelta(seconds=23)})
    assert judge(settings, requested(12, "failed")(all_well), memory=earlier).state == "degraded"


def test_a_fault_and_an_error_are_remembered(settings: Settings, all_well: Observation) -> None:
    broken = host(0, "answered", None, ENGINE_DOWN)(all_well)
    first = advance(None, judge(settings, broken), broken, 100.0)
    assert first.memory.unable.keys() == {"embed"}
    second = later(broken, 2)
    verdict = judge(settings, second, memory=first.memory)
    assert verdict.faults[0].since == broken.at
    well = later(all_well, 4)
    fixed = judge(settings, well, memory=advance(first, verdict, second, 102.0).memory)
    assert not fixed.faults
    (hop,) = (hop for hop in fixed.chain if (hop.kind, hop.name) == ("host", "gpu1"))
    assert (hop.state, hop.error) == ("ok", None)
    assert hop.last_error is not None
    assert (hop.last_error.text, hop.last_error.at) == ("It does not answer.", second.at)


def later(observation: Observation, seconds: float) -> Observation:
    return dataclasses.replace(observation, at=observation.at + timedelta(seconds=seconds))


def test_since_is_when_the_state_last_changed(
    settings: Settings, all_well: Observation, healthy: Snapshot
) -> None:
    def poll(last: Snapshot, observation: Observation, after: float) -> Snapshot:
        verdict: Verdict = judge(settings, observation)
        return advance(last, verdict, later(observation, after), 100.0 + after)

    at = all_well.at
    same = poll(healthy, all_well, 2)
    assert same.since == at
    broken = poll(same, prometheus("failed", "HTTP 503")(all_well), 4)
    assert broken.since == at + timedelta(seconds=4)
    otherwise = poll(broken, host(1, "answered", None, ENGINE_DOWN)(all_well), 6)
    assert otherwise.since == broken.since
    well = poll(otherwise, all_well, 8)
    assert well.since == at + timedelta(seconds=8)
    after_a_gap = poll(well, all_well, 30)
    assert after_a_gap.since == at + timedelta(seconds=30)
