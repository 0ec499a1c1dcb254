"""The record of one finished request: a line in the journal, and the source of the metrics."""

import logging
from dataclasses import dataclass

from bedplate_gateway.settings import PriorityClass

log = logging.getLogger("bedplate_gateway.request")

NONE = "-"
"""Placeholder for a missing value, and for what a client chooses and the settings do not declare."""


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
        return " ".join(f"{name}={value}" for name, value in fields.items())

    def write(self) -> None:
        """Write the line to the journal."""
        log.info("%s", self.line())


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}s"
