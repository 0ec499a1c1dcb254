# SPDX-License-Identifier: Apache-2.0
"""Filters over the roles' meta/host.yml: what the roles of a host need there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

BASE = "bedplate"
"""The role that every other one needs."""


def declared_packages(roles: Iterable[str], root: str) -> list[str]:
    """Return the Debian packages that these roles need."""
    packages = [name for role in roles for name in declaration(root, role).get("packages", [])]
    return list(dict.fromkeys(packages))


def package_masks(roles: Iterable[str], root: str, packages: Iterable[str]) -> list[dict[str, str]]:
    """Return role and unit of each mask that must be there before one of these packages is installed."""
    units = {f"{package}.service" for package in packages}
    masks = [(role, unit) for role in roles for unit in declaration(root, role).get("masks", [])]
    return [{"role": role, "unit": unit} for role, unit in masks if unit in units]


def declaration(root: str, role: str) -> dict[str, Any]:
    """Return a role's declaration as its file has it."""
    return dict(yaml.safe_load(Path(root, "roles", role, "meta/host.yml").read_text()))


def declaring_roles(root: str) -> list[str]:
    """Return the roles that have a declaration."""
    return sorted(path.parts[-3] for path in Path(root, "roles").glob("*/meta/host.yml"))


def declaration_files(root: str) -> list[str]:
    """Return the files of all declarations."""
    return [str(Path(root, "roles", role, "meta/host.yml")) for role in declaring_roles(root)]


def declarations(texts: Iterable[str], root: str) -> list[dict[str, Any]]:
    """Return the declarations of all roles from their files' texts, in which the settings are filled in."""
    return [
        {**yaml.safe_load(text), "role": role, "file": f"roles/{role}/meta/host.yml"}
        for role, text in zip(declaring_roles(root), texts, strict=True)
    ]


def roles_to_remove(name: str, root: str) -> list[str]:
    """Return the roles that a name stands for: `all`, a role, or a service of one; none if it is unknown."""
    roles = declaring_roles(root)
    if name == "all":
        return roles
    services = {
        unit.rpartition(".")[0]: role for role in roles for unit in declaration(root, role).get("units", [])
    }
    found = name if name in roles else services.get(name, services.get(f"bedplate-{name}"))
    return [found] if found and found != BASE else []


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {
            "declared_packages": declared_packages,
            "declaring_roles": declaring_roles,
            "declaration_files": declaration_files,
            "declarations": declarations,
            "package_masks": package_masks,
            "roles_to_remove": roles_to_remove,
        }
