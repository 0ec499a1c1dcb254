"""The runner: schedules, closed loops, refusals, disconnected clients, and the end of a run."""

import gc
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from bedplate_traffic.fake_engine.server import Behaviour
from bedplate_traffic.load.client import Exchange

from traffic.tests.traffic_fakes import answering, engine, serving
from traffic.tests.traffic_runs import Ran, burst, profile, refusing, run


def test_an_open_loop_sends_on_schedule(tmp_path: Path) -> None:
    with engine(Behaviour(concurrency=50, prompt_seconds=0.1, seconds_per_token=0.02, tokens=5)) as (
        url,
        fake,
    ):
        ran = Ran(tmp_path, url, "--rate", "40", "--seconds", "1")
    assert ran.status == 0
    report = ran.only
    assert report["slots"] == {"planned": 40, "sent": 40, "missed": 0, "unsent": 0}
    assert report["answered"] == fake.outcomes["served"] == 40
    assert report["intended_rate"] == 40
    assert 36 < report["real_rate"] < 44
    # The engine sends its first token after 0.12 s, its last after 0.2 s.
    assert 0.119 < report["first_token"]["p50"] < 0.14
    assert 0.199 < report["end_to_end"]["p50"] < 0.23
    assert 0.015 < report["inter_token"]["p50"] < 0.025
    assert report["inter_token"]["count"] == 40 * 4
    assert report["completion_tokens"] == sum(arrival.completion_tokens for arrival in fake.arrivals) == 200
    assert report["prompt_tokens"] == sum(arrival.prompt_tokens for arrival in fake.arrivals) == 40 * 12
    assert report["status"] == {"200": 40, "2xx": 40}
    assert len(ran.report["requests"]) == 40


def test_times_are_measured_from_when_a_request_was_due(tmp_path: Path) -> None:
    """So a slow engine shows in the times, even where it delays the sending."""
    with engine(Behaviour(concurrency=1, prompt_seconds=0.05, tokens=1)) as (url, _):
        ran = Ran(tmp_path, url, "--rate", "100", "--seconds", "0.2")
    assert ran.only["end_to_end"]["max"] > 20 * 0.05 - 0.2 - 0.05


def test_missed_slots_are_counted(tmp_path: Path) -> None:
    load = {"shape": "constant", "rate": 50, "seconds": 0.4}
    with engine(Behaviour(concurrency=50, prompt_seconds=1, tokens=1)) as (url, fake):
        ran = Ran(tmp_path, url, profile(tmp_path, {"name": "a", "load": load, "max_in_flight": 5}))
    assert ran.status == 1
    assert ran.only["slots"] == {"planned": 20, "sent": 5, "missed": 15, "unsent": 0}
    assert len(fake.arrivals) == 5


def test_a_closed_loop_keeps_its_concurrency(tmp_path: Path) -> None:
    with engine(Behaviour(concurrency=50, prompt_seconds=0.02, tokens=2)) as (url, fake):
        ran = Ran(tmp_path, url, "--concurrency", "4", "--requests", "30")
    assert ran.status == 0
    assert fake.max_running == 4
    assert ran.only["answered"] == 30
    assert ran.only["intended_rate"] is None


def test_a_closed_loop_ends_after_its_seconds(tmp_path: Path) -> None:
    with engine() as (url, _):
        ran = Ran(tmp_path, url, "--concurrency", "2", "--seconds", "0.3")
    assert ran.status == 0
    assert 0.3 <= ran.report["seconds"] < 1


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {"Retry-After": "60", "retry-after-ms": "300"}])
def test_retry_after_is_obeyed(tmp_path: Path, headers: dict[str, str]) -> None:
    handle, arrivals = refusing(1, headers)
    with serving(answering(handle)) as url:
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=1, stream=False, retries=3)))
    assert ran.status == 0
    assert arrivals[1] - arrivals[0] >= (0.3 if len(headers) == 2 else 1)
    assert ran.only["retry_after"] == {"seen": 1, "obeyed": 1, "answered": 1}
    assert ran.report["requests"][0]["retries"] == 1
    assert ran.only["end_to_end"]["max"] >= 0.3


def test_refusals_are_no_failures(tmp_path: Path) -> None:
    handle, _ = refusing(4, {"Retry-After": "7"})
    thresholds = [
        {"class": "a", "metric": "answered", "equals": 6},
        {"class": "a", "metric": "status.429", "equals": 4},
        {"class": "a", "metric": "failed", "max": 0},
    ]
    with serving(answering(handle)) as url:
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=10, stream=False), thresholds=thresholds))
    assert ran.status == 0
    assert (ran.only["refused"], ran.only["retry_after"]["seen"]) == (4, 4)
    # Refusals that differ only in their seconds are one line.
    assert ran.only["errors"] == {"status 429: slow down for … s": 4}
    assert "status 429: slow down for 1.5 s" in {request["error"] for request in ran.report["requests"]}


