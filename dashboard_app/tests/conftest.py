"""A made-up stack for the tests: settings and the observation in which all is well."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bedplate_dashboard.collect import (
    Contact,
    EngineState,
    GatewayAnswer,
    HostAnswer,
    Observation,
    Verify,
)
from bedplate_dashboard.settings import Settings

AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def engine_state(*models: str) -> EngineState:
    return EngineState.model_validate(
        {
            "schema": 1,
            "at": "2026-03-01T12:00:00Z",
            "engine": {"up": True, "version": "0.24.0", "error": None, "latency_seconds": 0.003},
            "models": [{"name": name, "digest": "sha256:abc", "size_bytes": 1} for name in models],
        }
    )


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "rack",
        "gateway_url": "http://127.0.0.1:8000",
        "public_gateway_url": "http://10.1.2.3:8000",
        "prometheus_url": "http://127.0.0.1:9090",
        "inference_hosts": [
            {"name": "gpu1", "exporter_url": "http://127.0.0.1:9101", "models": ["small:1b", "embed"]},
            {"name": "gpu2", "exporter_url": "http://10.1.2.4:9101", "models": ["small:1b"]},
        ],
        "verify_report": str(tmp_path / "verify.json"),
    }


@pytest.fixture
def settings(config: dict[str, Any]) -> Settings:
    return Settings.model_validate_json(json.dumps(config))


@pytest.fixture
def all_well() -> Observation:
    answered = Contact("answered", 0.004)
    return Observation(
        at=AT,
        seconds=0.01,
        gateway=GatewayAnswer(answered, frozenset({"small:1b", "embed"})),
        hosts=(
            HostAnswer("gpu1", answered, engine_state("small:1b", "embed:latest")),
            HostAnswer("gpu2", answered, engine_state("small:1b")),
        ),
        prometheus=answered,
        verify=Verify(),
    )
