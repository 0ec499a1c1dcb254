"""POST /v1/responses: LiteLLM translates it to a chat request, and the chat's answer back; it does no more.

The gateway checks the request and writes the response: only text, calls and reasoning pass through LiteLLM,
and no model name, id or usage that it makes up reaches a client.
"""

import gc
import json
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Final

from bedplate_gateway import errors
from bedplate_gateway.api.fields import read_json, refuse, validated
from bedplate_gateway.api.responses_schema import REFUSED, RESPONSES
from bedplate_gateway.api.schema import MaxOutput, Request, build_request
from bedplate_gateway.errors import ApiError, bad_request

log = logging.getLogger(__name__)


# LiteLLM sees this in place of the model's name, for which it would look up prices and tokenizers.
_MODEL: Final = "model"


@dataclass(frozen=True)
class ResponsesContext:
    """The fields of a request that its response repeats, with the id of the response."""

    request: dict[str, Any]
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(24)}")
    created_at: int = field(default_factory=lambda: int(time.time()))

    def response(self, status: str, **content: Any) -> dict[str, Any]:
        """Return the response in OpenAI's shape; `content` is output, usage, incomplete_details and error."""
        given = self.request
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
                for tool in given.get("tools", [])
            ],
            "top_p": given.get("top_p", 1.0),
            "truncation": given.get("truncation", "disabled"),
            "usage": None,
            "user": given.get("user"),
            "metadata": given.get("metadata", {}),
        } | content


@dataclass(frozen=True)
class _Translator:
    """The parts of LiteLLM that the gateway uses."""

    to_chat: Any
    from_chat: Any
    stream: Any
    answer: Any
    chunk: Any
    forget: Any


@cache
def load_translator() -> _Translator:
    """Import LiteLLM (some 3 s and 150 MB), silent and without network; call it once before requests come."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    # In its default mode LiteLLM reads a file .env.
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    litellm: Any = import_module("litellm")
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).disabled = True
    package = "litellm.responses.litellm_completion_transformation"
    transformation = import_module(f"{package}.transformation")
    config = transformation.LiteLLMCompletionResponsesConfig
    types = import_module("litellm.types.utils")
    # A million objects that stay: every full garbage collection would scan them again.
    gc.freeze()
    return _Translator(
        to_chat=config.transform_responses_api_request_to_chat_completion_request,
        from_chat=config.transform_chat_completion_response_to_responses_api_response,
        stream=import_module(f"{package}.streaming_iterator").LiteLLMCompletionStreamingIterator,
        answer=types.ModelResponse,
        chunk=types.ModelResponseStream,
        # Otherwise it keeps every call with its arguments, for any client that sends its id.
        forget=transformation.TOOL_CALLS_CACHE.flush_cache,
    )


def to_chat(raw: bytes) -> tuple[ResponsesContext, dict[str, Any]]:
    """Return the context for the response, and the body of the chat request; raises ApiError 400."""
    body = read_json(raw)
    refuse(body, REFUSED)
    request = validated(RESPONSES, body)
    _check_calls(request["input"])
    chat = load_translator().to_chat(_MODEL, request["input"], request, stream=request.get("stream"))
    if not chat["messages"]:
        raise bad_request(
            "Invalid 'input': it contains nothing to answer: send a message.", "input", "invalid_value"
        )
    chat["model"] = request["model"]
    chat |= {name: request[name] for name in ("service_tier", "priority") if name in request}
    for message in chat["messages"]:
        if "reasoning_content" in message:
            message["reasoning"] = message.pop("reasoning_content")
        if message.get("content") is None and not message.get("tool_calls"):
            message["content"] = ""
    return ResponsesContext(request), chat


def from_chat(context: ResponsesContext, body: bytes) -> bytes:
    """Return the response for the chat's answer."""
    translator = load_translator()
    chat = json.loads(body)
    for choice in chat["choices"]:
        _name_reasoning(choice["message"])
    translated = translator.from_chat("", {}, translator.answer(**chat))
    translator.forget()
    return json.dumps(_answer(context, translated.model_dump(mode="json"), chat.get("usage"))).encode()


