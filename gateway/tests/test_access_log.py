import logging
import time

import pytest
from bedplate_gateway.access_log import AccessRecord, KeylessRefusals


def test_a_line_has_every_field_in_order_and_a_placeholder_for_a_missing_value() -> None:
    assert AccessRecord("req_1", 5.0).line() == (
        "id=req_1 status=0 alias=- class=- model=- engine=- lane=- path=- stream=no wait=- ttft=- "
        "seconds=0.000s tokens_in=0 tokens_out=0 retries=0 reason=-"
    )


def test_estimated_tokens_are_marked() -> None:
    record = AccessRecord("req_1", 5.0, stream=True, wait=0.5, completion_tokens=7, estimated=True)
    assert " stream=yes wait=0.500s " in record.line()
    assert " tokens_out=~7 " in record.line()


def test_one_line_a_second_stands_for_all_refusals_without_a_key(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    keyless = KeylessRefusals()
    for number in range(600):
        now = 100.0 + number / 250
        keyless.add(AccessRecord(f"req_{number}", now, status=401, reason="wrong_key"))
        keyless.tick()
    keyless.write()
    keyless.write()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.rpartition(" requests=")[2] for line in lines] == ["1", "250", "250", "99"]
    assert lines[1].startswith("id=req_250 status=401 ")
    assert " reason=wrong_key " in lines[1]
