"""The scenario's host."""

from __future__ import annotations

import pytest

from tests.support.stack import Stack, stack_of


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host: bare for test_bare_host, with the whole stack for the others."""
    return stack_of("default")
