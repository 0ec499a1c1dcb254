"""The filters over services.yml and the roles' settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

SERVICES: dict[str, dict[str, Any]] = {
    "engine": {"group": "inference", "ports": ["engine_port"]},
    "loader": {"group": "inference", "background": True},
    "canary": {"group": "gateway", "timer": True},
    "web": {"group": "monitoring", "ports": ["web_port", "web_metrics_port"]},
    "mail": {"group": "monitoring", "ports": ["mail_port"], "enabled": False},
    "host": {"group": "inference:gateway:monitoring", "ports": ["host_port"]},
}


@pytest.fixture(scope="module")
def services(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/filter_plugins/services.py")


def test_units_are_those_of_the_groups_that_no_timer_starts(services: ModuleType) -> None:
    assert services.service_units(SERVICES, ["inference", "gateway"]) == [
        "engine.service",
        "loader.service",
        "host.service",
    ]
    assert services.service_units(SERVICES, ["monitoring"]) == ["web.service", "host.service"]


def test_services_that_are_asked_have_a_url_and_the_time_that_they_may_be_silent(
    services: ModuleType,
) -> None:
    table: dict[str, dict[str, Any]] = {
        **SERVICES,
        "web": {**SERVICES["web"], "health": "http://x/", "heal": 9},
    }
    assert services.healed_services(table, ["monitoring"]) == {"web": {"url": "http://x/", "busy_seconds": 9}}
    assert services.healed_services(table, ["inference"]) == {}
    assert services.healing_timers(["web"]) == ["bedplate-heal@web.timer"]


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        *(("5m", 300), ("1m30s", 90), (45, 45), ("2h", 1800), ("0", 1800), ("-1", 1800), ("1h", 1800)),
        # Preflight accepts these, too.
        *(("90000ms", 90), ("30s1m", 90), ("1500ms", 2)),
    ],
)
def test_ollamas_load_timeout_in_seconds(services: ModuleType, timeout: object, seconds: int) -> None:
    assert services.load_seconds(timeout) == seconds


@pytest.mark.parametrize("timeout", ["", "a while", "5 m", "m", "5m\n"])
def test_a_load_timeout_that_is_no_duration_is_refused(services: ModuleType, timeout: str) -> None:
    with pytest.raises(ValueError, match="use a duration such as 5m or 1h30m"):
        services.load_seconds(timeout)


def test_a_play_starts_services_and_timers_that_it_waits_for(services: ModuleType) -> None:
    assert services.started_units(SERVICES, ["inference"]) == ["engine.service", "host.service"]
    assert services.started_units(SERVICES, ["gateway"]) == ["canary.timer", "host.service"]
    assert services.started_units(SERVICES, ["monitoring"]) == ["web.service", "host.service"]


def plays(repo_root: Path) -> dict[str, dict[str, Any]]:
    """Return the plays that start services at their end, with all tasks of their playbook, by its name."""
    found = {}
    for path in (repo_root / "playbooks").glob("*.yml"):
        every = [play for play in yaml.safe_load(path.read_text()) if isinstance(play, dict)]
        tasks = [task for play in every for task in play.get("tasks", ())]
        for play in every:
            if "post_tasks" in play:
                found[path.stem] = {**play, "tasks": tasks}
    return found


def test_every_tag_of_a_role_starts_its_services(repo_root: Path) -> None:
    found = plays(repo_root)
    assert found.keys() == {"hosts", "inference", "gateway", "monitoring"}
    for name, play in found.items():
        (start,) = play["post_tasks"]
        # A task without tags runs only in a whole run.
        tags = {task["tags"] for task in play["tasks"] if "tags" in task}
        assert set(start["tags"]) == tags, name


def test_a_whole_run_starts_the_services_of_all_plays_together(repo_root: Path) -> None:
    found = plays(repo_root)
    imports = yaml.safe_load((repo_root / "site.yml").read_text())
    later = [
        Path(entry["ansible.builtin.import_playbook"]).stem
        for entry in imports
        if entry.get("vars", {}).get("__bedplate_start_later")
    ]
    assert set(later) == found.keys()
    ((play,),) = (yaml.safe_load((repo_root / "playbooks/start.yml").read_text()),)
    start, compare = play["tasks"]
    assert start["tags"] == compare["tags"]
    wiring = yaml.safe_load((repo_root / "playbooks/group_vars/all/drift.yml").read_text())
    # The comparison expects the same units.
    started, enabled = wiring["__bedplate_active_units"], wiring["__bedplate_enabled_units"]
    assert start["systemd_services"]["started"] == "{{ __bedplate_active_units }}"
    assert start["systemd_services"]["enabled"] == "{{ __bedplate_enabled_units }}"
    waiting = [played["post_tasks"][0] for played in found.values()]
    assert {*start["tags"]} == {tag for task in waiting for tag in task["tags"]}
    # The services of a host's groups, and what the play hosts.yml names.
    for part in re.findall(
        r"'([a-z-]+[.][a-z]+)'|(bedplate_healed \| \w+)", waiting[0]["systemd_services"]["started"]
    ):
        name = part[0].removesuffix(".service") or part[1]
        assert name in started or name == "node-exporter"
    assert "bedplate_services | started_units(group_names)" in started
    assert "ollama-preload.service" in enabled


def test_every_unit_is_started_or_enabled_by_a_play(services: ModuleType, repo_root: Path) -> None:
    table = yaml.safe_load((repo_root / "playbooks/group_vars/all/services.yml").read_text())[
        "bedplate_services"
    ]
    named = set()
    for name, play in plays(repo_root).items():
        start = play["post_tasks"][0]["systemd_services"]
        started = start["started"]
        written = {*re.findall(r"'([a-z-]+[.][a-z]+)'", started), *services.healing_timers([""])}
        named |= written if name == "hosts" else {*services.started_units(table, [name])}
        named |= {*start.get("enabled", ())}
        needed = "bedplate_healed | healing_timers" if name == "hosts" else f"started_units(['{name}'])"
        assert needed in started
    units = {path.stem for path in (repo_root / "templates/systemd").glob("[a-z]*.j2")}
    timers = {unit for unit in units if unit.endswith(".timer")}
    # A timer starts its service. The role gpu_driver enables its unit itself, before a restart of the host.
    others = {f"{timer.removesuffix('.timer')}.service" for timer in timers} | {"gpu-devices.service"}
    assert named == units - others


def test_a_play_waits_longer_than_a_service_may_take_to_start(repo_root: Path) -> None:
    module = (repo_root / "playbooks/library/systemd_services.py").read_text()
    (waited,) = re.findall(r'"timeout": {"type": "int", "default": (\d+)}', module)
    for template in (repo_root / "templates/systemd").glob("[a-z]*.service.j2"):
        seconds = re.findall(r"start_seconds = (\d+)", template.read_text()) or ["120"]
        assert int(waited) > int(seconds[0]), template.name


def test_ports_carry_their_setting_and_unit(services: ModuleType) -> None:
    units = services.service_ports(SERVICES, ["monitoring"])
    assert units == {"web_port": "web", "web_metrics_port": "web", "host_port": "host"}
    assert services.with_ports(units, [3001, "3002", 9100]) == {
        "web_port": {"port": 3001, "unit": "web"},
        "web_metrics_port": {"port": 3002, "unit": "web"},
        "host_port": {"port": 9100, "unit": "host"},
    }
    # A closed one.
    assert services.with_ports({"web_port": "web"}, [0]) == {}


def test_openings_are_the_places_and_clients_of_the_ports(services: ModuleType) -> None:
    openings = {
        "engine_port": {"at": "http://10.0.0.1:11434", "clients": ["10.0.0.2"]},
        "host_port": {"at": "127.0.0.1:9100", "clients": []},
    }
    assert services.service_openings(SERVICES, openings, ["inference"]) == [
        {"port": 11434, "unit": "engine", "address": "10.0.0.1", "clients": ["10.0.0.2"]},
        {"port": 9100, "unit": "host", "address": "127.0.0.1", "clients": []},
    ]
    openings["host_port"]["at"] = "127.0.0.1:0"
    assert [entry["port"] for entry in services.service_openings(SERVICES, openings, ["inference"])] == [
        11434
    ]


def test_wired_settings_are_not_the_users(services: ModuleType, repo_root: Path) -> None:
    wired = services.wired_settings(str(repo_root))
    assert wired["prometheus_targets"] == "prometheus_extra_targets"
    assert wired["ollama_url"] == ""
    user = services.user_settings(str(repo_root))
    assert {"gateway_keys", "ollama_models", "bedplate_name"} <= set(user)
    assert not set(user) & set(wired)
    # The inputs of a shared role are no settings.
    assert not [name for name in user if name.startswith(("service_", "python_app_"))]
