"""playbooks/client.yml: what `make client` prints."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.client_settings import CLIENTS, parse, printed

KEY = "sk-of-a-client' $HOME"
URL = "https://10.0.0.1:18000"
MODEL = "coder:7b"
# One of each way to name the CA.
TRUSTING = ("claude-code", "codex", "continue", "open-webui")


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
    keys = {"default": "sk-other", "app": KEY}
    folder = tmp_path_factory.mktemp("tls")
    return printed(folder, settings, keys, forms=["env", "ca"], authority="CA")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The output for the defaults: no TLS, a short context, a low limit, no key `app`."""
    models = [{"name": name, "pull": name} for name in ("small", MODEL)]
    settings: dict[str, Any] = {
        "ollama_models": models,
        "gateway_keys": [{"alias": "any", "tpm": 1000}],
    }
    folder, programs = tmp_path_factory.mktemp("small"), ["claude-code", "codex"]
    return printed(folder, settings, {"any": "sk-x"}, programs, forms=["env", "ca"])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Make the output for a certificate of the user's own, with and without its CA."""

    def output(**settings: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("given")
        (folder / "private ca.crt").write_text("CA")
        installation = {
            "bedplate_bind_address": "10.0.0.1",
            "edge_certificate": "server.crt",
            "edge_key": "server.key",
            "ollama_models": [{"name": MODEL, "pull": MODEL}],
            "gateway_keys": [{"alias": "any"}],
            **settings,
        }
        return printed(folder, installation, {"any": "sk-x"}, TRUSTING, forms=["env", "ca"])

    return output


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
    for client in ("claude-code", "codex"):
        text = small[client]
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
    assert small["ca"].startswith("edge_tls is off: ")
    for name in ("claude-code", "codex", "env"):
        assert "http://127.0.0.1:8000" in small[name]
        assert "CERT" not in small[name].upper()


def trusting(text: str) -> set[str]:
    """Return the files that the variables for CAs name."""
    names = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
    exported = parse(text).environment
    return {exported[name] for name in names}


def test_the_shell_and_the_advice_name_the_installations_ca(texts: dict[str, str]) -> None:
    [path] = trusting(texts["env"])
    assert path.endswith("/config/bedplate/bedplate/trust.crt")
    assert texts["ca"].startswith(f"The CA of this installation is {path}. ")


def test_a_certificate_of_ones_own_has_the_ca_that_the_inventory_names(
    given: Callable[..., dict[str, str]],
) -> None:
    # Relative to the checkout, in which ansible-playbook runs.
    texts = given(edge_tls="given", edge_ca="private ca.crt")
    [path] = trusting(texts["env"])
    assert (path[0], Path(path).name) == ("/", "private ca.crt")
    assert texts["ca"].startswith(f"The CA of its certificate is {path}. ")
    assert "name constraints" not in texts["ca"]
    assert all(path in texts[client] for client in TRUSTING)


@pytest.mark.parametrize("mode", ["given", "own"])
def test_a_ca_that_is_not_there_is_not_printed(given: Callable[..., dict[str, str]], mode: str) -> None:
    texts = given(edge_tls=mode)
    assert texts["ca"].startswith(f"edge_tls is {mode}")
    for name in (*TRUSTING, "env"):
        assert "https://10.0.0.1:" in texts[name]
        assert "CERT" not in texts[name].upper()
        assert "caBundlePath" not in texts[name]


def test_an_unknown_client_names_the_known_ones(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ollama_models": [{"name": "m", "pull": "m"}]}
    with pytest.raises(AssertionError) as refused:
        printed(tmp_path, settings, {"any": "sk-x"}, ["cursor"])
    assert f"CLIENT is 'cursor', which is none of the known clients: {', '.join(CLIENTS)}." in " ".join(
        str(refused.value).split()
    )
