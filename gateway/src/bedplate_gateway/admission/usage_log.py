"""A file of the limits' usage in the last minute. It outlives the process, kill -9 included."""

import json
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from bedplate_gateway.admission.limits import TOKEN_STEP_SECONDS, WINDOW_SECONDS, Usage

log = logging.getLogger(__name__)

ROTATE_BYTES = 4 * 1024 * 1024
ROTATE_SECONDS = WINDOW_SECONDS + TOKEN_STEP_SECONDS


class UsageLog:
    """A file with one line of JSON per usage. Its times are valid for one boot, so it is in /run.

    Call `read` first, then `rewrite`, which opens it for appending. A file that is large and as long as the
    window is kept as the older one, in place of a file whose usages count no more: that takes no time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._older = path.with_suffix(".older")
        self._descriptor = -1
        self._written = 0
        self._began = self._newest = float("-inf")
        self.failed = False
        """Whether the file cannot be written, so that the usage is only in memory."""
        self.export: Callable[[], Iterable[Usage]] = lambda: ()

    def read(self) -> list[Usage]:
        """Return the content, of each file up to the first incomplete line, which a kill can leave."""
        return [*_read(self._older), *_read(self._path)]

    def rewrite(self) -> None:
        """Replace the files by one that holds only what counts now, and append to that."""
        temporary = self._path.with_suffix(".new")
        content = "".join(json.dumps(usage) + "\n" for usage in self.export())
        try:
            self._open(temporary)
            self._write(content)
            temporary.replace(self._path)
            self._older.unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self._fail(error)
            return
        if self.failed:
            self.failed = False
            log.warning("%s is written again.", self._path)

    def append(self, usage: Usage) -> None:
        """Write one usage; does nothing where the file is not open."""
        if self._descriptor < 0:
            return
        if usage.amount > 0:
            # A refund has the time of what it refunds.
            self._newest = max(self._newest, usage.at)
        try:
            if self._written > ROTATE_BYTES and self._newest - self._began > ROTATE_SECONDS:
                self._path.replace(self._older)
                self._open(self._path)
            # Written through at once, so that only a power cut can lose it.
            self._write(json.dumps(usage) + "\n")
        except OSError as error:
            self._fail(error)

    def retry(self) -> None:
        """Write the file anew if it could not be written; call it every few seconds."""
        if self.failed:
            self.rewrite()

    def close(self) -> None:
        """Stop writing, for instance since another process continues the file."""
        self.failed = False
        self._close_file()

    def _open(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        self._close_file()
        self._descriptor, self._written, self._began = descriptor, 0, self._newest

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, text: str) -> None:
        data = text.encode()
        self._written += len(data)
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _fail(self, error: OSError) -> None:
        """Go on in memory; half a line may be in the file, so nothing may be appended to it."""
        self._close_file()
        if not self.failed:
            self.failed = True
            log.error(
                "%s cannot be written (%s): limits hold, but a restart forgets the last minute; make room.",
                self._path,
                error.strerror,
            )


def _read(path: Path) -> list[Usage]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    usages = []
    for line in lines:
        try:
            usages.append(Usage(*json.loads(line)))
        except (ValueError, TypeError):
            break
    return usages
