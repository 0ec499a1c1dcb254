"""Server-sent events: each poll is rendered and compressed once, and every browser gets the same bytes."""

import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bedplate_dashboard.health.poller import Poller

MAX_STREAMS = 250
"""Each stream holds a thread; further browsers poll /live instead."""

STOP_CHECK_SECONDS = 1.0
"""How long an idle stream waits before it checks whether the process is stopping."""

RETRY_MILLISECONDS = 2000
GZIP_HEAD = bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3))


@dataclass(frozen=True)
class Frame:
    """One event as it is sent; `compressed` is valid at any place of a gzip stream."""

    number: int
    plain: bytes
    compressed: bytes


class TooManyStreamsError(Exception):
    """`MAX_STREAMS` event streams are open already."""


class Events:
    """The event streams; `render` returns the text of the last poll and is called once for each poll."""

    def __init__(self, poller: Poller, render: Callable[[], str]) -> None:
        self._poller = poller
        self._render = render
        self._lock = threading.Lock()
        self._frame: Frame | None = None
        self._is_stopping: Callable[[], bool] = lambda: False
        self.streams = 0

    def stop_when(self, is_stopping: Callable[[], bool]) -> None:
        """End every stream as soon as `is_stopping` returns True."""
        self._is_stopping = is_stopping

    def open(self, *, compressed: bool) -> Iterator[bytes]:
        """Return the endless bytes of one stream; call `close` after it. Raises TooManyStreamsError."""
        with self._lock:
            if self.streams >= MAX_STREAMS:
                raise TooManyStreamsError
            self.streams += 1
        return self._send(compressed)

    def close(self) -> None:
        """Count one stream less."""
        with self._lock:
            self.streams -= 1

    def _send(self, compressed: bool) -> Iterator[bytes]:
        head = f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        yield GZIP_HEAD + compress_block(head) if compressed else head
        number = -1
        while not self._is_stopping():
            latest = self._poller.wait(number, STOP_CHECK_SECONDS)
            if latest != number:
                frame = self._render_frame(latest)
                number = frame.number
                yield frame.compressed if compressed else frame.plain

    def _render_frame(self, number: int) -> Frame:
        with self._lock:
            if self._frame is None or self._frame.number != number:
                text = "".join(f"data: {line}\n" for line in self._render().splitlines())
                plain = f"event: live\nid: {number}\n{text}\n".encode()
                self._frame = Frame(number, plain, compress_block(plain))
            return self._frame


def compress_block(content: bytes) -> bytes:
    """Compress into deflate blocks that do not refer to earlier ones."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush(zlib.Z_FULL_FLUSH)
