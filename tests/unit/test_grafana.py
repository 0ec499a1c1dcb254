"""Grafana's files: the dashboard is what the program writes, and every field is one of Grafana's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "grafana/bedplate.json").read_text()


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels without its rows."""
    return [panel for panel in json.loads(TEXT)["panels"] if panel["type"] != "row"]


def test_the_dashboard_is_what_the_program_writes(load_source: Callable[[str], ModuleType]) -> None:
    assert load_source("grafana/generate.py").build() == TEXT, "run python grafana/generate.py"


def test_grafanas_own_types_take_every_field() -> None:
    register_default_plugins()
    read = Dashboard.from_json(json.loads(TEXT))
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == json.loads(TEXT)


def test_a_field_that_grafana_does_not_know_is_seen() -> None:
    register_default_plugins()
    wrong = json.loads(TEXT)
    wrong["panels"][0]["tittle"] = "Alerts"
    assert json.loads(json.dumps(Dashboard.from_json(wrong), cls=JSONEncoder)) != wrong


def test_every_panel_asks_the_data_source_that_comes_with_it() -> None:
    (source,) = yaml.safe_load((ROOT / "grafana/datasource.yml").read_text())["datasources"]
    assert len(panels()) > 20
    for panel in panels():
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}, panel["title"]
        assert all(target["expr"] for target in panel["targets"])
        places = [(other["gridPos"]["x"], other["gridPos"]["y"]) for other in panels()]
    assert len(set(places)) == len(places)


def test_what_is_recorded_is_asked_by_its_name() -> None:
    rules = (ROOT / "roles/prometheus/templates/recording.rules.yml.j2").read_text()
    asked = {
        name
        for panel in panels()
        for target in panel["targets"]
        for name in re.findall(r"bedplate:[\w:]+", target["expr"])
    }
    assert asked
    assert asked <= set(re.findall(r"record: (\S+)", rules))
