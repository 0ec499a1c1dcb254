# SPDX-License-Identifier: Apache-2.0
"""Decides whether a model fits a host; the formula is in docs/reference/model-fit.md."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

CACHE_VALUE_BYTES = 2
"""A key or value of the cache is a 16-bit number unless OLLAMA_KV_CACHE_TYPE says otherwise."""
BATCH_TOKENS = 512
"""Tokens of one batch, which a windowed layer keeps in addition to its window."""
CARD_BYTES = 1_000_000_000
"""What driver, engine and computation take of each card."""
CPU_BYTES = 500_000_000
"""What engine and computation take of the main memory."""
SYSTEM_BYTES = 1_000_000_000
"""Main memory that is left to the operating system and the other services."""
CPU_MODEL_BYTES = 2_100_000_000
"""The largest model that is proposed for a host without a GPU: larger ones answer slowly there."""
FALLBACK_MODEL = "llama3.2:3b"
"""Proposed while the memory of the GPUs is not known."""
LEAST_CONTEXT = 2048
MOST_SLOTS = 16

WHOLE, LESS, PARTLY, NO, UNKNOWN = "whole", "less", "partly", "no", "unknown"

GGUF_MAGIC = b"GGUF"
GGUF_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
GGUF_STRING, GGUF_ARRAY = 8, 9
# Bounds for a file of others. Real headers have some dozen keys; a vocabulary is the largest value.
GGUF_KEYS = 1000
GGUF_BYTES = 64 * 1024 * 1024
GGUF_ITEMS = 2_000_000
GGUF_KEPT_ITEMS = 1000


class GgufError(Exception):
    """A file whose header is not that of a GGUF file, or out of bounds."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a model needs; a token takes `window_bytes` in windowed layers, `token_bytes` in the others."""

    name: str
    bytes: int
    layers: int
    context: int
    token_bytes: int
    window_bytes: int = 0
    window: int = 0
    abilities: tuple[str, ...] = ()
    licence: str = ""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Model:
        """Return the model of a row of model_catalogue."""
        windowed = row.get("windowed", {"layers": 0, "tokens": 0})
        layer = 2 * row["kv_heads"] * row["head_size"] * CACHE_VALUE_BYTES
        return cls(
            name=row["name"],
            bytes=row["bytes"],
            layers=row["layers"],
            context=row["context"],
            token_bytes=layer * (row["layers"] - windowed["layers"]),
            window_bytes=layer * windowed["layers"],
            window=windowed["tokens"],
            abilities=tuple(row["abilities"]),
            licence=row["licence"],
        )

    def cache_bytes(self, context: int, slots: int) -> int:
        """Return the size of the cache for this context in each of the slots."""
        windowed = min(context, self.window + BATCH_TOKENS)
        return slots * (self.token_bytes * context + self.window_bytes * windowed)

    def need(self, context: int, slots: int) -> int:
        """Return the bytes of weights and cache; Ollama cuts a context that the model was not made for."""
        return self.bytes + self.cache_bytes(min(context, self.context), slots)


