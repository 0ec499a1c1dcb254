"""Two inference hosts with the same model, and the host of gateway and monitoring."""

from __future__ import annotations

import re
from typing import Any

from tests.support.hosts import running_hosts
from tests.support.stack import Stack, run_playbook, wait_for

ENGINES = ("gpu1", "gpu2")


class Fleet(Stack):
    """The host `front`, and what its gateway reports of the engines."""

    def __init__(self) -> None:
        super().__init__("front", running_hosts()["front"])

    def scrape(self, name: str) -> dict[str, float]:
        """Return the sum of one of the gateway's metrics by engine."""
        # The gateway's metrics listen on the address that monitoring reads, which here is its own host.
        text = self("curl --silent --fail http://127.0.0.1:9464/metrics")
        sums = dict.fromkeys(ENGINES, 0.0)
        for engine, value in re.findall(rf'^{name}{{engine="([^"]+)".*}} (\S+)$', text, re.MULTILINE):
            sums[engine] = sums.get(engine, 0.0) + float(value)
        return sums

    def now(self) -> float:
        """Return the host's time."""
        return float(self("date +%s.%N"))

    def answered(self, since: float) -> list[str]:
        """Return the engine of each request that ended since a time of the host."""
        return re.findall(r" engine=(\S+)", self.log(since))

    def scrape_one(self, name: str) -> float:
        """Return one of the gateway's metrics without labels."""
        text = self("curl --silent --fail http://127.0.0.1:9464/metrics")
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])

    def slots(self, engine: str) -> int:
        """Return how many requests run on an engine at the same time."""
        return int(self.scrape("bedplate_gateway_slots")[engine])

    def log(self, since: float) -> str:
        """Return what the gateway has logged since a time of the host."""
        return self(f"journalctl --unit bedplate-gateway --output cat --since @{since:.6f}")

    def placements(self) -> list[dict[str, Any]]:
        """Return what the dashboard reports of the model on each host."""
        (model,) = self.status()["models"]
        placements: list[dict[str, Any]] = model["placements"]
        return placements

    def drain(self, engine: str, **settings: Any) -> str:
        """Drain an engine as a user does; returns what is printed, in one line."""
        passed, output = run_playbook(
            "playbooks/drain.yml", settings={"drain_host": engine, "drain_why": "new fan", **settings}
        )
        assert passed, output
        return " ".join(output.split())

    def undrain(self, engine: str) -> None:
        """Give an engine requests again."""
        self.play(playbook="playbooks/undrain.yml", settings={"drain_host": engine})

    def wait_for_requests(self, *engines: str) -> float:
        """Wait until requests run on these engines at the same time; returns the seconds."""

        def busy() -> bool:
            running = self.scrape("bedplate_gateway_slots_busy")
            return all(running[engine] for engine in engines)

        return wait_for(busy)
