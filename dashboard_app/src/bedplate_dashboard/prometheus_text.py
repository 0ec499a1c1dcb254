"""Prometheus' text format, as far as the dashboard needs it: the families that it asks for and no others."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Exposition:
    """The samples of one scrape by their names."""

    def __init__(self, samples: Mapping[str, tuple[Sample, ...]] | None = None) -> None:
        """Hold what was read; nothing where there was nothing to read."""
        self._samples = samples or {}

    def __getitem__(self, name: str) -> tuple[Sample, ...]:
        """Return the samples of one name; none where it was not exposed."""
        return self._samples.get(name, ())

    def value(self, name: str, **labels: str) -> float | None:
        """Return the first value with these labels, None where there is none."""
        return next((sample.value for sample in self.having(name, **labels)), None)

    def having(self, name: str, **labels: str) -> Iterator[Sample]:
        """Iterate over the samples with these labels; they may have others too."""
        return (sample for sample in self[name] if labels.items() <= sample.labels.items())


def read(body: bytes, names: Collection[str]) -> Exposition:
    """Read the named samples out of a scrape; raises ValueError where it is none that makes sense."""
    # Most lines are nobody's business here, and reading one takes a hundred times as long as leaving it out.
    wanted = tuple(name.encode() for name in names)
    lines = [line for line in body.split(b"\n") if line.startswith(wanted)]
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(b"\n".join(lines).decode() + "\n"):
        for sample in family.samples:
            if not math.isfinite(sample.value):
                raise ValueError(f"{sample.name} is {sample.value}")
            if sample.name.endswith("_bucket"):
                float(sample.labels.get("le", ""))
            if sample.name in names:
                found.setdefault(sample.name, []).append(sample)
    return Exposition({name: tuple(samples) for name, samples in found.items()})
