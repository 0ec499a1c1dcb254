"""A service that hangs is killed and answers again; one that is stopped by hand stays stopped."""

from __future__ import annotations

import time

from tests.support.alerts import AlertWatch, wait_until
from tests.support.stack import Stack

# What docs/reference/alerts.md promises: the third question, and its answer's time.
DETECTED_SECONDS = 60.0
STARTED_SECONDS = 30.0


def main_pids(stack: Stack, names: tuple[str, ...]) -> dict[str, str]:
    """Return the main process of each service that is active."""
    shown = stack(f"systemctl show --property=Id,ActiveState,MainPID {' '.join(names)}")
    units = [dict(line.split("=", 1) for line in unit.splitlines()) for unit in shown.split("\n\n")]
    return {
        unit["Id"].removesuffix(".service"): unit["MainPID"]
        for unit in units
        if unit["ActiveState"] == "active"
    }


def hang(stack: Stack, names: tuple[str, ...]) -> None:
    """Stop the services' processes and wait until systemd has started new ones."""
    before = main_pids(stack, names)
    assert before.keys() == set(names)
    stack(f"systemctl kill --signal=STOP {' '.join(names)}")
    started = time.monotonic()

    def left() -> set[str]:
        return {name for name in names if main_pids(stack, names).get(name, before[name]) == before[name]}

    wait_until(lambda: not left(), DETECTED_SECONDS + STARTED_SECONDS, lambda: f"{left()} still hang")
    print(f"\n{', '.join(names)} hung and ran again after {time.monotonic() - started:.0f} s")


def test_services_that_hang_are_restarted(stack: Stack, alerts: AlertWatch) -> None:
    names = ("ollama", "bedplate-edge", "alertmanager")
    try:
        hang(stack, names)
        hung = {f"ServiceHung {name}.service" for name in names}
        wait_until(lambda: hung <= alerts.firing(), 30, lambda: f"only {alerts.firing()} fire")
    finally:
        # It may have failed meanwhile.
        stack("systemctl start traffic-canary")


# The alert's window, which is short here, is over when they return.
def test_services_of_the_alert_itself_are_restarted(stack: Stack) -> None:
    hang(stack, ("node-exporter", "prometheus"))
    lines = stack("journalctl --no-pager --output=cat --unit='bedplate-heal@*' --identifier=bedplate-heal")
    for name in ("node-exporter", "prometheus"):
        assert f"{name}.service did not answer at " in lines


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
