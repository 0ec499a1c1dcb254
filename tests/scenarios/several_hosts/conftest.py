"""The scenario's hosts."""

from __future__ import annotations

import pytest

from tests.support.hosts import running_hosts


@pytest.fixture(scope="session")
def addresses() -> dict[str, str]:
    """The address of each host by its name."""
    return {name: variables["ansible_host"] for name, variables in running_hosts().items()}
