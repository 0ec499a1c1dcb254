"""Changes of a healthy observation, each into one situation; `all_well` is the fixture that they change."""

import dataclasses
from collections.abc import Callable
from typing import Any

from bedplate_dashboard.sources.collect import (
    Contact,
    GatewayAnswer,
    HostAnswer,
    MachineAnswer,
    Observation,
    PrometheusAnswer,
)
from bedplate_dashboard.sources.payloads import EngineState

from dashboard_app.tests.observed import ANSWERED, gateway_metrics, node_metrics

Change = Callable[[Observation], Observation]


def engine(
    *models: dict[str, Any], fault: str | None = None, drivers: tuple[dict[str, Any], ...] = ()
) -> EngineState:
    return EngineState.model_validate(
        {
            "schema": 1,
            "at": "2026-03-01T12:00:00Z",
            "engine": {"up": fault is None, "error": fault and "It does not answer.", "fault": fault},
            "models": models,
            "drivers": drivers,
        }
    )


def gateway(outcome: Any, error: str | None = None, *models: str) -> Change:
    contact = Contact(outcome, 0.1, error)
    answer = GatewayAnswer(
        contact=contact, models=frozenset(models), metrics_contact=contact, metrics=gateway_metrics()
    )
    return lambda observation: dataclasses.replace(observation, gateway=answer)


def gateway_metrics_are(*lines: str) -> Change:
    """The gateway's metrics."""

    def change(observation: Observation) -> Observation:
        answer = dataclasses.replace(
            observation.gateway, metrics=gateway_metrics(*lines), metrics_contact=ANSWERED
        )
        return dataclasses.replace(observation, gateway=answer)

    return change


def litellm(up: int, *, through: int = 0, direct: int = 0, bypass: int = 0) -> Change:
    """LiteLLM as the gateway reports it, with the requests of each lane since the gateway's start."""
    lanes = {"litellm": through, "direct": direct, "bypass": bypass}
    return gateway_metrics_are(
        f"bedplate_gateway_litellm_up {up}",
        *(f'bedplate_gateway_lane_requests_total{{lane="{lane}"}} {count}' for lane, count in lanes.items()),
    )


def drained(*engines: str, why: str = "new fan") -> Change:
    """Kim drained these engines on 2026-03-01 at 11:02 UTC."""
    return gateway_metrics_are(
        *(
            f'bedplate_gateway_drain_timestamp_seconds{{engine="{engine}",who="kim",why="{why}"}} 1772362920'
            for engine in engines
        )
    )


def no_metrics(observation: Observation) -> Observation:
    answer = dataclasses.replace(observation.gateway, metrics_contact=Contact("refused", 0.1, "HTTP 403"))
    return dataclasses.replace(observation, gateway=answer)


def machine(*lines: str, contact: Contact = ANSWERED) -> Change:
    """The node exporter's metrics."""
    answer = MachineAnswer("gpu1", contact, node_metrics(*lines))
    return lambda observation: dataclasses.replace(observation, machines=(answer,))


def host(index: int, outcome: Any, error: str | None = None, state: EngineState | None = None) -> Change:
    def change(observation: Observation) -> Observation:
        hosts = list(observation.hosts)
        hosts[index] = HostAnswer(hosts[index].name, Contact(outcome, 0.1, error), state)
        return dataclasses.replace(observation, hosts=tuple(hosts))

    return change


def prometheus(outcome: Any, error: str) -> Change:
    answer = PrometheusAnswer(contact=Contact(outcome, 0.1, error), alerts=None, version=None)
    return lambda observation: dataclasses.replace(observation, prometheus=answer)


def prometheus_stored(seconds: float) -> Change:
    """Return a change: Prometheus stored its newest sample so long ago."""
    return lambda observation: dataclasses.replace(
        observation, prometheus=dataclasses.replace(observation.prometheus, newest_seconds=seconds)
    )


SMALL = {"name": "small:1b"}


EMBED = {"name": "embed:latest"}


ENGINE_DOWN = engine(fault="stopped")


CARD = {"vendor": "nvidia", "expected": 2, "devices": 2, "failed": False, "driver_matches": True}


ON_GPU = SMALL | {"loaded": True, "memory_bytes": 1000, "gpu_memory_bytes": 1000}


def units(**states: str) -> Change:
    return machine(
        *(
            f'node_systemd_unit_state{{name="{name}.service",state="{state}",type="exec"}} 1'
            for name, state in states.items()
        )
    )


def disk(available: int) -> Change:
    where = '{device="/dev/sda1",fstype="ext4",mountpoint="/srv"}'
    return machine(
        f"node_filesystem_size_bytes{where} 1e+11", f"node_filesystem_avail_bytes{where} {available}"
    )


def requested(seconds_ago: float, result: str, alias: str = "default") -> Change:
    """A request to small:1b ended."""
    at = 1772366400.0 - seconds_ago
    name = "bedplate_gateway_last_request_timestamp_seconds"
    return gateway_metrics_are(f'{name}{{alias="{alias}",model="small:1b",result="{result}"}} {at}')
