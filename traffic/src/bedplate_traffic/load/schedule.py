"""The schedules of open loops: every moment is fixed before the first request."""

import math
import random
from array import array

from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.load.profile import Burst, Closed, Constant, Poisson, Ramp, Step, TrafficClass

MAX_SLOTS = 5_000_000


def make_schedule(traffic_class: TrafficClass, seed: int) -> "array[float]":
    """Return the moments at which a class sends, in order, in seconds since the run's start.

    The same class and seed always give the same moments. `start_after_seconds` is included. Raises TypeError
    for a closed loop, CannotStartError for more than MAX_SLOTS moments.
    """
    load = traffic_class.load
    start = traffic_class.start_after_seconds
    if isinstance(load, Closed):
        raise TypeError("a closed loop has no schedule")
    if isinstance(load, Burst):
        _check_size(load.size * load.times)
        return array(
            "d", (start + burst * load.every_seconds for burst in range(load.times) for _ in range(load.size))
        )
    if isinstance(load, Poisson):
        generator = random.Random(f"{seed}/{traffic_class.name}/schedule")  # noqa: S311 - not a secret
        return _schedule_poisson(load, start, generator)
    if isinstance(load, Constant):
        parts = [(load.rate, load.rate, load.seconds)]
    elif isinstance(load, Ramp):
        parts = [(load.from_rate, load.to_rate, load.seconds)]
    else:
        assert isinstance(load, Step)  # noqa: S101 - the last of the shapes
        parts = [(rate, rate, load.seconds_each) for rate in load.rates]
    return _schedule_evenly(parts, start)


def _schedule_evenly(parts: list[tuple[float, float, float]], start: float) -> "array[float]":
    """Return the moments at which the integral of the rate is an integer; a part is (from, to, seconds)."""
    _check_size(sum((first + last) / 2 * seconds for first, last, seconds in parts))
    moments = array("d")
    due, began = 0.0, start
    done = 0.0
    for first, last, seconds in parts:
        total = (first + last) / 2 * seconds
        slope = (last - first) / seconds
        while due < done + total - 1e-9:
            moments.append(began + _seconds_until(due - done, first, slope))
            due += 1
        done += total
        began += seconds
    return moments


def _seconds_until(requests: float, rate: float, slope: float) -> float:
    """Return the seconds in which a rate that changes by `slope` per second yields so many requests."""
    if abs(slope) < 1e-12:
        return requests / rate
    return (math.sqrt(max(0.0, rate * rate + 2 * slope * requests)) - rate) / slope


def _schedule_poisson(load: Poisson, start: float, generator: random.Random) -> "array[float]":
    _check_size(load.rate * load.seconds)
    moments = array("d")
    moment = 0.0
    while True:
        # Of Random's methods only random() is guaranteed to give the same numbers in every Python version.
        moment -= math.log(1.0 - generator.random()) / load.rate
        if moment >= load.seconds:
            return moments
        moments.append(start + moment)


def _check_size(slots: float) -> None:
    if slots > MAX_SLOTS:
        raise CannotStartError(f"The load has {slots:.0f} requests: at most {MAX_SLOTS} are possible.")
