"""docs/reference/api.md has the limits of a request as the gateway has them."""

from pathlib import Path

from bedplate_gateway.admission.body_memory import BODIES
from bedplate_gateway.api.fields import MAX_MESSAGES, MAX_PARTS
from bedplate_gateway.api.size import BYTES_PER_VALUE, MAX_IMAGES, MAX_TEXT_BYTES, MAX_VALUES
from bedplate_gateway.engines.request import STREAM_SECONDS
from bedplate_gateway.settings import Queue, Settings

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "api.md").read_text()
MIB = 1024 * 1024


def test_the_page_has_each_limit() -> None:
    largest = Settings.model_fields["max_body_bytes"].default
    for text in (
        f"`gateway_max_body_bytes`, {largest // MIB} MiB by default | 413",
        f"body without its images | {MAX_TEXT_BYTES // MIB} MiB,",
        f"JSON values in a body | {MAX_VALUES:,} ",
        f"arguments of all tool calls together | {MAX_VALUES:,} ",
        f"tool calls of a message | {MAX_MESSAGES:,} ",
        f"parts of a content | {MAX_PARTS:,} ",
        f"one key's requests in memory ³ | {BODIES // 2} times",
        f"all requests in memory ³ | {BODIES} times",
        f"`size_per_key` of `gateway_queues`, {Queue().size_per_key} by default",
        f"up to {MAX_IMAGES} images",
        f"once for each {BYTES_PER_VALUE} bytes",
        f"200 MiB + 3 * {BODIES} * gateway_max_body_bytes",
        f"That is {200 + 3 * BODIES * largest // MIB} MiB by default.",
    ):
        assert text in PAGE
    assert STREAM_SECONDS == 3600
    assert "a stream as a whole | one hour |" in PAGE
