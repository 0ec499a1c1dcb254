"""When open loops send."""

import statistics
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traffic.profile import Profile, TrafficClass
from traffic.schedule import schedule
from traffic.target import CannotStartError


def traffic_class(load: dict[str, Any], **more: Any) -> TrafficClass:
    return Profile.model_validate(
        {"max_seconds": 10, "classes": [{"name": "a", "load": load, **more}]}
    ).classes[0]


def moments(load: dict[str, Any], seed: int = 1, **more: Any) -> list[float]:
    return list(schedule(traffic_class(load, **more), seed))


def test_constant_is_even() -> None:
    assert moments({"shape": "constant", "rate": 4, "seconds": 1}) == [0, 0.25, 0.5, 0.75]


def test_a_class_may_start_later() -> None:
    assert moments({"shape": "burst", "size": 2}, start_after_seconds=3) == [3, 3]


def test_bursts_come_again() -> None:
    load = {"shape": "burst", "size": 2, "times": 2, "every_seconds": 5}
    assert moments(load) == [0, 0, 5, 5]


def test_steps_follow_each_other() -> None:
    found = moments({"shape": "step", "rates": [1, 0, 4], "seconds_each": 2})
    assert found == [0, 1, *(4 + 0.25 * number for number in range(8))]


RATES = st.integers(0, 200).map(lambda number: number / 4)


@given(first=RATES, last=RATES, seconds=st.integers(1, 20))
def test_a_ramp_changes_evenly(first: float, last: float, seconds: float) -> None:
    found = moments({"shape": "ramp", "from_rate": first, "to_rate": last, "seconds": seconds})
    assert abs(len(found) - (first + last) / 2 * seconds) <= 1
    assert all(0 <= one <= seconds + 1e-6 for one in found)
    gaps = [later - earlier for earlier, later in pairwise(found)]
    for earlier, later in pairwise(gaps):
        assert later <= earlier + 1e-6 if last > first else later >= earlier - 1e-6


def test_poisson_has_its_rate_and_repeats() -> None:
    load = {"shape": "poisson", "rate": 100, "seconds": 100}
    found = moments(load)
    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert 9_600 < len(found) < 10_400
    # Of exponential distances the deviation is as large as the mean.
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.1)
    assert found == moments(load)
    assert found != moments(load, seed=2)


def test_the_schedule_stays_the_same_for_ever() -> None:
    found = moments({"shape": "poisson", "rate": 2, "seconds": 2})
    assert [round(one, 6) for one in found] == [0.120681, 0.274028, 0.646975, 1.800141]


def test_too_many_requests_are_refused() -> None:
    with pytest.raises(CannotStartError, match="5000000 are the most"):
        moments({"shape": "constant", "rate": 100_000, "seconds": 100_000})
