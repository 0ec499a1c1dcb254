"""The services that a host with the whole stack has, by playbooks/group_vars/all/services.yml."""

from __future__ import annotations

from typing import Any

import yaml

from tests.support.hosts import ROOT

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(
    (ROOT / "playbooks/group_vars/all/services.yml").read_text()
)["bedplate_services"]


def boot_services() -> list[str]:
    """Return the services that start at boot with the default settings; a timer starts the others."""
    return [name for name, row in SERVICES.items() if not row.get("timer") and "enabled" not in row]


def daemons() -> list[str]:
    """Return the services of boot_services() that keep running."""
    return [name for name in boot_services() if "health" in SERVICES[name]]
