"""The API of a host's Prometheus, with the control machine's password and CA."""

from __future__ import annotations

from typing import Any

import httpx

from tests.support.stack import Stack


class PrometheusApi:
    """Queries to the Prometheus of one host."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._client = httpx.Client(
            base_url=stack.prometheus_url,
            auth=stack.login,
            verify=stack.trusted(),
            trust_env=False,
            timeout=10,
        )

    def query(self, path: str, **parameters: str) -> Any:
        """Return the data of one response of the API."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def value(self, expr: str, **parameters: str) -> float:
        """Return the value of an expression, 0 without a result; now, unless `time` is given."""
        result = self.query("query", query=expr, **parameters)["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def targets_down(self) -> list[str]:
        """Return the jobs of the targets that are not up, one entry a target, sorted."""
        targets = self.query("targets", state="active")["activeTargets"]
        assert targets
        return sorted(target["labels"]["job"] for target in targets if target["health"] != "up")
