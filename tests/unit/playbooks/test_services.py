"""The filters over services.yml and the roles' settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SERVICES = {
    "engine": {"group": "inference", "ports": ["engine_port"]},
    "canary": {"group": "gateway", "timer": True},
    "web": {"group": "monitoring", "ports": ["web_port", "web_metrics_port"]},
    "mail": {"group": "monitoring", "ports": ["mail_port"], "enabled": False},
    "host": {"group": "inference:gateway:monitoring", "ports": ["host_port"]},
}


@pytest.fixture(scope="module")
def services(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/filter_plugins/services.py")


def test_units_are_those_of_the_groups_that_no_timer_starts(services: ModuleType) -> None:
    assert services.service_units(SERVICES, ["inference", "gateway"]) == ["engine.service", "host.service"]
    assert services.service_units(SERVICES, ["monitoring"]) == ["web.service", "host.service"]


def test_ports_carry_their_setting_and_unit(services: ModuleType) -> None:
    units = services.service_ports(SERVICES, ["monitoring"])
    assert units == {"web_port": "web", "web_metrics_port": "web", "host_port": "host"}
    assert services.with_ports(units, [3001, "3002", 9100]) == {
        "web_port": {"port": 3001, "unit": "web"},
        "web_metrics_port": {"port": 3002, "unit": "web"},
        "host_port": {"port": 9100, "unit": "host"},
    }


def test_wired_settings_are_not_the_users(services: ModuleType, repo_root: Path) -> None:
    wired = services.wired_settings(str(repo_root))
    assert wired["prometheus_targets"] == "prometheus_extra_targets"
    assert wired["ollama_url"] == ""
    user = services.user_settings(str(repo_root))
    assert {"gateway_keys", "ollama_models", "bedplate_name"} <= set(user)
    assert not set(user) & set(wired)
    # The inputs of a shared role are no settings.
    assert not [name for name in user if name.startswith(("service_", "python_app_"))]
