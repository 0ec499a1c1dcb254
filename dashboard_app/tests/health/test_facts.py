"""Facts of one poll: hosts, machines and waits, each derived once and compared with its threshold."""

import dataclasses
from datetime import UTC, datetime

import pytest
from bedplate_dashboard.health.facts import Facts, derive_facts
from bedplate_dashboard.health.faults import find_faults
from bedplate_dashboard.health.model import Disk, Drift, Lanes, Litellm, Machine, Refusals, Service
from bedplate_dashboard.health.traffic_window import RecentTraffic
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import Contact, MachineAnswer, Observation
from bedplate_dashboard.sources.history import DaysLeft

from dashboard_app.tests.observed import ANSWERED, node_metrics
from dashboard_app.tests.situations import (
    CARD,
    ENGINE_DOWN,
    ON_GPU,
    Change,
    engine,
    gateway_metrics_are,
    host,
    litellm,
    no_metrics,
    units,
)


def unit(name: str, state: str, kind: str = "exec") -> list[str]:
    """Return a unit's lines of the node exporter: one for each state."""
    return [
        f'node_systemd_unit_state{{name="{name}",state="{each}",type="{kind}"}} {int(each == state)}'
        for each in ("activating", "active", "deactivating", "failed", "inactive")
    ]


def machine(*lines: str) -> MachineAnswer:
    """Return the answer of a host's node exporter."""
    return MachineAnswer("gpu1", ANSWERED, node_metrics(*lines))


def derive(settings: Settings, observation: Observation, recent: RecentTraffic | None = None) -> Facts:
    """Derive the facts of an observation."""
    return derive_facts(settings, observation, recent or RecentTraffic(), {})


def describe_machine(
    settings: Settings, all_well: Observation, answer: MachineAnswer, days_left: DaysLeft | None = None
) -> Machine:
    """Return the machine that a node exporter's answer describes."""
    observation = dataclasses.replace(all_well, machines=(answer,))
    return derive_facts(settings, observation, RecentTraffic(), days_left or {}).machines[0].machine


def test_a_machine(settings: Settings, all_well: Observation) -> None:
    where = 'device="/dev/sda1",fstype="ext4",mountpoint="/srv"'
    memory = 'device="tmpfs",fstype="tmpfs",mountpoint="/run"'
    found = describe_machine(
        settings,
        all_well,
        machine(
            f"node_filesystem_size_bytes{{{where}}} 1000",
            f"node_filesystem_avail_bytes{{{where}}} 400",
            f"node_filesystem_size_bytes{{{memory}}} 1000",
            f"node_filesystem_avail_bytes{{{memory}}} 900",
            "node_memory_MemTotal_bytes 8000",
            "node_memory_MemAvailable_bytes 3000",
            'node_systemd_service_restart_total{name="ollama.service"} 3',
            "bedplate_host_reboot_required 1",
            *unit("ollama.service", "active"),
            *unit("host-facts.service", "inactive", "oneshot"),
            *unit("host-facts.timer", "active", ""),
        ),
        {("gpu1", "/srv"): 12.5},
    )
    assert found == Machine(
        name="gpu1",
        state="warn",
        error=None,
        disks=(Disk(mountpoint="/srv", size_bytes=1000, available_bytes=400, days_left=12.5),),
        memory_bytes=8000,
        memory_available_bytes=3000,
        services=(Service(name="ollama", state="active", restarts=3),),
        reboot_required=True,
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        (["bedplate_host_drift_differences 1"], None),
        (
            ["bedplate_host_drift_differences 0", "bedplate_host_drift_timestamp_seconds 1800000000"],
            Drift(at=datetime.fromtimestamp(1_800_000_000, UTC), differences=0, first=""),
        ),
        (
            [
                "bedplate_host_drift_differences 2",
                "bedplate_host_drift_timestamp_seconds 1800000000",
                'bedplate_host_drift{kind="file",what="/etc/x"} 1',
            ],
            Drift(at=datetime.fromtimestamp(1_800_000_000, UTC), differences=2, first="file /etc/x"),
        ),
    ],
)
def test_a_difference_from_the_inventory_is_a_note_and_no_fault(
    settings: Settings, all_well: Observation, lines: list[str], expected: Drift | None
) -> None:
    described = describe_machine(settings, all_well, machine(*lines))
    assert (described.drift, described.state) == (expected, "ok")
    found = derive(settings, dataclasses.replace(all_well, machines=(machine(*lines),)))
    assert find_faults(found, ()).counted == ()


