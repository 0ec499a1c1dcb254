"""A chat answer as it comes in: the times of its tokens, its usage, and whether it is whole."""

import time
from array import array
from collections.abc import Callable
from typing import Any

import orjson

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_MESSAGE_CHARACTERS = 300
SHORTEST_SECRET = 8
NO_CHUNK = "the stream holds something that is no chunk of an answer"
NO_ANSWER = "the body is no chat answer"


class Answer:
    """One answer of /v1/chat/completions, streamed or not."""

    __slots__ = (
        "_done",
        "_has_text",
        "_has_usage",
        "_pieces",
        "_rest",
        "_size",
        "completion_tokens",
        "on_first_token",
        "prompt_tokens",
        "stream",
        "token_times",
    )

    def __init__(self, stream: bool) -> None:
        """`stream`: it comes as server-sent events."""
        self.stream = stream
        self.on_first_token: Callable[[], object] | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.token_times = array("d")
        """When each piece with a token came, in seconds of the monotonic clock."""
        self._pieces: list[bytes] = []
        self._rest = b""
        self._size = 0
        self._done = False
        self._has_text = False
        self._has_usage = False

    def take(self, status: int, piece: bytes) -> str | None:
        """Take a piece of the body; the return value, unless None, says what is wrong with it."""
        self._size += len(piece)
        if self._size > MAX_ANSWER_BYTES:
            return f"the answer is longer than {MAX_ANSWER_BYTES} bytes"
        if not self.stream or status != 200:
            self._pieces.append(piece)
            return None
        now = time.monotonic()
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (error := self._event(line[5:].strip(), now)) is not None:
                return error
        return None

    def fault(self, status: int | None) -> str | None:
        """Return, at the end, why the answer is not whole; None when it is."""
        if status != 200:
            return error_message(status, b"".join(self._pieces))
        if not self.stream and (error := self._whole(b"".join(self._pieces))) is not None:
            return error
        if self.stream and not self._done:
            return "the stream ended without [DONE]"
        if not self._has_text:
            return "the answer is empty"
        if not self._has_usage:
            return "the answer has no usage block"
        return None

    def _event(self, data: bytes, now: float) -> str | None:
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
            self._count(chunk.get("usage"))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return NO_CHUNK
        return None

    def _whole(self, body: bytes) -> str | None:
        try:
            answer = orjson.loads(body)
            self._has_text = any(_has_token(choice["message"]) for choice in answer["choices"])
            self._count(answer.get("usage"))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return NO_ANSWER
        return None

    def _count(self, usage: Any) -> None:
        if usage:
            self.prompt_tokens = int(usage["prompt_tokens"])
            self.completion_tokens = int(usage["completion_tokens"])
            self._has_usage = True


def _has_token(message: dict[str, Any]) -> bool:
    # Text, reasoning and tool calls are tokens; a role alone is not.
    return bool(message.get("content")) or any(value for name, value in message.items() if name != "role")


def error_message(status: int | None, body: bytes) -> str:
    """Return an error answer's status with the server's own words, where it has some."""
    try:
        answer = orjson.loads(body)
        words = answer.get("error", answer.get("detail"))
        words = words.get("message") if isinstance(words, dict) else words
    except (ValueError, AttributeError, RecursionError):
        words = None
    return f"status {status}: {words}" if words else f"status {status}"


def printable(message: str, key: str) -> str:
    """Return a server's words as one printable line without the key."""
    # What is shorter is no secret, but may be a word of the message.
    shown = message.replace(key, "[key]") if len(key) >= SHORTEST_SECRET else message
    line = " ".join(shown.split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:MAX_MESSAGE_CHARACTERS]
