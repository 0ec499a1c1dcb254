"""The schedules of open loops."""

import statistics
from itertools import pairwise
from typing import Any

import pytest
from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.load.profile import Profile, TrafficClass
from bedplate_traffic.load.schedule import make_schedule
from hypothesis import given
from hypothesis import strategies as st


def traffic_class(load: dict[str, Any], **more: Any) -> TrafficClass:
    return Profile.model_validate(
        {"max_seconds": 10, "classes": [{"name": "a", "load": load, **more}]}
    ).classes[0]


def moments(load: dict[str, Any], seed: int = 1, **more: Any) -> list[float]:
    return list(make_schedule(traffic_class(load, **more), seed))


def test_constant_is_even() -> None:
    assert moments({"shape": "constant", "rate": 4, "seconds": 1}) == [0, 0.25, 0.5, 0.75]


def test_a_class_may_start_later() -> None:
    assert moments({"shape": "burst", "size": 2}, start_after_seconds=3) == [3, 3]


def test_bursts_repeat() -> None:
    load = {"shape": "burst", "size": 2, "times": 2, "every_seconds": 5}
    assert moments(load) == [0, 0, 5, 5]


def test_steps_follow_each_other() -> None:
    steps = moments({"shape": "step", "rates": [1, 0, 4], "seconds_each": 2})
    assert steps == [0, 1, *(4 + 0.25 * number for number in range(8))]


RATES = st.integers(0, 200).map(lambda number: number / 4)


@given(first=RATES, last=RATES, seconds=st.integers(1, 20))
def test_a_ramp_changes_evenly(first: float, last: float, seconds: float) -> None:
    ramp = moments({"shape": "ramp", "from_rate": first, "to_rate": last, "seconds": seconds})
    assert abs(len(ramp) - (first + last) / 2 * seconds) <= 1
    assert all(0 <= moment <= seconds + 1e-6 for moment in ramp)
    gaps = [later - earlier for earlier, later in pairwise(ramp)]
    for earlier, later in pairwise(gaps):
        assert later <= earlier + 1e-6 if last > first else later >= earlier - 1e-6


def test_poisson_has_its_rate_and_repeats() -> None:
    load = {"shape": "poisson", "rate": 100, "seconds": 100}
    poisson = moments(load)
    gaps = [later - earlier for earlier, later in pairwise(poisson)]
    assert 9_600 < len(poisson) < 10_400
    # The standard deviation of exponential intervals equals their mean.
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.1)
    assert poisson == moments(load)
    assert poisson != moments(load, seed=2)


def test_the_schedule_never_changes_between_releases() -> None:
    poisson = moments({"shape": "poisson", "rate": 2, "seconds": 2})
    assert [round(moment, 6) for moment in poisson] == [0.120681, 0.274028, 0.646975, 1.800141]


def test_too_many_requests_are_refused() -> None:
    with pytest.raises(CannotStartError, match="at most 5000000 are possible"):
        moments({"shape": "constant", "rate": 100_000, "seconds": 100_000})