def test_a_machine_with_a_fault(settings: Settings, all_well: Observation) -> None:
    memory = 'device="tmpfs",fstype="tmpfs",mountpoint="/run"'
    for lines in (
        unit("ollama.service", "failed"),
        unit("host-facts.service", "failed", "oneshot"),
        [f"node_filesystem_size_bytes{{{memory}}} 1000", f"node_filesystem_avail_bytes{{{memory}}} 9"],
    ):
        assert describe_machine(settings, all_well, machine(*lines)).state == "bad"
    scarce = machine("node_memory_MemTotal_bytes 8000", "node_memory_MemAvailable_bytes 300")
    assert describe_machine(settings, all_well, scarce).state == "warn"
    away = MachineAnswer("gpu1", Contact("failed", 0.1, "connection refused"), node_metrics())
    assert describe_machine(settings, all_well, away) == Machine(
        name="gpu1", state="unknown", error="connection refused"
    )


def test_what_is_full_or_stopped_is_a_fact_of_its_own(settings: Settings, all_well: Observation) -> None:
    full = 'fstype="ext4",mountpoint="/srv"'
    answer = machine(
        f"node_filesystem_size_bytes{{{full}}} 1000",
        f"node_filesystem_avail_bytes{{{full}}} 49",
        *unit("ollama.service", "failed"),
        *unit("prometheus.service", "active"),
    )
    facts = derive(settings, dataclasses.replace(all_well, machines=(answer,))).machines[0]
    assert [disk.mountpoint for disk in facts.full_disks] == ["/srv"]
    assert [service.name for service in facts.bad_services] == ["ollama"]
    assert facts.reachable


def test_a_machine_of_an_unreachable_host(settings: Settings, all_well: Observation) -> None:
    gone = host(0, "unreachable", "no route to the host")(all_well)
    facts = derive(settings, gone)
    assert not facts.machines[0].reachable
    assert (facts.hosts[0].reachable, facts.hosts[0].cannot_serve, facts.hosts[0].status.ok) == (
        False,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("change", "ok", "cannot_serve"),
    [
        (host(0, "answered", None, engine({"name": "small:1b"}, {"name": "embed:latest"})), True, False),
        (host(0, "answered", None, ENGINE_DOWN), False, True),
        (host(0, "answered", None, engine({"name": "small:1b"})), False, False),
        (host(0, "failed", "HTTP 500"), False, False),
    ],
)
def test_whether_a_host_works(
    settings: Settings, all_well: Observation, change: Change, ok: bool, cannot_serve: bool
) -> None:
    facts = derive(settings, change(all_well)).hosts[0]
    assert (facts.status.ok, facts.cannot_serve) == (ok, cannot_serve)


def test_units_are_found_by_host_and_name(settings: Settings, all_well: Observation) -> None:
    here = settings.model_copy(update={"gateway": "gpu1"})
    observation = units(**{"bedplate-gateway": "failed", "bedplate-exporter": "active"})(all_well)
    facts = derive(here, observation)
    assert facts.gateway.unit_state == "failed"
    assert [host.exporter.unit_state for host in facts.hosts] == ["active", None]
    assert facts.prometheus.unit_state is None


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, None),
        ({"driver_matches": None}, None),
        ({"devices": 3}, None),
        ({"devices": 1}, "missing"),
        ({"devices": 1, "failed": True}, "failed"),
        ({"devices": 1, "failed": True, "driver_matches": False}, "mismatch"),
    ],
)
def test_a_driver_has_at_most_one_problem(
    settings: Settings, all_well: Observation, changes: dict[str, object], kind: str | None
) -> None:
    state = engine(ON_GPU, drivers=(CARD | changes,))
    gpu = derive(settings, host(1, "answered", None, state)(all_well)).hosts[1].gpu
    assert gpu is not None
    assert [problem.kind for problem in gpu.problems] == ([kind] if kind else [])


