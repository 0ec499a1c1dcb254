"""The scenario's hosts."""

from __future__ import annotations

import pytest

from tests.scenarios.fleet.fleet import Fleet


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """Two inference hosts behind one gateway."""
    return Fleet()
