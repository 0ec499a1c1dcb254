"""Prometheus' text format: only the named metrics are parsed, and what makes no sense is refused."""

import pytest
from bedplate_dashboard.sources.prometheus_text import Samples, parse

NAMES = frozenset({"bedplate_gateway_slots", "bedplate_gateway_request_seconds_bucket"})
TEXT = b"""# HELP bedplate_gateway_slots Slots.
# TYPE bedplate_gateway_slots gauge
bedplate_gateway_slots{engine="gpu1",model="a"} 2.0
bedplate_gateway_slots{engine="gpu2",model="a"} 4.0
bedplate_gateway_slots_busy{engine="gpu1",model="a"} 1.0
another_metric{broken
bedplate_gateway_request_seconds_bucket{le="+Inf"} 3.0
"""


def test_only_named_metrics_are_parsed() -> None:
    samples = parse(TEXT, NAMES)
    assert [sample.value for sample in samples["bedplate_gateway_slots"]] == [2.0, 4.0]
    assert samples.value("bedplate_gateway_request_seconds_bucket", le="+Inf") == 3.0
    assert samples["bedplate_gateway_slots_busy"] == ()
    assert samples["another_metric"] == ()


def test_samples_are_selected_by_labels() -> None:
    samples = parse(TEXT, NAMES)
    assert samples.value("bedplate_gateway_slots", engine="gpu2") == 4.0
    assert samples.value("bedplate_gateway_slots", model="a") == 2.0
    assert samples.value("bedplate_gateway_slots", engine="gpu3") is None
    assert len(list(samples.select("bedplate_gateway_slots", model="a"))) == 2
    assert samples.value("bedplate_gateway_info") is None


def test_an_empty_scrape_has_no_samples() -> None:
    assert parse(b"", NAMES)["bedplate_gateway_slots"] == Samples()["bedplate_gateway_slots"] == ()


@pytest.mark.parametrize(
    "line",
    [
        b"bedplate_gateway_slots{ 1",
        b"bedplate_gateway_slots",
        b"bedplate_gateway_slots NaN",
        b"bedplate_gateway_slots 1e999",
        b'bedplate_gateway_slots{engine="\xff"} 1',
        b'bedplate_gateway_request_seconds_bucket{le="much"} 1',
        b"bedplate_gateway_request_seconds_bucket 1",
    ],
)
def test_an_invalid_line_is_refused(line: bytes) -> None:
    with pytest.raises((ValueError, LookupError)):
        parse(line, NAMES)
