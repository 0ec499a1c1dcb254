"""Payloads: bodies of other services are validated, and hostile text becomes harmless."""

import pytest
from bedplate_dashboard.sources.payloads import AlertList, EngineState, QueryResult, clean, clean_label
from pydantic import ValidationError

STATE = {"schema": 1, "at": "2026-03-01T12:00:00Z", "engine": {"up": True}, "models": []}


def test_hostile_text_is_made_harmless() -> None:
    assert clean("a\x1b[31m\n\u202eb\ud800") == "a\ufffd[31m\ufffd\ufffdb\ufffd"
    assert clean("x" * 500) == "x" * 300 + "…"


def test_unknown_fields_are_ignored() -> None:
    state = EngineState.model_validate(STATE | {"news": 1, "engine": {"up": True, "news": [2]}})
    assert (state.engine.up, state.models) == (True, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"at": "2026-03-01T12:00:00"},
        {"engine": {"up": True, "fault": "tired"}},
        {"engine": {"up": True, "latency_seconds": float("nan")}},
        {"models": [{"name": "a", "size_bytes": -1}]},
        {"models": [{"name": "a", "memory_bytes": 2**63}]},
        {"gpus": [{"vendor": "nvidia", "number": "0", "name": "x", "power_watts": float("inf")}]},
        {"drivers": [{"vendor": "nvidia", "devices": -1, "failed": False}]},
    ],
)
def test_an_invalid_field_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EngineState.model_validate(STATE | changes)


def test_names_are_short_and_printable() -> None:
    (model,) = EngineState.model_validate(STATE | {"models": [{"name": "\x1b" + "m" * 300}]}).models
    assert model.name == "\ufffd" + "m" * 199 + "…"
    assert clean_label("a\nb") == "a\ufffdb"


def test_an_alert_has_its_summary_and_time() -> None:
    labels = {"alertname": "DiskFull", "host": "gpu1"}
    alert = {"labels": labels, "annotations": {}, "state": "firing", "activeAt": "2026-03-01T12:00:00Z"}
    (shown,) = AlertList.model_validate({"status": "success", "data": {"alerts": [alert]}}).data.alerts
    assert (shown.labels.severity, shown.annotations.summary, shown.annotations.next) == ("", "", None)
    with pytest.raises(ValidationError):
        AlertList.model_validate({"data": {"alerts": [alert | {"state": "resolved"}]}})


def test_a_query_result_has_values_as_text() -> None:
    result = {"metric": {"host": "gpu1"}, "values": [[1, "1.5"], [2, "NaN"]]}
    (series,) = QueryResult.model_validate({"data": {"result": [result]}}).data.result
    assert (series.metric, series.value, series.values) == ({"host": "gpu1"}, None, ((1, "1.5"), (2, "NaN")))
