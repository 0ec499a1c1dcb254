"""Public variables: none disappears, and no default changes, without a row in renamed.yml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
EVER_PUBLIC = (Path(__file__).parent / "public_variables.txt").read_text().split()
FIRST_DEFAULTS: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[1] / "first_defaults.yml").read_text()
)
TABLE: list[dict[str, Any]] = yaml.safe_load((ROOT / "playbooks/renamed.yml").read_text())
ROWS = [row for row in TABLE if "old" in row]
CHANGED = [{**row, "since": str(row["since"])} for row in TABLE if "changed" in row]
OLD = {row["old"] for row in ROWS}
DECLARED = {
    name
    for path in ROOT.glob("roles/*/meta/argument_specs.yml")
    for entry in yaml.safe_load(path.read_text())["argument_specs"].values()
    for name in entry.get("options", {})
}
DEFAULTS = {
    name: value
    for path in ROOT.glob("roles/*/defaults/main.yml")
    if path.parts[-3] != "python_app"
    for name, value in (yaml.safe_load(path.read_text()) or {}).items()
    if "{{" not in str(value)
}
NEWEST = max(row["since"] for row in CHANGED)
DAY_BEFORE = "2000-01-01"


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/action_plugins/inventory_check.py")


def test_every_declared_variable_stands_in_the_list() -> None:
    assert set(EVER_PUBLIC) >= DECLARED, "add these to tests/unit/playbooks/public_variables.txt"


def test_no_variable_disappears_without_a_row() -> None:
    assert set(EVER_PUBLIC) <= DECLARED | OLD, "add these to playbooks/renamed.yml"


def test_no_old_name_is_used_again() -> None:
    assert not OLD & DECLARED


def test_every_default_has_its_first_value_in_the_list() -> None:
    assert FIRST_DEFAULTS.keys() >= DEFAULTS.keys(), "add these to tests/unit/first_defaults.yml"
    assert list(FIRST_DEFAULTS) == sorted(FIRST_DEFAULTS)


def test_no_default_changes_without_a_row() -> None:
    # A new release of Ollama is no surprise.
    checked = {name: value for name, value in DEFAULTS.items() if name != "ollama_version"}
    other = {name for name, value in checked.items() if FIRST_DEFAULTS.get(name, value) != value}
    rows = {row["changed"] for row in CHANGED if row["affects"] in ("unset", "all")}
    assert other <= rows, "add a row `changed` for these to playbooks/renamed.yml"


def test_each_row_has_one_kind() -> None:
    assert len(ROWS) + len(CHANGED) == len(TABLE)


@pytest.mark.parametrize("row", ROWS, ids=[row["old"] for row in ROWS])
def test_a_row_says_what_to_write_instead(plugin: ModuleType, row: dict[str, Any]) -> None:
    assert row["since"]
    assert ("new" in row) != ("why" in row)
    assert row.get("new") in {*DECLARED, None}
    renamed = plugin.Renamed(**{**row, "since": str(row["since"])})
    (found,) = plugin.check_names({row["old"]: ["host a"]}, DECLARED, {}, [renamed])
    assert found.kind == "renamed"
    assert row.get("new", row.get("why")) in found.message


@pytest.mark.parametrize("row", CHANGED, ids=[f"{row['changed']}-{row['affects']}" for row in CHANGED])
def test_each_change_names_those_that_it_affects(plugin: ModuleType, row: dict[str, str]) -> None:
    assert row.keys() == {"changed", "affects", "what", "since"}
    assert row["changed"] in DECLARED
    assert row["what"].endswith(".")
    rows = [plugin.Changed(**row)]
    setting, other = {row["changed"]: ["host a"]}, {"other": ["host a"]}
    of_setters, of_others = (plugin.check_changes(places, rows, DAY_BEFORE) for places in (setting, other))
    start = f"{row['since']}: {row['changed']} "
    said = {"set": f"{start}(set for host a): {row['what']}", "unset": f"{start}(not set): {row['what']}"}
    assert of_setters == ([said["set"]] if row["affects"] in ("set", "all") else [])
    assert of_others == ([said["unset"]] if row["affects"] in ("unset", "all") else [])
    for places in (setting, other):
        assert plugin.check_changes(places, rows, "") == plugin.check_changes(places, rows, DAY_BEFORE)
        assert plugin.check_changes(places, rows, row["since"]) == []


@pytest.mark.parametrize("name", ["example", "lab"])
def test_a_new_inventory_knows_all_changes(name: str) -> None:
    settings = yaml.safe_load((ROOT / f"inventory/{name}/group_vars/all.yml").read_text())
    assert settings["bedplate_validated"] == NEWEST


def test_the_lists_are_sorted_and_have_each_name_once() -> None:
    assert sorted(set(EVER_PUBLIC)) == EVER_PUBLIC
    assert len(OLD) == len(ROWS)
    order = [(row["since"], row["changed"], row["affects"]) for row in CHANGED]
    assert order == sorted(set(order))
