"""The scenario's host, its alerts, and their receivers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.alerts import AlertWatch, Receiver
from tests.support.stack import ROOT, Stack, stack_of


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with the whole stack."""
    return stack_of("monitoring")


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    """The scenario's settings, for further runs of the playbooks."""
    variables: dict[str, Any] = yaml.safe_load((ROOT / "molecule/monitoring/converge.yml").read_text())[1][
        "vars"
    ]
    return variables


@pytest.fixture(scope="session")
def receiver(stack: Stack) -> Receiver:
    """A webhook and a mail server on the host."""
    return Receiver(stack)


@pytest.fixture(scope="session")
def alerts(stack: Stack, receiver: Receiver) -> Iterator[AlertWatch]:
    """The alerts in Prometheus; prints at the end how long each took."""
    assert receiver.log
    watch = AlertWatch(stack)
    yield watch
    watch.print_times()
