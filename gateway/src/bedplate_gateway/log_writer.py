"""The log's way to stderr: a thread writes it, so that a journal that reads nothing stops no request."""

import logging
import os
import threading
import time
from collections import deque

MAX_BYTES = 1024 * 1024
"""Of the lines that wait; what comes after them is dropped and counted."""
GATHER_SECONDS = 0.02
"""How long the thread waits for further lines, so that it wakes up seldom while many come."""
FLUSH_SECONDS = 1.0
"""How long the end of the process waits for the last lines."""


class LogWriter(logging.Handler):
    """Passes lines on in their order, and says in one line how many it had to drop.

    Threads do not survive a fork: make it in the process that logs.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._untold = 0
        self._writing = False
        self._changed = threading.Condition()
        threading.Thread(target=self._write_forever, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line, or drop it where too many wait."""
        line = self.format(record).encode(errors="backslashreplace") + b"\n"
        with self._changed:
            if self._size + len(line) > MAX_BYTES:
                self.dropped += 1
                self._untold += 1
                return
            if not self._lines:
                self._changed.notify_all()
            self._tell_dropped()
            self._add(line)

    def flush(self) -> None:
        """Wait until the lines so far are written, for a bounded time."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._lines or self._writing), FLUSH_SECONDS)

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)

    def _tell_dropped(self) -> None:
        if self._untold:
            told = f"{self._untold} lines of this log were dropped, because nobody read it in time.\n"
            self._add(told.encode())
            self._untold = 0

    def _write_forever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._untold)
            time.sleep(GATHER_SECONDS)
            with self._changed:
                self._tell_dropped()
                lines = b"".join(self._lines)
                self._lines.clear()
                self._size = 0
                self._writing = True
            self._write(lines)
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                # The reader has closed the pipe for good; the next lines must not keep a CPU busy.
                with self._changed:
                    self.dropped += bytes(rest).count(b"\n")
                time.sleep(FLUSH_SECONDS)
                return


def install() -> LogWriter:
    """Send all logging of this process through a writer to stderr."""
    writer = LogWriter(2)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[writer])
    return writer
