"""What the parts of a made-up stack answer."""

from __future__ import annotations

from datetime import UTC, datetime
from http.server import ThreadingHTTPServer

from bedplate_dashboard import exposition
from bedplate_dashboard.collect import GATEWAY_METRICS, NODE_METRICS, Contact
from bedplate_dashboard.exposition import Exposition
from bedplate_dashboard.foreign import EngineState
from bedplate_dashboard.settings import Secrets

AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECRETS = Secrets("sk-secret")
ANSWERED = Contact("answered", 0.004)


def engine_state(*models: str) -> EngineState:
    """An engine that holds these models."""
    return EngineState.model_validate(
        {
            "schema": 1,
            "at": "2026-03-01T12:00:00Z",
            "engine": {"up": True, "version": "0.24.0", "error": None, "latency_seconds": 0.003},
            "models": [{"name": name, "digest": "sha256:abc", "size_bytes": 1} for name in models],
        }
    )


def gateway_metrics(*lines: str) -> Exposition:
    """What the gateway's metrics say."""
    return exposition.read("\n".join(lines).encode(), GATEWAY_METRICS)


def node_metrics(*lines: str) -> Exposition:
    """What a node exporter says."""
    return exposition.read("\n".join(lines).encode(), NODE_METRICS)


class FakeServer(ThreadingHTTPServer):
    """Takes as many connections at once as the dashboard makes, which is more than five."""

    request_queue_size = 64
