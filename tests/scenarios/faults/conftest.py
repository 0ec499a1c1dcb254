"""The scenario's host and the API of its Prometheus."""

from __future__ import annotations

import pytest

from tests.support.prometheus import PrometheusApi
from tests.support.stack import Stack, stack_of


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with the whole stack, whose Prometheus scrapes every 5 s."""
    return stack_of("faults")


@pytest.fixture(scope="session")
def prometheus(stack: Stack) -> PrometheusApi:
    """The API of the host's Prometheus."""
    return PrometheusApi(stack)
