"""The formula of model_fit, its list of models, and the reader of GGUF headers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
TABLE: dict[str, Any] = yaml.safe_load((ROOT / "playbooks/model_catalogue.yml").read_text())
CATALOGUE: list[dict[str, Any]] = TABLE["model_catalogue"]
GB = 10**9
CARD = {"slot": "0000:01:00.0", "name": "AD102 [GeForce RTX 4090]", "memory_bytes": 24 * GB}
IN_USE = {"action": "install", "cards": [{"slot": "0000:01:00.0", "role": "compute"}]}
# Sizes of `ollama ps` in public reports: model, context, and the bounds of what was rounded.
REPORTED = [
    ("mistral:7b", 4096, (5.05, 5.15)),
    ("gpt-oss:20b", 8192, (14, 15)),
    ("gpt-oss:120b", 8192, (65, 66)),
]


@pytest.fixture(scope="module")
def fit(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/filter_plugins/model_fit.py")


@pytest.fixture(scope="module")
def models(fit: ModuleType) -> Any:
    return fit.models_of(CATALOGUE)


def host(fit: ModuleType, memory: float, *cards: float) -> Any:
    """A host with so many GB of memory and on its cards; Ollama may use 90 % of the memory."""
    return fit.Host(
        memory=int(memory * GB), cards=tuple(int(card * GB) for card in cards), limit=int(memory * GB * 0.9)
    )


def facts(memory: float, *, cards: bool = False, **card: Any) -> dict[str, Any]:
    """What preflight knows of a host."""
    survey = {"cards": [{**CARD, **card}]} if cards else {}
    decision = IN_USE if cards else {}
    return {
        "name": "box1",
        "memory": int(memory * GB),
        "limit": "90%",
        "survey": survey,
        "decision": decision,
    }


def test_the_list_is_sorted_and_names_its_sources() -> None:
    sizes = [row["bytes"] for row in CATALOGUE]
    assert sizes == sorted(sizes)
    assert len({row["name"] for row in CATALOGUE}) == len(CATALOGUE) >= 20
    assert {row["shape"] for row in CATALOGUE} == set(TABLE["model_sources"])
    assert all(url.startswith("https://") for url in TABLE["model_sources"].values())
    assert all(":" in row["name"] and row["licence"] and row["abilities"] for row in CATALOGUE)


def test_a_token_needs_key_and_value_of_each_layer_and_head(models: Any) -> None:
    # 2 x 28 layers x 8 heads x 128 numbers x 2 bytes
    assert models["llama3.2:3b"].token_bytes == 114_688
    assert models["llama3.2:3b"].cache_bytes(8192, 2) == 114_688 * 8192 * 2


def test_a_windowed_layer_keeps_its_window_and_a_batch(models: Any) -> None:
    model = models["gemma3:4b"]
    layer = 2 * 4 * 256 * 2
    assert model.cache_bytes(8192, 1) == 5 * layer * 8192 + 29 * layer * (1024 + 512)
    assert model.cache_bytes(1000, 1) == 34 * layer * 1000


def test_ollama_cuts_a_context_that_the_model_was_not_made_for(models: Any) -> None:
    assert models["phi4:latest"].need(32768, 1) == models["phi4:latest"].need(16384, 1)


@pytest.mark.parametrize(("name", "context", "sizes"), REPORTED)
def test_reported_sizes(
    fit: ModuleType, models: Any, name: str, context: int, sizes: tuple[float, float]
) -> None:
    computed = (models[name].need(context, 1) + fit.CPU_BYTES) / GB
    assert sizes[0] <= computed <= sizes[1] * 1.15


@pytest.mark.parametrize(
    ("name", "memory", "verdict"),
    [
        ("llama3.2:3b", (16,), ("whole", "fits on the CPU: context 8192, up to 12 slots")),
        ("qwen3:1.7b", (4,), ("less", "fits on the CPU with less: context 4096, 2 slots")),
        ("llama3.2:3b", (4,), ("no", "no")),
        ("gemma3:12b", (64, 80), ("whole", "fits on the GPU: context 8192, 16 or more slots")),
        ("qwen3:32b", (64, 24), ("less", "fits on the GPU with less: context 2048, 2 slots")),
        ("llama3.3:70b", (64, 24), ("partly", "partly on the CPU, slow: context 8192, 2 slots")),
        ("llama3.3:70b", (16, 24), ("no", "no")),
        ("llama3.3:70b", (64, 48, 48), ("whole", "fits on the GPU: context 8192, 16 or more slots")),
        ("phi4:latest", (64, 0), ("unknown", "not known before the GPU's driver runs")),
    ],
)
def test_verdicts(
    fit: ModuleType, models: Any, name: str, memory: tuple[float, ...], verdict: tuple[str, str]
) -> None:
    found = fit.fit(models[name], host(fit, *memory), 8192, 2)
    assert (found.kind, found.text) == verdict


def test_the_slots_of_a_verdict_fit_and_one_more_does_not(fit: ModuleType, models: Any) -> None:
    machine = host(fit, 16)
    model = models["llama3.1:8b"]
    slots = fit.fit(model, machine, 8192, 1).slots
    assert model.need(8192, slots) <= machine.main_room < model.need(8192, slots + 1)


def test_cards_divide_a_model_by_whole_layers(fit: ModuleType, models: Any) -> None:
    model = models["llama3.3:70b"]
    assert host(fit, 64, 48, 48).card_room(model) == 94 * GB - model.bytes // 80


@pytest.mark.parametrize(
    ("setting", "size"),
    [("90%", 14_400_000_000), ("100%", 16_000_000_000), ("8G", 8 << 30), ("512M", 512 << 20)],
)
def test_the_limit_of_the_memory(fit: ModuleType, setting: str, size: int) -> None:
    assert fit.byte_limit(setting, 16 * GB) == size


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({}, (24 * GB,)),
        ({"memory_bytes": 0}, (0,)),
        ({"memory_bytes": 0, "name": "GA100 [A100 PCIe 40GB]"}, (40 * GB,)),
        ({"slot": "0000:09:00.0"}, ()),
    ],
)
def test_the_memory_of_cards(fit: ModuleType, card: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert fit.card_bytes({"cards": [{**CARD, **card}]}, IN_USE) == expected


def test_a_card_that_is_not_used_does_not_count(fit: ModuleType) -> None:
    assert fit.card_bytes({"cards": [CARD]}, {"action": "none", "cards": []}) == ()
    assert fit.card_bytes({"cards": [CARD]}, {}) == ()


def problems(fit: ModuleType, pull: str, known: dict[str, Any], context: int = 8192) -> list[str]:
    """Preflight's refusals of one declared model."""
    declared = [{"name": "big:1", "pull": pull}]
    served = [{"name": "big:1", "context": context, "slots": 2}]
    result: list[str] = fit.model_fit_problems(served, declared, CATALOGUE, known)
    return result


