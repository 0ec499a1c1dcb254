"""Whether a prompt fits into a model's context: Ollama truncates it silently unless `truncate` is false."""

import json
import re
import struct
from base64 import b64encode
from typing import Any

from pydantic_core import from_json, to_json

from bedplate_gateway.api.schema import Request
from bedplate_gateway.engines.sse import usage_object

TEMPLATE_TOKENS = 512
"""Room for what a chat template adds once: a default system prompt, how to call tools."""
MESSAGE_TOKENS = 16
"""Room for what a chat template adds to each message."""
EDGE_TOKENS = 2
"""What Ollama reserves at both ends of an embedding's text."""

CONTEXT_ERROR = re.compile(
    r"context[ _]?(length|size|window)|maximum (model|sequence) length|prompt is too long", re.IGNORECASE
)


def could_overflow(request: Request, context: int) -> bool:
    """Return whether a prompt might have more tokens than the context.

    No tokenizer makes more than one token of a byte, so a shorter prompt fits for certain. A measured number
    of bytes per token would save more checks, but fail for digits, base64 and unknown languages. A check of a
    prompt that fits costs little: measured 0.05 to 0.12 s, since the request finds the prompt in the cache.
    """
    if request.path == "/v1/embeddings":
        # Each text has a context of its own.
        return request.prompt_bytes > context - EDGE_TOKENS and any(
            len(text.encode()) > context - EDGE_TOKENS for text in _inputs(request)
        )
    template = TEMPLATE_TOKENS + request.messages * MESSAGE_TOKENS
    return request.has_images or request.prompt_bytes + template > context


def fit_check(request: Request) -> tuple[str, bytes]:
    """Return path and body of a request to Ollama's native API; a 400 means that the prompt does not fit."""
    body = request.body
    native: dict[str, Any] = {"model": body["model"], "truncate": False}
    if request.path == "/v1/embeddings":
        native |= {"input": body["input"]} | _only(body, "dimensions")
        return "/api/embed", to_json(native)
    native |= {"stream": False, "options": {"num_predict": 1}}
    if request.path == "/v1/completions":
        native |= {"prompt": body["prompt"]} | _only(body, "suffix")
        return "/api/generate", to_json(native)
    names = {
        call["id"]: call["function"]["name"]
        for message in body["messages"]
        for call in message.get("tool_calls", ())
    }
    native |= {"messages": [part for message in body["messages"] for part in _native(message, names)]}
    native |= _only(body, "tools")
    if effort := body.get("reasoning_effort"):
        native["think"] = False if effort == "none" else effort
    return "/api/chat", to_json(native)


def embeddings_answer(request: Request, body: bytes) -> bytes:
    """Return the response of Ollama's /api/embed in the shape of OpenAI's."""
    native = json.loads(body)
    in_base64 = request.body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _to_base64(vector) if in_base64 else vector}
        for index, vector in enumerate(native["embeddings"])
    ]
    tokens = native.get("prompt_eval_count", 0)
    usage = usage_object(tokens, 0)
    del usage["completion_tokens"]
    return json.dumps({"object": "list", "data": data, "model": request.model, "usage": usage}).encode()


def _native(message: dict[str, Any], tool_names: dict[str, str]) -> list[dict[str, Any]]:
    """Return a message in Ollama's native form: each part of a list becomes a message of its own.

    `tool_names` has the name of the tool of each call's id.
    """
    content = message["content"]
    if isinstance(content, list):
        return [
            {"role": message["role"], "content": part["text"]}
            if part["type"] == "text"
            else {"role": message["role"], "images": [part["image_url"]["url"].partition(",")[2]]}
            for part in content
        ]
    native = {"role": message["role"], "content": content or ""}
    if calls := message.get("tool_calls"):
        native["tool_calls"] = [
            {
                "id": call["id"],
                "function": call["function"] | {"arguments": from_json(call["function"]["arguments"])},
            }
            for call in calls
        ]
    if reasoning := message.get("reasoning"):
        native["thinking"] = reasoning
    if call_id := message.get("tool_call_id"):
        native |= {"tool_call_id": call_id, "tool_name": tool_names.get(call_id, "")}
    return [native]


def _inputs(request: Request) -> list[str]:
    texts = request.body["input"]
    return [texts] if isinstance(texts, str) else texts


def _to_base64(vector: list[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _only(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: body[name]} if name in body else {}
