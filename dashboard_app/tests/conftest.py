"""A made-up stack for the tests: its settings and a healthy observation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bedplate_dashboard.health.poller import Poller
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import (
    GatewayAnswer,
    HostAnswer,
    MachineAnswer,
    Observation,
    PrometheusAnswer,
    ReportFile,
)
from bedplate_dashboard.web.app import create_app
from flask.testing import FlaskClient

from dashboard_app.tests.observed import ANSWERED, AT, SECRETS, engine_state, gateway_metrics, node_metrics


def fit(name: str, kind: str, text: str, *, declared: bool = False) -> dict[str, Any]:
    """Return how a model fits, as the filter model_fits does."""
    row = {"name": name, "declared": declared, "kind": kind, "text": text}
    return row | {"size": "1.0 GB", "needs": "1.5 GB", "abilities": ["chat"], "licence": "MIT", "slots": 2}


FITS = {
    "host": "gpu1",
    "memory": "16.0 GB of memory, no GPU in use",
    "context": 4096,
    "slots": 2,
    "models": [
        fit("small:1b", "whole", "fits on the CPU: context 4096, up to 9 slots", declared=True),
        fit("huge:70b", "no", "no"),
    ],
}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    fits = tmp_path / "model-fits.json"
    fits.write_text(json.dumps([FITS]))
    return {
        "name": "rack",
        "monitoring": "monitor1",
        "gateway": "gateway1",
        "gateway_url": "http://127.0.0.1:8000",
        "gateway_metrics_url": "http://127.0.0.1:9464",
        "public_gateway_url": "http://10.1.2.3:8000",
        "prometheus_url": "http://127.0.0.1:9090",
        "scrape_seconds": 15,
        "inference_hosts": [
            {"name": "gpu1", "exporter_url": "http://127.0.0.1:9101", "models": ["small:1b", "embed"]},
            {"name": "gpu2", "exporter_url": "http://10.1.2.4:9101", "models": ["small:1b"]},
        ],
        "other_models": [],
        "node_exporters": [{"name": "gpu1", "url": "http://127.0.0.1:9100"}],
        "pinned_versions": [
            {"component": "Ollama", "host": "gpu1", "version": "0.24.0"},
            {"component": "LiteLLM", "host": "gateway1", "version": "1.110.2"},
        ],
        "model_fits": str(fits),
        "verify_report": str(tmp_path / "verify.json"),
        "smoke_report": str(tmp_path / "smoke.json"),
    }


@pytest.fixture
def settings(config: dict[str, Any]) -> Settings:
    return Settings.model_validate_json(json.dumps(config))


@pytest.fixture
def all_well() -> Observation:
    return Observation(
        at=AT,
        seconds=0.01,
        gateway=GatewayAnswer(
            contact=ANSWERED,
            models=frozenset({"small:1b", "embed"}),
            metrics_contact=ANSWERED,
            metrics=gateway_metrics(),
        ),
        hosts=(
            HostAnswer("gpu1", ANSWERED, engine_state("small:1b", "embed:latest")),
            HostAnswer("gpu2", ANSWERED, engine_state("small:1b")),
        ),
        machines=(MachineAnswer("gpu1", ANSWERED, node_metrics()),),
        prometheus=PrometheusAnswer(contact=ANSWERED, alerts=(), version="2.53.3"),
        verify=ReportFile(),
        smoke=ReportFile(),
    )


@pytest.fixture
def poller(settings: Settings) -> Poller:
    return Poller(settings, SECRETS)


@pytest.fixture
def client(poller: Poller) -> FlaskClient:
    return create_app(poller).test_client()


@pytest.fixture
def show(poller: Poller, client: FlaskClient) -> Callable[[Observation], FlaskClient]:
    def show_observation(observation: Observation) -> FlaskClient:
        poller.update(observation)
        return client

    return show_observation
