"""Faults: their order, what to type, and that no fault is reported twice."""

import dataclasses

import pytest
from bedplate_dashboard.health.facts import derive_facts
from bedplate_dashboard.health.faults import Faults, find_faults
from bedplate_dashboard.health.model import ModelStatus, Placement, Refusals
from bedplate_dashboard.health.traffic_window import RecentTraffic
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import Contact, MachineAnswer, Observation

from dashboard_app.tests.observed import node_metrics
from dashboard_app.tests.situations import (
    CARD,
    ENGINE_DOWN,
    ON_GPU,
    Change,
    disk,
    drained,
    engine,
    gateway,
    gateway_metrics_are,
    host,
    litellm,
    machine,
    prometheus,
    units,
)

LONG_WAIT = gateway_metrics_are(
    'bedplate_gateway_queue_requests{class="high"} 1',
    'bedplate_gateway_queue_oldest_wait_seconds{class="high"} 45',
)


def find(
    settings: Settings,
    observation: Observation,
    *,
    models: tuple[ModelStatus, ...] = (),
    refusals: tuple[Refusals, ...] = (),
    bypassed: int = 0,
) -> Faults:
    """Return the faults of an observation."""
    recent = RecentTraffic(refusals=refusals, bypassed=bypassed)
    return find_faults(derive_facts(settings, observation, recent, {}), models)


def model(name: str, *, listed: bool | None, present: bool | None) -> ModelStatus:
    """Return a model on gpu1."""
    places = (Placement(host="gpu1", present=present),)
    return ModelStatus(name=name, can_be_served=None, listed=listed, placements=places)


def test_a_healthy_stack_has_none(settings: Settings, all_well: Observation) -> None:
    faults = find(settings, all_well)
    assert (faults.counted, faults.waits) == ((), ())
    assert faults.gpus == {"gpu1": (), "gpu2": ()}


def test_an_edge_that_passes_no_request_on_is_named(settings: Settings, all_well: Observation) -> None:
    contact = Contact("failed", 0.1, "connection refused")
    gateway = dataclasses.replace(all_well.gateway, contact=contact)
    (fault,) = find(settings, dataclasses.replace(all_well, gateway=gateway)).counted
    assert fault.what == "bedplate-edge does not pass requests to the gateway (connection refused)"
    assert fault.next == "journalctl -u bedplate-edge -n 50"


def test_the_most_important_fault_comes_first(settings: Settings, all_well: Observation) -> None:
    observation = all_well
    for change in (
        LONG_WAIT,
        disk(1),
        prometheus("failed", "connection refused"),
        host(1, "answered", None, ENGINE_DOWN),
    ):
        observation = change(observation)
    contact = Contact("failed", 0.1, "HTTP 500")
    observation = dataclasses.replace(
        observation, gateway=dataclasses.replace(observation.gateway, contact=contact)
    )
    refusals = (
        Refusals(reason="queue_timeout", status=503, count=2),
        Refusals(reason="queue_full", status=429, count=1),
    )
    faults = find(settings, observation, refusals=refusals)
    assert [fault.about for fault in faults.counted] == [
        "edge",
        "engine gpu2",
        "refusals",
        "wait high",
        "disk gpu1 /srv",
        "prometheus",
    ]
    assert faults.counted[2].what == "3 requests were just refused (queue_full, queue_timeout)"
    assert faults.waits == faults.counted[3:4]


def test_every_fault_says_what_to_type_and_where(settings: Settings, all_well: Observation) -> None:
    for change in (
        gateway("refused", "HTTP 401"),
        gateway("failed", "HTTP 500"),
        host(0, "unreachable", "no route to the host"),
        host(0, "failed", "connection refused"),
        host(0, "answered", None, ENGINE_DOWN),
        host(0, "answered", None, engine()),
        units(alertmanager="failed"),
        prometheus("failed", "HTTP 503"),
        disk(1),
        LONG_WAIT,
        litellm(0),
    ):
        faults = find(settings, change(all_well)).counted
        assert faults
        for fault in faults:
            assert fault.what
            assert not fault.what.endswith(".")
            assert fault.next
            assert fault.next_on
            assert fault.about


def test_gpu_faults_do_not_count_while_the_engine_is_down(settings: Settings, all_well: Observation) -> None:
    lost = CARD | {"devices": 1}
    works = host(1, "answered", None, engine(ON_GPU, drivers=(lost,)))(all_well)
    faults = find(settings, works)
    assert [fault.what for fault in faults.counted] == ["gpu2 has 1 of 2 GPUs"]
    assert faults.gpus["gpu2"] == faults.counted
    stopped = host(1, "answered", None, engine(fault="stopped", drivers=(lost,)))(all_well)
    faults = find(settings, stopped)
    assert [fault.what for fault in faults.counted] == ["the engine on gpu2 is down"]
    assert [fault.what for fault in faults.gpus["gpu2"]] == ["gpu2 has 1 of 2 GPUs"]


