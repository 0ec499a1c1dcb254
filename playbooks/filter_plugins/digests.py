"""Adds the digests of installed models to the inventory's list of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def with_digests(declared: Iterable[Mapping[str, Any]], tags: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models of ollama_models, the pulled ones with the digest that the engine has.

    `tags` is the response of Ollama's /api/tags. A declared digest stays. A model that is not
    installed gets none.
    """
    digests = {model["name"]: f"sha256:{model['digest']}" for model in tags.get("models") or []}
    return [
        {**model, "digest": digests[model["name"]]}
        if model.get("pull") and not model.get("digest") and model["name"] in digests
        else dict(model)
        for model in declared
    ]


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by name."""
        return {"with_digests": with_digests}