REFUSALS = [
    (
        ("llama3.3:70b", facts(16), 8192),
        "needs 48.9 GB with a context of 8192 tokens in 2 slots, but box1 has 16.0 GB of memory: "
        "use qwen3:14b, the largest of the list that fits.",
    ),
    (
        ("https://ollama.com/library/llama3.3:70b", facts(16, cards=True), 8192),
        "needs 48.9 GB with a context of 8192 tokens in 2 slots, but box1 has 16.0 GB of memory and "
        "24.0 GB on its GPUs: use qwen3:30b, the largest of the list that fits.",
    ),
    (
        ("qwen3:8b", facts(8), 32768),
        "needs 15.4 GB with a context of 32768 tokens in 2 slots, but box1 has 8.0 GB of memory: "
        "set the context to 4096, or use gemma3:4b, the largest of the list that fits.",
    ),
    (
        ("llama3.2:3b", facts(1.5), 8192),
        "needs 4.4 GB with a context of 8192 tokens in 2 slots, but box1 has 1.5 GB of memory: "
        "use a smaller one; none of the list fits.",
    ),
]


@pytest.mark.parametrize(("given", "message"), REFUSALS)
def test_a_model_that_cannot_fit_is_refused_with_what_would(
    fit: ModuleType, given: tuple[str, dict[str, Any], int], message: str
) -> None:
    assert problems(fit, *given) == [f"ollama_models: 'big:1' {message}"]


def test_what_fits_or_is_not_known_is_not_refused(fit: ModuleType) -> None:
    assert problems(fit, "llama3.2:3b", facts(8)) == []
    assert problems(fit, "somebody/unknown:600b", facts(8)) == []
    assert problems(fit, "registry.example.org/library/llama3.3:70b", facts(8)) == []
    assert problems(fit, "llama3.3:70b", facts(8, cards=True, memory_bytes=0)) == []
    # It runs partly on the CPU.
    assert problems(fit, "llama3.3:70b", facts(64, cards=True)) == []


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (facts(16), "llama3.2:3b"),
        (facts(4), "llama3.2:1b"),
        (facts(1.5), ""),
        (facts(64, cards=True), "qwen3:30b"),
        (facts(64, cards=True, memory_bytes=0), "llama3.2:3b"),
    ],
)
def test_the_proposed_model(fit: ModuleType, known: dict[str, Any], expected: str) -> None:
    assert fit.default_model(fit.model_fits(CATALOGUE, known, 8192, 2)) == expected


