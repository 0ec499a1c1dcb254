"""The request path: one hop after the other, each with its own error."""

import dataclasses

import pytest
from bedplate_dashboard.health.facts import derive_facts
from bedplate_dashboard.health.faults import find_faults
from bedplate_dashboard.health.model import Hop, Lanes, ModelStatus
from bedplate_dashboard.health.request_path import trace_request
from bedplate_dashboard.health.traffic_window import RecentTraffic
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import Observation

from dashboard_app.tests.samples import TRAFFIC
from dashboard_app.tests.situations import (
    CARD,
    EMBED,
    ENGINE_DOWN,
    ON_GPU,
    SMALL,
    Change,
    drained,
    engine,
    gateway,
    gateway_metrics_are,
    host,
    litellm,
    no_metrics,
)

LISTED = tuple(
    ModelStatus(name=name, can_be_served=True, listed=True, placements=()) for name in ("small:1b", "embed")
)


def trace(
    settings: Settings,
    observation: Observation,
    *,
    models: tuple[ModelStatus, ...] = LISTED,
    recent: RecentTraffic | None = None,
) -> dict[str, Hop]:
    """Return the hops of an observation by kind and name."""
    facts = derive_facts(settings, observation, recent or RecentTraffic(), {})
    hops = trace_request(settings, facts, models, find_faults(facts, models))
    return {f"{hop.kind} {hop.name}": hop for hop in hops}


def test_the_order_of_the_hops(settings: Settings, all_well: Observation) -> None:
    hops = trace(settings, all_well)
    assert list(hops) == [
        "clients clients",
        "gateway gateway",
        "queue queue",
        "host gpu1",
        "gpu gpu1",
        "host gpu2",
        "gpu gpu2",
    ]
    assert [hop.error for hop in hops.values()] == [None] * 7
    assert hops["gateway gateway"].detail == "lists 2 of 2 models"
    assert hops["host gpu1"] == Hop(
        kind="host",
        name="gpu1",
        state="ok",
        detail="has 2 of 2 models, 0 loaded",
        version="0.24.0",
        latency_seconds=0.003,
    )
    assert (hops["gpu gpu1"].state, hops["gpu gpu1"].detail) == ("ok", "no GPU")


def test_clients_are_known_by_their_traffic(settings: Settings, all_well: Observation) -> None:
    recent = RecentTraffic(traffic=TRAFFIC)
    hop = trace(settings, all_well, recent=recent)["clients clients"]
    assert (hop.state, hop.detail) == ("ok", "110 requests in the last minute")
    hop = trace(settings, no_metrics(all_well), recent=recent)["clients clients"]
    assert (hop.state, hop.detail) == ("unknown", "at http://10.1.2.3:8000")


@pytest.mark.parametrize(
    ("outcome", "state", "detail"),
    [
        ("refused", "warn", "at http://127.0.0.1:8000"),
        ("failed", "bad", "at http://127.0.0.1:8000"),
        ("unreachable", "bad", "at http://127.0.0.1:8000"),
    ],
)
def test_a_gateway_without_an_answer(
    settings: Settings, all_well: Observation, outcome: str, state: str, detail: str
) -> None:
    hop = trace(settings, gateway(outcome, "an error")(all_well))["gateway gateway"]
    assert (hop.state, hop.detail, hop.error) == (state, detail, "an error")


def test_a_gateway_that_lacks_a_model(settings: Settings, all_well: Observation) -> None:
    models = (LISTED[0], dataclasses.replace(LISTED[1], listed=False))
    hop = trace(settings, all_well, models=models)["gateway gateway"]
    assert (hop.state, hop.detail) == ("warn", "lists 1 of 2 models")


def test_the_queue(settings: Settings, all_well: Observation) -> None:
    def queue(waiting: int, seconds: float) -> Hop:
        change = gateway_metrics_are(
            'bedplate_gateway_slots{engine="gpu1",model="a"} 2',
            f'bedplate_gateway_queue_requests{{class="normal"}} {waiting}',
            f'bedplate_gateway_queue_oldest_wait_seconds{{class="normal"}} {seconds}',
        )
        return trace(settings, change(all_well))["queue queue"]

    assert (queue(0, 0).state, queue(0, 0).detail) == ("ok", "no request waits; 0 of 2 slots busy")
    assert queue(1, 3.0).detail == "1 request waits, the oldest for 3 s; 0 of 2 slots busy"
    slow = queue(4, 31.0)
    assert (slow.state, slow.detail) == ("warn", "4 requests wait, the oldest for 31 s; 0 of 2 slots busy")
    assert slow.error == "requests of class normal wait 31 s for a slot"
    assert trace(settings, no_metrics(all_well))["queue queue"].state == "unknown"


def recent_lanes(through: int, direct: int = 0, bypass: int = 0) -> RecentTraffic:
    """Return the requests of the last minute by lane."""
    return RecentTraffic(lanes=Lanes(litellm=through, direct=direct, bypass=bypass))


