"""The increase of counters over the last minute: each poll's increase is kept for a minute."""

from collections import defaultdict, deque
from collections.abc import Collection

from prometheus_client.samples import Sample

from bedplate_dashboard.sources.prometheus_text import Samples

WINDOW_SECONDS = 60.0

Series = tuple[str, frozenset[tuple[str, str]]]


class CounterWindow:
    """The increase of one service's counters, also across a restart of the service."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._last: dict[Series, float] | None = None
        self._process: float | None = None
        self._began = 0.0
        self._growth: deque[tuple[float, dict[Series, float]]] = deque()

    def add(self, metrics: Samples, now: float) -> None:
        """Add the counters of one poll; `now` is in monotonic seconds."""
        values = {
            (name, frozenset(sample.labels.items())): sample.value
            for name in self._names
            for sample in metrics[name]
        }
        process = metrics.value("process_start_time_seconds")
        if self._last is None:
            self._began = now
        else:
            before = self._last if process == self._process else {}
            growth = {series: value - before.get(series, 0.0) for series, value in values.items()}
            self._growth.append((now, {series: value for series, value in growth.items() if value > 0}))
        self._last, self._process = values, process
        while self._growth and self._growth[0][0] <= now - WINDOW_SECONDS:
            self._growth.popleft()

    def length(self, now: float) -> float:
        """Return the seconds that the window covers, 0 before the second poll: an increase needs two."""
        return min(WINDOW_SECONDS, now - self._began) if self._growth else 0.0

    def increase(self, now: float, seconds: float = WINDOW_SECONDS) -> Samples:
        """Return the increase over the last `seconds`."""
        total: dict[Series, float] = defaultdict(float)
        for at, growth in self._growth:
            if at > now - seconds:
                for series, value in growth.items():
                    total[series] += value
        found: dict[str, list[Sample]] = {}
        for (name, labels), value in total.items():
            found.setdefault(name, []).append(Sample(name, dict(labels), value))
        return Samples({name: tuple(samples) for name, samples in found.items()})
