"""Each fault of the table: the client's answer, the dashboard's sentence, the alert, and the end."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from tests.scenarios.faults.matrix import TABLE, Fault
from tests.support.alerts import AlertWatch, wait_until
from tests.support.services import daemons
from tests.support.stack import Stack

ROWS = [fault for fault in TABLE if fault.quick or os.environ.get("FAULTS") == "all"]


class Request(threading.Thread):
    """One chat request that is sent while a fault lasts."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self._stack = stack
        self.outcome = ""

    def run(self) -> None:
        """Note the status, or the name of the client's error."""
        # A key with a limit: its use is written to /run.
        with self._stack.client(self._stack.key("ratelimit")) as client:
            try:
                self.outcome = str(self._stack.chat(client).status_code)
            except httpx.HTTPError as error:
                self.outcome = type(error).__name__


class AlertsOnTheHost(AlertWatch):
    """The alerts as Prometheus itself returns them: the edge may be what is broken."""

    def query(self, path: str, **parameters: str) -> Any:
        """Return the data of one response of the API."""
        url = f"http://127.0.0.1:19090/api/v1/{path}?{urlencode(parameters)}"
        return json.loads(self._stack(f"curl --silent --fail --max-time 5 '{url}'"))["data"]


@pytest.fixture(scope="module")
def alerts(stack: Stack) -> AlertWatch:
    """The alerts in Prometheus."""
    return AlertsOnTheHost(stack)


@pytest.fixture(scope="module")
def times(stack: Stack) -> Iterator[list[str]]:
    """The rows of the table of times, which is printed at the end."""
    rows: list[str] = []
    yield rows
    # It resets systemd's counters of restarts, which verify reports.
    stack(f"systemctl restart {' '.join(daemons())}")
    head = "| fault | a request meanwhile | told after | alert after | well again after |"
    print("", head, "|---|---|---|---|---|", *rows, sep="\n")


def told(stack: Stack, sentence: str) -> bool:
    """Return whether the dashboard says it."""
    try:
        return re.search(sentence, json.dumps(stack.status()["faults"])) is not None
    except (httpx.HTTPError, ValueError):
        return False


def states(stack: Stack) -> dict[str, str]:
    """Return systemd's state of each service."""
    services = daemons()
    return dict(
        zip(services, stack(f"systemctl is-active {' '.join(services)} || true").split(), strict=True)
    )


def is_well(stack: Stack) -> bool:
    """Return whether a chat is answered, the dashboard says healthy and every service is ready."""
    try:
        with stack.client(stack.key("bench")) as client:
            # A model whose last request failed counts as degraded until another succeeds.
            well = stack.chat(client).status_code == 200 and stack.status()["state"] == "healthy"
    except (httpx.HTTPError, ValueError):
        return False
    # The gateway sends requests past LiteLLM, which starts for a minute, before the dashboard looks at it.
    return well and set(states(stack).values()) == {"active"}


@pytest.mark.parametrize("fault", ROWS, ids=[fault.name for fault in ROWS])
def test_fault(stack: Stack, alerts: AlertWatch, times: list[str], fault: Fault) -> None:
    # LiteLLM, which the row before may have killed, needs more than a minute on a busy machine.
    wait_until(lambda: is_well(stack), 120, lambda: f"{stack.status()['reason']} {states(stack)}")
    shown = fires = ""
    began = time.monotonic()
    request = Request(stack)
    try:
        stack(fault.inject)
        request.start()
        if fault.sentence:
            sentence = fault.sentence
            shown = f"{wait_until(lambda: told(stack, sentence), fault.sentence_seconds):.1f} s"
        if fault.alert:
            alert = fault.alert
            wait_until(
                lambda: alert in alerts.firing(), fault.alert_seconds, lambda: f"only {alerts.firing()}"
            )
            fires = f"{time.monotonic() - began:.0f} s"
        if fault.repair:
            request.join(timeout=60)
    finally:
        if fault.repair:
            stack(fault.repair)
            began = time.monotonic()
    try:
        wait_until(lambda: is_well(stack), fault.seconds, lambda: f"not well again: {states(stack)}")
        well = time.monotonic() - began
    finally:
        if fault.clean_up:
            stack(fault.clean_up)
    request.join(timeout=60)
    assert re.fullmatch(fault.meanwhile, request.outcome), request.outcome
    times.append(f"| {fault.name} | {request.outcome} | {shown} | {fires} | {well:.0f} s |")
