"""Events: each poll is rendered and compressed once for all browsers; streams are limited and end."""

import dataclasses
import threading
import zlib
from collections.abc import Iterator

import pytest
from bedplate_dashboard.health.poller import Poller
from bedplate_dashboard.sources.collect import Observation
from bedplate_dashboard.web import events
from bedplate_dashboard.web.events import Events, TooManyStreamsError


class Pages:
    """Renders, and counts how often."""

    def __init__(self) -> None:
        self.rendered = 0

    def __call__(self) -> str:
        self.rendered += 1
        return f"<main>\n{self.rendered}\r\n</main>"


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def stream(poller: Poller, pages: Pages) -> Events:
    return Events(poller, pages)


def skip_head(content: Iterator[bytes]) -> Iterator[bytes]:
    """Skip what a stream begins with."""
    next(content)
    return content


def test_the_last_poll_is_sent_at_once_and_each_new_poll_once(
    poller: Poller, stream: Events, pages: Pages, all_well: Observation
) -> None:
    poller.update(all_well)
    first, second = stream.open(compressed=False), stream.open(compressed=False)
    assert next(first) == b"retry: 2000\n\n"
    event = next(first)
    assert event == b"event: live\nid: 1\ndata: <main>\ndata: 1\ndata: </main>\n\n"
    assert next(skip_head(second)) == event
    assert pages.rendered == 1
    threading.Timer(0.2, poller.update, (all_well,)).start()
    assert next(first).startswith(b"event: live\nid: 2\ndata: <main>\ndata: 2\n")
    assert next(second).startswith(b"event: live\nid: 2\n")
    assert pages.rendered == 2


def test_compressed_streams_share_one_event(poller: Poller, stream: Events, all_well: Observation) -> None:
    poller.update(all_well)
    early = stream.open(compressed=True)
    sent = [next(early), next(early)]
    poller.update(dataclasses.replace(all_well, seconds=0.02))
    sent.append(next(early))
    late = stream.open(compressed=True)
    begun = next(late)
    assert next(late) == sent[2]
    for chunks in (sent, [begun, sent[2]]):
        # A browser reads each event as it arrives, without the end of the stream.
        reader = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        texts = [reader.decompress(chunk) for chunk in chunks]
        assert texts[0] == b"retry: 2000\n\n"
        assert all(text.endswith(b"\n\n") for text in texts)


def test_the_number_of_streams_is_limited(stream: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 2)
    stream.open(compressed=False)
    stream.open(compressed=False)
    with pytest.raises(TooManyStreamsError):
        stream.open(compressed=False)
    stream.close()
    stream.open(compressed=False)
    assert stream.streams == 2


def test_streams_end_with_their_process(
    stream: Events, poller: Poller, all_well: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STOP_CHECK_SECONDS", 0.05)
    poller.update(all_well)
    stopping = threading.Event()
    stream.stop_when(stopping.is_set)
    content = stream.open(compressed=False)
    threading.Timer(0.2, stopping.set).start()
    assert len(list(content)) == 2
