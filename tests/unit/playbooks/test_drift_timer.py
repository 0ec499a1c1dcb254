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
    monkeypatch.setattr(drift_timer, "AGAIN_SECONDS", 0)
    monkeypatch.setattr(drift_timer, "AGAIN_TIMES", 2)
    return tmp_path / "drift.prom"


@pytest.mark.parametrize(
    ("rounds", "counts"),
    [
        ([[]], [0]),
        # A known difference is not confirmed.
        ([[difference("/a", known=True)]], [0]),
        # The second comparison confirms the first. A repair is seen by a later one, and ends it.
        ([[difference("/a"), difference("/b")], [difference("/b"), difference("/c")], []], [1, 0]),
        ([[difference("/a")], []], [0]),
        # The next run of the timer goes on.
        ([[difference("/a")]] * 4, [1]),
    ],
)
def test_a_difference_counts_while_it_lasts(
    status: Path, monkeypatch: pytest.MonkeyPatch, rounds: list[list[Any]], counts: list[int]
) -> None:
    answers = [*rounds]
    written: list[int] = []
    monkeypatch.setattr(drift_timer, "compare", lambda: answers.pop(0))

    def write(path: Path, differences: list[Any]) -> None:
        assert path == status
        written.append(sum(not each.known for each in differences))

    monkeypatch.setattr(drift_timer, "write_status", write)
    drift_timer.main()
    assert answers == []
    assert written == counts


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
