"""playbooks/client.yml: what `make client` prints."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.client_settings import CLIENTS, parse, printed

KEY = "sk-of-a-client' $HOME"
URL = "https://10.0.0.1:18000"
MODEL = "coder:7b"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The output for an installation with its own CA, where the key `app` may use one of two models."""
    settings: dict[str, Any] = {
        "bedplate_bind_address": "10.0.0.1",
        "gateway_port": 18000,
        "edge_tls": "own",
        "ollama_context_length": 65536,
        "ollama_models": [{"name": "small", "pull": "small"}, {"name": MODEL, "pull": MODEL}],
        "gateway_keys": [{"alias": "default", "tpm": 1000}, {"alias": "app", "models": [MODEL]}],
    }
    return printed(tmp_path_factory.mktemp("tls"), settings, {"default": "sk-other", "app": KEY})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The output for the defaults: no TLS, a short context, a low limit, no key `app`."""
    models = [{"name": name, "pull": name} for name in ("small", MODEL)]
    settings: dict[str, Any] = {
        "ollama_models": models,
        "gateway_keys": [{"alias": "any", "tpm": 1000}],
    }
    return printed(tmp_path_factory.mktemp("small"), settings, {"any": "sk-x"}, ["claude-code", "codex"])


def test_every_client_is_printed() -> None:
    assert CLIENTS == ["aider", "claude-code", "codex", "continue", "llm", "open-webui", "opencode"]


@pytest.mark.parametrize("client", CLIENTS)
def test_url_model_and_ca(client: str, texts: dict[str, str]) -> None:
    text = texts[client]
    assert URL in text
    assert "trust.crt" in text
    assert client == "open-webui" or MODEL in text
    assert "small" not in text.replace("small_model", "")
    assert "{{" not in text
    assert "AnsibleUndefined" not in text


@pytest.mark.parametrize("client", CLIENTS)
def test_the_key_is_where_the_client_reads_it(client: str, texts: dict[str, str]) -> None:
    settings = parse(texts[client])
    if client == "continue":
        assert yaml.safe_load(settings.files[".continue/config.yaml"])["models"][0]["apiKey"] == KEY
    elif client == "open-webui":
        assert f"\nOPENAI_API_KEY={KEY}\n" in texts[client]
    else:
        assert KEY in settings.environment.values()
    assert texts[client].count("sk-of-a-client") == 1


def test_the_files_are_in_the_language_of_their_program(texts: dict[str, str]) -> None:
    codex = tomllib.loads(parse(texts["codex"]).files[".codex/config.toml"])
    assert codex["model_providers"]["bedplate"]["base_url"] == f"{URL}/v1"
    assert codex["model_context_window"] == 65536
    opencode = json.loads(parse(texts["opencode"]).files[".config/opencode/opencode.json"])
    limit = opencode["provider"]["bedplate"]["models"][MODEL]["limit"]
    assert limit == {"context": 65536, "output": 16384}
    assert opencode["model"] == f"bedplate/{MODEL}"
    [model] = yaml.safe_load(parse(texts["llm"]).files[".config/io.datasette.llm/extra-openai-models.yaml"])
    assert (model["model_name"], model["api_base"]) == (MODEL, f"{URL}/v1")


def test_what_breaks_a_coding_agent_is_said(small: dict[str, str], texts: dict[str, str]) -> None:
    for client, text in small.items():
        assert "The context of small is 8192 tokens. A coding agent needs 32768 or more" in text
        assert "The key any may use 1000 tokens per minute." in text
        assert f"# Models of this key: small, {MODEL}\n" in text
        assert f"# Models of this key: {MODEL}\n" in texts[client]
        assert "A coding agent needs" not in texts[client]


@pytest.mark.parametrize("client", CLIENTS)
def test_each_part_begins_on_a_line_of_its_own(client: str, texts: dict[str, str]) -> None:
    lines = texts[client].splitlines()
    assert all(line.startswith("export ") for line in lines if "export " in line)
    assert all(line.lstrip().startswith("# ") for line in lines if "# " in line)


def test_without_a_ca_nothing_is_trusted(small: dict[str, str]) -> None:
    for text in small.values():
        assert "http://127.0.0.1:8000" in text
        assert "CERT" not in text.upper()


def test_an_unknown_client_names_the_known_ones(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ollama_models": [{"name": "m", "pull": "m"}]}
    with pytest.raises(AssertionError) as refused:
        printed(tmp_path, settings, {"any": "sk-x"}, ["cursor"])
    assert f"CLIENT is 'cursor', which is none of the known clients: {', '.join(CLIENTS)}." in " ".join(
        str(refused.value).split()
    )
