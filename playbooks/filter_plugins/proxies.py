# SPDX-License-Identifier: Apache-2.0
"""Filters that split the proxies for downloads into what anybody may see and what contains a password.

Ansible puts a task's environment into the arguments of the remote shell, which ps and sudo's log show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

PASSWORD = re.compile(r"//[^/]*@")
SCHEMES = {"http_proxy": "http", "https_proxy": "https"}
APT_CONFIG = "/run/bedplate-download/apt.conf"
"""Where the role bedplate writes the proxies for apt."""


def has_password(value: object) -> bool:
    """Return whether a URL has a user, and so probably a password."""
    return bool(PASSWORD.search(str(value)))


def secret_proxies(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the proxies with a password, by the scheme of the addresses that they are for."""
    return {
        SCHEMES[name.lower()]: str(value)
        for name, value in environment.items()
        if name.lower() in SCHEMES and has_password(value)
    }


def open_environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables without a password, and the path of apt's configuration if a proxy has one."""
    variables = {name: value for name, value in environment.items() if not has_password(value)}
    return {**variables, **({"APT_CONFIG": APT_CONFIG} if secret_proxies(environment) else {})}


class FilterModule:
    """The filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {"secret_proxies": secret_proxies, "open_environment": open_environment}
