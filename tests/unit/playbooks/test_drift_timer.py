"""module_utils/drift_timer.py: the program of bedplate-drift.timer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import drift, drift_timer, host_record


def difference(what: str, *, known: bool = False) -> Any:
    return drift.Difference(kind="file", what=what, expected="a", seen="b", remedy="c", known=known)


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file for the node exporter; nobody waits."""
    monkeypatch.setattr(drift_timer, "STATUS", tmp_path / "drift.prom")
    monkeypatch.setattr(drift_timer, "CONFIRM_SECONDS", 0)
    return tmp_path / "drift.prom"


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ([], None, 0),
        # A known difference is not confirmed.
        ([difference("/a", known=True)], None, 0),
        ([difference("/a"), difference("/b")], [difference("/b"), difference("/c")], 1),
        ([difference("/a")], [], 0),
    ],
)
def test_a_difference_counts_that_lasts(
    status: Path, monkeypatch: pytest.MonkeyPatch, first: list[Any], second: list[Any] | None, count: int
) -> None:
    answers = [first, *([second] if second is not None else [])]
    monkeypatch.setattr(drift_timer, "compare", lambda: answers.pop(0))
    drift_timer.main()
    assert answers == []
    assert f"\nbedplate_host_drift_differences {count}\n" in status.read_text()


def test_a_stopped_service_is_left_to_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = drift.Difference(
        kind="service", what="x", expected="active", seen="inactive", remedy="start it"
    )
    monkeypatch.setattr(drift_timer, "load_expectation", lambda _: None)
    monkeypatch.setattr(drift_timer, "load_record", lambda _: {})
    monkeypatch.setattr(drift_timer, "wanted_paths", lambda *_: [])
    monkeypatch.setattr(drift_timer, "look_at_host", lambda *_: None)
    monkeypatch.setattr(drift_timer, "find_differences", lambda *_: [stopped, difference("/a")])
    assert drift_timer.compare() == [difference("/a")]


def test_a_comparison_that_fails_is_a_difference(
    status: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise host_record.RecordError("the file is missing: run it.")

    monkeypatch.setattr(drift_timer, "compare", fail)
    drift_timer.main()
    assert 'bedplate_host_drift{kind="host",what="/var/lib/bedplate/expected.json"} 1' in status.read_text()
    assert "the file is missing: run it." in capsys.readouterr().out
