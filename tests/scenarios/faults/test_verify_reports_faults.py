"""Verify reports exactly the checks that a fault fails, and passes after the repair."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.support.hosts import ROOT, users_environment
from tests.support.prometheus import PrometheusApi
from tests.support.services import daemons
from tests.support.stack import Stack, wait_for

KEYS = "/etc/bedplate/bedplate-gateway/keys.json"
# Replaces the hash of the key `verify` on the host.
REPLACE_KEY = f"""
python3 - <<'END'
import json, pathlib
path = pathlib.Path("{KEYS}")
keys = json.loads(path.read_text())
for key in keys["keys"]:
    if key["alias"] == "verify":
        key["secrets"][0].update(sha256="0" * 64)
path.write_text(json.dumps(keys))
END
systemctl reload bedplate-gateway
"""

CHATS = "three chat requests are answered"
TARGETS = "every Prometheus target is up"
DASHBOARD = "the dashboard reports healthy"
MODELS = "the gateway lists every declared model"
READY = "the gateway reports ready"
DECLARED = "the host is as the inventory declares"


class Check(NamedTuple):
    """What a failed check shows: a pattern of its observation, and the next command, None for any."""

    seen: str = "."
    next: str | None = None


def unit(name: str) -> str:
    """Return the name of the check of a unit."""
    return f"{name} runs and starts at boot"


def inactive(name: str) -> dict[str, Check]:
    """Return the check that a stopped unit fails."""
    return {unit(name): Check(r"inactive \(dead\), enabled$", f"systemctl start {name}")}


def unserved(stack: Stack) -> dict[str, Check]:
    """Return the checks of the gateway that fail without an engine; it lists only models that one serves."""
    return {
        MODELS: Check(
            f"no model; {stack.model}: status 503 engine_unavailable$",
            "journalctl -u bedplate-gateway -n 50",
        ),
        READY: Check("status 503 engine_unavailable$"),
    }


@contextmanager
def stopped(stack: Stack, service: str, *, reported_seconds: float = 0) -> Iterator[None]:
    """Stop a service for the duration of the block; verify must pass after its start.

    `reported_seconds` is how long the dashboard reports afterwards what happened meanwhile.
    """
    stack(f"systemctl stop {service}")
    try:
        yield
    finally:
        stack(f"systemctl start {service}")
    time.sleep(reported_seconds)
    stack.verify()


def is_served(stack: Stack) -> bool:
    """Return whether the preloaded model is loaded and the gateway ready."""
    shown = stack("systemctl show --property=ActiveState,Result ollama-preload")
    try:
        ready = httpx.get(f"{stack.url}/health/readiness", verify=stack.trusted(), trust_env=False)
    except httpx.HTTPError:
        return False
    return "inactive" in shown and "success" in shown and ready.status_code == 200


def wait_for_targets_down(prometheus: PrometheusApi, *jobs: str) -> None:
    """Wait until exactly these targets are down."""

    def are_down() -> bool:
        try:
            return prometheus.targets_down() == sorted(jobs)
        except (httpx.HTTPError, AssertionError):
            # Prometheus starts.
            return False

    wait_for(are_down, 45)


def check_verify_reports(stack: Stack, expected: dict[str, Check]) -> None:
    """Run verify, which must fail with exactly the expected checks."""
    # Prometheus has already detected the fault, so verify need not wait for the next scrape.
    output = stack.play_fails(
        playbook="playbooks/verify.yml", settings={"prometheus_scrape_interval_seconds": 1}
    )
    assert "checks failed" in output
    report = json.loads(stack("cat /var/lib/bedplate-dashboard/verify.json"))
    failed = {check["name"]: check for check in report["checks"] if check["ok"] is False}
    print("", *(f"{name} | {check['seen']} | {check['next']}" for name, check in failed.items()), sep="\n")
    assert report["ok"] is False
    assert failed.keys() == expected.keys(), failed
    for name, check in expected.items():
        assert re.match(check.seen, failed[name]["seen"]), failed[name]
        assert check.next in (None, failed[name]["next"]), failed[name]


def run_next_command(check: Check) -> None:
    """Run on the control machine what verify names as the next command."""
    assert check.next
    environment = {
        **users_environment(),
        "ANSIBLE_INVENTORY": str(ROOT / "inventory/lab"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        shlex.split(check.next),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stopped_engine(stack: Stack, prometheus: PrometheusApi) -> None:
    gateway = stack.main_pid()
    with stopped(stack, "ollama"):
        wait_for_targets_down(prometheus)
        check_verify_reports(
            stack,
            {
                **inactive("ollama"),
                f"Ollama has {stack.model}": Check(
                    r"Ollama does not respond at http://127\.0\.0\.1:11434$", "journalctl -u ollama -n 50"
                ),
                **unserved(stack),
                CHATS: Check(),
                DASHBOARD: Check("down: .* cannot be served: the engine on one is down"),
            },
        )
    assert stack.main_pid() == gateway, "a dead engine restarted the gateway"


def test_a_stopped_gateway(stack: Stack, prometheus: PrometheusApi) -> None:
    silent = Check(f"the gateway does not respond at {re.escape(stack.url)}$")
    with stopped(stack, "bedplate-gateway"):
        # The gateway returns LiteLLM's metrics too.
        wait_for_targets_down(prometheus, "gateway", "litellm")
        check_verify_reports(
            stack,
            {
                **inactive("bedplate-gateway"),
                MODELS: silent._replace(next="journalctl -u bedplate-gateway -n 50"),
                "a request without a key is refused": silent,
                "a request with a wrong key is refused": silent,
                READY: silent,
                "internal paths return 404": silent,
                CHATS: Check(),
                TARGETS: Check("down: gateway on one, litellm on one$"),
                DASHBOARD: Check("down: "),
            },
        )


@pytest.fixture
def nobody_heals(stack: Stack) -> Iterator[None]:
    """Let a service hang: neither the watchdog nor bedplate-heal restarts it."""
    heal = "bedplate-heal@bedplate-edge"
    stack(f"systemctl service-watchdogs off; systemctl stop {heal}.timer {heal}.service")
    yield
    stack(f"systemctl service-watchdogs on; systemctl start {heal}.timer")


@pytest.mark.usefixtures("nobody_heals")
@pytest.mark.parametrize("service", ["bedplate-gateway", "bedplate-edge"])
def test_a_hung_service_is_not_waited_for(stack: Stack, service: str) -> None:
    stack(f"systemctl kill --signal=STOP {service}")
    started = time.monotonic()
    try:
        output = stack.play_fails(playbook="playbooks/verify.yml")
        seconds = time.monotonic() - started
    finally:
        stack(f"systemctl kill --signal=CONT {service}")
    assert seconds < 60
    assert f"the gateway gave no answer in time at {stack.url}" in output
    # The dashboard reports for some seconds what happened meanwhile.
    time.sleep(15)
    stack.verify()


def test_a_stopped_litellm(stack: Stack, prometheus: PrometheusApi) -> None:
    """The dashboard reports for 10 s that requests went around it."""
    silent = Check(r"LiteLLM does not respond at http://127\.0\.0\.1:4000", None)
    with stopped(stack, "litellm", reported_seconds=15):
        wait_for_targets_down(prometheus, "litellm")
        check_verify_reports(
            stack,
            {
                **inactive("litellm"),
                "LiteLLM runs the locked version": silent,
                "LiteLLM refuses requests without a key and with a client's": silent,
                "LiteLLM has every model of every engine": silent,
                "a chat goes through LiteLLM": Check("the gateway bypasses LiteLLM$"),
                TARGETS: Check("down: litellm on one$"),
                DASHBOARD: Check("degraded: "),
            },
        )


def test_a_key_that_the_host_does_not_have(stack: Stack, prometheus: PrometheusApi) -> None:
    refused = Check(r"the key `verify` is refused with 401$", "ansible-playbook site.yml --tags keys")
    stack(REPLACE_KEY)
    try:
        wait_for_targets_down(prometheus)
        edited = Check(f"{KEYS}: other content", "ansible-playbook site.yml --tags gateway")
        check_verify_reports(stack, {MODELS: refused, CHATS: Check(), DECLARED: edited})
    finally:
        run_next_command(refused)
    stack.verify()


def test_a_removed_model(stack: Stack, prometheus: PrometheusApi) -> None:
    missing = Check("it has no model$", "ansible-playbook site.yml --tags ollama")
    stack(f"ollama rm {stack.model}")
    try:
        wait_for_targets_down(prometheus)
        check_verify_reports(
            stack,
            {
                f"Ollama has {stack.model}": missing,
                **unserved(stack),
                CHATS: Check(),
                DASHBOARD: Check("down: .* cannot be served: the engine on one does not have"),
                DECLARED: Check(f"{stack.model}: ", missing.next),
            },
        )
    finally:
        run_next_command(missing)
    stack.verify()


@pytest.mark.parametrize(
    ("service", "job", "dashboard"),
    [
        ("node-exporter", "node", "degraded: .* the node exporter on one does not work"),
        ("bedplate-exporter", "ollama", "(down|degraded): "),
    ],
)
def test_a_stopped_exporter(
    stack: Stack, prometheus: PrometheusApi, service: str, job: str, dashboard: str
) -> None:
    with stopped(stack, service):
        wait_for_targets_down(prometheus, job)
        check_verify_reports(
            stack,
            {**inactive(service), TARGETS: Check(f"down: {job} on one$"), DASHBOARD: Check(dashboard)},
        )


def test_a_stopped_dashboard(stack: Stack, prometheus: PrometheusApi) -> None:
    silent = Check(
        f"the dashboard does not respond at {re.escape(stack.dashboard_url)}$",
        "journalctl -u bedplate-dashboard -n 50",
    )
    with stopped(stack, "bedplate-dashboard"):
        wait_for_targets_down(prometheus, "dashboard")
        check_verify_reports(
            stack,
            {**inactive("bedplate-dashboard"), TARGETS: Check("down: dashboard on one$"), DASHBOARD: silent},
        )


def test_killed_services_restart(stack: Stack, prometheus: PrometheusApi) -> None:
    """Verify reports the restarts for 15 minutes, or until somebody restarts the services."""
    names = daemons()
    restarted = [{"ActiveState=active", "NRestarts=1"}] * len(names)

    def states() -> list[set[str]]:
        shown = stack(f"systemctl show --property=ActiveState,NRestarts {' '.join(names)}")
        return [set(state.splitlines()) for state in shown.split("\n\n")]

    stack(f"for name in {' '.join(names)}; do systemctl kill --kill-who=main --signal=KILL $name; done")
    print(f"\nall are active again after {wait_for(lambda: states() == restarted, 60):.0f} s")
    print(f"the model is loaded, and the gateway ready, {wait_for(lambda: is_served(stack), 60):.0f} s later")
    wait_for_targets_down(prometheus)
    check_verify_reports(
        stack,
        {
            unit(name): Check(
                r"active \(running\), enabled, restarted 1 time by systemd, last [0-2] min ago$",
                f"journalctl -u {name} -n 50",
            )
            for name in names
        },
    )
    stack(f"systemctl restart {' '.join(names)}")
    stack.verify()
