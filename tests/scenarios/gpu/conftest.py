"""The scenario's host with a simulated GPU, and its alerts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.alerts import AlertWatch
from tests.support.stack import ROOT, Stack, stack_of


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with the whole stack."""
    return stack_of("gpu")


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    """The scenario's settings, for further runs of the playbooks."""
    plays = yaml.safe_load((ROOT / "molecule/gpu/converge.yml").read_text())
    variables: dict[str, Any] = plays[1]["vars"]
    return variables


@pytest.fixture(scope="session")
def alerts(stack: Stack) -> Iterator[AlertWatch]:
    """The alerts in Prometheus; prints at the end how long each took."""
    watch = AlertWatch(stack)
    yield watch
    watch.print_times()
