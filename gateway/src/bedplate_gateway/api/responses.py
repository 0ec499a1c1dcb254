"""POST /v1/responses: the checks before an engine gets the request, and the response in OpenAI's form.

Engines and LiteLLM write responses in forms of their own. Only their text, calls, reasoning and usage reach a
client. The gateway writes everything else: ids, events and their numbers, the model's name, repeated fields.
"""

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from bedplate_gateway import errors
from bedplate_gateway.api import responses_schema
from bedplate_gateway.api.fields import read_json, refuse, validated
from bedplate_gateway.api.responses_request import to_chat
from bedplate_gateway.api.responses_tools import Tool, by_function, text_of
from bedplate_gateway.api.schema import CHAT, RESPONSES, MaxOutput, Request, build_request
from bedplate_gateway.api.size import pack, unpack
from bedplate_gateway.errors import ApiError

_NO_TOOL = Tool("")
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_DELTAS = {
    "response.output_text.delta": "message",
    "response.function_call_arguments.delta": "function_call",
    # Ollama and LiteLLM send the first, vLLM the second.
    "response.reasoning_summary_text.delta": "reasoning",
    "response.reasoning_text.delta": "reasoning",
}


@dataclass(frozen=True)
class ResponsesContext:
    """The fields of a request that its response repeats, packed, with the id of the response."""

    packed: bytes
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(24)}")
    created_at: int = field(default_factory=lambda: int(time.time()))

    def for_model(self, model: str) -> "ResponsesContext":
        """Return the context where another model answers."""
        return replace(self, packed=pack(unpack(self.packed) | {"model": model}))

    def response(self, status: str, **content: Any) -> dict[str, Any]:
        """Return the response in OpenAI's shape; `content` is output, usage, incomplete_details and error."""
        given = unpack(self.packed)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": given.get("instructions"),
            "max_output_tokens": given.get("max_output_tokens"),
            "model": given["model"],
            "output": [],
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": {"effort": given.get("reasoning", {}).get("effort"), "summary": None},
            "service_tier": given.get("service_tier", "default"),
            "store": False,
            "temperature": given.get("temperature", 1.0),
            "text": {"format": {"type": "text"}} | given.get("text", {}),
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": [
                {"description": None, "parameters": None, "strict": None} | tool
                if tool["type"] == "function"
                else tool
                for tool in given.get("tools", [])
            ],
            "top_p": given.get("top_p", 1.0),
            "truncation": given.get("truncation", "disabled"),
            "usage": None,
            "user": given.get("user"),
            "metadata": given.get("metadata", {}),
        } | content

    def tools(self) -> dict[str, Tool]:
        """Return the request's tools by the names that the engine knows."""
        return by_function(unpack(self.packed).get("tools", []))

    def ended(self, response: dict[str, Any], output: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the end of a response from an engine's."""
        usage = response.get("usage")
        return self.response(
            response["status"],
            output=output,
            incomplete_details=response.get("incomplete_details"),
            usage=usage and _usage(usage),
        )


def decode(raw: bytes, *, default_max_output: MaxOutput) -> tuple[ResponsesContext, Request]:
    """Return the context for the response, and the checked request; raises ApiError 400."""
    body = read_json(raw)
    refuse(body, responses_schema.REFUSED)
    given = validated(responses_schema.RESPONSES, body)
    chat = build_request(CHAT, to_chat(given), default_max_output=default_max_output)
    # The chat has the input, and the response does not repeat it.
    del given["input"]
    repeated = pack(given)
    held_bytes = chat.held_bytes + len(repeated)
    return ResponsesContext(repeated), replace(chat, path=RESPONSES, held_bytes=held_bytes)


def encode(context: ResponsesContext, body: bytes) -> bytes:
    """Return the response for an engine's whole one."""
    response = json.loads(body)
    tools = context.tools()
    items = [item for given in response["output"] if (item := _Item.read(given, tools))]
    items = items or [_Item("message")]
    items[-1].status = response["status"]
    return json.dumps(context.ended(response, [item.done() for item in items])).encode()


async def encode_stream(context: ResponsesContext, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the events of a response from an engine's; an error in them ends it with response.failed."""
    writer = _Writer(context)
    for data in writer.started():
        yield data
    rest = b""
    async for part in events:
        *complete, rest = (rest + part).split(b"\n\n")
        for event in complete:
            for data in writer.translated(event):
                yield data
    if not writer.ended:
        for data in writer.failed(errors.empty_stream()):
            yield data


class ResponsesAdapter:
    """POST /v1/responses; see `Adapter`. Use one per request."""

    def __init__(self, default_max_output: MaxOutput) -> None:
        self._default_max_output = default_max_output

    def decode_request(self, raw: bytes) -> Request:
        """Return the checked request for a body; raises ApiError 400."""
        self._context, request = decode(raw, default_max_output=self._default_max_output)
        return request

    def fall_back(self, request: Request) -> None:
        """Name the model of another request in the response."""
        self._context = self._context.for_model(request.model)

    def encode_response(self, body: bytes) -> bytes:
        """Return the response for an engine's whole one."""
        return encode(self._context, body)

    def encode_stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Return the events of the response for those of an engine."""
        return encode_stream(self._context, events)


class _Item:
    """One item of an output: a message, a reasoning or a call; `text` is also a call's arguments."""

    def __init__(
        self, kind: str, text: str = "", *, index: int = 0, call_id: str = "", tool: Tool = _NO_TOOL
    ) -> None:
        self.id = f"{'ctc' if tool.takes_text else _PREFIXES[kind]}_{secrets.token_hex(24)}"
        self.kind, self.text, self.index, self.call_id, self.tool = kind, text, index, call_id, tool
        self.status = "completed"
        self.open = True

    @classmethod
    def read(cls, given: dict[str, Any], tools: dict[str, Tool]) -> "_Item | None":
        """Return an engine's item, or None for an empty one and for one that OpenAI's clients do not know."""
        text = _text_of(given)
        if given["type"] == "function_call":
            tool = _tool_of(given, tools)
            return cls("function_call", text, call_id=given.get("call_id", ""), tool=tool)
        # A model that calls a tool often sends no text.
        return cls(given["type"], text) if text and given["type"] in _PREFIXES else None

    def begun(self) -> dict[str, Any]:
        """Return the item before its first delta."""
        shared = {"id": self.id, "type": self.kind}
        if self.kind == "message":
            return shared | {"status": "in_progress", "role": "assistant", "content": []}
        if self.kind == "reasoning":
            return shared | {"summary": []}
        call = {"call_id": self.call_id, "name": self.tool.name}
        if self.tool.namespace:
            call["namespace"] = self.tool.namespace
        if self.tool.takes_text:
            shared["type"] = "custom_tool_call"
        return shared | {"status": "in_progress"} | call | {self.argument: ""}

    @property
    def argument(self) -> str:
        """The field of a call that has its text."""
        return "input" if self.tool.takes_text else "arguments"

    def part(self, text: str) -> dict[str, Any]:
        """Return the part of a message or a reasoning."""
        if self.kind == "reasoning":
            return {"type": "summary_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def done(self) -> dict[str, Any]:
        """Return the whole item."""
        if self.kind == "function_call":
            text = text_of(self.text) if self.tool.takes_text else self.text
            return self.begun() | {"status": self.status, self.argument: text}
        if self.kind == "reasoning":
            return self.begun() | {"summary": [self.part(self.text)]}
        return self.begun() | {"status": self.status, "content": [self.part(self.text)]}


class _Writer:
    """Writes the events of one response as OpenAI does, whatever an engine leaves out or adds."""

    def __init__(self, context: ResponsesContext) -> None:
        self._context = context
        self._tools = context.tools()
        self._number = 0
        self._items: list[_Item] = []
        self._by_index: dict[int, _Item] = {}
        self.ended = False

    def started(self) -> Iterator[bytes]:
        """Yield the events before the first item."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._context.response("in_progress"))

    def translated(self, data: bytes) -> Iterator[bytes]:
        """Yield the events for one of an engine."""
        event = json.loads(data.partition(b"data:")[2])
        kind = event.get("type")
        if "error" in event and kind is None:
            error = event["error"]
            yield from self.failed(
                ApiError(502, error["code"], error["message"], type=error["type"], param=error["param"])
            )
        elif kind == "response.output_item.added" and event["item"]["type"] == "function_call":
            yield from self._open("function_call", event)
        elif kind in _DELTAS:
            yield from self._delta(_DELTAS[kind], event, event["delta"])
        elif kind == "response.output_item.done":
            yield from self._done(event)
        elif kind in {"response.completed", "response.incomplete"}:
            yield from self._end(kind, event["response"])

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """Yield the end of a response that failed; clients read one of the two events."""
        self.ended = True
        body = error.to_dict()["error"]
        failure = {"code": "server_error", "message": error.message}
        yield self._event("response.failed", response=self._context.response("failed", error=failure))
        # OpenAI's specification puts the fields into the event, and its packages read `error` in it.
        yield self._event(
            "error", code=body["code"], message=body["message"], param=body["param"], error=body
        )

    def _open(self, kind: str, event: dict[str, Any]) -> Iterator[bytes]:
        given = event.get("item", {})
        tool = _tool_of(given, self._tools)
        item = _Item(kind, index=len(self._items), call_id=given.get("call_id", ""), tool=tool)
        self._items.append(item)
        self._by_index[event["output_index"]] = item
        yield self._event("response.output_item.added", output_index=item.index, item=item.begun())
        if kind == "message":
            yield self._of(item, "response.content_part.added", part=item.part(""))
        elif kind == "reasoning":
            yield self._of(item, "response.reasoning_summary_part.added", part=item.part(""))

    def _delta(self, kind: str, event: dict[str, Any], text: str) -> Iterator[bytes]:
        if not text:
            return
        item = self._by_index.get(event["output_index"])
        if item is None or item.kind != kind:
            yield from self._open(kind, event)
            item = self._items[-1]
        item.text += text
        if kind == "message":
            yield self._of(item, "response.output_text.delta", delta=text, logprobs=[])
        elif kind == "reasoning":
            yield self._of(item, "response.reasoning_summary_text.delta", delta=text)
        elif not item.tool.takes_text:
            yield self._of(item, "response.function_call_arguments.delta", delta=text)

    def _done(self, event: dict[str, Any]) -> Iterator[bytes]:
        given = event["item"]
        if given["type"] not in _PREFIXES:
            return
        item = self._by_index.get(event["output_index"])
        if item is None and given["type"] == "function_call":
            yield from self._open("function_call", event)
        if item is None or not item.text:
            # Not every engine sends each item in deltas.
            yield from self._delta(given["type"], event, _text_of(given))
        if item := self._by_index.get(event["output_index"]):
            yield from self._close(item)

    def _close(self, item: _Item, status: str = "completed") -> Iterator[bytes]:
        if not item.open:
            return
        item.open, item.status = False, status
        if item.kind == "message":
            yield self._of(item, "response.output_text.done", text=item.text, logprobs=[])
            yield self._of(item, "response.content_part.done", part=item.part(item.text))
        elif item.kind == "reasoning":
            yield self._of(item, "response.reasoning_summary_text.done", text=item.text)
            yield self._of(item, "response.reasoning_summary_part.done", part=item.part(item.text))
        elif item.tool.takes_text:
            # The text is known when its JSON is whole.
            text = text_of(item.text)
            yield self._of(item, "response.custom_tool_call_input.delta", delta=text)
            yield self._of(item, "response.custom_tool_call_input.done", input=text)
        else:
            name = item.tool.name
            yield self._of(item, "response.function_call_arguments.done", name=name, arguments=item.text)
        yield self._event("response.output_item.done", output_index=item.index, item=item.done())

    def _end(self, kind: str, response: dict[str, Any]) -> Iterator[bytes]:
        status = response["status"]
        if not self._items:
            yield from self._open("message", {"output_index": 0})
        for item in self._items:
            yield from self._close(item, status)
        self.ended = True
        output = [item.done() for item in self._items]
        yield self._event(kind, response=self._context.ended(response, output))

    def _of(self, item: _Item, kind: str, **data: Any) -> bytes:
        place = {"message": {"content_index": 0}, "reasoning": {"summary_index": 0}, "function_call": {}}
        return self._event(kind, item_id=item.id, output_index=item.index, **place[item.kind], **data)

    def _event(self, type: str, **data: Any) -> bytes:  # noqa: A002 - the field's name
        event = {"type": type} | data | {"sequence_number": self._number}
        self._number += 1
        return f"event: {type}\ndata: {json.dumps(event)}\n\n".encode()


def _tool_of(item: dict[str, Any], tools: dict[str, Tool]) -> Tool:
    name = str(item.get("name") or "")
    # A model may call what nobody offered.
    return tools.get(name) or Tool(name)


def _text_of(item: dict[str, Any]) -> str:
    if item["type"] == "function_call":
        return str(item.get("arguments") or "")
    # The reasoning is in `summary` with Ollama, in `content` with LiteLLM and vLLM.
    parts = item.get("summary") or item.get("content") or []
    return "".join(part.get("text") or "" for part in parts)


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Return an engine's usage with all of OpenAI's fields."""
    given, made = usage["input_tokens"], usage["output_tokens"]
    cached = (usage.get("input_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("output_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": given + made,
    }
