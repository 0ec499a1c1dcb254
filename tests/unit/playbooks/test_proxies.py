"""The proxies for downloads: what may stand in a task's environment, and what may not."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

APT = {"APT_CONFIG": "/run/bedplate-download/apt.conf"}
OPEN = "http://10.0.0.1:3128"
SECRET = "http://user:word@10.0.0.1:3128"


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/filter_plugins/proxies.py")


@pytest.mark.parametrize(
    ("given", "environment", "proxies"),
    [
        ({}, {}, {}),
        (
            {"https_proxy": OPEN, "no_proxy": "10.0.0.0/8"},
            {"https_proxy": OPEN, "no_proxy": "10.0.0.0/8"},
            {},
        ),
        ({"HTTPS_PROXY": SECRET, "no_proxy": "rack"}, {"no_proxy": "rack", **APT}, {"https": SECRET}),
        ({"http_proxy": SECRET, "https_proxy": OPEN}, {"https_proxy": OPEN, **APT}, {"http": SECRET}),
        # A user alone may be a token.
        ({"http_proxy": "http://token@10.0.0.1"}, APT, {"http": "http://token@10.0.0.1"}),
        # Refused by the role; dropped all the same.
        ({"UV_INDEX_URL": "https://user:word@index.example/simple"}, {}, {}),
        ({"https_proxy": "http://10.0.0.1/a@b"}, {"https_proxy": "http://10.0.0.1/a@b"}, {}),
    ],
)
def test_what_has_a_password_is_not_in_the_environment(
    plugin: ModuleType, given: dict[str, Any], environment: dict[str, Any], proxies: dict[str, str]
) -> None:
    assert plugin.open_environment(given) == environment
    assert plugin.secret_proxies(given) == proxies
