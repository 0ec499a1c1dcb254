"""A service that hangs is killed and answers again; one that is stopped by hand stays stopped."""

from __future__ import annotations

import time

from tests.support.alerts import AlertWatch, wait_until
from tests.support.stack import Stack

# What docs/reference/alerts.md promises: the third question, and its answer's time.
DETECTED_SECONDS = 60.0
STARTED_SECONDS = 30.0
HEALED = ("ollama", "bedplate-edge", "alertmanager", "node-exporter", "prometheus")


def main_pids(stack: Stack, names: tuple[str, ...]) -> dict[str, str]:
    """Return the main process of each service that is active."""
    shown = stack(f"systemctl show --property=Id,ActiveState,MainPID {' '.join(names)}")
    units = [dict(line.split("=", 1) for line in unit.splitlines()) for unit in shown.split("\n\n")]
    return {
        unit["Id"].removesuffix(".service"): unit["MainPID"]
        for unit in units
        if unit["ActiveState"] == "active"
    }


def test_services_that_hang_are_restarted(stack: Stack, alerts: AlertWatch) -> None:
    before = main_pids(stack, HEALED)
    assert before.keys() == set(HEALED)
    stack(f"systemctl kill --signal=STOP {' '.join(HEALED)}")
    started = time.monotonic()

    def left() -> set[str]:
        return {name for name in HEALED if main_pids(stack, HEALED).get(name, before[name]) == before[name]}

    wait_until(lambda: not left(), DETECTED_SECONDS + STARTED_SECONDS, lambda: f"{left()} still hang")
    print(f"\nfive services that hung were restarted after {time.monotonic() - started:.0f} s")
    hung = {f"ServiceHung {name}.service" for name in HEALED}
    wait_until(lambda: hung <= alerts.firing(), 90, lambda: f"only {alerts.firing()} fire")
    lines = stack("journalctl --no-pager --output=cat --unit='bedplate-heal@*' --identifier=bedplate-heal")
    assert len([line for line in lines.splitlines() if "was killed, so that systemd starts it" in line]) == 5


def test_a_service_that_is_stopped_stays_stopped(stack: Stack) -> None:
    stack("systemctl stop alertmanager")
    try:
        assert stack("systemctl is-active bedplate-heal@alertmanager.timer", fails=True).strip() == "inactive"
        # Even if it is asked.
        stack("systemctl start bedplate-heal@alertmanager.service")
        assert main_pids(stack, ("alertmanager",)) == {}
    finally:
        stack("systemctl start alertmanager")
    assert stack("systemctl is-active bedplate-heal@alertmanager.timer").strip() == "active"


def test_a_service_that_somebody_ends_politely_is_started_again(stack: Stack) -> None:
    before = main_pids(stack, ("alertmanager",))["alertmanager"]
    stack(f"kill -TERM {before}")
    wait_until(lambda: main_pids(stack, ("alertmanager",)).get("alertmanager", before) != before, 30)