async def stream_from_chat(context: ResponsesContext, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the events of a response from those of a chat; an error in them ends it with response.failed."""
    translator = load_translator()
    chunks = _Chunks(events)
    writer = _Writer(context)
    error = errors.empty_stream()
    try:
        async for event in translator.stream(_MODEL, chunks, "", {}):
            for data in writer.translated(event.model_dump(mode="json", exclude_none=True), chunks.usage):
                yield data
    except ApiError as caught:
        error = caught
    finally:
        translator.forget()
    if not writer.ended:
        for data in writer.failed(error):
            yield data


class ResponsesAdapter:
    """POST /v1/responses as a chat request; see `Adapter`. Use one per request, after `load_translator`."""

    def __init__(self, default_max_output: MaxOutput) -> None:
        self._default_max_output = default_max_output

    def decode_request(self, raw: bytes) -> Request:
        """Return the checked chat request for a body; raises ApiError 400."""
        self._context, chat = to_chat(raw)
        return build_request("/v1/chat/completions", chat, default_max_output=self._default_max_output)

    def encode_response(self, body: bytes) -> bytes:
        """Return the response for the chat's answer."""
        return from_chat(self._context, body)

    def encode_stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Return the events of the response for those of the chat."""
        return stream_from_chat(self._context, events)


class _Writer:
    """Writes the events of one response as OpenAI does."""

    def __init__(self, context: ResponsesContext) -> None:
        self._context = context
        self._number = 0
        self._names: dict[str, str] = {}
        self.ended = False

    def translated(self, event: dict[str, Any], usage: dict[str, Any] | None) -> Iterator[bytes]:
        """Yield the event of LiteLLM's in OpenAI's form, without foreign fields and with the missing ones."""
        kind = event["type"]
        if "response" in event:
            response = event["response"]
            self.ended = response["status"] != "in_progress"
            whole = (
                _answer(self._context, response, usage)
                if self.ended
                else self._context.response("in_progress")
            )
            yield self._event(kind, response=whole)
            return
        if "item" in event:
            event["item"] = _item(event["item"])
            self._names[event["item"]["id"]] = event["item"].get("name", "")
        if "part" in event:
            event["part"] = _part(event["part"])
        if kind in {"response.output_text.delta", "response.output_text.done"}:
            event["logprobs"] = []
        if kind == "response.function_call_arguments.done":
            event["name"] = self._names[event["item_id"]]
        yield self._event(**event)
        if kind == "response.output_item.added" and event["item"]["type"] == "reasoning":
            place = {
                "item_id": event["item"]["id"],
                "output_index": event["output_index"],
                "summary_index": 0,
            }
            yield self._event("response.reasoning_summary_part.added", **place, part=_summary(""))

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """Yield the end of a response that failed; clients read one of the two events."""
        body = error.to_dict()["error"]
        failure = {"code": "server_error", "message": error.message}
        yield self._event("response.failed", response=self._context.response("failed", error=failure))
        # OpenAI's specification puts the fields into the event, and its packages read `error` in it.
        yield self._event(
            "error", code=body["code"], message=body["message"], param=body["param"], error=body
        )

    def _event(self, type: str, **data: Any) -> bytes:  # noqa: A002 - the field's name
        event = {"type": type} | data | {"sequence_number": self._number}
        self._number += 1
        return f"event: {type}\ndata: {json.dumps(event)}\n\n".encode()


class _Chunks:
    """A chat's events, as the chunks that LiteLLM reads."""

    logging_obj = None

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        self._events = events
        self._lines: list[bytes] = []
        self._rest = b""
        self.usage: dict[str, Any] | None = None

    def __aiter__(self) -> "_Chunks":
        return self

    async def __anext__(self) -> Any:
        while True:
            while self._lines:
                line = self._lines.pop(0)
                if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                    return self._chunk(json.loads(data))
            *self._lines, self._rest = (self._rest + await anext(self._events)).split(b"\n")

    def _chunk(self, chunk: dict[str, Any]) -> Any:
        if error := chunk.get("error"):
            raise ApiError(
                502, error.get("code"), error["message"], type=error.get("type"), param=error.get("param")
            )
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            _name_reasoning(choice["delta"])
        return load_translator().chunk(**chunk | {"model": _MODEL})


def _check_calls(items: str | list[dict[str, Any]]) -> None:
    """Refuse an output without its call: LiteLLM would search its cache for the call."""
    if isinstance(items, str):
        return
    called: set[str] = set()
    for index, item in enumerate(items):
        if item.get("type") == "function_call":
            called.add(item["call_id"])
        elif item.get("type") == "function_call_output" and item["call_id"] not in called:
            raise bad_request(
                "No tool call found for this function call output: send its function_call before it.",
                f"input[{index}]",
            )


def _name_reasoning(message: dict[str, Any]) -> None:
    """Rename an engine's reasoning to LiteLLM's field."""
    if reasoning := message.pop("reasoning", None):
        message["reasoning_content"] = reasoning


def _answer(
    context: ResponsesContext, translated: dict[str, Any], usage: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a whole response: the output comes from LiteLLM, everything else from the gateway."""
    items = [_item(item) for item in translated["output"]]
    # A model that calls a tool often sends no text, and the chat's answer then has an empty one.
    spoken = [item for item in items if item["type"] != "message" or item["content"][0]["text"]]
    return context.response(
        translated["status"],
        output=spoken or items,
        incomplete_details=translated.get("incomplete_details"),
        usage=usage and _usage(usage),
    )


def _item(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item of the output with OpenAI's fields only."""
    if item["type"] == "reasoning":
        texts = item.get("summary") or item.get("content") or []
        return {"id": item["id"], "type": "reasoning", "summary": [_summary(part["text"]) for part in texts]}
    fields = ("id", "type", "status", "role", "call_id", "name", "arguments")
    kept: dict[str, Any] = {name: item[name] for name in fields if name in item}
    if "content" in item:
        kept["content"] = [_part(part) for part in item["content"]]
    return kept


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "summary_text":
        return _summary(part["text"])
    return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Return a chat's usage in the shape of a response's."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage["total_tokens"],
    }