@dataclass(frozen=True, kw_only=True)
class Host:
    """Memory of a host in bytes; `cards` that the engine uses, 0 for a card whose memory is not known."""

    memory: int
    cards: tuple[int, ...] = ()
    limit: int

    @property
    def known(self) -> bool:
        """Whether the memory of every card is known."""
        return all(self.cards)

    def card_room(self, model: Model) -> int:
        """Return what the cards have for weights and cache; cards divide them by whole layers."""
        room = sum(max(0, card - CARD_BYTES) for card in self.cards)
        return max(0, room - (len(self.cards) - 1) * (model.bytes // max(1, model.layers))) if room else 0

    @property
    def main_room(self) -> int:
        """Return what the main memory has for weights and cache."""
        return max(0, min(self.limit, self.memory - SYSTEM_BYTES) - CPU_BYTES)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a model fits; `slots` is the largest number of them, `need` is in bytes, `on` is GPU or CPU."""

    model: Model
    kind: str
    context: int
    slots: int
    need: int
    on: str

    @property
    def text(self) -> str:
        """Return the verdict in words."""
        most = f"up to {self.slots}" if self.slots < MOST_SLOTS else f"{self.slots} or more"
        return {
            WHOLE: f"fits on the {self.on}: context {self.context}, {most} slots",
            LESS: f"fits on the {self.on} with less: context {self.context}, {self.slots} slots",
            PARTLY: f"partly on the CPU, slow: context {self.context}, {self.slots} slots",
            NO: "no",
            UNKNOWN: "not known before the GPU's driver runs",
        }[self.kind]


def contexts(largest: int) -> Iterator[int]:
    """Iterate over the powers of two below a context, the largest first."""
    context = 1 << (largest - 1).bit_length()
    while (context := context // 2) >= LEAST_CONTEXT:
        yield context


def fit(model: Model, host: Host, context: int, slots: int) -> Fit:
    """Return how a model fits a host that gives each of its slots this context."""
    context = min(context, model.context)
    need = model.need(context, slots)
    on = "GPU" if host.cards else "CPU"

    def result(kind: str, context: int = context, slots: int = slots) -> Fit:
        return Fit(model=model, kind=kind, context=context, slots=slots, need=need, on=on)

    if not host.known:
        return result(UNKNOWN)
    room = host.card_room(model) if host.cards else host.main_room
    if need <= room:
        most = max(n for n in range(slots, max(slots, MOST_SLOTS) + 1) if model.need(context, n) <= room)
        return result(WHOLE, slots=most)
    for smaller in contexts(context):
        if model.need(smaller, slots) <= room:
            return result(LESS, context=smaller)
    if host.cards and need <= room + host.main_room:
        return result(PARTLY)
    return result(NO)


def byte_limit(setting: object, memory: int) -> int:
    """Return ollama_memory_max in bytes: a percentage of the memory, or a whole number with M, G or T."""
    text = str(setting)
    if text.endswith("%"):
        return memory * int(text[:-1]) // 100
    return int(text[:-1]) << {"M": 20, "G": 30, "T": 40}[text[-1]]


def card_bytes(survey: Mapping[str, Any], decision: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the memory of each card in use; without a driver, the gigabytes in its name, or 0."""
    if decision.get("action") != "install":
        return ()
    used = {card["slot"] for card in decision["cards"] if card["role"] == "compute"}
    return tuple(
        card.get("memory_bytes") or named_bytes(card["name"])
        for card in survey["cards"]
        if card["slot"] in used
    )


def named_bytes(name: str) -> int:
    """Return the memory that is part of a card's name, such as A100 PCIe 40GB; 0 without one."""
    match = re.search(r"\b(\d+) ?GB\b", name)
    return int(match[1]) * 10**9 if match else 0


def host_of(
    memory: int, limit: object, survey: Mapping[str, Any] | None, decision: Mapping[str, Any] | None
) -> Host:
    """Return a host from the results of host_survey, gpu_survey and gpu_decision."""
    return Host(
        memory=memory, cards=card_bytes(survey or {}, decision or {}), limit=byte_limit(limit, memory)
    )


class GgufReader:
    """Reads the keys and values at the beginning of a GGUF file, within bounds of count and size."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if self.file.tell() + size > GGUF_BYTES:
            raise GgufError(f"its header is longer than {GGUF_BYTES} bytes")
        data = self.file.read(size)
        if len(data) < size:
            raise GgufError("its header is incomplete")
        return data

    def number(self, form: str) -> Any:
        """Return the next number, in the form of the module struct."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        """Return the next string."""
        return self.take(self.number("<Q")).decode(errors="replace")

    def value(self, kind: int) -> Any:
        """Return the next value; of a long array only its first items."""
        if kind in GGUF_NUMBERS:
            return self.number(GGUF_NUMBERS[kind])
        if kind == GGUF_STRING:
            return self.text()
        if kind != GGUF_ARRAY:
            raise GgufError(f"its header has a value of the unknown type {kind}")
        item, count = self.number("<I"), self.number("<Q")
        if count > GGUF_ITEMS or item == GGUF_ARRAY:
            raise GgufError(f"its header has an array of {count} items of type {item}")
        if item in GGUF_NUMBERS and count > GGUF_KEPT_ITEMS:
            self.take(count * struct.calcsize(GGUF_NUMBERS[item]))
            return []
        items = (self.value(item) for _ in range(count))
        return [value for number, value in enumerate(items) if number < GGUF_KEPT_ITEMS]

    def header(self) -> dict[str, Any]:
        """Return all keys with their values."""
        if self.take(4) != GGUF_MAGIC:
            raise GgufError("it does not begin with GGUF")
        version = self.number("<I")
        if version not in (2, 3):
            raise GgufError(f"it has version {version}")
        self.number("<Q")
        count = self.number("<Q")
        if count > GGUF_KEYS:
            raise GgufError(f"its header has {count} keys")
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.text()
            found[key] = self.value(self.number("<I"))
        return found


def gguf_model(name: str, path: Path) -> Model:
    """Return the model in a GGUF file; raises GgufError. All layers count as keeping the whole context."""
    with path.open("rb") as file:
        header = GgufReader(file).header()
    family = header.get("general.architecture", "")

    def read(key: str, default: int = 0) -> Any:
        return header.get(f"{family}.{key}", default)

    layers = read("block_count")
    if not layers:
        raise GgufError("its header has no number of layers")
    heads = read("attention.head_count")
    kept = read("attention.head_count_kv", heads)
    # One number for all layers, or a list with one for each.
    per_layer = kept if isinstance(kept, list) else [kept] * layers
    most = max(heads) if isinstance(heads, list) else heads
    size = read("embedding_length") // most if most else 0
    values = read("attention.key_length", size) + read("attention.value_length", size)
    return Model(
        name=name,
        bytes=path.stat().st_size,
        layers=layers,
        context=read("context_length", 1 << 20),
        token_bytes=sum(per_layer) * values * CACHE_VALUE_BYTES,
    )


def catalogue_name(reference: str) -> str:
    """Return a reference of Ollama's own registry as the catalogue writes it."""
    name = re.sub(r"^(https://)?(registry\.)?ollama\.(ai|com)/", "", reference).removeprefix("library/")
    return name if ":" in name else f"{name}:latest"


def declared_model(declared: Mapping[str, Any], catalogue: Mapping[str, Model]) -> Model | None:
    """Return what a declared model needs; None if that is not known."""
    if "pull" in declared:
        found = catalogue.get(catalogue_name(str(declared["pull"])))
        return replace(found, name=str(declared["name"])) if found else None
    path = Path(str(declared.get("gguf", "")))
    try:
        return gguf_model(str(declared["name"]), path) if path.is_file() else None
    except (GgufError, OSError):
        # The engine reports a file that is none of its own.
        return None


def models_of(catalogue: Iterable[Mapping[str, Any]]) -> dict[str, Model]:
    """Return the catalogue's models by their name, the smallest first."""
    return {model.name: model for model in sorted(map(Model.from_row, catalogue), key=lambda m: m.bytes)}


def gigabytes(size: int) -> str:
    """Return a size in words."""
    return f"{size / 1e9:.1f} GB"


def largest_that_fits(host: Host, models: Iterable[Model], context: int, slots: int) -> Model | None:
    """Return the largest model for chat that answers from one kind of memory, if any with this context."""
    found = [fit(model, host, context, slots) for model in models if "chat" in model.abilities]
    for kind in (WHOLE, LESS):
        if fitting := [one.model for one in found if one.kind == kind]:
            return max(fitting, key=lambda model: model.bytes)
    return None


def fit_problems(
    served: Iterable[Mapping[str, Any]],
    declared: Iterable[Mapping[str, Any]],
    catalogue: Iterable[Mapping[str, Any]],
    host: Host,
    name: str,
) -> list[str]:
    """Return a sentence for each declared model that cannot fit into all the memory of the host."""
    models = models_of(catalogue)
    total = host.memory + sum(host.cards)
    problems = []
    for item, settings in zip(declared, served, strict=True):
        model = declared_model(item, models)
        if model is None or not host.known:
            continue
        context, slots = int(settings["context"]), int(settings["slots"])
        need = model.need(context, slots) + CPU_BYTES
        if need <= total:
            continue
        smaller = next((c for c in contexts(context) if model.need(c, slots) + CPU_BYTES <= total), None)
        larger = largest_that_fits(host, models.values(), context, slots)
        cards = f" and {gigabytes(sum(host.cards))} on its GPUs" if host.cards else ""
        remedies = [f"set the context to {smaller}"] if smaller else []
        remedies.append(
            f"use {larger.name}, the largest of the list that fits"
            if larger
            else "use a smaller one; none of the list fits"
        )
        problems.append(
            f"ollama_models: '{model.name}' needs {gigabytes(need)} with a context of "
            f"{min(context, model.context)} tokens in {slots} slots, but {name} has {gigabytes(host.memory)} "
            f"of memory{cards}: {', or '.join(remedies)}."
        )
    return problems


def model_fit_problems(
    served: Sequence[Mapping[str, Any]],
    declared: Sequence[Mapping[str, Any]],
    catalogue: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> list[str]:
    """Return the problems of a host's models; `facts` has name, memory, limit, survey and decision."""
    host = host_of(facts["memory"], facts["limit"], facts["survey"], facts["decision"])
    return fit_problems(served, declared, catalogue, host, str(facts["name"]))


def model_fits(
    catalogue: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    context: int,
    slots: int,
    declared: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return how each declared model, and then each of the catalogue, fits the host, for templates."""
    host = host_of(facts["memory"], facts["limit"], facts["survey"], facts["decision"])
    models = models_of(catalogue)
    rows = []
    for item in declared:
        model = declared_model(item, models)
        own = int(item.get("parameters", {}).get("num_ctx", context))
        shown = fit(model, host, own, slots) if model else None
        rows.append({"name": str(item["name"]), "declared": True, **fit_row(shown)})
    rows += [
        {"name": model.name, "declared": False, **fit_row(fit(model, host, context, slots))}
        for model in models.values()
    ]
    return rows


def fit_row(found: Fit | None) -> dict[str, Any]:
    """Return one row of model_fits; None is a model whose size is not known."""
    if found is None:
        unknown = {"kind": UNKNOWN, "size": "", "needs": "", "text": "size not known"}
        return unknown | {"abilities": [], "licence": ""}
    return {
        "kind": found.kind,
        "on": found.on,
        "bytes": found.model.bytes,
        "size": gigabytes(found.model.bytes),
        "needs": gigabytes(found.need),
        "context": found.context,
        "slots": found.slots,
        "text": found.text,
        "abilities": list(found.model.abilities),
        "licence": found.model.licence,
    }


def default_model(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the catalogue's model to propose first; empty if none for chat fits."""
    chat = [row for row in rows if not row["declared"] and "chat" in row["abilities"]]
    if any(row["kind"] == UNKNOWN for row in chat):
        return FALLBACK_MODEL
    quick = [row for row in chat if row["on"] == "GPU" or row["bytes"] <= CPU_MODEL_BYTES]
    for kind in (WHOLE, LESS):
        if fitting := [str(row["name"]) for row in quick if row["kind"] == kind]:
            return fitting[-1]
    return ""


def memory_text(facts: Mapping[str, Any]) -> str:
    """Return a host's memory in words."""
    cards = card_bytes(facts["survey"], facts["decision"])
    sizes = ", ".join(gigabytes(card) if card else "unknown size" for card in cards)
    gpus = f"{len(cards)} GPU{'s' * (len(cards) > 1)} ({sizes})" if cards else "no GPU in use"
    return f"{gigabytes(facts['memory'])} of memory, {gpus}"


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {
            "default_model": default_model,
            "memory_text": memory_text,
            "model_fit_problems": model_fit_problems,
            "model_fits": model_fits,
        }
