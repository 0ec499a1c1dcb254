"""What each observation means: one row a situation, and never green on an old look."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bedplate_dashboard.collect import Contact, EngineState, GatewayAnswer, HostAnswer, Observation
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.state import STALE_SECONDS, Snapshot, Verdict, advance, current, engine_name, judge

Change = Callable[[Observation], Observation]
STARTED = datetime(2026, 3, 1, 11, 0, 0, tzinfo=UTC)


def engine(*models: dict[str, Any], up: bool = True, error: str | None = None) -> EngineState:
    return EngineState.model_validate(
        {
            "schema": 1,
            "at": "2026-03-01T12:00:00Z",
            "engine": {"up": up, "version": None, "error": error, "latency_seconds": None},
            "models": models,
        }
    )


def gateway(outcome: Any, error: str | None = None, *models: str) -> Change:
    answer = GatewayAnswer(Contact(outcome, 0.1, error), frozenset(models))
    return lambda seen: dataclasses.replace(seen, gateway=answer)


def host(index: int, outcome: Any, error: str | None = None, state: EngineState | None = None) -> Change:
    def change(seen: Observation) -> Observation:
        hosts = list(seen.hosts)
        hosts[index] = HostAnswer(hosts[index].name, Contact(outcome, 0.1, error), state)
        return dataclasses.replace(seen, hosts=tuple(hosts))

    return change


def prometheus(outcome: Any, error: str) -> Change:
    return lambda seen: dataclasses.replace(seen, prometheus=Contact(outcome, 0.1, error))


SMALL = {"name": "small:1b"}
EMBED = {"name": "embed:latest"}
ENGINE_DOWN = engine(up=False, error="connection refused.")
BOTH = "small:1b", "embed"

TABLE: dict[str, tuple[list[Change], str, str, str | None, str | None]] = {
    "all well": ([], "healthy", "All 2 declared models can be served.", None, None),
    "gateway stopped": (
        [gateway("failed", "connection refused")],
        "down",
        "None of 2 declared models can be served: the gateway does not work (connection refused).",
        "journalctl -u litellm -n 50",
        "the gateway host",
    ),
    "gateway's host gone": (
        [gateway("unreachable", "no route to the host")],
        "down",
        "None of 2 declared models can be served: the gateway does not work (no route to the host).",
        "journalctl -u litellm -n 50",
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
        "ansible-playbook site.yml --tags litellm",
        "the control machine",
    ),
    "no model listed": (
        [gateway("answered", None, "other")],
        "down",
        "None of 2 declared models can be served: the gateway does not list small:1b, embed.",
        "ansible-playbook site.yml --tags litellm",
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
        "so its engine cannot be seen.",
        "journalctl -u bedplate-exporter -n 50",
        "gpu1",
    ),
    "every exporter stopped, but the gateway sees the engines": (
        [host(0, "failed", "connection refused"), host(1, "failed", "connection refused")],
        "degraded",
        "All 2 declared models can be served, but the exporter on gpu1 does not work "
        "(connection refused), so its engine cannot be seen, and 1 more fault.",
        "journalctl -u bedplate-exporter -n 50",
        "gpu1",
    ),
    "every exporter stopped, and the gateway sees no engine": (
        [gateway("answered"), host(0, "failed", "refused"), host(1, "failed", "refused")],
        "down",
        "None of 2 declared models can be served: the exporter on gpu1 does not work (refused), "
        "so its engine cannot be seen, and 1 more fault.",
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
    "Prometheus stopped": (
        [prometheus("failed", "connection refused")],
        "degraded",
        "All 2 declared models can be served, but Prometheus does not answer (connection refused), "
        "so no history is kept.",
        "journalctl -u prometheus -n 50",
        "the monitoring host",
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
        "journalctl -u litellm -n 50",
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
    seen = all_well
    for change in changes:
        seen = change(seen)
    verdict = judge(settings, seen)
    status = current(advance(None, verdict, seen, 100.0), 101.0, STARTED, 0.0)
    assert (status.state, status.reason, status.next, status.next_on) == (state, reason, todo, where)
    assert (state == "healthy") == (not verdict.faults)


def test_one_declared_model_is_named(settings: Settings, all_well: Observation) -> None:
    one = settings.model_copy(update={"inference_hosts": (settings.inference_hosts[1],)})
    seen = dataclasses.replace(all_well, hosts=all_well.hosts[1:])
    assert judge(one, seen).reason == "small:1b can be served."
    broken = gateway("failed", "HTTP 500")(seen)
    assert judge(one, broken).reason == "small:1b cannot be served: the gateway does not work (HTTP 500)."


def test_no_declared_model_is_said(settings: Settings, all_well: Observation) -> None:
    bare = settings.inference_hosts[1].model_copy(update={"models": ()})
    none = settings.model_copy(update={"inference_hosts": (bare,)})
    verdict = judge(none, dataclasses.replace(all_well, hosts=all_well.hosts[1:]))
    assert (verdict.state, verdict.reason) == ("healthy", "No model is declared.")


def test_a_model_has_its_three_truths(settings: Settings, all_well: Observation) -> None:
    loaded = SMALL | {
        "loaded": True,
        "memory_bytes": 10,
        "gpu_memory_bytes": 4,
        "context_length": 4096,
        "expires_at": "2026-03-01T12:05:00Z",
    }
    seen = host(0, "answered", None, engine(loaded, EMBED, {"name": "extra:7b"}))(all_well)
    seen = host(1, "failed", "HTTP 500")(seen)
    verdict = judge(settings, seen)
    small = verdict.models[0]
    assert (small.name, small.listed, small.can_be_served) == ("small:1b", True, True)
    first, second = small.placements
    assert (first.host, first.present, first.loaded, first.unload_seconds) == ("gpu1", True, True, 300.0)
    assert (second.host, second.present, second.loaded) == ("gpu2", None, None)
    assert verdict.hosts[0].undeclared == ("extra:7b",)
    assert verdict.hosts[0].memory_bytes == 10


@pytest.mark.parametrize(
    ("declared", "listed"),
    [("embed", "embed:latest"), ("small:1b", "small:1b"), ("host:5000/embed", "host:5000/embed:latest")],
)
def test_a_name_without_a_tag_is_latest(declared: str, listed: str) -> None:
    assert engine_name(declared) == listed


@pytest.fixture
def healthy(settings: Settings, all_well: Observation) -> Snapshot:
    return advance(None, judge(settings, all_well), all_well, 100.0)


def test_an_old_look_is_never_healthy(healthy: Snapshot) -> None:
    fresh = current(healthy, 100.0 + STALE_SECONDS, STARTED, 0.0)
    assert (fresh.state, fresh.stale) == ("healthy", False)
    old = current(healthy, 100.1 + STALE_SECONDS, STARTED, 0.0)
    assert (old.state, old.stale, old.next) == ("degraded", True, "systemctl restart bedplate-dashboard")
    assert old.reason == "The state is unknown: the last look, 7 s ago, found it healthy."
    assert old.since == healthy.at + timedelta(seconds=STALE_SECONDS)


def test_before_the_first_look() -> None:
    fresh = current(None, 51.0, STARTED, 50.0)
    assert (fresh.state, fresh.stale, fresh.next, fresh.at) == ("degraded", True, None, None)
    stuck = current(None, 70.0, STARTED, 50.0)
    assert (stuck.next, stuck.since) == ("systemctl restart bedplate-dashboard", STARTED)


def later(seen: Observation, seconds: float) -> Observation:
    return dataclasses.replace(seen, at=seen.at + timedelta(seconds=seconds))


def test_since_is_when_the_state_last_changed(
    settings: Settings, all_well: Observation, healthy: Snapshot
) -> None:
    def look(last: Snapshot, seen: Observation, after: float) -> Snapshot:
        verdict: Verdict = judge(settings, seen)
        return advance(last, verdict, later(seen, after), 100.0 + after)

    at = all_well.at
    same = look(healthy, all_well, 2)
    assert same.since == at
    broken = look(same, prometheus("failed", "HTTP 503")(all_well), 4)
    assert broken.since == at + timedelta(seconds=4)
    otherwise = look(broken, host(1, "answered", None, ENGINE_DOWN)(all_well), 6)
    assert otherwise.since == broken.since
    well = look(otherwise, all_well, 8)
    assert well.since == at + timedelta(seconds=8)
    after_a_gap = look(well, all_well, 30)
    assert after_a_gap.since == at + timedelta(seconds=30)