def test_declared_models_come_first(fit: ModuleType) -> None:
    declared = [
        {"name": "mine:1", "pull": "qwen3:8b", "parameters": {"num_ctx": 2048}},
        {"name": "x:1", "pull": "a/b:c"},
    ]
    rows = fit.model_fits(CATALOGUE, facts(16), 8192, 2, declared)
    assert [(row["name"], row["declared"]) for row in rows[:3]] == [
        ("mine:1", True),
        ("x:1", True),
        ("nomic-embed-text:latest", False),
    ]
    assert rows[0]["context"] == 2048
    assert rows[1]["text"] == "size not known"


def test_the_memory_in_words(fit: ModuleType) -> None:
    assert fit.memory_text(facts(16)) == "16.0 GB of memory, no GPU in use"
    assert fit.memory_text(facts(64, cards=True)) == "64.0 GB of memory, 1 GPU (24.0 GB)"
    assert fit.memory_text(facts(64, cards=True, memory_bytes=0)) == "64.0 GB of memory, 1 GPU (unknown size)"


def string(text: str) -> bytes:
    """A string of a GGUF header."""
    return struct.pack("<Q", len(text)) + text.encode()


def number(key: str, value: int) -> bytes:
    """A key with a 32-bit number."""
    return string(key) + struct.pack("<II", 4, value)


def gguf(*pairs: bytes, count: int | None = None, version: int = 3) -> bytes:
    """A GGUF file with these keys and values and no tensor."""
    keys = len(pairs) if count is None else count
    return b"GGUF" + struct.pack("<IQQ", version, 0, keys) + b"".join(pairs)


FAMILY = string("general.architecture") + struct.pack("<I", 8) + string("llama")
SHAPE = [
    FAMILY,
    number("llama.block_count", 30),
    number("llama.context_length", 8192),
    number("llama.embedding_length", 576),
    number("llama.attention.head_count", 9),
]


def numbers(key: str, *values: int) -> bytes:
    """A key with an array of 32-bit numbers."""
    return string(key) + struct.pack("<IIQ", 9, 4, len(values)) + struct.pack(f"<{len(values)}I", *values)


@pytest.mark.parametrize(
    ("more", "token_bytes"),
    [
        ([number("llama.attention.head_count_kv", 3)], 30 * 3 * (64 + 64) * 2),
        # Each head keeps its own key and value.
        ([], 30 * 9 * (64 + 64) * 2),
        (
            [
                number("llama.attention.head_count_kv", 3),
                number("llama.attention.key_length", 128),
                number("llama.attention.value_length", 96),
            ],
            30 * 3 * (128 + 96) * 2,
        ),
        ([numbers("llama.attention.head_count_kv", *[4] * 10, *[0] * 20)], 10 * 4 * (64 + 64) * 2),
        # A vocabulary, which is not kept.
        (
            [
                string("tokenizer.ggml.tokens")
                + struct.pack("<IIQ", 9, 8, 2000)
                + b"".join(string(f"t{n}") for n in range(2000)),
                numbers("tokenizer.ggml.token_type", *[1] * 2000),
                number("llama.attention.head_count_kv", 3),
            ],
            30 * 3 * (64 + 64) * 2,
        ),
    ],
)
def test_a_gguf_header(fit: ModuleType, tmp_path: Path, more: list[bytes], token_bytes: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(*SHAPE, *more))
    model = fit.gguf_model("m:1", path)
    assert (model.layers, model.context, model.token_bytes) == (30, 8192, token_bytes)
    assert model.bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its header is incomplete"),
        (b"PK\x03\x04", "it does not begin with GGUF"),
        (gguf(version=1), "it has version 1"),
        (gguf(count=2**60), "its header has 1152921504606846976 keys"),
        (gguf(FAMILY, count=5), "its header is incomplete"),
        (gguf(FAMILY), "its header has no number of layers"),
        (gguf(struct.pack("<Q", 2**40)), "its header is longer than 67108864 bytes"),
        (gguf(string("a") + struct.pack("<I", 77)), "its header has a value of the unknown type 77"),
        (
            gguf(string("a") + struct.pack("<IIQ", 9, 8, 2**50)),
            "its header has an array of 1125899906842624 items of type 8",
        ),
        (
            gguf(string("a") + struct.pack("<IIQ", 9, 9, 1)),
            "its header has an array of 1 items of type 9",
        ),
    ],
)
def test_a_file_of_another_kind(fit: ModuleType, tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(fit.GgufError, match=f"^{message}$"):
        fit.gguf_model("m:1", path)
    # Preflight does not refuse it: its size is not known.
    assert fit.declared_model({"name": "m:1", "gguf": str(path)}, {}) is None


def test_a_declared_file(fit: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(*SHAPE))
    assert fit.declared_model({"name": "m:1", "gguf": str(path)}, {}).name == "m:1"
    assert fit.declared_model({"name": "m:1", "gguf": "https://files.example.org/m.gguf"}, {}) is None
