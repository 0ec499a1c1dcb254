"""Services of somebody else: recognised, and handed over by the very commands that preflight prints."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from refusing import MODEL, ROOT, Control, Host, Run

UNIT = """[Unit]
Description={name} of somebody else
[Service]
ExecStart=/usr/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""


def hand_over(run: Run, host: Host, units: dict[str, str]) -> None:
    """Check that a refusal names these units (to their files) and do on the host exactly what it says."""
    run.refused()
    for unit, file in units.items():
        assert (
            f"other has {unit} ({file}), which Bedplate did not install. To hand over, run there:\n"
            in run.message
        )
    commands = [line.strip() for line in run.message.splitlines() if line.startswith("  ")]
    assert len(commands) == sum(1 if not file.startswith("/etc/") else 2 for file in units.values()), (
        run.message
    )
    host("\n".join(commands))


@pytest.fixture(scope="module")
def inventory(control: Control, other: Host) -> Path:
    return control.one_box(other, {"ollama_models": [MODEL]})


def test_debians_prometheus_is_handed_over(control: Control, inventory: Path, other: Host) -> None:
    other(
        "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install prometheus >/dev/null 2>&1"
    )
    where = other("dirname $(systemctl show --property=FragmentPath --value prometheus)").strip()
    units = ("prometheus.service", "prometheus-node-exporter.service")
    hand_over(control.run(inventory), other, {unit: f"{where}/{unit}" for unit in units})
    control.run(inventory).accepted()


def test_a_gateway_unit_is_handed_over(control: Control, inventory: Path, other: Host) -> None:
    other(f"cat >/etc/systemd/system/litellm.service <<'END'\n{UNIT.format(name='LiteLLM')}END")
    other("systemctl daemon-reload && systemctl enable --now litellm")
    hand_over(control.run(inventory), other, {"litellm.service": "/etc/systemd/system/litellm.service"})
    control.run(inventory).accepted()
    assert "of somebody else" in other("cat /root/litellm.service")


OLLAMA = """[Unit]
Description=Ollama Service
After=network-online.target
[Service]
ExecStart=/usr/local/bin/ollama serve
User=ollama
Group=ollama
Restart=always
RestartSec=3
[Install]
WantedBy=default.target
"""
MODELS = "/usr/share/ollama/.ollama/models"


def provided(what: str) -> dict[str, str]:
    """What the lab's `engine` or `model` says."""
    said = subprocess.run([ROOT / "lab/lab", what], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(said.stdout)
    return found


@pytest.fixture
def stranger(other: Host) -> dict[str, Any]:
    """A real Ollama as its own install script leaves it, with one model; gives our settings for the same."""
    engine, model = provided("engine"), provided("model")
    other.send(Path(engine["archive"]), "/root/ollama.tar.zst")
    other.send(Path(model["path"]), "/root/small.gguf")
    other(
        f"""apt-get -qq install --no-install-recommends zstd curl >/dev/null 2>&1
        tar -C /usr/local -xf /root/ollama.tar.zst
        useradd -r -s /bin/false -U -m -d /usr/share/ollama ollama
        cat >/etc/systemd/system/ollama.service <<'END'\n{OLLAMA}END
        systemctl daemon-reload && systemctl enable --now ollama
        for i in {{1..100}}; do curl -sf -o /dev/null 127.0.0.1:11434/api/version && break; sleep 0.1; done
        echo 'FROM /root/small.gguf' >/root/Modelfile
        HOME=/root /usr/local/bin/ollama create theirs:latest -f /root/Modelfile 2>/dev/null"""
    )
    assert "theirs" in other(f"ls {MODELS}/manifests/registry.ollama.ai/library")
    return {
        "ollama_version": engine["version"],
        "ollama_archive": engine["archive"],
        "ollama_archive_checksum": engine["checksum"],
        "ollama_models": [{"name": "smollm2:135m", "gguf": model["path"], "checksum": model["checksum"]}],
    }


def test_an_ollama_is_handed_over_with_its_models(
    control: Control, other: Host, stranger: dict[str, Any]
) -> None:
    run = control.run(control.one_box(other, stranger))
    hand_over(run, other, {"ollama.service": "/etc/systemd/system/ollama.service"})
    assert f"Its models stay: set ollama_models_dir to their folder, {MODELS} unless" in run.sentence
    inventory = control.one_box(other, {**stranger, "ollama_models_dir": MODELS})
    control.run(inventory).accepted()

    before = other(f"cd {MODELS} && sha256sum blobs/* manifests/*/*/*/*")
    other(f"chown -R root: {MODELS}/blobs")
    run = control.run(inventory, None, "site.yml", "--tags", "ollama")
    assert run.sentence == (
        f"{MODELS}/blobs (ollama_models_dir) cannot be written by the user ollama: run "
        f"chown -R ollama: {MODELS}, open every folder above it (chmod o+x) "
        "and keep it out of /home, which the service cannot see."
    )
    other(f"chown -R ollama: {MODELS}")
    run = control.run(inventory, None, "site.yml", "--tags", "ollama")
    assert run.code == 0, run.output
    assert {"theirs:latest", "smollm2:135m"} <= set(other("HOME=/root ollama list").split())
    after = other(f"cd {MODELS} && sha256sum blobs/* manifests/*/*/*/*")
    assert set(before.splitlines()) <= set(after.splitlines())
