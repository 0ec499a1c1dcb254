"""The record of one finished request: a line in the journal, and the source of the metrics."""

import logging
import time
from dataclasses import dataclass

from bedplate_gateway.settings import PriorityClass

log = logging.getLogger("bedplate_gateway.request")

KEYLESS_SECONDS = 1.0
NONE = "-"
"""Placeholder for a missing value, and for what a client chooses and the settings do not declare."""
UNREAD = "(unread)"
"""The model of a request whose key was refused before the body, which names the model, was read."""


@dataclass(slots=True)
class AccessRecord:
    """One request. The fields are part of the handover protocol: see `handover`.

    `arrived` is a monotonic time; the other times are seconds since then, except `wait` (in the queue) and
    `service` (on the engine), which are durations.
    """

    id: str
    arrived: float
    path: str = NONE
    alias: str = NONE
    priority_class: PriorityClass | None = None
    model: str = NONE
    engine: str = NONE
    stream: bool = False
    wait: float | None = None
    first_byte: float | None = None
    service: float | None = None
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    retries: int = 0
    truncated: bool = False
    status: int = 0
    reason: str = NONE
    lane: str = NONE
    """The way to the engine: litellm, direct or bypass."""
    requested: str = NONE
    """The model that the client requested, where a fallback answered in its place."""
    cost: float = 0.0
    """In dollars; 0 for local models."""

    def line(self) -> str:
        """Return one line of key=value pairs, always in the same order."""
        fields = {
            "id": self.id,
            "status": self.status,
            "alias": self.alias,
            "class": self.priority_class or NONE,
            "model": self.model,
            "engine": self.engine,
            "lane": self.lane,
            "path": self.path,
            "stream": "yes" if self.stream else "no",
            "wait": _seconds(self.wait),
            "ttft": _seconds(self.first_byte),
            "seconds": _seconds(self.seconds),
            "tokens_in": self.prompt_tokens,
            "tokens_out": f"~{self.completion_tokens}" if self.estimated else self.completion_tokens,
            "retries": self.retries,
            "reason": self.reason,
        }
        if self.requested != NONE:
            fields["requested"] = self.requested
        if self.cost:
            fields["dollars"] = f"{self.cost:.6f}"
        return " ".join([f"{name}={value}" for name, value in fields.items()])

    def write(self) -> None:
        """Write the line to the journal."""
        log.info("%s", self.line())


class KeylessRefusals:
    """Refused requests without a valid key: at most one line a second stands for all of them."""

    def __init__(self) -> None:
        self._last: AccessRecord | None = None
        self._requests = 0
        self._written = float("-inf")

    def add(self, record: AccessRecord) -> None:
        """Count one; it is in the next line."""
        self._last = record
        self._requests += 1

    def tick(self) -> None:
        """Write the line if it is due; call it a few times per second."""
        if time.monotonic() - self._written >= KEYLESS_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the line of the newest one, with the number of all, if there are any."""
        if self._last is not None:
            log.info("%s requests=%d", self._last.line(), self._requests)
            self._last, self._requests, self._written = None, 0, time.monotonic()


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}s"
