"""Parser for Prometheus' text format that reads only the named metrics."""

import math
from collections.abc import Collection, Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Samples:
    """The samples of one scrape by metric name; without an argument there are none."""

    def __init__(self, samples: Mapping[str, tuple[Sample, ...]] | None = None) -> None:
        self._samples = samples or {}

    def __getitem__(self, name: str) -> tuple[Sample, ...]:
        """Return the samples of one metric, an empty tuple if the scrape lacks it."""
        return self._samples.get(name, ())

    def value(self, name: str, **labels: str) -> float | None:
        """Return the first value with these labels, None if there is none."""
        return next((sample.value for sample in self.select(name, **labels)), None)

    def select(self, name: str, **labels: str) -> Iterator[Sample]:
        """Iterate over the samples with these labels; they may have further labels."""
        return (sample for sample in self[name] if labels.items() <= sample.labels.items())


def parse(body: bytes, names: Collection[str]) -> Samples:
    """Parse the named metrics of a scrape; raises ValueError or LookupError if text or number is invalid."""
    # Parsing a line takes a hundred times as long as skipping it, and most lines are not needed.
    wanted = tuple(name.encode() for name in names)
    lines = [line for line in body.split(b"\n") if line.startswith(wanted)]
    parsed: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(b"\n".join(lines).decode() + "\n"):
        for sample in family.samples:
            if not math.isfinite(sample.value):
                raise ValueError(f"{sample.name} is {sample.value}")
            if sample.name.endswith("_bucket"):
                float(sample.labels.get("le", ""))
            if sample.name in names:
                parsed.setdefault(sample.name, []).append(sample)
    return Samples({name: tuple(samples) for name, samples in parsed.items()})
