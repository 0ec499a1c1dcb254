"""One of two engines is drained under load, and its host rebooted: no request fails."""

from __future__ import annotations

import json

import pytest

from tests.scenarios.fleet.fleet import Fleet
from tests.support.hosts import run_lab, run_script
from tests.support.stack import Load, wait_for

CLIENTS = 12


def test_a_drain_under_load_fails_no_request(fleet: Fleet) -> None:
    load = Load(fleet, CLIENTS, tokens=16, stream=True)
    with load.running():
        fleet.wait_for_requests("gpu1", "gpu2")
        said = fleet.drain("gpu1")
        print(f"\n{said[said.index('gpu1 is drained') :].split('Next:')[0]}")
        assert fleet.scrape("bedplate_gateway_slots_busy")["gpu1"] == 0
        since = fleet.now()
        # A reload, a restart, and a reboot of the drained host.
        fleet("systemctl reload bedplate-gateway")
        run_script("gpu1", "systemctl stop ollama")
        fleet("systemctl restart bedplate-gateway")
        run_lab("fault", "power-cut", "gpu1")
        wait_for(lambda: len(fleet.answered(since)) > 3 * CLIENTS, 120)
        assert set(fleet.answered(since)) == {"gpu2"}
        run_lab("up", "gpu1")
        assert fleet.scrape("bedplate_gateway_engine_drained") == {"gpu1": 1, "gpu2": 0}
        run_script("gpu1", "systemctl is-system-running --wait || true")
        assert set(fleet.answered(since)) == {"gpu2"}
        fleet.undrain("gpu1")
        print(f"requests on gpu1 after {fleet.wait_for_requests('gpu1'):.1f} s")
    assert load.failed() == []


@pytest.fixture
def drained(fleet: Fleet) -> str:
    """The name of a host that is drained and whose engine is down."""
    fleet.drain("gpu2")
    run_script("gpu2", "systemctl stop ollama bedplate-exporter")
    return "gpu2"


def test_a_drained_host_is_named_and_no_failure(fleet: Fleet, drained: str) -> None:
    try:
        wait_for(lambda: fleet.status()["next"] == f"make undrain HOST={drained}")
        status = fleet.status()
        assert status["state"] == "healthy"
        # An alert on an earlier run of verify may follow.
        assert status["reason"].startswith(f"{fleet.model} can be served; {drained} is drained")
        (host,) = [host for host in status["inference_hosts"] if host["name"] == drained]
        assert host["drained"]["why"] == "new fan"
        fleet.verify()
        report = json.loads(fleet("cat /var/lib/bedplate-dashboard/verify.json"))
        checks = {(check["host"], check["name"]): check for check in report["checks"]}
        assert checks[drained, "the engine gets requests"]["seen"].endswith(": new fan")
        assert checks[drained, "ollama runs and starts at boot"]["ok"] is None
        assert checks[drained, "each port answers its clients only"]["ok"] is True
    finally:
        run_script(drained, "systemctl start ollama bedplate-exporter")
        fleet.undrain(drained)


def test_a_drain_survives_a_reboot_of_the_gateways_host(fleet: Fleet) -> None:
    fleet.drain("gpu2")
    run_lab("fault", "power-cut", "front")
    run_lab("up", "front")
    wait_for(lambda: fleet("systemctl is-active bedplate-gateway || true") == "active\n", 60)
    assert fleet.scrape("bedplate_gateway_engine_drained") == {"gpu1": 0, "gpu2": 1}
    fleet.undrain("gpu2")
    assert fleet.scrape("bedplate_gateway_engine_drained") == {"gpu1": 0, "gpu2": 0}
