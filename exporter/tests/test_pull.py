"""The progress of a pull that a deployment runs."""

import json
import os
import time
from pathlib import Path

import pytest

from bedplate_exporter.pull import STALE_SECONDS, Pull, read_pull

PROGRESS = {"model": "qwen3:8b", "done": 1, "total": 4, "per_second": 2}


def test_a_running_pull(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    assert read_pull(file) is None
    file.write_text(json.dumps(PROGRESS))
    assert read_pull(file) == Pull("qwen3:8b", 1, 4, 2)


def test_a_killed_deployment_pulls_nothing(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    file.write_text(json.dumps(PROGRESS))
    before = time.time() - STALE_SECONDS - 1
    os.utime(file, (before, before))
    assert read_pull(file) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": "a", "done": null, "total": 1, "per_second": 1}']
)
def test_a_file_of_another_kind(tmp_path: Path, text: str) -> None:
    file = tmp_path / "progress.json"
    file.write_text(text)
    assert read_pull(file) is None
