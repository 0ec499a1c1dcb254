"""Answers of a made-up stack's services."""

from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from pathlib import Path

from bedplate_dashboard.settings import Secrets
from bedplate_dashboard.sources import prometheus_text
from bedplate_dashboard.sources.collect import Contact
from bedplate_dashboard.sources.metric_names import GATEWAY_METRICS, LITELLM_METRICS, NODE_METRICS
from bedplate_dashboard.sources.payloads import EngineState
from bedplate_dashboard.sources.prometheus_text import Samples

AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECRETS = Secrets("sk-secret")
ANSWERED = Contact("answered", 0.004)


def engine_state(*models: str) -> EngineState:
    """Return the state of an engine that has these models."""
    return EngineState.model_validate(
        {
            "schema": 1,
            "at": "2026-03-01T12:00:00Z",
            "engine": {"up": True, "version": "0.24.0", "error": None, "latency_seconds": 0.003},
            "models": [{"name": name, "digest": "sha256:abc", "size_bytes": 1} for name in models],
        }
    )


def gateway_metrics(*lines: str) -> Samples:
    """Parse lines of the gateway's metrics."""
    return prometheus_text.parse("\n".join(lines).encode(), GATEWAY_METRICS)


def node_metrics(*lines: str) -> Samples:
    """Parse lines of a node exporter's metrics."""
    return prometheus_text.parse("\n".join(lines).encode(), NODE_METRICS)


def litellm_metrics(*lines: str) -> Samples:
    """Parse lines of LiteLLM's own metrics."""
    return prometheus_text.parse("\n".join(lines).encode(), LITELLM_METRICS)


LITELLM_SCRAPE = Path(__file__).with_name("litellm_metrics.txt").read_text()
"""A real scrape of LiteLLM."""


class FakeServer(ThreadingHTTPServer):
    """Accepts the dashboard's parallel connections, which are more than the default of five."""

    request_queue_size = 64
