"""The dashboard's own metrics."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from bedplate_dashboard.sources.collect import Observation, ReportFile
from bedplate_dashboard.sources.payloads import Check, Report
from flask.testing import FlaskClient


def test_metrics(show: Callable[..., FlaskClient], all_well: Observation) -> None:
    text = show(all_well).get("/metrics").text
    assert 'bedplate_dashboard_state{state="healthy"} 1.0' in text
    assert 'bedplate_dashboard_state{state="down"} 0.0' in text
    assert "bedplate_dashboard_poll_duration_seconds 0.01" in text
    assert "bedplate_dashboard_poll_age_seconds 0.0" in text
    assert "bedplate_dashboard_polls_total 1.0" in text
    assert "bedplate_dashboard_verify" not in text


@pytest.mark.parametrize("ok", [True, False])
def test_metrics_of_a_verify(show: Callable[..., FlaskClient], all_well: Observation, ok: bool) -> None:
    check = Check(host="gpu1", name="it runs", ok=ok, seen="it", next="date")
    report = Report(schema_=1, ok=ok, at=datetime(2026, 11, 25, tzinfo=UTC), checks=(check,))
    observation = dataclasses.replace(all_well, verify=ReportFile(report=report))
    text = show(observation).get("/metrics").text
    assert f"bedplate_dashboard_verify_ok {ok:.1f}" in text
    assert "bedplate_dashboard_verify_timestamp_seconds 1.7955648e+09" in text
