# SPDX-License-Identifier: Apache-2.0
"""Filters over services.yml and the roles' argument_specs: what a host runs, and which settings there are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

Services = Mapping[str, Mapping[str, Any]]

LONGEST_LOAD_SECONDS = 1800

EXTENSIONS = {"gateway_engines": "gateway_extra_backends", "prometheus_targets": "prometheus_extra_targets"}
"""What a user sets in place of a wired setting."""


def services_on(services: Services, groups: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over the services of a host that is in these groups."""
    for name, row in services.items():
        if not set(groups).isdisjoint(row["group"].split(":")) and row.get("enabled", True):
            yield name, row


def service_units(services: Services, groups: Collection[str]) -> list[str]:
    """Return the units of a host's services, but those that a timer starts."""
    return [f"{name}.service" for name, row in services_on(services, groups) if not row.get("timer")]


def started_units(services: Services, groups: Collection[str]) -> list[str]:
    """Return the units to start for a host's services, without background work."""
    return [
        f"{name}.{'timer' if row.get('timer') else 'service'}"
        for name, row in services_on(services, groups)
        if not row.get("background")
    ]


def healed_services(services: Services, groups: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return URL and silent working time of each service of a host that bedplate-heal asks."""
    return {
        name: {"url": str(row["health"]), "busy_seconds": int(row["heal"])}
        for name, row in services_on(services, groups)
        if "heal" in row
    }


def healing_timers(healed: Iterable[str]) -> list[str]:
    """Return the timers that ask these services."""
    return [f"bedplate-heal@{name}.timer" for name in healed]


def load_seconds(timeout: object) -> int:
    """Return Ollama's load time-out in seconds, at most half an hour; 0 and less mean no time-out there."""
    text = str(timeout)
    # What settings.yml accepts as engine_duration, and what Ollama reads.
    if not re.fullmatch(r"-?\d+|(\d+(ms|[hms]))+", text):
        raise ValueError(f"ollama_load_timeout is '{text}': use a duration such as 5m or 1h30m.")
    factors = {"h": 3600, "m": 60, "s": 1, "ms": 0.001, "": 1}
    parts = re.findall(r"(-?\d+)(ms|[hms]?)", text)
    seconds = math.ceil(sum(int(number) * factors[unit] for number, unit in parts))
    return min(seconds, LONGEST_LOAD_SECONDS) if seconds > 0 else LONGEST_LOAD_SECONDS


def service_ports(services: Services, groups: Collection[str]) -> dict[str, str]:
    """Return the unit of each port of a host, by the setting that changes the port."""
    return {port: name for name, row in services_on(services, groups) for port in row.get("ports", ())}


def with_ports(units: Mapping[str, str], ports: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Return the port and the unit of each setting; `ports` are the settings' values, 0 for a closed one."""
    return {
        setting: {"port": int(port), "unit": unit}
        for (setting, unit), port in zip(units.items(), ports, strict=True)
        if int(port)
    }


def service_openings(
    services: Services, openings: Mapping[str, Mapping[str, Any]], groups: Collection[str]
) -> list[dict[str, Any]]:
    """Return port, unit, address and clients of each port of a host, as exposure.py takes them."""
    found = []
    for setting, unit in service_ports(services, groups).items():
        at = str(openings[setting]["at"])
        place = urlsplit(at if "//" in at else f"//{at}")
        if not place.port:
            continue
        clients = [str(client) for client in openings[setting]["clients"]]
        entry = {"port": place.port, "unit": openings[setting].get("unit", unit)}
        found.append({**entry, "address": place.hostname, "clients": clients})
    return found


def wired_settings(root: str) -> dict[str, str]:
    """Return the settings that only group_vars set, each with what a user sets instead, or nothing."""
    files = Path(root, "playbooks/group_vars").rglob("*.yml")
    names = [name for file in sorted(files) for name in yaml.safe_load(file.read_text())]
    return {name: EXTENSIONS.get(name, "") for name in names if not name.startswith("__")}


def user_settings(root: str) -> list[str]:
    """Return the settings that a user may change: those of the roles that validate their settings."""
    files = sorted(Path(root, "roles").glob("*/meta/argument_specs.yml"))
    specs = [yaml.safe_load(file.read_text())["argument_specs"] for file in files]
    names = {name for spec in specs if "validate" in spec for name in spec["main"]["options"]}
    return sorted(names - set(wired_settings(root)))


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {
            function.__name__: function
            for function in (
                service_units,
                started_units,
                healed_services,
                healing_timers,
                load_seconds,
                service_ports,
                with_ports,
                service_openings,
                wired_settings,
                user_settings,
            )
        }
