"""Server-sent events: each look is rendered and compressed once, and the same bytes go to every browser."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .poller import Poller

MOST_STREAMS = 250
"""Each holds a thread; whoever comes later asks /live instead."""

SILENCE_SECONDS = 1.0
"""How long a stream waits before it looks whether the process is about to end."""

RETRY_MILLISECONDS = 2000
GZIP_HEAD = bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3))


@dataclass(frozen=True)
class Frame:
    """One event as it goes out; `packed` can stand anywhere in a gzip stream."""

    number: int
    plain: bytes
    packed: bytes


class Full(Exception):  # noqa: N818 - nothing is wrong with the stream that is refused
    """There are as many streams as may be."""


class Events:
    """The stream of looks."""

    def __init__(self, poller: Poller, render: Callable[[], str]) -> None:
        """`render` makes the text of the last look, called once for each."""
        self._poller = poller
        self._render = render
        self._lock = threading.Lock()
        self._frame: Frame | None = None
        self._stopping: Callable[[], bool] = lambda: False
        self.streams = 0

    def stop_when(self, stopping: Callable[[], bool]) -> None:
        """Have every stream end once `stopping` says so."""
        self._stopping = stopping

    def open(self, *, packed: bool) -> Iterator[bytes]:
        """Return the bytes of one stream, without end, to be followed by `close`; raises Full."""
        with self._lock:
            if self.streams >= MOST_STREAMS:
                raise Full
            self.streams += 1
        return self._send(packed)

    def close(self) -> None:
        """Count one stream less."""
        with self._lock:
            self.streams -= 1

    def _send(self, packed: bool) -> Iterator[bytes]:
        head = f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        yield GZIP_HEAD + pack(head) if packed else head
        number = -1
        while not self._stopping():
            latest = self._poller.wait(number, SILENCE_SECONDS)
            if latest != number:
                frame = self._latest(latest)
                number = frame.number
                yield frame.packed if packed else frame.plain

    def _latest(self, number: int) -> Frame:
        with self._lock:
            if self._frame is None or self._frame.number != number:
                text = "".join(f"data: {line}\n" for line in self._render().splitlines())
                plain = f"event: live\nid: {number}\n{text}\n".encode()
                self._frame = Frame(number, plain, pack(plain))
            return self._frame


def pack(content: bytes) -> bytes:
    """Compress into blocks that need nothing before them."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH)
