"""The file of the drained engines, as it changes under a running gateway."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from bedplate_gateway.engines.drains import MAX_TEXT, Drains

DRAIN = {"engine": "gpu1", "who": "kim", "since": "2026-03-01T14:02:00+00:00", "why": "new fan"}


def write(path: Path, *drains: dict[str, Any], schema: int = 1) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"schema": schema, "drains": drains}))
    new.replace(path)


def test_without_a_file_nothing_is_drained(tmp_path: Path) -> None:
    drains = Drains(tmp_path / "drains.json")
    assert drains.by_engine == {}
    assert not drains.check()


def test_a_start_knows_what_was_drained_before(tmp_path: Path) -> None:
    path = tmp_path / "drains.json"
    write(path, DRAIN)
    drain = Drains(path).by_engine["gpu1"]
    assert (drain.who, drain.why, drain.since.isoformat()) == ("kim", "new fan", DRAIN["since"])


def test_a_change_is_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "drains.json"
    drains = Drains(path)
    write(path, DRAIN)
    assert drains.check()
    assert drains.by_engine.keys() == {"gpu1"}
    assert not drains.check()
    # The same content in a new file is no change.
    write(path, DRAIN)
    assert not drains.check()
    write(path, DRAIN, DRAIN | {"engine": "gpu2"})
    assert drains.check()
    assert drains.by_engine.keys() == {"gpu1", "gpu2"}
    path.unlink()
    assert drains.check()
    assert drains.by_engine == {}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '{"schema": 2, "drains": []}',
        '{"schema": 1}',
        json.dumps({"schema": 1, "drains": [{"engine": "gpu2", "who": "kim", "since": "yesterday"}]}),
        json.dumps({"schema": 1, "drains": [DRAIN | {"until": "tomorrow"}]}),
        json.dumps({"schema": 1, "drains": [DRAIN | {"why": "a\nb"}]}),
        json.dumps({"schema": 1, "drains": [DRAIN | {"why": 'a "fan"'}]}),
        json.dumps({"schema": 1, "drains": [DRAIN | {"why": "x" * (MAX_TEXT + 1)}]}),
        json.dumps({"schema": 1, "drains": [DRAIN] * 1001}),
    ],
)
def test_a_file_that_cannot_be_read_changes_nothing(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "drains.json"
    write(path, DRAIN)
    drains = Drains(path)
    path.write_text(content)
    with caplog.at_level(logging.ERROR):
        assert not drains.check()
        assert not drains.check()
    assert drains.by_engine.keys() == {"gpu1"}
    assert len(caplog.messages) == 1
    assert "The drained engines stay as they are known" in caplog.text
    # A start finds none that it knows.
    assert Drains(path).by_engine == {}
    write(path)
    assert drains.check()


def test_a_folder_that_cannot_be_looked_into_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "drains.json"
    write(path, DRAIN)
    drains = Drains(path)

    def fail(*_: object, **__: object) -> os.stat_result:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", fail)
    assert not drains.check()
    assert drains.by_engine.keys() == {"gpu1"}
