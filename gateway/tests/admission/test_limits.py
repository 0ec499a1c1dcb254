"""Exact windows."""

import random

import pytest
from bedplate_gateway.admission.limits import Limits, Window, duration
from bedplate_gateway.keys import Key
from bedplate_gateway.settings import ModelLimits


def key(alias: str = "a", **fields: object) -> Key:
    return Key.model_validate({"alias": alias, "secrets": [], **fields})


def test_never_more_than_the_limit_in_any_60_seconds_and_never_one_fewer() -> None:
    chance = random.Random(7)  # noqa: S311 - a test repeats itself
    limits = Limits([key(rpm=10)], {})
    now = 1000.0
    passed: list[float] = []
    for _ in range(5000):
        now += chance.expovariate(1)
        free = len([at for at in passed if at + 60 > now]) < 10
        assert (limits.exceeded("a", "m", "requests", now) is None) == free
        if free:
            limits.count_request("a", "m", now)
            passed.append(now)
    assert len(passed) > 100
    for first, eleventh in zip(passed, passed[10:], strict=False):
        assert eleventh - first >= 60


def test_the_wait_is_exact() -> None:
    limits = Limits([key(rpm=3)], {})
    for at in (10.0, 11.0, 12.0):
        limits.count_request("a", "m", at)
    limit = limits.exceeded("a", "m", "requests", 30.0)
    assert limit is not None
    assert limit.seconds == 40.0
    assert limits.exceeded("a", "m", "requests", 69.999) is not None
    assert limits.exceeded("a", "m", "requests", 70.0) is None


def test_tokens_wait_until_enough_of_them_are_old() -> None:
    limits = Limits([key(tpm=100)], {})
    for at, tokens in ((0.0, 60), (10.0, 60), (20.0, 60)):
        limits.charge_tokens("a", "m", tokens, at)
    limit = limits.exceeded("a", "m", "tokens", 30.0)
    assert limit is not None
    # 180 used: after the first leaves 120 remain, after the second 60.
    assert limit.seconds == pytest.approx(40.0)


def test_an_estimate_is_corrected_downwards() -> None:
    limits = Limits([key(tpm=100)], {})
    limits.charge_tokens("a", "m", 99, 1.0)
    limits.charge_tokens("a", "m", 40, 2.0)
    limits.charge_tokens("a", "m", -50, 3.0)
    (budget,) = limits.budgets()
    assert budget.windows["tokens"].used(3.0) == 89
    assert budget.windows["tokens"].entries() == [(1.0, 89)]


def test_a_place_that_is_given_back_is_free_at_once() -> None:
    limits = Limits([key(rpm=1)], {})
    limits.count_request("a", "m", 5.0)
    assert limits.exceeded("a", "m", "requests", 6.0)
    limits.refund_request("a", "m", 5.0)
    assert limits.exceeded("a", "m", "requests", 6.0) is None


def test_a_place_that_left_the_window_cannot_be_given_back_twice() -> None:
    limits = Limits([key(rpm=1)], {})
    limits.count_request("a", "m", 5.0)
    assert limits.exceeded("a", "m", "requests", 66.0) is None
    limits.count_request("a", "m", 66.0)
    limits.refund_request("a", "m", 5.0)
    assert limits.exceeded("a", "m", "requests", 67.0)


def test_a_model_has_limits_across_keys() -> None:
    limits = Limits([key("a", rpm=5), key("b")], {"m": ModelLimits(rpm=2)})
    limits.count_request("a", "m", 0.0)
    limits.count_request("b", "m", 1.0)
    limit = limits.exceeded("b", "m", "requests", 2.0)
    assert limit is not None
    assert (limit.scope, limit.name) == ("model", "m")
    assert limits.exceeded("b", "other", "requests", 2.0) is None


def test_headers_are_the_keys_and_else_the_models() -> None:
    limits = Limits([key("a", rpm=5, tpm=1000), key("b")], {"m": ModelLimits(rpm=2)})
    limits.count_request("a", "m", 0.0)
    assert limits.headers("a", "m", 0.5) == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "1000",
        "x-ratelimit-reset-tokens": "0ms",
    }
    assert limits.headers("b", "m", 0.5)["x-ratelimit-remaining-requests"] == "1"
    assert limits.headers("b", "other", 0.5) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (61.5, "1m2s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_long_stream_keeps_few_entries() -> None:
    window = Limits([key(tpm=10_000)], {})
    for number in range(3000):
        window.charge_tokens("a", "m", 1, number / 1000)
    (budget,) = window.budgets()
    assert len(budget.windows["tokens"].entries()) <= 31
    assert budget.windows["tokens"].used(3.0) == 3000


def test_an_empty_window_waits_for_nothing() -> None:
    assert Window().seconds_until_below(1, 5.0) == 0
    assert Window().seconds_until_empty(5.0) == 0
