"""One poll of an Ollama engine: version, models present, models loaded."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, TypeVar

import httpx

T = TypeVar("T")
Fault = Literal["stopped", "hung", "broken"]

TIMEOUT_SECONDS = 1.0
"""Below the 1.5 s that the dashboard waits for this host: it must show a hung engine within 5 s."""

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Enough for ten thousand models, and a limit for another program on the port that sends without end."""

NEVER_UNLOADED = timedelta(days=3650)
TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")
"""Ollama writes "keep for ever" as a time some 290 years ahead."""


class EngineError(Exception):
    """The engine returned no usable answer; the message is one sentence for the operator.

    `fault` is `stopped` if no process listens, `hung` after a timeout, else `broken`.
    """

    def __init__(self, message: str, fault: Fault = "broken") -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model on the engine's disk, and how it is loaded. Sizes are bytes, the context is tokens."""

    name: str
    digest: str
    size_bytes: int
    loaded: bool = False
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    context_length: int | None = None
    expires_at: datetime | None = None
    """When the engine unloads it; None if it is not loaded or is never unloaded."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The engine at one moment: `error` is None if it is up; `latency_seconds` is the poll's duration."""

    at: datetime
    latency_seconds: float
    version: str | None = None
    error: str | None = None
    fault: Fault | None = None
    models: tuple[Model, ...] = ()

    @property
    def up(self) -> bool:
        """Whether all of the engine's answers were usable."""
        return self.error is None


class Engine:
    """An Ollama engine at a base URL; polling never loads a model. `timeout_seconds` bounds a poll."""

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        # The environment's proxies are for downloads, not for the engine.
        self._client = httpx.Client(base_url=url, trust_env=False)

    def poll(self) -> State:
        """Return the engine's state; a failure is a state with an error, not an exception."""
        at, start = datetime.now(timezone.utc), time.monotonic()
        try:
            deadline = start + self._timeout_seconds
            version = self._query("/api/version", _parse_version, deadline)
            present = self._query("/api/tags", _parse_present, deadline)
            models = self._query("/api/ps", lambda answer: _add_loaded(present, answer), deadline)
        except EngineError as error:
            return State(at=at, latency_seconds=time.monotonic() - start, error=str(error), fault=error.fault)
        return State(at=at, latency_seconds=time.monotonic() - start, version=version, models=models)

    def _query(self, path: str, parse: Callable[[Any], T], deadline: float) -> T:
        answer = self._read(path, deadline)
        try:
            return parse(json.loads(answer))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise EngineError(
                f"{self._url}{path} answered, but not as Ollama does: check which program listens there."
            ) from None

    def _read(self, path: str, deadline: float) -> bytes:
        late = EngineError(
            f"Ollama at {self._url} did not answer {path} within {self._timeout_seconds:g} s: "
            "look into `journalctl -u ollama`.",
            "hung",
        )
        if (remaining := deadline - time.monotonic()) <= 0:
            raise late
        body = bytearray()
        try:
            with self._client.stream("GET", path, timeout=remaining) as response:
                if response.status_code != httpx.codes.OK:
                    raise EngineError(
                        f"Ollama at {self._url} answered {path} with status {response.status_code}: "
                        "look into `journalctl -u ollama`."
                    )
                for chunk in response.iter_bytes():
                    body += chunk
                    # httpx limits each wait, not their sum.
                    if time.monotonic() > deadline:
                        raise late
                    if len(body) > MAX_ANSWER_BYTES:
                        raise EngineError(
                            f"{self._url}{path} sends more than {MAX_ANSWER_BYTES} bytes: "
                            "check which program listens there."
                        )
        except httpx.TimeoutException:
            raise late from None
        except httpx.ConnectError:
            raise EngineError(
                f"Ollama does not listen at {self._url}: see `systemctl status ollama`.", "stopped"
            ) from None
        except httpx.HTTPError as error:
            raise EngineError(
                f"Ollama at {self._url} closed the connection while answering {path} "
                f"({type(error).__name__}): look into `journalctl -u ollama`."
            ) from None
        return bytes(body)


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    # Raises for an unpaired surrogate, which JSON in UTF-8 cannot contain.
    value.encode()
    return value


def _check_count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    if not 0 <= value < 2**63:
        raise ValueError
    return value


def _normalize_digest(value: Any) -> str:
    """Return a digest as sha256:HEX; Ollama's lists omit the prefix."""
    return f"sha256:{_check_text(value).removeprefix('sha256:')}"


def _parse_version(answer: Any) -> str:
    return _check_text(answer["version"])


def _parse_present(answer: Any) -> tuple[Model, ...]:
    # Go writes an empty list as null.
    return tuple(
        Model(
            name=_check_text(entry["name"]),
            digest=_normalize_digest(entry["digest"]),
            size_bytes=_check_count(entry["size"]),
        )
        for entry in answer["models"] or ()
    )


def _parse_expiry(value: Any) -> datetime | None:
    # Go writes up to nine decimals and a Z, which Python 3.10 does not parse.
    match = TIMESTAMP.fullmatch(_check_text(value))
    if match is None:
        raise ValueError
    second, fraction, zone = match.groups()
    moment = f"{second}.{(fraction or '')[:6]:0<6}{zone.replace('Z', '+00:00')}"
    expires_at = datetime.fromisoformat(moment).astimezone(timezone.utc)
    return None if expires_at - datetime.now(timezone.utc) > NEVER_UNLOADED else expires_at


def _add_loaded(present: tuple[Model, ...], answer: Any) -> tuple[Model, ...]:
    # By digest, not by name: a copy under a second name shares the loaded weights.
    loaded = {_normalize_digest(entry["digest"]): entry for entry in answer["models"] or ()}
    return tuple(
        replace(
            model,
            loaded=True,
            memory_bytes=_check_count(entry["size"]),
            gpu_memory_bytes=_check_count(entry["size_vram"]),
            context_length=_check_count(entry["context_length"]),
            expires_at=_parse_expiry(entry["expires_at"]),
        )
        if (entry := loaded.get(model.digest))
        else model
        for model in present
    )
