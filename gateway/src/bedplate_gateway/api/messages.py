"""POST /v1/messages, Anthropic's API: a checked request becomes a chat, and the chat's answer a message.

LiteLLM and Ollama have this endpoint too, and answer it with a chat inside. Their messages would need repair,
each at other places (docs/design/017-messages-are-chats.md), so the gateway writes them from the chat itself.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from bedplate_gateway import errors
from bedplate_gateway.api import messages_schema
from bedplate_gateway.api.fields import read_json, refuse, validated
from bedplate_gateway.api.messages_request import to_chat, wants_thinking
from bedplate_gateway.api.schema import CHAT, MaxOutput, Request, build_request
from bedplate_gateway.errors import ApiError

MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
PING_SECONDS = 10.0
"""After so long without an event a stream gets a ping."""
STATUS_OVERLOADED: Final = 529
TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    STATUS_OVERLOADED: "overloaded_error",
}
"""Anthropic's type of an error by its status; `api_error` for the others."""
_STOP_REASONS: Final = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'

CountTokens = Callable[[str, int], int]
"""Returns the estimated tokens of a prompt of so many bytes for a model."""


# Errors


def status_of(error: ApiError) -> int:
    """Return the status for Anthropic's clients: they know a full queue as 529."""
    return STATUS_OVERLOADED if error.code == "queue_timeout" else error.status


def error_object(error: ApiError, request_id: str | None = None) -> dict[str, Any]:
    """Return an error in Anthropic's shape."""
    kind = TYPES.get(error.status, "api_error")
    shown = {"type": "error", "error": {"type": kind, "message": error.message}}
    return shown | ({"request_id": request_id} if request_id else {})


# Models


def listed_models(listed: dict[str, Any]) -> dict[str, Any]:
    """Return the list of models, or one of them, in Anthropic's shape."""
    if "data" not in listed:
        name = listed["id"]
        return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    data = [listed_models(model) for model in listed["data"]]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "first_id": first, "last_id": last, "has_more": False}


# Requests


def decode(
    raw: bytes, *, default_max_output: MaxOutput, provider_models: frozenset[str] = frozenset()
) -> tuple[bool, Request]:
    """Return whether the client reads thoughts, and the checked request; raises ApiError 400."""
    body = read_json(raw)
    refuse(body, messages_schema.REFUSED)
    given = validated(messages_schema.MESSAGES, body)
    request, thinks = _chat(given, default_max_output), wants_thinking(given)
    if request.model in provider_models and not thinks:
        # Many of them refuse the field; engines ignore it where the model cannot think.
        request = request.without("reasoning_effort")
    return thinks, request


def decode_count(raw: bytes) -> Request:
    """Return the checked request whose tokens are to be counted; raises ApiError 400."""
    body = read_json(raw)
    refuse(body, messages_schema.REFUSED)
    return _chat(validated(messages_schema.COUNT_TOKENS, body), lambda _: None)


def _chat(given: dict[str, Any], default_max_output: MaxOutput) -> Request:
    return build_request(CHAT, to_chat(given), default_max_output=default_max_output)


# Messages


class MessagesAdapter:
    """POST /v1/messages; see `Adapter`. Use one per request."""

    def __init__(
        self,
        default_max_output: MaxOutput,
        count_tokens: CountTokens,
        provider_models: frozenset[str] = frozenset(),
    ) -> None:
        self._default_max_output = default_max_output
        self._count_tokens = count_tokens
        self._provider_models = provider_models

    def decode_request(self, raw: bytes) -> Request:
        """Return the checked request for a body; raises ApiError 400."""
        self._thinks, self._request = decode(
            raw, default_max_output=self._default_max_output, provider_models=self._provider_models
        )
        return self._request

    def fall_back(self, request: Request) -> None:
        """Name the model of another request in the message."""
        self._request = request

    def encode_response(self, body: bytes) -> bytes:
        """Return the message for an engine's whole chat."""
        answer = json.loads(body)
        [choice, *_] = answer["choices"] or [{}]
        message = choice.get("message") or {}
        content: list[dict[str, Any]] = []
        if self._thinks and (thoughts := message.get("reasoning")):
            content.append(_thinking(thoughts))
        if text := message.get("content"):
            content.append(_text(text))
        calls = message.get("tool_calls") or []
        content += [_Call.read(call).block() for call in calls]
        # Clients read the first block of an empty answer too.
        content = content or [_text("")]
        reason = _stop_reason(choice.get("finish_reason"), called=bool(calls))
        usage = _usage(answer["usage"])
        return json.dumps(_message(self._request.model, content, reason, usage)).encode()

    def encode_stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Return the events of the message for those of an engine's chat."""
        request = self._request
        estimate = self._count_tokens(request.model, request.prompt_bytes)
        return with_pings(_written(_Writer(request.model, estimate, thinks=self._thinks), events))


def _message(
    model: str, content: list[dict[str, Any]], reason: str | None, usage: dict[str, int]
) -> dict[str, Any]:
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _thinking(text: str) -> dict[str, Any]:
    # Anthropic's packages require the field; no engine signs.
    return {"type": "thinking", "thinking": text, "signature": ""}


def _stop_reason(finish_reason: str | None, *, called: bool) -> str:
    return "tool_use" if called else _STOP_REASONS.get(finish_reason or "", "end_turn")


