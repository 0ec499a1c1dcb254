"""Public variables: none disappears without a row in renamed.yml, and no old name is used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
EVER_PUBLIC = (Path(__file__).parent / "public_variables.txt").read_text().split()
ROWS: list[dict[str, Any]] = yaml.safe_load((ROOT / "playbooks/renamed.yml").read_text())
OLD = {row["old"] for row in ROWS}
DECLARED = {
    name
    for path in ROOT.glob("roles/*/meta/argument_specs.yml")
    for entry in yaml.safe_load(path.read_text())["argument_specs"].values()
    for name in entry.get("options", {})
}


def test_every_declared_variable_stands_in_the_list() -> None:
    assert set(EVER_PUBLIC) >= DECLARED, "add these to tests/unit/playbooks/public_variables.txt"


def test_no_variable_disappears_without_a_row() -> None:
    assert set(EVER_PUBLIC) <= DECLARED | OLD, "add these to playbooks/renamed.yml"


def test_no_old_name_is_used_again() -> None:
    assert not OLD & DECLARED


@pytest.mark.parametrize("row", ROWS, ids=[row["old"] for row in ROWS])
def test_a_row_says_what_to_write_instead(row: dict[str, Any]) -> None:
    assert row["since"]
    assert ("new" in row) != ("why" in row)
    assert row.get("new") in {*DECLARED, None}


def test_the_list_is_sorted_and_has_each_name_once() -> None:
    assert sorted(set(EVER_PUBLIC)) == EVER_PUBLIC
    assert len(OLD) == len(ROWS)
