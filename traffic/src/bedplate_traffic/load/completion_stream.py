"""Reads a chat completion as it arrives: its token times, its usage, and whether it is complete."""

import time
from array import array
from collections.abc import Callable
from typing import Any

import orjson

MAX_BYTES = 64 * 1024 * 1024
MAX_MESSAGE_CHARACTERS = 300
MIN_SECRET_CHARACTERS = 8
INVALID_CHUNK = "the stream contains an invalid chunk"
INVALID_BODY = "the body is not a chat completion"


class Completion:
    """One completion of /v1/chat/completions; `stream`: it arrives as server-sent events."""

    __slots__ = (
        "_buffer",
        "_done",
        "_has_text",
        "_has_usage",
        "_pieces",
        "_size",
        "completion_tokens",
        "on_first_token",
        "prompt_tokens",
        "stream",
        "token_times",
    )

    def __init__(self, stream: bool) -> None:
        self.stream = stream
        self.on_first_token: Callable[[], object] | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.token_times = array("d")
        """When each chunk with a token arrived, in seconds of the monotonic clock."""
        self._pieces: list[bytes] = []
        self._buffer = b""
        self._size = 0
        self._done = False
        self._has_text = False
        self._has_usage = False

    def feed(self, status: int, piece: bytes) -> str | None:
        """Read a piece of the body; returns an error message, None while everything is valid."""
        self._size += len(piece)
        if self._size > MAX_BYTES:
            return f"the answer is longer than {MAX_BYTES} bytes"
        if not self.stream or status != 200:
            self._pieces.append(piece)
            return None
        now = time.monotonic()
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (error := self._read_event(line[5:].strip(), now)) is not None:
                return error
        return None

    def finish(self, status: int | None) -> str | None:
        """Return, after the last piece, why the completion is a failure; None when it is complete."""
        if status != 200:
            return describe_error_response(status, b"".join(self._pieces))
        if not self.stream and (error := self._read_body(b"".join(self._pieces))) is not None:
            return error
        if self.stream and not self._done:
            return "the stream ended without [DONE]"
        if not self._has_text:
            return "the answer is empty"
        if not self._has_usage:
            return "the answer has no usage block"
        return None

    def _read_event(self, data: bytes, now: float) -> str | None:
        if data == b"[DONE]":
            self._done = True
            return None
        try:
            chunk = orjson.loads(data)
            if error := chunk.get("error"):
                return f"the stream ended with an error: {error.get('message')}"
            for choice in chunk.get("choices") or ():
                if _has_token(choice.get("delta") or {}):
                    if not self._has_text and self.on_first_token is not None:
                        self.on_first_token()
                    self._has_text = True
                    self.token_times.append(now)
            self._read_usage(chunk.get("usage"))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return INVALID_CHUNK
        return None

    def _read_body(self, data: bytes) -> str | None:
        try:
            body = orjson.loads(data)
            self._has_text = any(_has_token(choice["message"]) for choice in body["choices"])
            self._read_usage(body.get("usage"))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return INVALID_BODY
        return None

    def _read_usage(self, usage: Any) -> None:
        if usage:
            self.prompt_tokens = int(usage["prompt_tokens"])
            self.completion_tokens = int(usage["completion_tokens"])
            self._has_usage = True


def _has_token(message: dict[str, Any]) -> bool:
    # Text, reasoning and tool calls are tokens; a role alone is not.
    return bool(message.get("content")) or any(value for name, value in message.items() if name != "role")


def describe_error_response(status: int | None, body: bytes) -> str:
    """Return an error response's status, with the server's own message where it has one."""
    try:
        content = orjson.loads(body)
        message = content.get("error", content.get("detail"))
        message = message.get("message") if isinstance(message, dict) else message
    except (ValueError, AttributeError, RecursionError):
        message = None
    return f"status {status}: {message}" if message else f"status {status}"


def sanitize(message: str, key: str) -> str:
    """Return a server's message as one printable line without the key."""
    # A shorter key is no secret, but may be an ordinary word of the message.
    redacted = message.replace(key, "[key]") if len(key) >= MIN_SECRET_CHARACTERS else message
    line = " ".join(redacted.split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:MAX_MESSAGE_CHARACTERS]
