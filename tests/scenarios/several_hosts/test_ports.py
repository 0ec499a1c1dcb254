"""Which ports of three hosts are open to whom. `localhost` is the control machine."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.scenarios.several_hosts.connecting import connecting
from tests.support.hosts import run_script


class Port(NamedTuple):
    """A host's port, and the machines that tests connect from: those it is open to, and those it is not."""

    host: str
    port: int
    open_to: set[str]
    closed_to: set[str]


PORTS = [
    # Ollama has no API keys: open only to the gateways.
    Port("gpu1", 11434, {"gateway1"}, {"monitor1", "localhost"}),
    # Metrics of hosts and engine: open only to monitoring.
    Port("gpu1", 9101, {"monitor1"}, {"gateway1", "localhost"}),
    Port("gpu1", 9100, {"monitor1"}, {"gateway1"}),
    Port("gateway1", 9100, {"monitor1"}, {"gpu1", "localhost"}),
    # The monitoring host's own metrics listen on loopback.
    Port("monitor1", 9100, set(), {"gateway1"}),
    # LiteLLM listens on loopback.
    Port("gateway1", 4000, set(), {"gpu1", "monitor1", "localhost"}),
    # systemd admits the engines, which the gateway calls; the gateway answers them 403.
    Port("gateway1", 9464, {"monitor1", "gpu1"}, {"localhost"}),
    # API, dashboard and Prometheus: the edge is open to the network.
    Port("gateway1", 8000, {"localhost"}, set()),
    Port("monitor1", 3001, {"localhost"}, set()),
    Port("monitor1", 9090, {"localhost"}, set()),
]


@pytest.fixture(scope="module")
def connected(addresses: dict[str, str]) -> set[tuple[str, str, int]]:
    """The clients that can connect, each with the address and the port."""
    return connecting(
        (client, addresses[row.host], row.port) for row in PORTS for client in row.open_to | row.closed_to
    )


@pytest.mark.parametrize("row", PORTS, ids=lambda row: f"{row.host}-{row.port}")
def test_a_port_is_open_only_to_its_clients(
    row: Port, addresses: dict[str, str], connected: set[tuple[str, str, int]]
) -> None:
    found = {client for client, *where in connected if where == [addresses[row.host], row.port]}
    assert found == row.open_to


@pytest.mark.parametrize(("client", "status"), [("monitor1", "200"), ("gateway1", "200"), ("gpu1", "403")])
def test_only_monitoring_and_the_gateway_read_the_gateways_metrics(
    client: str, status: str, addresses: dict[str, str]
) -> None:
    url = f"http://{addresses['gateway1']}:9464/metrics"
    shown = run_script(client, f"curl --silent --output /dev/null --write-out '%{{http_code}}' {url}")
    assert shown == status
