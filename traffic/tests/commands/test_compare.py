"""`traffic compare`: which differences count as worse, and which reports cannot be compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from traffic.tests.fake_endpoint import exit_status
from traffic.tests.traffic_fakes import engine


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("run") / "a.json"
    with engine() as (url, _):
        arguments = ["run", "--concurrency", "2", "--requests", "10", "--url", url, "--key", "k"]
        assert exit_status(*arguments, "--json", str(file)) == 0
    return json.loads(file.read_text())


def compared(folder: Path, first: Any, second: Any, *more: str) -> int:
    files = [folder / "a.json", folder / "b.json"]
    for file, content in zip(files, (first, second), strict=True):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return exit_status("compare", *map(str, files), *more)


def changed(report: Any, name: str, value: Any) -> Any:
    copy = json.loads(json.dumps(report))
    parent = copy["classes"][0]
    *path, last = name.split(".")
    for key in path:
        parent = parent[key]
    parent[last] = value
    return copy


def test_equal_runs_are_equal(tmp_path: Path, report: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(tmp_path, report, report) == 0
    assert "0 of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "values", "worse"),
    [
        ("end_to_end.p95", (1.0, 1.05), False),
        ("end_to_end.p95", (1.0, 1.2), True),
        ("end_to_end.p95", (1.2, 1.0), False),
        # A fifth more, but one millisecond is noise.
        ("first_token.p50", (0.005, 0.006), False),
        ("answers_per_second", (10.0, 8.0), True),
        ("answers_per_second", (8.0, 10.0), False),
        ("failed", (0, 1), True),
        ("good_ratio", (1.0, None), True),
        ("good_ratio", (None, 0.5), False),
    ],
)
def test_a_worse_number_sets_the_exit_status(
    tmp_path: Path, report: Any, name: str, values: tuple[Any, Any], worse: bool
) -> None:
    first, second = values
    exit_status = compared(tmp_path, changed(report, name, first), changed(report, name, second))
    assert exit_status == int(worse)


def test_the_tolerance_is_the_users(tmp_path: Path, report: Any) -> None:
    slower = changed(report, "answers_per_second", report["classes"][0]["answers_per_second"] * 0.8)
    assert compared(tmp_path, report, slower, "--tolerance", "30") == 0


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", "is not a report of `traffic run` with schema 2 (Invalid JSON"),
        (
            {"schema": 1, "ok": True},
            "is not a report of `traffic run` with schema 2 (schema: Input should be 2",
        ),
        ([], "is not a report"),
    ],
)
def test_a_file_that_is_no_report_is_refused(
    tmp_path: Path, report: Any, capsys: pytest.CaptureFixture[str], second: Any, message: str
) -> None:
    assert compared(tmp_path, report, second) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_runs_with_different_classes_are_refused(
    tmp_path: Path, report: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared(tmp_path, report, changed(report, "name", "other")) == 2
    assert "different classes (options; other)" in capsys.readouterr().err


def test_a_missing_report_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("compare", "/nowhere/a.json", "/nowhere/b.json") == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err