def _usage(usage: dict[str, Any]) -> dict[str, int]:
    """Return a chat's usage as Anthropic counts: what came from the engine's cache is no input there."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return _usage_object(usage["prompt_tokens"] - cached, usage["completion_tokens"], cached)


def _usage_object(given: int, made: int, cached: int = 0) -> dict[str, int]:
    return {
        "input_tokens": given,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": made,
    }


@dataclass
class _Call:
    """A call of a tool."""

    id: str
    name: str
    arguments: str

    @classmethod
    def read(cls, given: dict[str, Any]) -> "_Call":
        """Return the call in a chat's answer."""
        function = given.get("function") or {}
        return cls(
            given.get("id") or f"toolu_{secrets.token_hex(12)}",
            function.get("name") or "",
            function.get("arguments") or "",
        )

    def block(self) -> dict[str, Any]:
        """Return the whole call; arguments that are no JSON object are lost."""
        try:
            arguments = json.loads(self.arguments or "{}")
        except ValueError:
            arguments = None
        shown = arguments if isinstance(arguments, dict) else {}
        return {"type": "tool_use", "id": self.id, "name": self.name, "input": shown}


# Streams


async def with_pings(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the events, and a ping after each `PING_SECONDS` without one."""
    following: asyncio.Future[bytes] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(events, b""))
            await asyncio.wait((following,), timeout=PING_SECONDS)
            if not following.done():
                yield _PING
                continue
            event, following = following.result(), None
            if not event:
                return
            yield event
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _written(writer: "_Writer", events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"".join(writer.started())
    rest = b""
    async for part in events:
        *complete, rest = (rest + part).split(b"\n\n")
        if data := b"".join(data for event in complete for data in writer.translated(event)):
            yield data
    if not writer.ended:
        yield writer.failed(errors.empty_stream())


@dataclass
class _Writer:
    """Writes the events of one message as Anthropic does, from the events of a chat."""

    model: str
    estimate: int
    """The estimated tokens of the prompt: a stream begins with them, and ends with the engine's count."""
    thinks: bool = field(kw_only=True)
    ended: bool = False
    _blocks: int = 0
    _open: str = ""
    """The kind of the block that is open."""
    _call: object = None
    """The place of the call that is open, among the calls of the chat."""
    _called: bool = False
    _finish_reason: str | None = None
    _usage: dict[str, int] | None = None

    def started(self) -> Iterator[bytes]:
        """Yield the events before the first block."""
        usage = _usage_object(self.estimate, 0)
        yield _event("message_start", message=_message(self.model, [], None, usage))
        yield _PING

    def translated(self, data: bytes) -> Iterator[bytes]:
        """Yield the events for one of a chat."""
        text = data.partition(b"data:")[2].strip()
        if text == b"[DONE]":
            yield from self._end()
            return
        chunk = json.loads(text)
        if error := chunk.get("error"):
            yield self.failed(ApiError(_status_of_code(error["code"]), error["code"], error["message"]))
            return
        if usage := chunk.get("usage"):
            self._usage = _usage(usage)
        for choice in chunk.get("choices") or ():
            yield from self._delta(choice.get("delta") or {})
            self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def failed(self, error: ApiError) -> bytes:
        """Return the last event of a message that failed."""
        self.ended = True
        return _event(**error_object(error))

    def _delta(self, delta: dict[str, Any]) -> Iterator[bytes]:
        if self.thinks and (thoughts := delta.get("reasoning")):
            yield from self._begin("thinking", _thinking(""))
            yield self._part("thinking_delta", thinking=thoughts)
        if text := delta.get("content"):
            yield from self._begin("text", _text(""))
            yield self._part("text_delta", text=text)
        for given in delta.get("tool_calls") or ():
            call, place = _Call.read(given), given.get("index", given.get("id"))
            if self._open != "tool_use" or place != self._call:
                self._called, self._call = True, place
                yield from self._close()
                block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
                yield from self._begin("tool_use", block)
            if call.arguments:
                yield self._part("input_json_delta", partial_json=call.arguments)

    def _begin(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        """Open a block unless one of its kind is open."""
        if self._open != kind:
            yield from self._close()
            self._open = kind
            yield _event("content_block_start", index=self._blocks, content_block=block)

    def _part(self, kind: str, **data: str) -> bytes:
        return _event("content_block_delta", index=self._blocks, delta={"type": kind, **data})

    def _close(self) -> Iterator[bytes]:
        if self._open:
            yield _event("content_block_stop", index=self._blocks)
            self._open = ""
            self._blocks += 1

    def _end(self) -> Iterator[bytes]:
        if not (self._open or self._blocks):
            yield from self._begin("text", _text(""))
        yield from self._close()
        self.ended = True
        reason = _stop_reason(self._finish_reason, called=self._called)
        usage = self._usage or _usage_object(self.estimate, 0)
        yield _event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)
        yield _event("message_stop")


def _status_of_code(code: str | None) -> int:
    return 504 if code == "timeout" else 502


def _event(type: str, **data: Any) -> bytes:  # noqa: A002 - the field's name
    return f"event: {type}\ndata: {json.dumps({'type': type} | data)}\n\n".encode()
