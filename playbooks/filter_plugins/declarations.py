# SPDX-License-Identifier: Apache-2.0
"""Filters over the roles' meta/host.yml: what the roles of a host need there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml


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


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {"declared_packages": declared_packages, "package_masks": package_masks}
