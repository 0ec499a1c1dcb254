"""Waits for alerts to fire and to end, and keeps how long that took."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from gateway_lab import Stack

FOLDER = Path(__file__).parent
# The label that says what an alert is about, the most telling first.
ABOUT = ("name", "vendor", "mountpoint", "path", "reason", "class", "model", "job")
WITHIN_SECONDS = 90.0


def wait_until(true: Callable[[], bool], seconds: float, otherwise: Callable[[], str] = lambda: "") -> float:
    """Wait until something is true; returns after how many seconds it was."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, f"not within {seconds:.0f} s: {otherwise()}"
        time.sleep(0.3)
    return time.monotonic() - started


class Receiver:
    """What Alertmanager delivered."""

    def __init__(self, stack: Stack) -> None:
        """Start the fake receivers."""
        self._stack = stack
        self.log = "/root/received.jsonl"
        stack(
            f"systemctl stop fake-receiver 2>/dev/null || true; rm -f {self.log}\n"
            f"cat >/root/fake_receiver.py <<'EOF'\n{(FOLDER / 'fake_receiver.py').read_text()}\nEOF\n"
            f"systemd-run --quiet --unit=fake-receiver /usr/bin/python3 /root/fake_receiver.py {self.log}"
        )

    def got(self, kind: str) -> list[dict[str, Any]]:
        """What came so far, as `webhook` or as `mail`."""
        lines = self._stack(f"cat {self.log} 2>/dev/null || true").splitlines()
        return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]

    def statuses(self, alert: str) -> set[str]:
        """Whether the webhook was told that an alert is `firing` and that it is `resolved`."""
        return {
            told["status"]
            for entry in self.got("webhook")
            for told in entry["alerts"]
            if told["labels"]["alertname"] == alert
        }


class AlertWatch:
    """An alert is written as its name and what it is about: `ServiceDown ollama.service`."""

    def __init__(self, stack: Stack) -> None:
        """Ask the host's Prometheus, as its certificate and its password allow."""
        files = stack.keys_file.parent
        self._client = httpx.Client(
            base_url=stack.url.replace("http:", "https:").replace(":8000", ":9090"),
            auth=("bedplate", (files / "prometheus-password").read_text()),
            verify=ssl.create_default_context(cafile=files / f"prometheus-{stack.name}.crt"),
            trust_env=False,
            timeout=10,
        )
        self._times: list[tuple[str, str, float, float | None]] = []

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of one answer of Prometheus."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def value(self, expr: str, **parameters: str) -> float:
        """The one number that an expression gives, 0 where there is none; now, unless `time` is given."""
        result = self.ask("query", query=expr, **parameters)["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def firing(self) -> set[str]:
        """What fires now."""
        found = set()
        for alert in self.ask("alerts")["alerts"]:
            labels = alert["labels"]
            about = next(labels[label] for label in ABOUT if label in labels)
            if alert["state"] == "firing":
                assert alert["annotations"].keys() == {"summary", "meaning", "next"}
                found.add(f"{labels['alertname']} {about}")
        return found

    def fire(self, what: str, expected: set[str], since: float) -> None:
        """Wait until all of these fire."""
        left = set(expected)

        def all_fire() -> bool:
            for alert in left & self.firing():
                self._times.append((what, alert, time.monotonic() - since, None))
                left.discard(alert)
            return not left

        wait_until(all_fire, WITHIN_SECONDS, lambda: f"{left} do not fire, but {self.firing()}")

    def end(self, expected: set[str], since: float) -> None:
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
        self, what: str, break_it: Callable[[], object], mend: Callable[[], object], *expected: str
    ) -> None:
        """Break something, wait until it is told, mend it, wait until that is told."""
        since = time.monotonic()
        break_it()
        self.fire(what, set(expected), since)
        since = time.monotonic()
        mend()
        self.end(set(expected), since)

    def tell(self) -> None:
        """Print the times as a table."""
        print("\n| fault | alert | fires after | ends after |\n|---|---|---|---|")
        for what, alert, fired, ended in self._times:
            print(f"| {what} | {alert} | {fired:.0f} s | {'' if ended is None else f'{ended:.0f} s'} |")
