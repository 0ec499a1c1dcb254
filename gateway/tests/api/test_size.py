import json
from typing import Any

import pytest
from bedplate_gateway.api.size import (
    BYTES_PER_VALUE,
    MAX_IMAGES,
    MAX_TEXT_BYTES,
    MAX_VALUES,
    check_size,
    pack,
    unpack,
    values_in,
)
from bedplate_gateway.errors import ApiError
from hypothesis import given
from hypothesis import strategies as st

from gateway.tests.odd_requests import anything

IMAGE = b'"data:image/png;base64,%s"'


def refusal(raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_size(raw)
    return caught.value


def count(value: Any) -> int:
    """Return how many elements and members a value has."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(1 + count(each) for each in inner)


@given(anything | st.text('\\\\"[]{},', max_size=20), st.booleans())
def test_no_value_escapes_the_count_and_no_text_is_counted(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    assert values_in(text) >= count(value)
    if isinstance(value, str):
        assert values_in(text) == 0


def test_values_are_bounded_and_those_in_strings_are_none() -> None:
    check_size(b"[" + b"1," * (MAX_VALUES - 2) + b"1]")
    error = refusal(b"[" + b"1," * MAX_VALUES + b"1]")
    assert (error.status, error.code) == (400, "too_many_values")
    check_size(b'["' + b'1,[{\\"' * MAX_VALUES + b'"]')


def test_long_numbers_and_long_space_count_as_several_values() -> None:
    for unit in (b"9", b" "):
        check_size(unit * (BYTES_PER_VALUE * MAX_VALUES - 1))
        assert refusal(unit * BYTES_PER_VALUE * (MAX_VALUES + 1)).code == "too_many_values"


def test_text_is_bounded_and_images_are_no_text() -> None:
    check_size(IMAGE % (b"A" * 2 * MAX_TEXT_BYTES))
    for mark in (b'"data":"', b'"data": "'):
        check_size(b'{%s%s"}' % (mark, b"A" * 2 * MAX_TEXT_BYTES))
    for raw in (
        b'"%s"' % (b"A" * MAX_TEXT_BYTES),
        IMAGE % (b'A", "' + b"A" * MAX_TEXT_BYTES),
        # What never ends is no image.
        b";base64," + b"A" * (MAX_TEXT_BYTES + 1),
        b",".join([IMAGE % (b"A" * 1000)] * (MAX_IMAGES + MAX_TEXT_BYTES // 1000)),
    ):
        error = refusal(raw)
        assert (error.status, error.code) == (413, "request_too_large")
        assert "Without its images" in error.message


def test_a_packed_body_comes_back_in_about_the_size_of_its_text() -> None:
    body = {"a": [{"b": {}}] * 1000, "c": "\U0001f600" * 1000, "d": [1, 2.5, None, True, 10**400]}
    assert unpack(pack(body)) == body
    assert len(pack(body)) < 2 * len(json.dumps(body))
