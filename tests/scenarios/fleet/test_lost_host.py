"""One of two engines' hosts fails under load: only streams that it had begun fail, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import pytest

from tests.scenarios.fleet.fleet import Fleet
from tests.support.hosts import run_lab, run_script
from tests.support.stack import Load, Outcome, wait_for

CLIENTS = 6
"""For whole answers, and as many for streams."""
LOST_SECONDS = 13.0
"""Two polls that end without a connection, with the pauses before them."""
CLIENT_SECONDS = 120.0
"""How long clients wait: a hung engine is restarted after about a minute."""
ENDED = r"status=200 .* engine={} .* stream=yes .* reason=engine_error"


class Both:
    """Whole answers and streams, at the same time."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.loads = [
            Load(fleet, CLIENTS, tokens=48, stream=stream, seconds=CLIENT_SECONDS) for stream in (False, True)
        ]
        self.since = fleet.now()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests for the duration of the block; begin when both engines work."""
        with ExitStack() as stack:
            for load in self.loads:
                stack.enter_context(load.running())
            self.fleet.wait_for_requests("gpu1", "gpu2")
            yield

    @property
    def failed(self) -> list[str]:
        return list(chain.from_iterable(load.failed() for load in self.loads))

    @property
    def outcomes(self) -> list[Outcome]:
        return list(chain.from_iterable(load.outcomes for load in self.loads))

    def assert_only_streams_of(self, engine: str, most: int) -> None:
        """Assert that only streams failed which the engine had begun, each of them in the log."""
        assert not self.loads[0].failed()
        log = self.fleet.log(self.since)
        ended = re.findall(ENDED.format(engine), log)
        assert self.failed == ["incomplete"] * len(ended), log
        assert len(ended) <= most


@pytest.fixture(params=["litellm", "bypass"])
def lane(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[str]:
    """The way of the requests to the engines: through LiteLLM, or past it because it is stopped."""
    if request.param == "bypass":
        fleet("systemctl stop litellm")
    yield request.param
    fleet("systemctl start litellm")
    wait_for(lambda: fleet.scrape_one("bedplate_gateway_litellm_up") == 1, 60)


@pytest.fixture
def gpu1() -> Iterator[str]:
    """A host that is whole again after the test."""
    yield "gpu1"
    run_lab("up", "gpu1")
    run_lab("fault", "online", "gpu1")
    run_lab("fault", "fast", "gpu1")
    # Verify names a service that systemd has restarted.
    run_script("gpu1", "systemctl is-system-running --wait || true; systemctl reset-failed ollama")


def cut_power(host: str) -> None:
    """Cut a host's power; no packet leaves it, while a lab host's kernel would close its connections."""
    run_lab("fault", "offline", host)
    run_lab("fault", "power-cut", host)


def test_a_power_cut_ends_only_the_streams_that_had_begun(fleet: Fleet, lane: str, gpu1: str) -> None:
    both = Both(fleet)
    with both.running():
        cut_power(gpu1)
        cut = fleet.now()
        seconds = wait_for(lambda: "Engine gpu1 is lost" in fleet.log(cut), 2 * LOST_SECONDS)
        lost = fleet.now()
        wait_for(lambda: len(fleet.answered(lost)) > 4 * CLIENTS, 60)
        assert set(fleet.answered(fleet.now() - 1)) <= {"gpu2"}
        run_lab("up", gpu1)
        again = fleet.wait_for_requests(gpu1)
    print(f"{lane}: noticed after {seconds:.1f} s, gpu1 works {again:.1f} s after its start")
    both.assert_only_streams_of(gpu1, fleet.slots(gpu1))
    assert max(outcome.seconds for outcome in both.outcomes) < 60


def test_a_host_that_restarts_between_two_polls_holds_no_request(fleet: Fleet, lane: str, gpu1: str) -> None:
    both = Both(fleet)
    with both.running():
        cut_power(gpu1)
        run_lab("up", gpu1)
        started = fleet.now()
        again = fleet.wait_for_requests(gpu1)
        wait_for(lambda: len(fleet.answered(started)) > 4 * CLIENTS, 60)
    print(f"{lane}: gpu1 works {again:.1f} s after its start")
    both.assert_only_streams_of(gpu1, fleet.slots(gpu1))
    assert max(outcome.seconds for outcome in both.outcomes) < 60


def test_a_hung_engine_keeps_its_requests_until_it_is_restarted(fleet: Fleet, gpu1: str) -> None:
    both = Both(fleet)
    with both.running():
        run_lab("fault", "stop", gpu1, "ollama")
        hung = fleet.now()
        wait_for(lambda: "Engine gpu1 does not answer" in fleet.log(hung), 30)
        healed = wait_for(lambda: "Engine gpu1 answers again" in fleet.log(hung), 120)
        assert "Engine gpu1 is lost" not in fleet.log(hung)
    print(f"restarted {healed:.1f} s after the gateway had noticed")
    both.assert_only_streams_of(gpu1, fleet.slots(gpu1))


def test_a_slow_link_fails_nothing(fleet: Fleet, gpu1: str) -> None:
    both = Both(fleet)
    with both.running():
        run_lab("fault", "slow", gpu1, "256kbit")
        slowed = fleet.now()
        wait_for(lambda: len(fleet.answered(slowed)) > 6 * CLIENTS, 120)
        run_lab("fault", "fast", gpu1)
    assert both.failed == []
    assert "gpu1" in fleet.answered(slowed)
    assert "Engine gpu1" not in fleet.log(slowed)


def test_a_flapping_link_fails_nothing(fleet: Fleet, gpu1: str) -> None:
    both = Both(fleet)
    with both.running():
        flapped = fleet.now()
        for _ in range(5):
            run_lab("fault", "offline", gpu1)
            fleet("sleep 2")
            run_lab("fault", "online", gpu1)
            fleet("sleep 3")
        wait_for(lambda: "gpu1" in fleet.answered(fleet.now() - 1), 30)
    assert both.failed == []
    log = fleet.log(flapped)
    assert "Engine gpu1 is lost" not in log
    retries = sum(map(int, re.findall(r" retries=(\d+)", log)))
    print(f"{retries} retries of {len(both.outcomes)} requests")
    assert retries <= 5 * fleet.slots(gpu1)
