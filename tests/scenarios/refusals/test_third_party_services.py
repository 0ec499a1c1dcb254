"""Preflight detects third-party services; the commands that it prints hand them over to Bedplate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.refusals.refusing import MODEL, Control, Host, Run
from tests.support.hosts import lab_artifact

UNIT = """[Unit]
Description={name} of somebody else
[Service]
ExecStart=/usr/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""


def hand_over(run: Run, host: Host, units: dict[str, str]) -> None:
    """Check that a refusal names these units (mapped to their files), and run its commands on the host."""
    run.refused()
    for unit, file in units.items():
        assert (
            f"other has {unit} ({file}), which Bedplate did not install. "
            "To let Bedplate replace it, run there:\n" in run.message
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


@pytest.fixture
def third_party_ollama(other: Host) -> dict[str, Any]:
    """Install Ollama like its install script, with one model; returns Bedplate's settings for the same."""
    engine, model = lab_artifact("engine"), lab_artifact("model")
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
    control: Control, other: Host, third_party_ollama: dict[str, Any]
) -> None:
    run = control.run(control.one_box(other, third_party_ollama))
    hand_over(run, other, {"ollama.service": "/etc/systemd/system/ollama.service"})
    assert f"Its models are kept: set ollama_models_dir to their folder, {MODELS} unless" in run.sentence
    inventory = control.one_box(other, {**third_party_ollama, "ollama_models_dir": MODELS})
    control.run(inventory).accepted()

    before = other(f"cd {MODELS} && sha256sum blobs/* manifests/*/*/*/*")
    other(f"chown -R root: {MODELS}/blobs")
    run = control.run(inventory, None, "site.yml", "--tags", "ollama")
    assert run.sentence == (
        f"{MODELS}/blobs (ollama_models_dir) is not writable for the user ollama: run "
        f"chown -R ollama: {MODELS}, make every parent directory accessible (chmod o+x), "
        "and do not use /home, which the service's sandbox hides."
    )
    other(f"chown -R ollama: {MODELS}")
    run = control.run(inventory, None, "site.yml", "--tags", "ollama")
    assert run.code == 0, run.output
    assert {"theirs:latest", "smollm2:135m"} <= set(other("HOME=/root ollama list").split())
    after = other(f"cd {MODELS} && sha256sum blobs/* manifests/*/*/*/*")
    assert set(before.splitlines()) <= set(after.splitlines())
