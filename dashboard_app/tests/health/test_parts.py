"""One poll, part by part: limits, queue, canary and versions."""

import dataclasses
from collections.abc import Callable

import pytest
from bedplate_dashboard.health import parts
from bedplate_dashboard.health.model import (
    Canary,
    Limit,
    Queue,
    QueueClass,
    Slots,
    Version,
)
from bedplate_dashboard.health.parts import add_default_tag
from bedplate_dashboard.settings import PinnedVersion, Settings
from bedplate_dashboard.sources.collect import MachineAnswer, Observation
from flask.testing import FlaskClient

from dashboard_app.tests.observed import ANSWERED, AT, gateway_metrics, node_metrics

HOSTILE = "<b>\\n\u202e"


def test_limits_with_the_fullest_first() -> None:
    found = parts.list_limits(
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
    found = parts.describe_queue(
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


def machine(*lines: str) -> MachineAnswer:
    """Return the answer of a host's node exporter."""
    return MachineAnswer("gpu1", ANSWERED, node_metrics(*lines))


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
    shown = parts.describe_operations(settings, dataclasses.replace(all_well, machines=(node,))).canary
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
    shown = parts.list_versions(wanted, dataclasses.replace(all_well, gateway=gateway, machines=(node,)))
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
    assert parts.find_gateway_version(observation) is None
    pin = PinnedVersion(component="Gateway", host="gateway1", version="0.1.0")
    pinned = settings.model_copy(update={"pinned_versions": (pin,)})
    assert parts.list_versions(pinned, observation)[0] == Version(
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


@pytest.mark.parametrize(
    ("declared", "listed"),
    [("embed", "embed:latest"), ("small:1b", "small:1b"), ("host:5000/embed", "host:5000/embed:latest")],
)
def test_a_name_without_a_tag_is_latest(declared: str, listed: str) -> None:
    assert add_default_tag(declared) == listed
