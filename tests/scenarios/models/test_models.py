"""A declared model is installed by pull and from a file; errors give the reason."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from playbooks.filter_plugins import model_fit
from tests.support.hosts import lab_artifact, run_lab
from tests.support.stack import Stack, run_playbook

WRONG = f"sha256:{'0' * 64}"


@pytest.mark.parametrize("context", [2048, 8192])
def test_the_formula_is_what_ollama_takes(stack: Stack, context: int) -> None:
    """The host has two slots. Above /api/ps is the header of the file, and the process takes some more."""
    need = model_fit.gguf_model(stack.model, Path(lab_artifact("model")["path"])).need(context, 2)
    body = {"model": stack.model, "prompt": "Hi", "options": {"num_ctx": context, "num_predict": 1}}
    stack(f"curl --silent --fail http://127.0.0.1:11434/api/generate --data '{json.dumps(body)}'")
    (loaded,) = json.loads(stack("curl --silent --fail http://127.0.0.1:11434/api/ps"))["models"]
    assert loaded["size"] <= need <= loaded["size"] * 1.02
    resident = max(int(line) for line in stack("ps -o rss= -C ollama").split()) * 1024
    assert resident <= need + model_fit.CPU_BYTES


@pytest.fixture(scope="module")
def registry(stack: Stack) -> str:
    """The address of a registry that serves the host's models, which Ollama no longer has."""
    stack(f"cp --recursive /var/lib/ollama/models /srv/models && ollama rm {stack.model}")
    # 0.1 GB in about 10 s.
    run_lab("registry", "serve", "/srv/models", "--in", stack.name, "--pause", "0.1")
    return f"http://{stack.address}:5000/library"


@pytest.fixture(scope="module")
def digest(stack: Stack, registry: str) -> str:
    """The digest of the model that the registry serves."""
    assert registry
    return stack("sha256sum /srv/models/manifests/*/library/smollm2/135m").split()[0]


def declare(**model: Any) -> dict[str, Any]:
    """Return the settings with one model."""
    return {"ollama_models": [model]}


def test_a_model_is_pulled_with_its_progress(stack: Stack, registry: str, digest: str) -> None:
    settings = declare(name=stack.model, preload=True, pull=f"{registry}/{stack.model}")
    with ThreadPoolExecutor() as pool:
        play = pool.submit(run_playbook, "site.yml", "--tags", "ollama", settings=settings)
        shown: list[dict[str, Any]] = []
        while not play.done():
            shown += [host["pull"] for host in stack.status()["inference_hosts"] or () if host["pull"]]
            time.sleep(0.5)
    passed, output = play.result()
    assert passed, output
    assert re.search(rf"one: {stack.model}: \d+ % of [\d.]+ MB, [\d.]+ MB/s, \d+ s left", output), output
    assert shown[0]["model"] == stack.model
    assert 0 < shown[-1]["done_bytes"] <= shown[-1]["total_bytes"]
    assert stack("ls /run/bedplate-pull") == ""
    tags = json.loads(stack("curl --silent --fail http://127.0.0.1:11434/api/tags"))
    assert [model["digest"] for model in tags["models"]] == [digest]


def test_the_same_model_with_its_printed_digest_changes_nothing(
    stack: Stack, registry: str, digest: str, tmp_path: Path
) -> None:
    """What `make models PIN=1` prints goes into the inventory as it is."""
    file = tmp_path / "printed.yml"
    settings = declare(name=stack.model, preload=True, pull=f"{registry}/{stack.model}")
    stack.play(playbook="playbooks/digests.yml", settings={**settings, "models_file": str(file)})
    printed = yaml.safe_load(file.read_text())
    assert printed["ollama_models"] == [{**settings["ollama_models"][0], "digest": f"sha256:{digest}"}]
    assert stack.play("--tags", "ollama", settings=printed) == 0


def test_a_wrong_digest_is_refused(stack: Stack, registry: str, digest: str) -> None:
    settings = declare(name=stack.model, pull=f"{registry}/{stack.model}", digest=WRONG)
    assert (
        f"has the digest sha256:{digest}, not {WRONG}; correct digest if the change is wanted."
        in stack.play_fails("--tags", "ollama", settings=settings)
    )


def test_a_model_that_the_registry_does_not_have_is_refused(stack: Stack, registry: str) -> None:
    settings = declare(name="none:1b", pull=f"{registry}/none:1b")
    assert f"pulling {registry}/none:1b failed: " in stack.play_fails("--tags", "ollama", settings=settings)


def test_a_file_with_a_wrong_checksum_is_refused(stack: Stack) -> None:
    file = lab_artifact("model")
    settings = declare(name="other:1b", gguf=file["path"], checksum=WRONG)
    assert (
        f"has the checksum {file['checksum']}, not {WRONG}; download the file again or correct the checksum."
        in stack.play_fails("--tags", "ollama", settings=settings)
    )


def test_the_same_model_from_a_file_changes_nothing(stack: Stack, digest: str) -> None:
    """The inventory declares the pulled model with a file."""
    assert digest
    assert stack.play("--tags", "ollama") == 0