OWN_NUMBERS = RecentTraffic(litellm_added_seconds=0.0214, litellm_memory_bytes=4.43e8)
MINUTE = "in the last minute"


@pytest.mark.parametrize(
    ("change", "recent", "shown"),
    [
        (litellm(1), RecentTraffic(), ("ok", "unknown", None)),
        (litellm(1), recent_lanes(1), ("ok", f"1 request {MINUTE}", None)),
        (litellm(1), recent_lanes(12, direct=3), ("ok", f"12 requests {MINUTE}, 3 direct", None)),
        (litellm(1), OWN_NUMBERS, ("ok", "adds 21 ms; 443 MB", None)),
        (
            litellm(1),
            recent_lanes(12, bypass=1),
            (
                "warn",
                f"12 requests {MINUTE}, 1 around it",
                "1 request went directly to the engines",
            ),
        ),
        (
            litellm(0),
            recent_lanes(0, bypass=9),
            (
                "warn",
                f"0 requests {MINUTE}, 9 around it",
                "does not answer, so requests go directly to the engines",
            ),
        ),
        (
            litellm(0, direct=9),
            recent_lanes(0, direct=9),
            ("unknown", f"0 requests {MINUTE}, 9 direct", "does not answer, but no request needs it"),
        ),
        (no_metrics, recent_lanes(5), ("unknown", "unknown", None)),
    ],
)
def test_litellm(
    settings: Settings,
    all_well: Observation,
    change: Change,
    recent: RecentTraffic,
    shown: tuple[str, str, str | None],
) -> None:
    hops = trace(settings, change(all_well), recent=recent)
    assert list(hops)[2:5] == ["queue queue", "litellm litellm", "host gpu1"]
    hop = hops["litellm litellm"]
    assert (hop.state, hop.detail, hop.error) == shown
    assert hop.version == "1.110.2"


@pytest.mark.parametrize(
    ("change", "host_hop", "gpu_state"),
    [
        (
            host(0, "unreachable", "no route to the host"),
            ("bad", "its exporter does not answer", "no route to the host"),
            "unknown",
        ),
        (
            host(0, "failed", "HTTP 500"),
            ("unknown", "its exporter does not answer", "HTTP 500"),
            "unknown",
        ),
        (
            host(0, "answered", None, ENGINE_DOWN),
            ("bad", "the engine does not answer", "It does not answer."),
            "ok",
        ),
        (
            host(0, "answered", None, engine(SMALL)),
            ("bad", "has 1 of 2 models, 0 loaded", "a model is missing"),
            "ok",
        ),
    ],
)
def test_a_host_with_a_fault(
    *,
    settings: Settings,
    all_well: Observation,
    change: Change,
    host_hop: tuple[str, str, str],
    gpu_state: str,
) -> None:
    hops = trace(settings, change(all_well))
    hop = hops["host gpu1"]
    assert (hop.state, hop.detail, hop.error) == host_hop
    assert hops["gpu gpu1"].state == gpu_state


@pytest.mark.parametrize(
    ("change", "gpu_state"),
    [
        (host(1, "unreachable", "no route to the host"), "unknown"),
        (host(1, "answered", None, ENGINE_DOWN), "ok"),
        (host(1, "answered", None, engine(SMALL)), "ok"),
        (host(1, "answered", None, engine(SMALL, drivers=(CARD | {"devices": 1},))), "warn"),
    ],
)
def test_a_drained_host_has_no_error(
    settings: Settings, all_well: Observation, change: Change, gpu_state: str
) -> None:
    hops = trace(settings, change(drained("gpu2")(all_well)))
    hop = hops["host gpu2"]
    assert (hop.state, hop.error) == ("warn", None)
    assert hop.detail == ("drained by kim since 2026-03-01 11:02 UTC: new fan; next: make undrain HOST=gpu2")
    assert hops["gpu gpu2"].state == gpu_state
    assert hops["host gpu1"].state == "ok"


def test_gpus(settings: Settings, all_well: Observation) -> None:
    card = {"vendor": "nvidia", "number": "0", "name": "H100"}

    def gpu(throttling: str | None, **driver: object) -> Hop:
        state = engine(ON_GPU, EMBED, drivers=(CARD | {"version": "550.1"} | driver,))
        state = type(state).model_validate(
            state.model_dump(by_alias=True) | {"gpus": [card | {"throttling": throttling}]}
        )
        return trace(settings, host(0, "answered", None, state)(all_well))["gpu gpu1"]

    well = gpu("")
    assert (well.state, well.detail, well.version, well.error) == ("ok", "1 GPU", "550.1", None)
    assert (gpu("heat").state, gpu("heat").error) == ("warn", "throttled (heat)")
    lost = gpu("heat", devices=1)
    assert (lost.state, lost.error) == ("bad", "gpu1 has 1 of 2 GPUs")
