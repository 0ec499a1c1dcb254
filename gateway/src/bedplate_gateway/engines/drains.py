"""The drained engines, which get no new request: one file that `make drain` writes, also while we run."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from bedplate_gateway.settings import SettingsError, Strict, parse_file

log = logging.getLogger(__name__)

FILE = "drains.json"
MAX_DRAINS = 1000
MAX_TEXT = 200
# Both become labels of a metric and parts of a sentence: no quotes, no backslash, no control characters.
TEXT = re.compile(r"""^[^"'`\\\x00-\x1f\x7f-\x9f\u2028\u2029]*$""")
Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=TEXT)]


class Drain(Strict):
    """An engine that gets no new request: who drained it, since when, and why."""

    engine: str = Field(min_length=1, max_length=MAX_TEXT)
    who: Text
    since: AwareDatetime
    why: Text = ""


class DrainsFile(Strict):
    """The file drains.json."""

    schema_version: Literal[1] = Field(alias="schema")
    drains: Annotated[tuple[Drain, ...], Field(max_length=MAX_DRAINS)]


class Drains:
    """The drains in a file, by engine; `check` reads it again after a change.

    A file that cannot be read changes nothing: a gateway that refused to start would serve nobody.
    """

    def __init__(self, path: Path) -> None:
        self.by_engine: Mapping[str, Drain] = {}
        self._path = path
        self._seen: tuple[int, ...] = ()
        self.check()

    def check(self) -> bool:
        """Return whether the drains changed since the last call; call it a few times per second."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        before = self.by_engine
        try:
            drains = parse_file(self._path, DrainsFile).drains if seen else ()
        except SettingsError as error:
            log.error("The drained engines stay as they are known: %s", error)
            return False
        self.by_engine = {drain.engine: drain for drain in drains}
        return self.by_engine != before

    def _look(self) -> tuple[int, ...]:
        """Return what differs between two versions of the file; empty where there is none."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return ()
        except OSError:
            return self._seen
        return found.st_ino, found.st_mtime_ns, found.st_size
