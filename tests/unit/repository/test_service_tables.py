"""Services, units and ports in the docs and the dashboard are those of services.yml and the roles."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bedplate_dashboard.health.faults import POLLED_SERVICES

ROOT = Path(__file__).resolve().parents[3]
TABLES = yaml.safe_load((ROOT / "playbooks/group_vars/all/services.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = TABLES["bedplate_services"]
OPENINGS: dict[str, dict[str, Any]] = TABLES["bedplate_openings"]
DEFAULTS: dict[str, Any] = {}
for file in ROOT.glob("roles/*/defaults/main.yml"):
    DEFAULTS |= yaml.safe_load(file.read_text()) or {}
# Wired: an ACME directory connects to no other port.
DEFAULTS["edge_http_port"] = 80
# Off by default.
DEFAULTS["edge_https_port"] = 443
PORTS = {setting: DEFAULTS[setting] for row in SERVICES.values() for setting in row.get("ports", ())}
# What the docs call the listener of each port setting.
LISTENERS = {
    "ollama_port": "Ollama",
    "exporter_port": "exporter of Ollama",
    "gateway_port": "gateway",
    "gateway_metrics_port": "the gateway's metrics",
    "litellm_listen_port": "LiteLLM",
    "edge_metrics_port": "the edge's metrics",
    "edge_https_port": "the edge's port for all",
    "edge_http_port": "the edge for an ACME directory",
    "prometheus_port": "Prometheus",
    "prometheus_listen_port": "Prometheus itself",
    "alertmanager_port": "Alertmanager",
    "alertmanager_listen_port": "Alertmanager itself",
    "dashboard_port": "dashboard",
    "node_exporter_port": "node exporter",
}
# What the docs call the clients of an opening.
CLIENTS = {
    "[]": "the host itself",
    "['any']": "all",
    "{{ ollama_allowed_clients }}": "gateways",
    "{{ gateway_allowed_addresses }}": "monitoring hosts and engines",
    "{{ exporter_allowed_clients }}": "monitoring hosts",
    "{{ node_exporter_allowed_clients }}": "monitoring hosts",
}
# Units that are no service of services.yml: one loads a GPU's modules, the others are started by timers.
OTHER_UNITS = {"gpu-devices", "host-facts", "bedplate-drift", "bedplate-heal@"}
SOURCE_SUFFIXES = {".py", ".html", ".txt"}
ARCHITECTURE = "docs/design/architecture.md"
SECURITY = "docs/reference/security.md"


def section(page: str, begin: str, end: str) -> str:
    """Return the text of a page between two strings."""
    return (ROOT / page).read_text().partition(begin)[2].partition(end)[0]


def rows(text: str) -> Iterator[list[str]]:
    """Iterate over the cells of the body rows of the tables in a text."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| port |", "| unit |")):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def units(text: str) -> set[str]:
    """Return the units in backticks, without the end .timer."""
    return {name.removesuffix(".timer") for name in re.findall(r"`([a-z-]+@?(?:\.timer)?)`", text)}


@pytest.mark.parametrize(
    "text",
    [
        section(SECURITY, "## What listens where", "\n1. "),
        section(ARCHITECTURE, "**Ports**:", "**On a host**"),
    ],
    ids=[SECURITY, ARCHITECTURE],
)
def test_tables_of_ports_are_complete(text: str) -> None:
    # "dashboard (read-only)" and "Alertmanager, if enabled" say more than the name.
    table = {re.split(r",| \(", cells[1])[0]: int(cells[0]) for cells in rows(text)}
    assert table == {LISTENERS[setting]: port for setting, port in PORTS.items()}


def test_verify_and_the_docs_agree_on_the_clients_of_each_port() -> None:
    table = {int(cells[0]): cells[3] for cells in rows(section(SECURITY, "## What listens where", "\n1. "))}
    assert OPENINGS.keys() == PORTS.keys()
    assert table == {PORTS[setting]: CLIENTS[str(row["clients"])] for setting, row in OPENINGS.items()}


def test_ports_in_the_readme_are_the_defaults() -> None:
    ports = {name: PORTS[setting] for setting, name in LISTENERS.items()}
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\| (\w+) on `:(\d+)`", text)
    assert len(named) == 4
    assert {name: int(port) for name, port in named} == {name: ports[name] for name, _ in named}
    assert {int(port) for port in re.findall(r"`:(\d+)", text)} <= set(ports.values())


def test_lists_of_units_are_complete() -> None:
    fixed = section(ARCHITECTURE, "**Units**", "**Ports**").replace("`bedplate.target`", "")
    assert units(fixed) == SERVICES.keys() | OTHER_UNITS
    measured = {
        unit for cells in rows(section(SECURITY, "`systemd-analyze", "\n- ")) for unit in units(cells[0])
    }
    assert measured == SERVICES.keys() | OTHER_UNITS


def test_the_verbs_name_every_service() -> None:
    sentence = section("docs/guide/operating.md", "The\nservices are", "\n\n")
    assert units(sentence) == {name.removeprefix("bedplate-") for name in SERVICES}


def test_every_service_has_a_unit() -> None:
    templates = {path.name.partition(".")[0] for path in ROOT.glob("templates/systemd/[a-z]*.service.j2")}
    assert templates == SERVICES.keys() | OTHER_UNITS


def test_the_node_exporter_reports_every_unit() -> None:
    template = (ROOT / "templates/systemd/node-exporter.service.j2").read_text()
    reported = re.search(r"unit-include=(\S+)", template)
    assert reported
    missing = [
        unit for unit in SERVICES.keys() | OTHER_UNITS if not re.fullmatch(reported[1], f"{unit}.service")
    ]
    assert missing == []


def test_an_alert_says_that_a_service_is_down() -> None:
    rules = (ROOT / "roles/prometheus/templates/alerts.rules.yml.j2").read_text()
    watched = re.findall(r'unit_state\{state="active", name=~"\(([^)]+)\)', rules)
    units = {unit for names in watched for unit in names.split("|")}
    assert units == {name for name, row in SERVICES.items() if "health" in row}


def test_the_dashboard_polls_every_service_with_a_health_url() -> None:
    # Alertmanager may be disabled, and the edge passes on the polls of the gateway: their units count.
    polled = {name for name, row in SERVICES.items() if "health" in row and "enabled" not in row}
    assert polled - {"bedplate-edge"} == POLLED_SERVICES


def test_units_that_the_dashboard_names_exist() -> None:
    files = [path for path in (ROOT / "dashboard_app/src").rglob("*") if path.suffix in SOURCE_SUFFIXES]
    named = {
        name
        for path in files
        for names in re.findall(
            r"\b(bedplate-[a-z]+)|systemctl [a-z]+ ([a-z-]+)|journalctl -u ([a-z-]+)", path.read_text()
        )
        for name in names
        if name
    }
    assert "bedplate-gateway" in named
    assert named - SERVICES.keys() == set()
