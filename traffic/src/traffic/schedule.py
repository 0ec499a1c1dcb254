"""When open loops send: every moment is fixed before the first request, in seconds since the run's start."""

import math
import random
from array import array

from traffic.profile import Burst, Closed, Constant, Poisson, Ramp, Step, TrafficClass
from traffic.target import CannotStartError

MAX_SLOTS = 5_000_000


def schedule(traffic_class: TrafficClass, seed: int) -> "array[float]":
    """Return the moments, in order, at which a class sends; an open loop's class only.

    The same class and seed give the same moments. `start_after_seconds` is in them.
    """
    load = traffic_class.load
    start = traffic_class.start_after_seconds
    if isinstance(load, Closed):
        raise TypeError("a closed loop has no schedule")
    if isinstance(load, Burst):
        _bound(load.size * load.times)
        return array(
            "d", (start + burst * load.every_seconds for burst in range(load.times) for _ in range(load.size))
        )
    if isinstance(load, Poisson):
        return _poisson(load, start, random.Random(f"{seed}/{traffic_class.name}/schedule"))  # noqa: S311 - dice
    if isinstance(load, Constant):
        parts = [(load.rate, load.rate, load.seconds)]
    elif isinstance(load, Ramp):
        parts = [(load.from_rate, load.to_rate, load.seconds)]
    else:
        assert isinstance(load, Step)  # noqa: S101 - the last of the shapes
        parts = [(rate, rate, load.seconds_each) for rate in load.rates]
    return _even(parts, start)


def _even(parts: list[tuple[float, float, float]], start: float) -> "array[float]":
    """Return moments at which the integral of the rate is whole; a part is (from, to, seconds)."""
    _bound(sum((first + last) / 2 * seconds for first, last, seconds in parts))
    moments = array("d")
    due, began = 0.0, start
    done = 0.0
    for first, last, seconds in parts:
        total = (first + last) / 2 * seconds
        slope = (last - first) / seconds
        while due < done + total - 1e-9:
            moments.append(began + _reach(due - done, first, slope))
            due += 1
        done += total
        began += seconds
    return moments


def _reach(requests: float, rate: float, slope: float) -> float:
    """Return after how many seconds a rate that changes by `slope` a second has given so many requests."""
    if abs(slope) < 1e-12:
        return requests / rate
    return (math.sqrt(max(0.0, rate * rate + 2 * slope * requests)) - rate) / slope


def _poisson(load: Poisson, start: float, dice: random.Random) -> "array[float]":
    _bound(load.rate * load.seconds)
    moments = array("d")
    moment = 0.0
    while True:
        # Of all of Random's methods only random() is promised to stay the same for ever.
        moment -= math.log(1.0 - dice.random()) / load.rate
        if moment >= load.seconds:
            return moments
        moments.append(start + moment)


def _bound(slots: float) -> None:
    if slots > MAX_SLOTS:
        raise CannotStartError(f"The load has {slots:.0f} requests: {MAX_SLOTS} are the most.")
