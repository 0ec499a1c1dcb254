"""What a body may cost: it is measured before it is parsed, and packed while its request waits.

Parsing alone can take seconds of the event loop: each value with its checks about 1 µs, a MiB of text 7 ms.
Parsed values take up to 30 times the memory of their text.
"""

import marshal
from typing import Any, Final

from bedplate_gateway.errors import bad_request, text_too_large

MAX_TEXT_BYTES: Final = 4 * 1024 * 1024
"""Bytes of a body without its images: about a million tokens."""
MAX_VALUES: Final = 32_768
"""JSON values in a body, or in all arguments of its tool calls together."""
MAX_IMAGES: Final = 256
"""Images of an API that do not count as text; the data of further ones does."""

BYTES_PER_VALUE: Final = 16
"""A number, or the space before a value, that is longer than this counts as several values."""

_MARKS: Final = (b";base64,", b'"data":"', b'"data": "')
"""Before the data of an image: in OpenAI's API, and in Anthropic's."""


def check_size(raw: bytes) -> None:
    """Raise ApiError 413 or 400 where a body would take too long to parse."""
    text = raw
    if len(raw) > MAX_TEXT_BYTES:
        text = _without_images(raw)
        if len(text) > MAX_TEXT_BYTES:
            raise text_too_large(MAX_TEXT_BYTES)
    # A value takes two bytes. Most bodies have few values even if the commas in their strings are counted.
    if len(text) > 2 * MAX_VALUES and _count(text) > MAX_VALUES and values_in(text) > MAX_VALUES:
        raise bad_request(
            f"The body has more than {MAX_VALUES} JSON values: send fewer messages and smaller tools.",
            None,
            "too_many_values",
        )


def values_in(text: bytes) -> int:
    """Return at most how many array elements and object members a JSON text has."""
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > 4 * MAX_VALUES:
        # Each value has at most two strings, itself and its name.
        return MAX_VALUES + 1
    return _count(b"".join(unescaped.split(b'"')[::2]))


def _count(text: bytes) -> int:
    # Each value follows a comma or an opening bracket.
    separators = text.count(b",") + text.count(b"[") + text.count(b"{")
    return max(separators, len(text) // BYTES_PER_VALUE)


def _without_images(raw: bytes) -> bytes:
    """Return a body without the data of its first images, each of which ends at its string's quote."""
    for mark in _MARKS:
        texts: list[bytes] = []
        start = 0
        while len(texts) < MAX_IMAGES:
            image = raw.find(mark, start)
            end = raw.find(b'"', image + len(mark))
            if image < 0 or end < 0:
                break
            texts.append(raw[start : image + len(mark)])
            start = end
        raw = b"".join([*texts, raw[start:]])
    return raw


def pack(body: dict[str, Any]) -> bytes:
    """Return a body in about the size of its text."""
    return marshal.dumps(body)


def unpack(packed: bytes) -> dict[str, Any]:
    """Return a packed body."""
    body: dict[str, Any] = marshal.loads(packed)  # noqa: S302 - this process has packed it
    return body