@pytest.mark.parametrize(("on_gpu", "off_gpu"), [(1000, ()), (990, ()), (989, ("small:1b",))])
def test_a_model_that_is_not_entirely_on_the_gpu(
    settings: Settings, all_well: Observation, on_gpu: int, off_gpu: tuple[str, ...]
) -> None:
    state = engine(ON_GPU | {"gpu_memory_bytes": on_gpu}, drivers=(CARD,))
    gpu = derive(settings, host(1, "answered", None, state)(all_well)).hosts[1].gpu
    assert gpu is not None
    assert gpu.off_gpu == off_gpu


@pytest.mark.parametrize(
    ("name", "waiting", "seconds", "is_long"),
    [
        ("normal", 1, 30.0, False),
        ("normal", 1, 30.1, True),
        ("normal", 0, 99.0, False),
        ("low", 9, 99.0, False),
    ],
)
def test_a_wait_that_is_too_long(
    *,
    settings: Settings,
    all_well: Observation,
    name: str,
    waiting: int,
    seconds: float,
    is_long: bool,
) -> None:
    change = gateway_metrics_are(
        f'bedplate_gateway_queue_requests{{class="{name}"}} {waiting}',
        f'bedplate_gateway_queue_oldest_wait_seconds{{class="{name}"}} {seconds}',
    )
    assert bool(derive(settings, change(all_well)).long_waits) == is_long


def test_refusals_that_the_client_caused_are_left_out(settings: Settings, all_well: Observation) -> None:
    ours = Refusals(reason="queue_full", status=429, count=2)
    theirs = Refusals(reason="key_tokens", status=429, count=3)
    facts = derive(settings, all_well, RecentTraffic(refusals=(ours, theirs)))
    assert facts.server_refusals == (ours,)


LANES = Lanes(litellm=5, direct=0, bypass=2)
RECENT = RecentTraffic(lanes=LANES, bypassed=2, litellm_added_seconds=0.02, litellm_memory_bytes=4e8)


def test_litellm(settings: Settings, all_well: Observation) -> None:
    found = derive(settings, litellm(1, through=5)(all_well), RECENT).litellm
    assert found is not None
    assert (found.host, found.version, found.unit_state) == ("gateway1", "1.110.2", None)
    assert (found.needed, found.bypassed) == (True, 2)
    assert found.status == Litellm(up=True, requests=LANES, added_seconds=0.02, memory_bytes=400_000_000)


def test_litellm_that_is_down_has_no_own_numbers(settings: Settings, all_well: Observation) -> None:
    found = derive(settings, litellm(0, through=5)(all_well), RECENT).litellm
    assert found is not None
    assert found.status == Litellm(up=False, requests=LANES, added_seconds=None, memory_bytes=None)


def test_an_earlier_gateway_has_no_litellm(settings: Settings, all_well: Observation) -> None:
    assert derive(settings, all_well, RECENT).litellm is None


def test_litellm_is_unknown_without_the_gateways_metrics(settings: Settings, all_well: Observation) -> None:
    observation = no_metrics(litellm(0)(all_well))
    found = derive(settings, observation, RECENT).litellm
    assert found is not None
    assert found.bypassed == 0
    assert found.status == Litellm(up=None, requests=None, added_seconds=None, memory_bytes=None)
    unpinned = settings.model_copy(update={"pinned_versions": ()})
    assert derive(unpinned, observation, RECENT).litellm is None


@pytest.mark.parametrize(
    ("lanes", "needed"),
    [
        ({}, True),
        ({"through": 1, "direct": 9}, True),
        ({"bypass": 1, "direct": 9}, True),
        ({"direct": 1}, False),
    ],
)
def test_litellm_is_not_needed_while_all_requests_are_direct(
    settings: Settings, all_well: Observation, lanes: dict[str, int], needed: bool
) -> None:
    found = derive(settings, litellm(1, **lanes)(all_well)).litellm
    assert found is not None
    assert found.needed is needed
