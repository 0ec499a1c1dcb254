"""The poller: readers share its last poll, and its own defects do not end it."""

import dataclasses
import logging
import threading
import time

import httpx
import pytest
from bedplate_dashboard.health import poller as polling
from bedplate_dashboard.health.poller import Poller
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources import collect, history
from bedplate_dashboard.sources.collect import Observation
from bedplate_dashboard.sources.prometheus_text import Samples

from dashboard_app.tests.observed import SECRETS, litellm_metrics
from dashboard_app.tests.situations import gateway, litellm


def wait_until_polled(poller: Poller, number: int) -> None:
    """Wait for a poll with at least this number."""
    deadline = time.monotonic() + 10
    while poller.status().poll_number < number:
        assert time.monotonic() < deadline
        poller.wait(poller.status().poll_number, 0.1)


def test_it_polls_again_and_again(
    settings: Settings, all_well: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []

    async def collect(_client: httpx.AsyncClient, _settings: Settings, key: str) -> Observation:
        keys.append(key)
        return all_well

    monkeypatch.setattr(polling, "POLL_SECONDS", 0.02)
    poller = Poller(settings, SECRETS, collect)
    assert (poller.status().stale, poller.status().poll_number) == (True, 0)
    poller.start()
    wait_until_polled(poller, 3)
    assert poller.status().state == "healthy"
    assert set(keys) == {SECRETS.gateway_key}


def test_a_defect_does_not_end_the_polling(
    *,
    settings: Settings,
    all_well: Observation,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = 0

    async def collect(*_: object) -> Observation:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError
        return all_well

    async def fail(*_: object) -> history.DaysLeft:
        raise RuntimeError

    monkeypatch.setattr(polling, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(history, "query_days_left", fail)
    poller = Poller(settings, SECRETS, collect)
    poller.start()
    wait_until_polled(poller, 1)
    assert "a poll failed" in caplog.messages
    assert "could not query Prometheus for disk growth" in caplog.messages


def test_litellms_own_metrics_are_read_again_and_again(
    *,
    settings: Settings,
    all_well: Observation,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter([RuntimeError(), None, litellm_metrics("process_resident_memory_bytes 5e+08")])
    read = threading.Event()

    async def fetch(*_: object) -> Samples | None:
        answer = next(answers, None)
        if isinstance(answer, RuntimeError):
            raise answer
        if answer is None:
            return None
        read.set()
        monkeypatch.setattr(polling, "LITELLM_SECONDS", 60.0)
        return answer

    async def observe(*_: object) -> Observation:
        return litellm(1)(all_well)

    monkeypatch.setattr(polling, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(polling, "LITELLM_SECONDS", 0.02)
    monkeypatch.setattr(collect, "fetch_litellm", fetch)
    poller = Poller(settings, SECRETS, observe)
    poller.start()
    assert read.wait(10)
    wait_until_polled(poller, poller.status().poll_number + 2)
    verdict = poller.status().verdict
    assert verdict is not None
    assert verdict.litellm is not None
    assert verdict.litellm.memory_bytes == 500_000_000
    assert "could not read LiteLLM's metrics" in caplog.messages


def test_waiting_ends_with_the_next_poll_or_after_its_time(poller: Poller, all_well: Observation) -> None:
    assert poller.wait(0, 0.01) == 0
    poller.update(all_well)
    assert poller.wait(0, 10) == 1
    threading.Timer(0.1, poller.update, (all_well,)).start()
    began = time.monotonic()
    assert poller.wait(1, 10) == 2
    assert time.monotonic() - began < 5


def test_only_changes_are_logged(
    poller: Poller, all_well: Observation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broken = gateway("failed", "HTTP 500")(all_well)
    for observation in (all_well, all_well, broken, broken, all_well):
        poller.update(observation)
    assert [message.partition(":")[0] for message in caplog.messages] == ["healthy", "down", "healthy"]


def test_traffic_counts_only_polls_with_metrics(poller: Poller, all_well: Observation) -> None:
    for change in (0.1, 0.2):
        poller.update(dataclasses.replace(all_well, seconds=change))
    verdict = poller.status().verdict
    assert verdict is not None
    assert verdict.traffic is not None
    poller.update(gateway("failed", "HTTP 500")(all_well))
    verdict = poller.status().verdict
    assert verdict is not None
    assert verdict.traffic is None
