"""The scenario's host, its alerts, and the people who are told of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alert_watch import AlertWatch, Receiver
from gateway_lab import Stack, stack_of


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with everything on it."""
    return stack_of("monitoring")


@pytest.fixture(scope="session")
def receiver(stack: Stack) -> Receiver:
    """A webhook and a mail server on the host."""
    return Receiver(stack)


@pytest.fixture(scope="session")
def alerts(stack: Stack, receiver: Receiver) -> Iterator[AlertWatch]:
    """The alerts as Prometheus tells them; says at the end how long each took."""
    assert receiver.log
    watch = AlertWatch(stack)
    yield watch
    watch.tell()
