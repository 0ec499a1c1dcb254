"""A file of the limits' usage in the last minute. It outlives the process, kill -9 included."""

import json
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from bedplate_gateway.admission.limits import Usage

log = logging.getLogger(__name__)

REWRITE_BYTES = 4 * 1024 * 1024


class UsageLog:
    """A file with one line of JSON per usage. Its times are valid for one boot, so it is in /run.

    Call `read` first, then `rewrite`, which opens it for appending.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._written = 0
        self.failed = False
        """Whether the file cannot be written, so that the usage is only in memory."""
        self.export: Callable[[], Iterable[Usage]] = lambda: ()

    def read(self) -> list[Usage]:
        """Return the content up to the first incomplete line, which a kill can leave."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        usages = []
        for line in lines:
            try:
                usages.append(Usage(*json.loads(line)))
            except (ValueError, TypeError):
                break
        return usages

    def rewrite(self) -> None:
        """Replace the file by one that holds only what counts now, and append to that."""
        temporary = self._path.with_suffix(".new")
        content = "".join(json.dumps(usage) + "\n" for usage in self.export())
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            self._close_file()
            self._descriptor = descriptor
            self._write(content)
            temporary.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self._fail(error)
            return
        self._written = 0
        if self.failed:
            self.failed = False
            log.warning("%s is written again.", self._path)

    def append(self, usage: Usage) -> None:
        """Write one usage; does nothing where the file is not open."""
        if self._descriptor < 0:
            return
        try:
            # Written through at once, so that only a power cut can lose it.
            self._write(json.dumps(usage) + "\n")
        except OSError as error:
            self._fail(error)
            return
        if self._written > REWRITE_BYTES:
            self.rewrite()

    def retry(self) -> None:
        """Write the file anew if it could not be written; call it every few seconds."""
        if self.failed:
            self.rewrite()

    def close(self) -> None:
        """Stop writing, for instance since another process continues the file."""
        self.failed = False
        self._close_file()

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
