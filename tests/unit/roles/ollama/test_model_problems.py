"""model_problems: what a declared model lacks, in one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

NAME = {"name": "llama3.2:3b"}
PULL = {**NAME, "pull": "llama3.2:3b"}
CHECKSUM = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/ollama/filter_plugins/model_problems.py")


@pytest.mark.parametrize(
    "model",
    [
        PULL,
        {**PULL, "name": "registry.example/library/llama3.2:3b"},
        {**PULL, "digest": "0" * 64},
        {**PULL, "digest": CHECKSUM},
        {**NAME, "gguf": __file__, "checksum": CHECKSUM},
        {**NAME, "gguf": "https://files.example.org/small.gguf", "checksum": CHECKSUM},
    ],
)
def test_a_model_without_problems(module: ModuleType, model: dict[str, str]) -> None:
    assert module.model_problems([model]) == []


@pytest.mark.parametrize(
    ("model", "start"),
    [
        ({**PULL, "name": "llama3.2"}, "'llama3.2' has no tag: "),
        ({**PULL, "name": "llama 3:3b"}, "'llama 3:3b' has no tag: "),
        (NAME, "'llama3.2:3b' has no source: set `pull: NAME:TAG`"),
        (
            {**PULL, "gguf": __file__, "checksum": CHECKSUM},
            "'llama3.2:3b' has two sources, pull and gguf: ",
        ),
        ({**NAME, "gguf": __file__}, "'llama3.2:3b' has the checksum '': "),
        (
            {**NAME, "gguf": __file__, "checksum": "md5:0123"},
            "'llama3.2:3b' has the checksum 'md5:0123': ",
        ),
        (
            {**NAME, "gguf": "/not/there.gguf", "checksum": CHECKSUM},
            "'llama3.2:3b' has the gguf '/not/there.gguf': name a file on this control machine",
        ),
        ({**PULL, "digest": "abc"}, "'llama3.2:3b' has the digest 'abc': "),
    ],
)
def test_a_problem_is_one_sentence(module: ModuleType, model: dict[str, str], start: str) -> None:
    (problem,) = module.model_problems([model])
    assert problem.startswith(f"ollama_models: {start}")


def test_every_problem_of_every_model_is_named(module: ModuleType) -> None:
    assert len(module.model_problems([{"name": "a"}, PULL, {"name": "b"}])) == 4
