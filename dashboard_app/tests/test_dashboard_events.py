"""Events: each look goes out to everybody, rendered and packed once; streams have a bound and an end."""

from __future__ import annotations

import dataclasses
import threading
import zlib
from collections.abc import Iterator

import pytest
from bedplate_dashboard import events
from bedplate_dashboard.collect import Observation
from bedplate_dashboard.events import Events, Full
from bedplate_dashboard.poller import Poller


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
    """The stream after what it begins with."""
    next(content)
    return content


def test_the_last_look_comes_at_once_and_each_new_one_once(
    poller: Poller, stream: Events, pages: Pages, all_well: Observation
) -> None:
    poller.take(all_well)
    first, second = stream.open(packed=False), stream.open(packed=False)
    assert next(first) == b"retry: 2000\n\n"
    event = next(first)
    assert event == b"event: live\nid: 1\ndata: <main>\ndata: 1\ndata: </main>\n\n"
    assert next(skip_head(second)) == event
    assert pages.rendered == 1
    threading.Timer(0.2, poller.take, (all_well,)).start()
    assert next(first).startswith(b"event: live\nid: 2\ndata: <main>\ndata: 2\n")
    assert next(second).startswith(b"event: live\nid: 2\n")
    assert pages.rendered == 2


def test_packed_streams_share_the_packed_event(poller: Poller, stream: Events, all_well: Observation) -> None:
    poller.take(all_well)
    early = stream.open(packed=True)
    sent = [next(early), next(early)]
    poller.take(dataclasses.replace(all_well, seconds=0.02))
    sent.append(next(early))
    late = stream.open(packed=True)
    begun = next(late)
    assert next(late) == sent[2]
    for parts in (sent, [begun, sent[2]]):
        # A browser reads each event as it comes, without the end of the stream.
        reader = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        texts = [reader.decompress(part) for part in parts]
        assert texts[0] == b"retry: 2000\n\n"
        assert all(text.endswith(b"\n\n") for text in texts)


def test_there_are_only_so_many_streams(stream: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_STREAMS", 2)
    stream.open(packed=False)
    stream.open(packed=False)
    with pytest.raises(Full):
        stream.open(packed=False)
    stream.close()
    stream.open(packed=False)
    assert stream.streams == 2


def test_streams_end_with_their_process(
    stream: Events, poller: Poller, all_well: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "SILENCE_SECONDS", 0.05)
    poller.take(all_well)
    stopping = threading.Event()
    stream.stop_when(stopping.is_set)
    content = stream.open(packed=False)
    threading.Timer(0.2, stopping.set).start()
    assert len(list(content)) == 2
