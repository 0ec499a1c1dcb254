"""One look, part by part: limits, queue, machines, canary and versions out of what was scraped."""

from __future__ import annotations

import dataclasses

from bedplate_dashboard import parts
from bedplate_dashboard.collect import Contact, MachineAnswer, Observation
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.status import (
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
from observed import ANSWERED, AT, gateway_metrics, node_metrics

HOSTILE = "<b>\\n\u202e"


def test_limits_with_the_fullest_first() -> None:
    found = parts.limits(
        gateway_metrics(
            'bedplate_gateway_limit{name="a",scope="key",unit="requests"} 100',
            'bedplate_gateway_limit{name="m:1b",scope="model",unit="tokens"} 50',
            'bedplate_gateway_limit_used{name="a",scope="key",unit="requests"} 20',
            'bedplate_gateway_limit_used{name="m:1b",scope="model",unit="tokens"} 40',
        )
    )
    assert found == (Limit("model", "m:1b", "tokens", 40, 50), Limit("key", "a", "requests", 20, 100))


def test_the_queue() -> None:
    found = parts.queue(
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
        (QueueClass("high", 0, 0.0), QueueClass("low", 7, 12.5)),
        slots_busy=1,
        slots=6,
        engines=(Slots("gpu1", "a", 0, 4), Slots("gpu2", "a", 1, 2)),
    )


def unit(name: str, state: str, kind: str = "exec") -> list[str]:
    """A unit as the node exporter tells it: one line for each state that it might be in."""
    return [
        f'node_systemd_unit_state{{name="{name}",state="{each}",type="{kind}"}} {int(each == state)}'
        for each in ("activating", "active", "deactivating", "failed", "inactive")
    ]


def machine(*lines: str) -> MachineAnswer:
    """A host's node exporter."""
    return MachineAnswer("gpu1", ANSWERED, node_metrics(*lines))


def test_a_machine() -> None:
    where = 'device="/dev/sda1",fstype="ext4",mountpoint="/srv"'
    memory = 'device="tmpfs",fstype="tmpfs",mountpoint="/run"'
    found = parts.machine(
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
        disks=(Disk("/srv", 1000, 400, 12.5),),
        memory_bytes=8000,
        memory_available_bytes=3000,
        services=(Service("ollama", "active", 3),),
        reboot_required=True,
    )


def test_a_machine_with_something_wrong() -> None:
    memory = 'device="tmpfs",fstype="tmpfs",mountpoint="/run"'
    for lines in (
        unit("ollama.service", "failed"),
        unit("host-facts.service", "failed", "oneshot"),
        [f"node_filesystem_size_bytes{{{memory}}} 1000", f"node_filesystem_avail_bytes{{{memory}}} 9"],
    ):
        assert parts.machine(machine(*lines), {}).state == "bad"
    scarce = machine("node_memory_MemTotal_bytes 8000", "node_memory_MemAvailable_bytes 300")
    assert parts.machine(scarce, {}).state == "warn"
    away = MachineAnswer("gpu1", Contact("failed", 0.1, "connection refused"), node_metrics())
    assert parts.machine(away, {}) == Machine("gpu1", "unknown", "connection refused")


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
    told = parts.operations(settings, dataclasses.replace(all_well, machines=(node,))).canary
    assert told == (
        Canary("gpu1", "a", True, "not_loaded", AT, None, None),
        Canary("gpu1", "b", False, "", None, None, None),
        Canary("gpu1", "<b>\ufffd\ufffd", True, "", None, None, None),
    )


def test_versions_beside_their_pins(settings: Settings, all_well: Observation) -> None:
    gateway = dataclasses.replace(
        all_well.gateway, metrics=gateway_metrics('bedplate_gateway_info{version="0.1.0"} 1')
    )
    node = machine('node_exporter_build_info{version="1.9.0"} 1')
    pins = [{"component": "Ollama", "host": "gpu1", "version": "0.23.0"}]
    wanted = Settings.model_validate(
        settings.model_dump()
        | {"pinned_versions": [*pins, {"component": "Gateway", "host": "door", "version": "0.1.0"}]}
    )
    told = parts.versions(wanted, dataclasses.replace(all_well, gateway=gateway, machines=(node,)))
    assert told == (
        Version("Ollama", "gpu1", "0.23.0", "0.24.0", False),
        Version("Gateway", "door", "0.1.0", "0.1.0", True),
        Version("Ollama", "gpu2", None, "0.24.0", None),
        Version("Node exporter", "gpu1", None, "1.9.0", None),
        Version("Prometheus", "eye", None, "2.53.3", None),
        Version("Dashboard", "eye", None, "0.1.0", None),
    )