def test_the_first_refusal_may_end_a_class(tmp_path: Path) -> None:
    handle, arrivals = refusing(0, {})

    async def third(request: web.Request) -> web.Response:
        response: web.Response = await handle(request)
        return response if len(arrivals) < 3 else web.json_response({}, status=429)

    load = {"shape": "closed", "concurrency": 1, "requests": 50}
    with serving(answering(third)) as url:
        ran = Ran(
            tmp_path,
            url,
            profile(tmp_path, {"name": "a", "load": load, "stream": False, "stop_at_refusal": True}),
        )
    assert len(arrivals) == 3
    assert ran.only["tokens_before_last"] == 3


def test_disconnected_clients_are_no_failures(tmp_path: Path) -> None:
    late = burst("late", 5, cancel={"share": 1, "after": "first_token", "after_seconds": 0.05})
    early = burst("early", 5, cancel={"share": 1, "after_seconds": 0.02})
    never = burst("never", 5)
    behaviour = Behaviour(concurrency=50, prompt_seconds=0.1, seconds_per_token=0.1, tokens=5)
    with engine(behaviour) as (url, fake):
        ran = Ran(tmp_path, url, profile(tmp_path, late, early, never))
        time.sleep(0.3)
        assert (fake.outcomes["served"], fake.outcomes["fault"]) == (5, 0)
    assert ran.status == 0
    assert [ran.of(name)["cancelled"] for name in ("late", "early", "never")] == [5, 5, 0]
    requests = [request for request in ran.report["requests"] if request["class_name"] == "late"]
    assert all(request["first_token"] >= 0.2 and 0.25 <= request["seconds"] < 0.4 for request in requests)


def test_disconnected_clients_leave_no_objects_in_memory(tmp_path: Path) -> None:
    """aiohttp's shared exception for closed connections could keep references to them."""
    with engine(Behaviour(concurrency=50, seconds_per_token=0.05, tokens=50)) as (url, _):
        cancelling = burst(size=20, cancel={"share": 1, "after": "first_token", "after_seconds": 0.02})
        assert Ran(tmp_path, url, profile(tmp_path, cancelling)).only["cancelled"] == 20
        gc.collect()
        assert [item for item in gc.get_objects() if isinstance(item, (ClientResponse, Exchange))] == []


def test_it_ends_after_max_seconds(tmp_path: Path) -> None:
    with engine(Behaviour(concurrency=1, prompt_seconds=0.2, tokens=1)) as (url, _):
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=20)), "--max-seconds", "0.7")
    assert ran.status == 1
    assert 0.7 <= ran.report["seconds"] < 1.2
    assert ran.only["answered"] in {2, 3}
    assert ran.only["answered"] + ran.only["unfinished"] == 20


def test_it_ends_after_max_requests(tmp_path: Path) -> None:
    with engine() as (url, fake):
        ran = Ran(tmp_path, url, profile(tmp_path, burst("a", 20), burst("b", 20)), "--max-requests", "25")
    assert len(fake.arrivals) == 25
    unsent = [report["slots"]["unsent"] for report in ran.report["classes"]]
    assert sum(unsent) == 15


def limits(remaining: list[int]) -> Any:
    async def models(_: web.Request) -> web.Response:
        left = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        headers = {"x-ratelimit-limit-requests": "5", "x-ratelimit-remaining-requests": str(left)}
        return web.json_response({"data": [{"id": "fake"}]}, headers=headers)

    return models


def test_it_waits_until_a_limit_is_whole(tmp_path: Path) -> None:
    handle, arrivals = refusing(0, {})
    start = time.monotonic()
    remaining = [5, 3, 4, 5]
    with serving(answering(handle, limits(remaining))) as url:
        ran = Ran(
            tmp_path, url, profile(tmp_path, burst(size=2, stream=False), before={"whole_limit": "requests"})
        )
    assert ran.status == 0
    assert arrivals[0] - start > 2
    assert remaining == [5]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            limits([3]),
            "The limit of the key was never whole within a minute: stop the other clients that use this key.",
        ),
        (None, "The key has no limit of requests: this profile needs a key with one."),
    ],
)
def test_a_key_without_the_needed_limit_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    models: Any,
    message: str,
) -> None:
    monkeypatch.setattr("bedplate_traffic.load.runner.LIMIT_WINDOW_SECONDS", -5)
    handle, arrivals = refusing(0, {})
    with serving(answering(handle, models)) as url:
        wanted = profile(tmp_path, burst(size=2), before={"whole_limit": "requests"})
        assert run(wanted, "--url", url) == 2
    assert capsys.readouterr().err == f"traffic: {message}\n"
    assert arrivals == []


def test_the_same_seed_sends_the_same_bytes(tmp_path: Path) -> None:
    def sent(*more: str) -> list[bytes]:
        bodies: list[bytes] = []

        async def handle(request: web.Request) -> web.Response:
            bodies.append(await request.read())
            return web.json_response({}, status=500)

        with serving(answering(handle)) as url:
            Ran(tmp_path, url, "--rate", "40", "--shape", "poisson", "--seconds", "1", *more)
        return bodies

    first = sent()
    assert len(first) > 20
    assert sorted(sent()) == sorted(first)
    assert sorted(sent("--seed", "2")) != sorted(first)
