"""Server-sent events on their way from engine to client: bytes in, whole events out."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

MAX_EVENT_BYTES = 4 * 1024 * 1024
ENDED_EARLY = "it ended the answer too early"

# JSON escapes a quote inside a string, so these can only be fields. Only events with one of them are parsed.
MARKS = (b'"usage":{', b'"usage": {', b'"error":', b'"model":""', b'"reasoning', b"[DONE]")
MODEL = re.compile(rb'"model":\s*("(?:[^"\\]|\\.)*")')
# Ollama puts this into every event of /v1/completions once usage is requested.
EMPTY_USAGE = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'


def rename_model(body: bytes, model: str) -> bytes:
    """Return an answer or event with its first `model` replaced by the name that the client uses."""
    match = MODEL.search(body)
    if not match or match.group(1) == b'""':
        return body
    name = json.dumps(model).encode()
    return body if match.group(1) == name else body[: match.start(1)] + name + body[match.end(1) :]


def read_usage(answer: dict[str, Any]) -> tuple[int, int] | None:
    """Return the tokens of prompt and completion; None where the engine did not count them."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt + completion <= 0:
        return None
    return prompt, completion


def usage_object(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def name_reasoning(answer: dict[str, Any]) -> bool:
    """Give reasoning both of its names, as clients read either; return whether anything was added.

    Ollama sends `reasoning`, LiteLLM and older vLLM `reasoning_content`.
    """
    added = False
    for choice in _choices_of(answer):
        message = choice.get("delta") or choice.get("message") or {}
        for name, twin in (("reasoning", "reasoning_content"), ("reasoning_content", "reasoning")):
            if message.get(name) and twin not in message:
                message[twin] = message[name]
                added = True
    return added


class EventBuffer(ABC):
    """What a stream of any kind does: bytes in, whole events out.

    `progress` counts the times that events with data came, which comments to keep a connection open are not.
    `done` is whether it ended correctly, `failure` is the engine's error inside it, and `begun` whether the
    engine has processed the prompt. `restore` returns an event as the engine sent it, where something between
    has changed it.
    """

    def __init__(self, restore: Callable[[bytes], bytes] | None = None) -> None:
        self.usage: tuple[int, int] | None = None
        self.events = 0
        self.progress = 0
        self.begun = True
        self.done = False
        self.failure: str | None = None
        self._restore = restore
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the complete events for the client; empty data means the end of the stream."""
        buffer = self._rest + (data or (b"\n\n" if self._rest else b""))
        if b"\r" in buffer:
            # A lone one at the end stays in the rest until its line feed arrives.
            buffer = buffer.replace(b"\r\n", b"\n")
        end = buffer.rfind(b"\n\n") + 2
        if end < 2:
            end = 0
        self._rest = buffer[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            self.failure = f"it sent an event of more than {MAX_EVENT_BYTES} bytes"
            return b""
        events = buffer[:end]
        self.progress += events.startswith(b"data:") or b"\ndata:" in events
        if self._restore is not None and events:
            events = b"".join(map(self._restore, events[:-2].split(b"\n\n")))
        return self._process(events) if events else b""

    @abstractmethod
    def finish(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """Return the events that complete an answer that the engine ended without a finish reason.

        Ollama does so after 30 equal tokens in a row. To the client that is a limit on the length, and the
        tokens are the caller's estimate.
        """

    @abstractmethod
    def _process(self, events: bytes) -> bytes:
        """Return the events for the client of some of the engine's."""


class EventStream(EventBuffer):
    """A stream of a chat or a completion.

    `model` is the name that the client uses, `want_usage` whether the client requested the usage.
    """

    def __init__(
        self, model: str, *, want_usage: bool, restore: Callable[[bytes], bytes] | None = None
    ) -> None:
        super().__init__(restore)
        self._model = model
        self._want_usage = want_usage
        self._last = b""
        self._renames: bool | None = None

    def finish(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """Return the last events; see `EventBuffer`."""
        last = json_of(self._last.rstrip(b"\n").rpartition(b"\n\n")[2])
        choices = _choices_of(last) if last else []
        if last is None or not choices:
            self.failure = ENDED_EARLY
            return b""
        closing = []
        last["model"] = self._model
        if choices[0].get("finish_reason") is None:
            shape: dict[str, Any] = {"text": ""} if "text" in choices[0] else {"delta": {}}
            closing.append(last | {"choices": [{"index": 0, **shape, "finish_reason": "length"}]})
        if self._want_usage and self.usage is None:
            closing.append(last | {"choices": [], "usage": usage_object(prompt_tokens, completion_tokens)})
        self.done = True
        return b"".join(map(to_event, closing)) + b"data: [DONE]\n\n"

    def _process(self, events: bytes) -> bytes:
        if self._renames is None and (match := MODEL.search(events)):
            self._renames = match.group(1) != json.dumps(self._model).encode()
        if EMPTY_USAGE in events:
            events = events.replace(EMPTY_USAGE, b"")
        if _needs_parsing(events):
            events = b"".join(map(self._inspect, events[:-2].split(b"\n\n")))
        else:
            self._count(events)
        if self._renames and events:
            return b"".join(
                rename_model(event + b"\n\n", self._model) for event in events[:-2].split(b"\n\n")
            )
        return events

    def _inspect(self, event: bytes) -> bytes:
        """Return one event for the client, empty where it is dropped."""
        if self.done or self.failure:
            return b""
        whole = event + b"\n\n"
        if not _needs_parsing(event):
            return self._count(whole)
        if data_of(event) == b"[DONE]":
            self.done = True
            return whole
        chunk = json_of(event) or {}
        # Where Ollama fails in a stream its message is lost: it sends an event with an empty model name.
        if chunk.get("error") or chunk.get("model") == "":
            self.failure = error_message(chunk) or "it failed in the middle of the answer"
            return b""
        if name_reasoning(chunk):
            whole = to_event(chunk)
        usage = read_usage(chunk)
        if usage is not None:
            self.usage = usage
            if not any(map(_has_content, _choices_of(chunk))):
                return to_event(chunk | {"choices": []}) if self._want_usage else b""
            if not self._want_usage:
                del chunk["usage"]
                whole = to_event(chunk)
        return self._count(whole)

    def _count(self, events: bytes) -> bytes:
        self.events += events.count(b"\n\n")
        self._last = events
        return events


def error_message(answer: dict[str, Any]) -> str:
    """Return the message of an engine's error, from whichever of the usual fields."""
    error = answer.get("error", answer.get("detail", answer.get("message")))
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _needs_parsing(events: bytes) -> bool:
    return any(mark in events for mark in MARKS)


def _choices_of(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _has_content(choice: dict[str, Any]) -> bool:
    return bool(choice.get("delta") or choice.get("text") or choice.get("finish_reason"))


def data_of(event: bytes) -> bytes:
    """Return the data of one event."""
    return b"\n".join(line[5:].lstrip() for line in event.split(b"\n") if line.startswith(b"data:"))


def json_of(event: bytes) -> dict[str, Any] | None:
    """Return the JSON object in one event."""
    try:
        chunk = json.loads(data_of(event))
    except ValueError:
        return None
    return chunk if isinstance(chunk, dict) else None


def to_event(chunk: dict[str, Any]) -> bytes:
    """Return an event with its empty line."""
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
