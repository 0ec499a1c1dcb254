"""The action plugin ollama_model: how the progress of a pull is described."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/action_plugins/ollama_model.py")


@pytest.mark.parametrize(
    ("done", "speed", "line"),
    [
        (2_000_000_000, 0, "qwen3:8b: 40 % of 5.0 GB"),
        (2_500_000_000, 100_000_000, "qwen3:8b: 50 % of 5.0 GB, 100.0 MB/s, 25 s left"),
        (5_000_000_000, 1_000_000_000, "qwen3:8b: 100 % of 5.0 GB, 1.0 GB/s, 0 s left"),
    ],
)
def test_percent_speed_and_time_left(plugin: ModuleType, done: int, speed: int, line: str) -> None:
    progress = {"model": "qwen3:8b", "done": done, "total": 5_000_000_000, "per_second": speed}
    assert plugin.describe(json.dumps(progress)) == line


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"model": "a", "done": 0, "total": 0, "per_second": 0}']
)
def test_nothing_to_tell_yet(plugin: ModuleType, text: str) -> None:
    assert plugin.describe(text) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (90, "2 min"), (3599, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_times(plugin: ModuleType, seconds: float, text: str) -> None:
    assert plugin.duration(seconds) == text
