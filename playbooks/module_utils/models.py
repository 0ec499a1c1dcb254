# SPDX-License-Identifier: Apache-2.0
"""Declared models, and those in Ollama's models directory; uses only the standard library."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MODEL_LAYER = "application/vnd.ollama.image.model"
PARAMS_LAYER = "application/vnd.ollama.image.params"
TEMPLATE_LAYER = "application/vnd.ollama.image.template"
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[0-9]+)?")
SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class ModelError(Exception):
    """A failure; the text is one sentence for the user."""


class Name(NamedTuple):
    """A model's full name as Ollama stores it."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def path(self) -> Path:
        """Path of the manifest, relative to the models directory."""
        return Path("manifests", *self)


def parse_name(text: str) -> Name:
    """Parse a model's name or reference, ignoring its scheme; raises ModelError if it is invalid."""
    bare = re.sub(r"^https?://", "", text)
    repository, colon, tag = bare.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = bare, "latest"
    given = repository.split("/")
    parts = [*["registry.ollama.ai", "library"][: max(0, 3 - len(given))], *given, tag]
    if len(parts) != 4 or not HOST.fullmatch(parts[0]) or not all(PART.fullmatch(part) for part in parts[1:]):
        raise ModelError(
            f"{text!r} is not a model's name; write it like llama3.2:3b or HOST/NAMESPACE/MODEL:TAG."
        )
    return Name(*parts)


def parse_sha256(text: str, setting: str) -> str:
    """Return the digest as `sha256:` and 64 digits; raises ModelError with the setting if it is invalid."""
    match = SHA256.fullmatch(text.lower())
    if not match:
        raise ModelError(f"{setting} is {text!r}; set sha256: and 64 hexadecimal digits.")
    return f"sha256:{match[1]}"


def normalized_parameter(name: str, value: Any) -> Any:
    """Return a parameter as Ollama needs it: a number in text as a number, `stop` as a list."""
    if name == "stop":
        words = [value] if isinstance(value, str) else value
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
        raise ModelError(f"parameter stop is {value!r}; set a list of words.")
    number = value
    if isinstance(value, str):
        try:
            number = json.loads(value.lower())
        except ValueError:
            number = None
    if not isinstance(number, int | float):
        raise ModelError(f"parameter {name} is {value!r}; set a number, true or false.")
    return number


def differing_parameters(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Return the sorted names of the parameters that differ; an undeclared `stop` is the template's."""
    names = (wanted.keys() | stored.keys()) - ({"stop"} - wanted.keys())
    return sorted(
        name for name in names if name not in wanted or name not in stored or wanted[name] != stored[name]
    )


class Stored(NamedTuple):
    """A model in the models directory; `layers` maps media types to digests, `sizes` digests to bytes."""

    digest: str
    layers: dict[str, str]
    parameters: dict[str, Any]
    sizes: dict[str, int]


def blob_path(models_dir: Path, digest: str) -> Path:
    """Return the path where Ollama stores the content with this digest."""
    return models_dir / "blobs" / digest.replace(":", "-")


def read_model(models_dir: Path, name: Name) -> tuple[Stored | None, str]:
    """Return the stored model and "", or None and the reason: it is missing or damaged."""
    path = models_dir / name.path
    try:
        raw = path.read_bytes()
        manifest = json.loads(raw)
        layers = {str(layer["mediaType"]): str(layer["digest"]) for layer in manifest["layers"]}
        sizes = {str(part["digest"]): int(part["size"]) for part in [manifest["config"], *manifest["layers"]]}
        parameters = {}
        if PARAMS_LAYER in layers:
            parameters = dict(json.loads(blob_path(models_dir, layers[PARAMS_LAYER]).read_bytes()))
    except FileNotFoundError as error:
        return None, "it is missing" if error.filename == str(path) else "its parameters are missing"
    except (ValueError, KeyError, TypeError):
        return None, "its manifest is damaged"
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); run as root or as ollama.") from None
    return Stored(f"sha256:{hashlib.sha256(raw).hexdigest()}", layers, parameters, sizes), ""


def truncated_blobs(models_dir: Path, sizes: Mapping[str, int]) -> list[Path]:
    """Return the existing files of these digests whose size is wrong."""
    paths = {blob_path(models_dir, digest): size for digest, size in sizes.items()}
    return [path for path, size in paths.items() if path.exists() and path.stat().st_size != size]


class Wanted(NamedTuple):
    """A declared model: from a GGUF file (`checksum` set) or pulled (`pull` set)."""

    name: Name
    gguf: Path | None
    checksum: str | None
    parameters: dict[str, Any]
    template: str | None
    pull: str | None
    digest: str | None

    @classmethod
    def declared(cls, params: Mapping[str, Any]) -> Wanted:
        """Parse the module's parameters; raises ModelError for invalid ones."""
        if not params["pull"] and not (params["gguf"] and params["checksum"]):
            raise ModelError(f"{params['name']} has no source; set gguf with its checksum, or pull.")
        if params["pull"] and (params["parameters"] or params["template"]):
            raise ModelError(
                f"{params['name']}: parameters and template apply to a model from a gguf file, not to pull."
            )
        if params["pull"]:
            parse_name(params["pull"])
        return cls(
            name=parse_name(params["name"]),
            gguf=Path(params["gguf"]) if params["gguf"] else None,
            checksum=parse_sha256(params["checksum"], "checksum") if params["checksum"] else None,
            parameters={
                key: normalized_parameter(key, value) for key, value in (params["parameters"] or {}).items()
            },
            template=params["template"],
            pull=params["pull"],
            digest=parse_sha256(params["digest"], "digest") if params["digest"] else None,
        )

    def for_diff(self) -> dict[str, Any]:
        """Return the declared state for Ansible's diff."""
        if self.pull:
            return {"pull": self.pull, "digest": self.digest or "any"}
        return {"model": self.checksum, "parameters": self.parameters}


def difference(stored: Stored, wanted: Wanted) -> str:
    """Return how the stored model differs from the declared one, or ""."""
    if wanted.digest and stored.digest != wanted.digest:
        return f"its digest is {stored.digest}, not {wanted.digest}"
    if not wanted.checksum:
        return ""
    if stored.layers.get(MODEL_LAYER) != wanted.checksum:
        return f"its weights are {stored.layers.get(MODEL_LAYER)}, not {wanted.checksum}"
    if names := differing_parameters(wanted.parameters, stored.parameters):
        return f"its parameters differ: {', '.join(names)}"
    if wanted.template is not None:
        template = f"sha256:{hashlib.sha256(wanted.template.encode()).hexdigest()}"
        return "" if stored.layers.get(TEMPLATE_LAYER) == template else "its template differs"
    return ""


def missing_reason(models_dir: Path, wanted: Wanted) -> str:
    """Return why the declared model is not present, complete and as declared, or ""."""
    stored, reason = read_model(models_dir, wanted.name)
    if stored is None:
        return reason
    if reason := difference(stored, wanted):
        return reason
    if not all(blob_path(models_dir, digest).exists() for digest in stored.sizes):
        return "one of its files is missing"
    return "one of its files is truncated" if truncated_blobs(models_dir, stored.sizes) else ""
