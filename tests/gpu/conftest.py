"""The scenario's host, which seems to have a card, and its alerts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from alert_watch import AlertWatch
from gateway_lab import ROOT, Stack, stack_of


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with everything on it."""
    return stack_of("gpu")


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    """What the scenario changed, for further runs of the playbooks."""
    plays = yaml.safe_load((ROOT / "molecule/gpu/converge.yml").read_text())
    found: dict[str, Any] = plays[1]["vars"]
    return found


@pytest.fixture(scope="session")
def alerts(stack: Stack) -> Iterator[AlertWatch]:
    """The alerts as Prometheus tells them; says at the end how long each took."""
    watch = AlertWatch(stack)
    yield watch
    watch.tell()
