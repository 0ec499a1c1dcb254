"""The scenario's host."""

from __future__ import annotations

import pytest

from tests.support.stack import Stack, stack_of


@pytest.fixture(scope="session")
def stack() -> Stack:
    """A host on which the gateway is litellm.service."""
    return stack_of("former_gateway")
