"""The time by which keys expire: a clock that steps back makes no expired key valid again."""

import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

STEP_SECONDS = 300.0
"""How far the clock may be behind the newest time seen before that is reported."""
JUMP_SECONDS = 86400.0
"""How far it may be ahead of it; a host that was off for longer is reported too: one line."""
HOLD_SECONDS = 3600.0
"""How long it must stay that far ahead to be believed: time servers correct a wrong clock within minutes."""
SAVE_SECONDS = 60.0


class ExpiryClock:
    """The system's clock, but never before the newest time seen, which a file keeps across reboots."""

    def __init__(self, path: Path) -> None:
        self.offset = 0.0
        """Seconds by which the clock is behind (negative) or far ahead of the newest time seen, else 0."""
        self._path = path
        self._newest = path.stat().st_mtime if path.exists() else time.time()
        self._saved = self._ahead_since = float("-inf")
        self._fails = False
        self.check()

    def now(self) -> datetime:
        """Return the time."""
        return datetime.fromtimestamp(max(time.time(), self._newest), UTC)

    def check(self) -> None:
        """Compare the clock with the newest time seen, and save that; call it a few times per minute."""
        wall, elapsed, before = time.time(), time.monotonic(), self.offset
        self.offset = wall - self._newest
        if self.offset < -STEP_SECONDS:
            if before >= 0:
                log.warning(
                    "The clock shows %s, but %s was seen before: keys expire by the later time; "
                    "correct the clock, or remove %s if the later time is wrong, and restart.",
                    *(_text(wall), _text(self._newest), self._path),
                )
        elif self.offset > JUMP_SECONDS:
            if before <= 0:
                self._ahead_since = elapsed
                log.warning(
                    "The clock shows %s, and the newest time before was %s: keys that expired in between "
                    "are refused; if it is wrong, correct it within an hour.",
                    *(_text(wall), _text(self._newest)),
                )
            if elapsed - self._ahead_since >= HOLD_SECONDS:
                self._see(wall, elapsed)
        else:
            self._see(wall, elapsed)

    def _see(self, wall: float, elapsed: float) -> None:
        self.offset = 0.0
        self._newest = max(self._newest, wall)
        if elapsed - self._saved < SAVE_SECONDS:
            return
        self._saved = elapsed
        try:
            # The file has no content, so that it needs no room.
            self._path.touch(0o600)
            os.utime(self._path, (self._newest, self._newest))
        except OSError as error:
            if not self._fails:
                log.warning("%s cannot be written (%s): make room there.", self._path, error.strerror)
            self._fails = True
        else:
            self._fails = False


def _text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
