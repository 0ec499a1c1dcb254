"""filter_plugins/digests.py: the installed digests in the inventory's list of models."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

A, B = "a" * 64, "b" * 64
TAGS = {"models": [{"name": "m:1", "digest": A}, {"name": "own:1", "digest": B}]}


@pytest.fixture(scope="module")
def digests(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/filter_plugins/digests.py")


def test_a_pulled_model_gets_its_digest_and_keeps_the_rest(digests: ModuleType) -> None:
    declared = {"name": "m:1", "pull": "m:1", "preload": True}
    assert digests.with_digests([declared], TAGS) == [{**declared, "digest": f"sha256:{A}"}]


@pytest.mark.parametrize(
    "model",
    [
        {"name": "m:1", "pull": "m:1", "digest": f"sha256:{B}"},
        {"name": "own:1", "gguf": "/srv/own.gguf", "checksum": f"sha256:{A}"},
        {"name": "absent:1", "pull": "absent:1"},
    ],
)
def test_other_models_stay(digests: ModuleType, model: dict[str, str]) -> None:
    assert digests.with_digests([model], TAGS) == [model]


def test_an_engine_without_models(digests: ModuleType) -> None:
    assert digests.with_digests([{"name": "m:1", "pull": "m:1"}], {"models": None}) == [
        {"name": "m:1", "pull": "m:1"}
    ]
