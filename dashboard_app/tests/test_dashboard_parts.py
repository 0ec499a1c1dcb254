"""One poll, part by part: limits, queue, machines, canary and versions."""

import dataclasses
from collections.abc import Callable

import pytest
from bedplate_dashboard.health import facts
from bedplate_dashboard.health.model import (
    Canary,
    Disk,
    Limit,
    Machine,
    Queue,
    QueueClass,
    Service,
    Slots,
    Version,
)
from bedplate_dashboard.settings import PinnedVersion, Settings
from bedplate_dashboard.sources.collect import Contact, MachineAnswer, Observation
from flask.testing import FlaskClient
from observed import ANSWERED, AT, gateway_metrics, node_metrics

HOSTILE = "<b>\\n\u202e"


def test_limits_with_the_fullest_first() -> None:
    found = facts.list_limits(
        gateway_metrics(
            'bedplate_gateway_limit{name="a",scope="key",unit="requests"} 100',
            'bedplate_gateway_limit{name="m:1b",scope="model",unit="tokens"} 50',
            'bedplate_gateway_limit_used{name="a",scope="key",unit="requests"} 20',
            'bedplate_gateway_limit_used{name="m:1b",scope="model",unit="tokens"} 40',
        )
    )
    assert found == (
        Limit(scope="model", name="m:1b", unit="tokens", used=40, limit=50),
        Limit(scope="key", name="a", unit="requests", used=20, limit=100),
    )


