from bedplate_gateway.access_log import AccessRecord


def test_a_line_has_every_field_in_order_and_a_placeholder_for_a_missing_value() -> None:
    assert AccessRecord("req_1", 5.0).line() == (
        "id=req_1 status=0 alias=- class=- model=- engine=- lane=- path=- stream=no wait=- ttft=- "
        "seconds=0.000s tokens_in=0 tokens_out=0 retries=0 reason=-"
    )


def test_estimated_tokens_are_marked() -> None:
    record = AccessRecord("req_1", 5.0, stream=True, wait=0.5, completion_tokens=7, estimated=True)
    assert " stream=yes wait=0.500s " in record.line()
    assert " tokens_out=~7 " in record.line()
