# SPDX-License-Identifier: Apache-2.0
"""Checks the declared models of ollama_models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*:[A-Za-z0-9._-]+")
CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")
DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
SOURCES = "`pull: NAME:TAG`, or `gguf: FILE-OR-URL` with `checksum: sha256:<64 hex digits>`"


def problems_of(model: Mapping[str, Any]) -> Iterator[str]:
    """Iterate over what is wrong with one declared model, each a sentence with the remedy."""
    name = str(model["name"])
    checksum, digest = str(model.get("checksum", "")), str(model.get("digest", ""))
    if not NAME.fullmatch(name):
        yield f"ollama_models: '{name}' has no tag: write the name as NAME:TAG, such as llama3.2:3b."
    if "pull" not in model and "gguf" not in model:
        yield f"ollama_models: '{name}' has no source: set {SOURCES}."
    if "pull" in model and "gguf" in model:
        yield f"ollama_models: '{name}' has two sources, pull and gguf: keep one of {SOURCES}."
    elif "gguf" in model and not CHECKSUM.fullmatch(checksum):
        yield (
            f"ollama_models: '{name}' has the checksum '{checksum}': set sha256: and the 64 hex digits of "
            "the GGUF file."
        )
    gguf = str(model.get("gguf", "https://"))
    if not gguf.startswith(("http://", "https://")) and not Path(gguf).is_file():
        yield (
            f"ollama_models: '{name}' has the gguf '{gguf}': name a file on this control machine, or a URL."
        )
    if "digest" in model and not DIGEST.fullmatch(digest):
        yield (
            f"ollama_models: '{name}' has the digest '{digest}': set its 64 hex digits, as the registry "
            "shows them."
        )


def model_problems(models: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with the declared models, each a sentence with the remedy."""
    return [problem for model in models for problem in problems_of(model)]


class FilterModule:
    """The filter by its name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter."""
        return {"model_problems": model_problems}
