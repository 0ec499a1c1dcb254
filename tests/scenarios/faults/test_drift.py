"""Drift names each wrong of the table with its remedy, and nothing on a host that is as declared."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.faults.wrongs import WRONGS, Wrong
from tests.support.services import daemons
from tests.support.stack import Stack, run_playbook

ALL = os.environ.get("FAULTS") == "all"
ROWS = [wrong for wrong in WRONGS if ALL or (wrong.batch <= 2 and not wrong.slow)]
BATCHES = sorted({wrong.batch for wrong in ROWS})
RUNS = int(os.environ.get("ALARM_RUNS", "1"))
ALL_UNITS = "$(systemctl show --value --property=ConsistsOf bedplate.target)"
# What follows from an injected wrong by itself, such as a process that is older than a changed file.
FOLLOWS = ("process", "unit", "file", "service", "release")


def drift(stack: Stack, report: Path, **settings: Any) -> tuple[bool, dict[str, Any]]:
    """Run drift on the control machine; return whether it passed, and its report."""
    passed, output = run_playbook(
        "playbooks/drift.yml", settings={**stack.settings, "drift_file": str(report), **settings}
    )
    print(f"\n{output[-3000:]}" if not report.exists() else "")
    document: dict[str, Any] = json.loads(report.read_text())
    assert passed == document["ok"], output
    return passed, document


def named(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the differences that count, by kind and name."""
    return {(each["kind"], each["what"]): each for each in document["differences"] if not each["known"]}


def place(stack: Stack, wrong: Wrong) -> tuple[str, str]:
    """Return kind and name of a row's difference, whose path the host completes."""
    what = stack(f'echo "{wrong.what}"').strip() if "$(" in wrong.what else wrong.what
    return wrong.kind, what


def test_a_right_host_has_no_difference(stack: Stack, tmp_path: Path) -> None:
    """Also in `ALARM_RUNS` runs, after deployments, reloads, restarts and reboots."""
    for number in range(RUNS):
        if number % 10 == 1:
            stack.play(settings=stack.settings)
        if number % 10 == 3:
            stack("systemctl reload bedplate-gateway bedplate-edge prometheus; systemctl daemon-reload")
        if number % 10 == 5:
            stack(f"systemctl restart {' '.join(daemons())}")
        if number % 20 == 7:
            stack("systemctl reboot")
            time.sleep(5)
            stack("systemctl is-system-running --wait >/dev/null || true")
        started = time.monotonic()
        _, document = drift(stack, tmp_path / "drift.json")
        print(f"run {number}: {time.monotonic() - started:.1f} s")
        assert document["differences"] == []
        assert document["hosts"] == {"one": "as declared"}


@pytest.mark.parametrize("batch", BATCHES)
def test_each_wrong_is_named_with_its_remedy(stack: Stack, tmp_path: Path, batch: int) -> None:
    rows = [wrong for wrong in ROWS if wrong.batch == batch]
    expected = {place(stack, wrong): wrong for wrong in rows}
    assert len(expected) == len(rows)
    try:
        for wrong in rows:
            stack(wrong.inject)
        passed, document = drift(stack, tmp_path / "drift.json")
    finally:
        for wrong in reversed(rows):
            stack(wrong.repair)
        # Services and timers have started, or failed, with what was wrong.
        stack(f"systemctl daemon-reload; systemctl restart {ALL_UNITS}")
    found = named(document)
    print(
        "",
        *(
            f"| {wrong.name} | {kind} {what} | {found[kind, what]['seen']} | {found[kind, what]['remedy']} |"
            for (kind, what), wrong in expected.items()
            if (kind, what) in found
        ),
        sep="\n",
    )
    assert not passed
    assert sorted(expected.keys() - found.keys()) == []
    for key, wrong in expected.items():
        assert found[key]["remedy"].startswith(wrong.remedy), found[key]
    others = [key for key in found.keys() - expected.keys() if key[0] not in FOLLOWS]
    assert others == []
    secrets = stack.keys()
    assert not [secret for secret in secrets if secret in json.dumps(document)]


def test_the_repaired_host_has_no_difference(stack: Stack, tmp_path: Path) -> None:
    _, document = drift(stack, tmp_path / "drift.json")
    assert named(document) == {}
