"""Prints a field of a service: service.py FIELD [NAME]. Its row is in playbooks/group_vars/all/services.yml.

FIELD is name, group, started (the unit that start and stop act on) or shown (the units with a state and a
journal). NAME may lack the prefix bedplate-; without one, the fields of all services are printed.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).resolve().parents[1] / "playbooks/group_vars/all/services.yml"


def find_service(services: dict[str, dict[str, Any]], name: str) -> str:
    """Return the full name of a service; raises LookupError in one sentence."""
    for candidate in (name, f"bedplate-{name}"):
        if candidate in services:
            return candidate
    raise LookupError(f"no service is called '{name}'; known: {' '.join(services)}")


def field_of(name: str, row: dict[str, Any], field: str) -> str:
    """Return a field as make pastes it into a command."""
    timer = f"{name}.timer"
    return {
        "name": name,
        "group": str(row["group"]),
        "started": timer if row.get("timer") else f"{name}.service",
        "shown": f"{timer} {name}.service" if row.get("timer") else f"{name}.service",
    }[field]


def main(field: str, *names: str) -> None:
    """Print a field of the named services, or of all."""
    services: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text())["bedplate_services"]
    try:
        found = [find_service(services, name) for name in names or services]
    except LookupError as error:
        sys.exit(str(error))
    print(*(field_of(name, services[name], field) for name in found))


if __name__ == "__main__":
    main(*sys.argv[1:])