@pytest.mark.parametrize(
    ("present", "faults"),
    [(True, ["listed"]), (False, []), (None, [])],
    ids=["present", "missing", "unknown"],
)
def test_only_a_model_that_an_engine_has_should_be_listed(
    settings: Settings, all_well: Observation, present: bool | None, faults: list[str]
) -> None:
    missing = (model("embed", listed=False, present=present),)
    assert [fault.about for fault in find(settings, all_well, models=missing).counted] == faults


def test_three_names_are_enough(settings: Settings, all_well: Observation) -> None:
    models = tuple(model(f"m{number}", listed=False, present=True) for number in range(5))
    (fault,) = find(settings, all_well, models=models).counted
    assert fault.what == "the gateway does not list m0, m1, m2 and 2 more"


def test_an_unreachable_host_is_one_fault(settings: Settings, all_well: Observation) -> None:
    away = MachineAnswer("gpu1", Contact("unreachable", 0.1, "no route to the host"), node_metrics())
    gone = host(0, "unreachable", "no route to the host")(dataclasses.replace(all_well, machines=(away,)))
    assert [fault.about for fault in find(settings, gone).counted] == ["host gpu1"]


def test_a_polled_service_is_judged_by_its_answer(settings: Settings, all_well: Observation) -> None:
    assert find(settings, units(ollama="failed", prometheus="inactive")(all_well)).counted == ()


def gateway_host(**states: str) -> Change:
    """The units of the gateway's host."""
    return lambda observation: dataclasses.replace(
        observation,
        machines=tuple(
            dataclasses.replace(answer, name="gateway1") for answer in units(**states)(observation).machines
        ),
    )


@pytest.mark.parametrize(
    ("changes", "bypassed", "what"),
    [
        ([litellm(1)], 0, None),
        ([litellm(0)], 0, "LiteLLM does not answer, so requests go directly to the engines meanwhile"),
        (
            [litellm(0), gateway_host(litellm="failed")],
            3,
            "LiteLLM does not answer (litellm is failed), so requests go directly to the engines meanwhile",
        ),
        ([litellm(1)], 1, "LiteLLM did not answer, so 1 request just went directly to the engines"),
        ([litellm(1)], 3, "LiteLLM did not answer, so 3 requests just went directly to the engines"),
        ([litellm(0, direct=5)], 0, None),
        ([litellm(0, direct=5), gateway_host(litellm="inactive")], 0, None),
        # An earlier gateway does not report LiteLLM, and no gateway reports that of another host.
        ([gateway_host(litellm="failed")], 0, "litellm on gateway1 is failed"),
        ([litellm(1), units(litellm="failed")], 0, "litellm on gpu1 is failed"),
    ],
)
def test_litellm(
    settings: Settings, all_well: Observation, changes: list[Change], bypassed: int, what: str | None
) -> None:
    for change in changes:
        all_well = change(all_well)
    faults = find(settings, all_well, bypassed=bypassed).counted
    assert [fault.what for fault in faults] == ([what] if what else [])
    assert {fault.next for fault in faults} <= {"journalctl -u litellm -n 50"}


@pytest.mark.parametrize(
    "change",
    [
        host(0, "answered", None, ENGINE_DOWN),
        host(0, "answered", None, engine()),
        host(0, "failed", "HTTP 500"),
        host(0, "unreachable", "no route to the host"),
        machine(contact=Contact("failed", 0.1, "connection refused")),
        host(0, "answered", None, engine({"name": "small:1b"}, drivers=(CARD | {"failed": True},))),
        units(**{"ollama": "inactive", "ollama-preload": "failed", "gpu-devices": "failed"}),
    ],
)
def test_what_fails_on_a_drained_host_is_no_fault(
    settings: Settings, all_well: Observation, change: Change
) -> None:
    assert len(find(settings, change(drained("gpu2")(all_well))).counted) > 0
    assert find(settings, change(drained("gpu1")(all_well))).counted == ()


def test_a_full_disk_of_a_drained_host_is_a_fault(settings: Settings, all_well: Observation) -> None:
    (fault,) = find(settings, disk(1)(drained("gpu1")(all_well))).counted
    assert fault.about == "disk gpu1 /srv"


@pytest.mark.parametrize(
    "change",
    [
        host(0, "answered", None, ENGINE_DOWN),
        host(0, "answered", None, engine()),
        host(0, "failed", "HTTP 500"),
        host(0, "unreachable", "no route to the host"),
        host(0, "answered", None, engine({"name": "small:1b"}, {"name": "embed:latest"}, drivers=(CARD,))),
        host(
            0,
            "answered",
            None,
            engine({"name": "small:1b"}, {"name": "embed:latest"}, drivers=(CARD | {"failed": True},)),
        ),
        host(
            0,
            "answered",
            None,
            engine(ON_GPU | {"gpu_memory_bytes": 1}, {"name": "embed:latest"}, drivers=(CARD,)),
        ),
    ],
)
def test_a_host_is_ok_unless_it_has_a_fault(
    settings: Settings, all_well: Observation, change: Change
) -> None:
    facts = derive_facts(settings, change(all_well), RecentTraffic(), {})
    faults = find_faults(facts, ()).counted
    assert [host.status.ok for host in facts.hosts] == [not faults, True]
