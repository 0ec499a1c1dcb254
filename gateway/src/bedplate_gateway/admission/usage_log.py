"""A file of the limits' usage in the last minute. It outlives the process, kill -9 included."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from bedplate_gateway.admission.limits import Usage

REWRITE_BYTES = 4 * 1024 * 1024


class UsageLog:
    """A file with one line of JSON per usage. Its times are valid for one boot, so it is in /run.

    Call `read` first, then `rewrite`, which opens it for appending.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._written = 0
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
        content = "".join(json.dumps(usage) + "\n" for usage in self.export())
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        os.write(descriptor, content.encode())
        temporary.replace(self._path)
        self.close()
        self._descriptor = descriptor
        self._written = 0

    def append(self, usage: Usage) -> None:
        """Write one usage; does nothing where the file is not open."""
        if self._descriptor < 0:
            return
        # Written through at once, so that only a power cut can lose it.
        self._written += os.write(self._descriptor, json.dumps(usage).encode() + b"\n")
        if self._written > REWRITE_BYTES:
            self.rewrite()

    def close(self) -> None:
        """Stop writing, for instance since another process continues the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
