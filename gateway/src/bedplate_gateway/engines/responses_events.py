"""What engines answer at /v1/responses: the usage in it, its end, and whether it is whole.

The events are left as they are; `api.responses` writes those for the client. Source: answers of Ollama 0.24.0
and of LiteLLM 1.110.2.
"""

import json
from collections.abc import Callable
from typing import Any

from bedplate_gateway.engines.sse import ENDED_EARLY, EventBuffer, error_message, json_of, to_event

# Sent before the engine has processed the prompt.
PREAMBLE = frozenset({"response.created", "response.queued", "response.in_progress"})
ENDS = frozenset({"response.completed", "response.incomplete"})
MAX_EQUAL = 30
"""Equal tokens in a row after which Ollama ends an answer, without a word; to the client it is too long."""
MAX_OUTPUT, FILTERED = {"reason": "max_output_tokens"}, {"reason": "content_filter"}


class ResponsesEvents(EventBuffer):
    """A stream of a response; `limit` is the limit on its tokens where the engine does not report its end."""

    def __init__(self, *, limit: int | None, restore: Callable[[bytes], bytes] | None = None) -> None:
        super().__init__(restore)
        self.begun = False
        self._limit = limit
        self._last, self._equal = "", 0

    def finish(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """Return the last events; see `EventBuffer`."""
        if self._equal < MAX_EQUAL:
            # The stream of an Ollama whose runner was killed ends so too.
            self.failure = ENDED_EARLY
            return b""
        self.done = True
        usage = usage_object(prompt_tokens, completion_tokens)
        response = {"status": "incomplete", "incomplete_details": MAX_OUTPUT, "output": [], "usage": usage}
        return to_event({"type": "response.incomplete", "response": response})

    def _process(self, events: bytes) -> bytes:
        chunks = map(json_of, events[:-2].split(b"\n\n"))
        return b"".join(self._inspect(chunk) for chunk in chunks if chunk is not None)

    def _inspect(self, chunk: dict[str, Any]) -> bytes:
        """Return one event, empty where it is dropped."""
        kind, response = chunk.get("type"), chunk.get("response")
        if self.done or self.failure or kind in PREAMBLE:
            return b""
        self.begun = True
        if kind in {"response.failed", "error"} or chunk.get("error"):
            source = response if isinstance(response, dict) else chunk
            self.failure = error_message(source) or "it failed in the middle of the answer"
        elif kind in ENDS and isinstance(response, dict):
            self.done = True
            self.usage = read_usage(response)
            mend(response, self._limit)
            return to_event({"type": f"response.{response['status']}", "response": response})
        elif kind not in ENDS and _is_whole(chunk):
            if "delta" in chunk:
                self._count(chunk["delta"])
            return to_event(chunk)
        return b""

    def _count(self, delta: str) -> None:
        self.events += 1
        text = delta.strip()
        self._equal = self._equal + 1 if text == self._last else 1
        self._last = text


def mend(response: dict[str, Any], limit: int | None) -> None:
    """Give a response the status of its end: Ollama calls one completed that the limit cut off."""
    usage = read_usage(response)
    if usage is None:
        response["usage"] = None
    cut = response.get("status") == "incomplete" or (usage and limit is not None and usage[1] >= limit)
    response["status"] = "incomplete" if cut else "completed"
    details = FILTERED if response.get("incomplete_details") == FILTERED else MAX_OUTPUT
    response["incomplete_details"] = details if cut else None


def read_response(body: bytes) -> dict[str, Any] | None:
    """Return a whole response, or None where it is none."""
    try:
        response = json.loads(body)
    except ValueError:
        return None
    if not isinstance(response, dict) or not isinstance(response.get("output"), list):
        return None
    response["output"] = [item for item in response["output"] if _is_item(item)]
    return response


def read_usage(response: dict[str, Any]) -> tuple[int, int] | None:
    """Return the tokens of input and output; None where the engine did not count them."""
    usage = response.get("usage")
    if not isinstance(usage, dict):
        return None
    given, made = usage.get("input_tokens"), usage.get("output_tokens")
    if not isinstance(given, int) or not isinstance(made, int) or given + made <= 0:
        return None
    return given, made


def usage_object(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the usage object of a response."""
    return {
        "input_tokens": prompt_tokens,
        "output_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def text_bytes(response: dict[str, Any]) -> int:
    """Return the bytes of all texts and calls in a response."""
    texts = [
        part.get("text", "")
        for item in response["output"]
        for part in [*(item.get("summary") or ()), *(item.get("content") or ())]
    ]
    texts += [item.get("arguments", "") for item in response["output"]]
    return sum(len(text.encode()) for text in texts if isinstance(text, str))


def _is_whole(chunk: dict[str, Any]) -> bool:
    """Return whether an event has the fields that its readers use."""
    if "delta" in chunk:
        return isinstance(chunk["delta"], str) and isinstance(chunk.get("output_index"), int)
    if "item" in chunk:
        return _is_item(chunk["item"]) and isinstance(chunk.get("output_index"), int)
    return True


def _is_item(item: object) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("type"), str):
        return False
    parts = [item.get("summary") or [], item.get("content") or []]
    return all(isinstance(each, list) and all(isinstance(part, dict) for part in each) for each in parts)