def test_the_queue() -> None:
    found = facts.describe_queue(
        gateway_metrics(
            'bedplate_gateway_queue_requests{class="high"} 0',
            'bedplate_gateway_queue_requests{class="low"} 7',
            'bedplate_gateway_queue_oldest_wait_seconds{class="low"} 12.5',
            'bedplate_gateway_slots{engine="gpu1",model="a"} 4',
            'bedplate_gateway_slots{engine="gpu2",model="a"} 2',
            'bedplate_gateway_slots_busy{engine="gpu2",model="a"} 1',
        )
    )
    assert found == Queue(
        classes=(
            QueueClass(name="high", waiting=0, oldest_seconds=0.0),
            QueueClass(name="low", waiting=7, oldest_seconds=12.5),
        ),
        slots_busy=1,
        slots=6,
        engines=(
            Slots(engine="gpu1", model="a", busy=0, slots=4),
            Slots(engine="gpu2", model="a", busy=1, slots=2),
        ),
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


def test_a_machine() -> None:
    where = 'device="/dev/sda1",fstype="ext4",mountpoint="/srv"'
    memory = 'device="tmpfs",fstype="tmpfs",mountpoint="/run"'
    found = facts.describe_machine(
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


def test_a_machine_with_a_fault() -> None:
    memory = 'device="tmpfs",fstype="tmpfs",mountpoint="/run"'
    for lines in (
        unit("ollama.service", "failed"),
        unit("host-facts.service", "failed", "oneshot"),
        [f"node_filesystem_size_bytes{{{memory}}} 1000", f"node_filesystem_avail_bytes{{{memory}}} 9"],
    ):
        assert facts.describe_machine(machine(*lines), {}).state == "bad"
    scarce = machine("node_memory_MemTotal_bytes 8000", "node_memory_MemAvailable_bytes 300")
    assert facts.describe_machine(scarce, {}).state == "warn"
    away = MachineAnswer("gpu1", Contact("failed", 0.1, "connection refused"), node_metrics())
    assert facts.describe_machine(away, {}) == Machine(
        name="gpu1", state="unknown", error="connection refused"
    )


def test_the_canary(settings: Settings, all_well: Observation) -> None:
    node = machine(
        'bedplate_traffic_canary_success{model="a"} 1',
        'bedplate_traffic_canary_result{model="a",result="answered"} 0',
        'bedplate_traffic_canary_result{model="a",result="not_loaded"} 1',
        f'bedplate_traffic_canary_last_run_timestamp_seconds{{model="a"}} {AT.timestamp()}',
        'bedplate_traffic_canary_success{model="b"} 0',
        'bedplate_traffic_canary_last_run_timestamp_seconds{model="b"} 1e300',
        f'bedplate_traffic_canary_success{{model="{HOSTILE}"}} 1',
    )
    shown = facts.describe_operations(settings, dataclasses.replace(all_well, machines=(node,))).canary
    assert shown == (
        Canary(host="gpu1", model="a", ok=True, result="not_loaded", at=AT, answered_at=None, seconds=None),
        Canary(host="gpu1", model="b", ok=False, result="", at=None, answered_at=None, seconds=None),
        Canary(
            host="gpu1", model="<b>\ufffd\ufffd", ok=True, result="", at=None, answered_at=None, seconds=None
        ),
    )


def test_running_and_pinned_versions(settings: Settings, all_well: Observation) -> None:
    gateway = dataclasses.replace(
        all_well.gateway, metrics=gateway_metrics('bedplate_gateway_info{version="0.1.0"} 1')
    )
    node = machine('node_exporter_build_info{version="1.9.0"} 1')
    pins = [{"component": "Ollama", "host": "gpu1", "version": "0.23.0"}]
    wanted = Settings.model_validate(
        settings.model_dump()
        | {"pinned_versions": [*pins, {"component": "Gateway", "host": "gateway1", "version": "0.1.0"}]}
    )
    shown = facts.list_versions(wanted, dataclasses.replace(all_well, gateway=gateway, machines=(node,)))
    assert shown == (
        Version(component="Ollama", host="gpu1", pinned="0.23.0", running="0.24.0", ok=False),
        Version(component="Gateway", host="gateway1", pinned="0.1.0", running="0.1.0", ok=True),
        Version(component="Ollama", host="gpu2", pinned=None, running="0.24.0", ok=None),
        Version(component="Node exporter", host="gpu1", pinned=None, running="1.9.0", ok=None),
        Version(component="Prometheus", host="monitor1", pinned=None, running="2.53.3", ok=None),
        Version(component="Dashboard", host="monitor1", pinned=None, running="0.1.0", ok=None),
    )


@pytest.mark.parametrize("labels", ['litellm="1.106.2"', 'version="",litellm="1.106.2"'])
def test_an_earlier_gateway_shows_no_version(
    settings: Settings, all_well: Observation, show: Callable[[Observation], FlaskClient], labels: str
) -> None:
    gateway = dataclasses.replace(
        all_well.gateway, metrics=gateway_metrics(f"bedplate_gateway_info{{{labels}}} 1")
    )
    observation = dataclasses.replace(all_well, gateway=gateway)
    assert facts.find_gateway_version(observation) is None
    pin = PinnedVersion(component="Gateway", host="gateway1", version="0.1.0")
    pinned = settings.model_copy(update={"pinned_versions": (pin,)})
    assert facts.list_versions(pinned, observation)[0] == Version(
        component="Gateway", host="gateway1", pinned="0.1.0", running=None, ok=None
    )
    client = show(observation)
    (hop,) = (hop for hop in client.get("/api/status.json").get_json()["chain"] if hop["kind"] == "gateway")
    assert hop["version"] is None
    assert "1.106.2" not in client.get("/").text + client.get("/?format=text").text


def test_the_gateways_own_version_is_shown(
    all_well: Observation, show: Callable[[Observation], FlaskClient]
) -> None:
    gateway = dataclasses.replace(
        all_well.gateway, metrics=gateway_metrics('bedplate_gateway_info{version="7.8.9"} 1')
    )
    client = show(dataclasses.replace(all_well, gateway=gateway))
    page, text = client.get("/").text, client.get("/?format=text").text
    assert '<span class="version">7.8.9</span>' in page
    assert "Gateway 7.8.9" in page
    assert "gateway      ok   lists 2 of 2 models, 7.8.9, " in text
