"""Which metrics the repository uses: rules, alerts, Grafana, the documents, dashboard, canary."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SOURCES = (
    "roles/prometheus/templates/*.rules.yml.j2",
    "grafana/bedplate.json",
    "docs/**/*.md",
    "dashboard_app/src/**/*.py",
    "traffic/src/**/*.py",
)
# Some settings have similar names.
NAME = re.compile(
    r"\b(bedplate_(?:gateway|heal|ollama|gpu|host|dashboard|traffic)_(?!address\b)[a-z0-9_]+"
    r"|node_(?!exporter(?!_build_info))\w+|bedplate:[a-z0-9_:]+)\b"
)
HISTOGRAM = ("_bucket", "_sum", "_count")
NOT_ALWAYS = {
    # After the first request for a model of a provider, which the scenario gateway sends.
    "bedplate_gateway_cost_dollars_total",
    "bedplate_gateway_fallbacks_total",
    # While an engine is drained, as in the scenario gateway.
    "bedplate_gateway_drain_timestamp_seconds",
    "bedplate:engine_drained:max5m",
    # While a host differs from its inventory.
    "bedplate_host_drift",
}


def used() -> dict[str, set[str]]:
    """Return the used metric names with the files that use them."""
    names: dict[str, set[str]] = {}
    for pattern in SOURCES:
        for path in ROOT.glob(pattern):
            for name in NAME.findall(path.read_text()):
                names.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return names


def missing(exposed: Iterable[str]) -> dict[str, set[str]]:
    """Return the used names that are not exposed; a histogram's base name stands for its series."""
    known = set(exposed)
    known |= {name.removesuffix(ending) for name in known for ending in HISTOGRAM}
    # prometheus_client adds the suffix to a counter's name in the dashboard's code.
    known |= {name.removesuffix("_total") for name in known}
    return {name: files for name, files in used().items() if name not in known | NOT_ALWAYS}
