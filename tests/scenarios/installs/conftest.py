"""The scenario's host."""

from __future__ import annotations

import pytest

from tests.support.stack import Stack, stack_of


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with the whole stack."""
    return stack_of("installs")
