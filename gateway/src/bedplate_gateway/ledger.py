"""What was used of the limits in the last minute, in a file that outlives the process, kill -9 included."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from bedplate_gateway.limits import Use

REWRITE_BYTES = 4 * 1024 * 1024


class Ledger:
    """A file of one JSON line a use. Its times are of one boot, so it lies in /run."""

    def __init__(self, path: Path) -> None:
        """Name the file; `read` comes first, then `rewrite` opens it."""
        self._path = path
        self._descriptor = -1
        self._written = 0
        self.export: Callable[[], Iterable[Use]] = lambda: ()

    def read(self) -> list[Use]:
        """Return what is written there; a line that a kill cut in two ends it."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        uses = []
        for line in lines:
            try:
                uses.append(Use(*json.loads(line)))
            except (ValueError, TypeError):
                break
        return uses

    def rewrite(self) -> None:
        """Write only what counts now into a new file, and go on there."""
        content = "".join(json.dumps(use) + "\n" for use in self.export())
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        os.write(descriptor, content.encode())
        temporary.replace(self._path)
        self.close()
        self._descriptor = descriptor
        self._written = 0

    def append(self, use: Use) -> None:
        """Write one use down; nothing where the file is not open."""
        if self._descriptor < 0:
            return
        # Written through at once, so that only a power cut can lose it.
        self._written += os.write(self._descriptor, json.dumps(use).encode() + b"\n")
        if self._written > REWRITE_BYTES:
            self.rewrite()

    def close(self) -> None:
        """Write no more, for instance since another process goes on with the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
