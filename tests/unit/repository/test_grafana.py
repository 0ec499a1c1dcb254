"""Grafana's files: the dashboard equals the generator's output, and Grafana's types accept every field."""

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

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "grafana/bedplate.json").read_text()


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels without its rows."""
    return [panel for panel in json.loads(TEXT)["panels"] if panel["type"] != "row"]


def test_the_dashboard_is_the_generators_output(load_source: Callable[[str], ModuleType]) -> None:
    assert load_source("grafana/generate.py").build() == TEXT, "run python grafana/generate.py"


def test_grafanas_types_accept_every_field() -> None:
    register_default_plugins()
    read = Dashboard.from_json(json.loads(TEXT))
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == json.loads(TEXT)


def test_an_unknown_field_is_detected() -> None:
    register_default_plugins()
    wrong = json.loads(TEXT)
    wrong["panels"][0]["tittle"] = "Alerts"
    assert json.loads(json.dumps(Dashboard.from_json(wrong), cls=JSONEncoder)) != wrong


def test_every_panel_uses_the_provided_data_source() -> None:
    (source,) = yaml.safe_load((ROOT / "grafana/datasource.yml").read_text())["datasources"]
    assert len(panels()) > 20
    for panel in panels():
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}, panel["title"]
        assert all(target["expr"] for target in panel["targets"])
        places = [(other["gridPos"]["x"], other["gridPos"]["y"]) for other in panels()]
    assert len(set(places)) == len(places)


def test_panels_use_existing_recording_rules() -> None:
    rules = (ROOT / "roles/prometheus/templates/recording.rules.yml.j2").read_text()
    queried = {
        name
        for panel in panels()
        for target in panel["targets"]
        for name in re.findall(r"bedplate:[\w:]+", target["expr"])
    }
    assert queried
    assert queried <= set(re.findall(r"record: (\S+)", rules))
