"""Waits until alerts fire and end, and measures how long that takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.prometheus import PrometheusApi
from tests.support.stack import Stack

FOLDER = Path(__file__).parent
# The labels that identify an alert's subject, the most specific first.
ABOUT = ("name", "unit", "vendor", "mountpoint", "path", "reason", "class", "model", "job")
WITHIN_SECONDS = 90.0


def wait_until(
    condition: Callable[[], bool], seconds: float, explain: Callable[[], str] = lambda: ""
) -> float:
    """Wait until the condition is true; returns the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:.0f} s: {explain()}"
        time.sleep(0.3)
    return time.monotonic() - started


class Receiver:
    """A webhook and a mail server on the host that record what Alertmanager sends."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.log = "/root/received.jsonl"
        stack(
            f"systemctl stop fake-receiver 2>/dev/null || true; rm -f {self.log}\n"
            f"cat >/root/fake_receiver.py <<'EOF'\n{(FOLDER / 'fake_receiver.py').read_text()}\nEOF\n"
            f"systemd-run --quiet --unit=fake-receiver /usr/bin/python3 /root/fake_receiver.py {self.log}"
        )

    def received(self, kind: str) -> list[dict[str, Any]]:
        """Return the messages received so far; `kind` is `webhook` or `mail`."""
        lines = self._stack(f"cat {self.log} 2>/dev/null || true").splitlines()
        return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]

    def statuses(self, alert: str) -> set[str]:
        """Return which of `firing` and `resolved` the webhook received for an alert."""
        return {
            message["status"]
            for entry in self.received("webhook")
            for message in entry["alerts"]
            if message["labels"]["alertname"] == alert
        }


class AlertWatch(PrometheusApi):
    """The host's alerts in Prometheus, each written as name and subject: `ServiceDown ollama.service`."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._times: list[tuple[str, str, float, float | None]] = []

    def firing(self) -> set[str]:
        """Return the alerts that fire now."""
        alerts = set()
        for alert in self.query("alerts")["alerts"]:
            labels = alert["labels"]
            # The dead man's switch always fires.
            if labels["severity"] == "none":
                continue
            subject = next(labels[label] for label in ABOUT if label in labels)
            if alert["state"] == "firing":
                assert alert["annotations"].keys() == {"summary", "meaning", "next"}
                alerts.add(f"{labels['alertname']} {subject}")
        return alerts

    def wait_firing(self, what: str, expected: set[str], since: float) -> None:
        """Wait until all of these fire."""
        left = set(expected)

        def all_fire() -> bool:
            for alert in left & self.firing():
                self._times.append((what, alert, time.monotonic() - since, None))
                left.discard(alert)
            return not left

        wait_until(all_fire, WITHIN_SECONDS, lambda: f"{left} do not fire, but {self.firing()}")

    def wait_ended(self, expected: set[str], since: float) -> None:
        """Wait until none of these fires."""
        left = set(expected)

        def all_end() -> bool:
            for alert in left - self.firing():
                self._times = [
                    (what, name, fired, time.monotonic() - since if name == alert else ended)
                    for what, name, fired, ended in self._times
                ]
                left.discard(alert)
            return not left

        wait_until(all_end, WITHIN_SECONDS, lambda: f"{left} fire still")

    def fault(
        self, what: str, break_it: Callable[[], object], repair: Callable[[], object], *expected: str
    ) -> None:
        """Break something, wait until the expected alerts fire, repair it, wait until they end."""
        since = time.monotonic()
        break_it()
        self.wait_firing(what, set(expected), since)
        since = time.monotonic()
        repair()
        self.wait_ended(set(expected), since)

    def print_times(self) -> None:
        """Print the times as a table."""
        print("\n| fault | alert | fires after | ends after |\n|---|---|---|---|")
        for what, alert, fired, ended in self._times:
            print(f"| {what} | {alert} | {fired:.0f} s | {'' if ended is None else f'{ended:.0f} s'} |")
