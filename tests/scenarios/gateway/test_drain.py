"""The only engine is drained under load: its requests wait, and none fails."""

from __future__ import annotations

import re
from typing import Any

from tests.support.stack import Load, Stack, wait_for

CLIENTS = 12


def gauge(stack: Stack, name: str) -> float:
    """Return the sum of a metric of the gateway."""
    scrape = stack(f"curl --silent {stack.metrics_url}")
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", scrape, re.MULTILINE))


def drain(stack: Stack) -> None:
    """Drain the host as a user does."""
    stack.play(playbook="playbooks/drain.yml", settings={"drain_host": "one", "drain_why": "new fan"})


def undrain(stack: Stack) -> None:
    """Give the host requests again."""
    stack.play(playbook="playbooks/undrain.yml", settings={"drain_host": "one"})


def drained(stack: Stack) -> dict[str, Any] | None:
    """Return what the dashboard says about the drain."""
    (host,) = stack.status()["inference_hosts"]
    found: dict[str, Any] | None = host["drained"]
    return found


def test_requests_wait_for_the_only_engine_and_none_fails(stack: Stack) -> None:
    load = Load(stack, CLIENTS)
    with load.running():
        wait_for(lambda: len(load.outcomes) >= CLIENTS)
        drain(stack)
        # It was waited for, and nothing came since.
        assert gauge(stack, "bedplate_gateway_slots_busy") == 0
        ended = len(load.outcomes)
        stack("systemctl reload bedplate-gateway")
        wait_for(lambda: gauge(stack, "bedplate_gateway_queue_requests") == CLIENTS)
        wait_for(lambda: (drained(stack) or {}).get("why") == "new fan")
        assert gauge(stack, "bedplate_gateway_slots_busy") == 0
        assert len(load.outcomes) == ended
        status = stack.status()
        assert (status["state"], status["next"]) == ("down", "make undrain HOST=one")
        assert f"requests for {stack.model} wait: one is drained by " in status["reason"]
        undrain(stack)
        wait_for(lambda: len(load.outcomes) >= ended + CLIENTS)
    assert load.failed() == []


def test_a_drain_outlives_a_restart(stack: Stack) -> None:
    drain(stack)
    stack("systemctl restart bedplate-gateway")
    assert gauge(stack, "bedplate_gateway_engine_drained") == 1
    undrain(stack)
    assert gauge(stack, "bedplate_gateway_engine_drained") == 0
