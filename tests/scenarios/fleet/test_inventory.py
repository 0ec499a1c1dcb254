"""A third engine comes and goes by the inventory alone; a host with another digest of a model is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.scenarios.fleet.fleet import Fleet
from tests.support.hosts import run_lab, run_script, running_hosts
from tests.support.stack import Load, run_playbook, wait_for

CLIENTS = 8
OTHER = "gpu3"
PROCESSES = "systemctl show --property=MainPID --property=NRestarts {}"


@pytest.fixture
def bare(fleet: Fleet) -> Iterator[str]:
    """A host that the inventory lists and that nothing was installed on."""
    run_lab("up", OTHER, "--groups", "inference")
    yield OTHER
    if OTHER in running_hosts():
        run_lab("down", OTHER)
        fleet.play()


def processes(fleet: Fleet) -> dict[str, str]:
    """Return the processes that a new engine does not restart.

    Gateway, LiteLLM and Prometheus are, because their units name the addresses that they may connect to.
    """
    found = {host: run_script(host, PROCESSES.format("ollama")) for host in ("gpu1", "gpu2")}
    return found | {"front": fleet(PROCESSES.format("bedplate-edge bedplate-dashboard"))}


def test_an_engine_comes_and_goes_by_the_inventory_alone(fleet: Fleet, bare: str) -> None:
    before = processes(fleet)
    load = Load(fleet, CLIENTS, tokens=16, stream=True)
    with load.running():
        fleet.wait_for_requests("gpu1", "gpu2")
        fleet.play()
        seconds = fleet.wait_for_requests("gpu1", "gpu2", bare)
        print(f"\nrequests on {bare} {seconds:.1f} s after site.yml")
        answered = fleet.answered(fleet.now() - 20)
        print(f"requests in 20 s: {Counter(answered)}")
        fleet.drain(bare)
        run_lab("down", bare)
        fleet.play()
        assert bare not in fleet.scrape("bedplate_gateway_slots")
        fleet.undrain(bare)
        fleet.wait_for_requests("gpu1", "gpu2")
    assert load.failed() == []
    assert processes(fleet) == before


@pytest.fixture
def other_digest() -> Iterator[str]:
    """A host whose model somebody has made anew, with another parameter."""
    source = "FROM smollm2:135m\nPARAMETER top_k 7\n"
    address = f"export OLLAMA_HOST={running_hosts()['gpu2']['ansible_host']}; "
    run_script("gpu2", f"{address} printf '{source}' >/root/Modelfile; ollama cp smollm2:135m kept:1")
    run_script("gpu2", f"{address} ollama create smollm2:135m --file /root/Modelfile")
    yield "gpu2"
    run_script("gpu2", f"{address} ollama cp kept:1 smollm2:135m; ollama rm kept:1; rm /root/Modelfile")


def test_a_host_with_another_digest_is_named(fleet: Fleet, other_digest: str) -> None:
    passed, output = run_playbook("playbooks/verify.yml")
    assert not passed
    said = " ".join(output.split())
    assert f"{fleet.model} is the same on its hosts" in said
    digests = {row["host"]: row["digest"].removeprefix("sha256:")[:12] for row in fleet.placements()}
    assert len(set(digests.values())) == 2
    assert f"{digests['gpu1']} on gpu1, {digests[other_digest]} on {other_digest}" in said


def test_the_digests_are_equal_again(fleet: Fleet) -> None:
    wait_for(lambda: len({row["digest"] for row in fleet.placements()}) == 1)
    fleet.verify()
