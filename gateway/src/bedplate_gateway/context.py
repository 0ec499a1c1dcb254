"""Whether a prompt fits into a model's context: Ollama cuts it in silence unless it is asked not to."""

import json
import re
import struct
from base64 import b64encode
from typing import Any

from bedplate_gateway.relay import usage_field
from bedplate_gateway.schema import Request

TEMPLATE_TOKENS = 512
"""Room for what a chat template adds once: a default system prompt, how to call tools."""
MESSAGE_TOKENS = 16
"""Room for what a chat template adds to each message."""
EDGE_TOKENS = 2
"""What Ollama keeps free at the ends of an embedding's text."""

TOO_LONG = re.compile(
    r"context[ _]?(length|size|window)|maximum (model|sequence) length|prompt is too long", re.IGNORECASE
)


def could_overflow(request: Request, context: int) -> bool:
    """Say whether a prompt might have more tokens than the context.

    No tokenizer makes more than one token of a byte, so less than this fits for certain. A measured number of
    bytes per token would spare more questions, but miss digits, base64 and unknown languages; and a question
    about what fits costs little: measured 0.05 to 0.12 s, since the answer then finds the prompt processed.
    """
    if request.path == "/v1/embeddings":
        # Each text has the context for itself.
        return request.prompt_bytes > context - EDGE_TOKENS and any(
            len(text.encode()) > context - EDGE_TOKENS for text in _inputs(request)
        )
    messages = len(request.body.get("messages", ()))
    return request.has_images or request.prompt_bytes + TEMPLATE_TOKENS + messages * MESSAGE_TOKENS > context


def question(request: Request) -> tuple[str, bytes]:
    """Return path and body of Ollama's own API that process the same prompt or refuse it with a 400."""
    body = request.body
    asked: dict[str, Any] = {"model": body["model"], "truncate": False}
    if request.path == "/v1/embeddings":
        asked |= {"input": body["input"]} | _only(body, "dimensions")
        return "/api/embed", json.dumps(asked).encode()
    asked |= {"stream": False, "options": {"num_predict": 1}}
    if request.path == "/v1/completions":
        asked |= {"prompt": body["prompt"]} | _only(body, "suffix")
        return "/api/generate", json.dumps(asked).encode()
    asked |= {"messages": [part for message in body["messages"] for part in _native(message, body)]}
    asked |= _only(body, "tools")
    if effort := body.get("reasoning_effort"):
        asked["think"] = False if effort == "none" else effort
    return "/api/chat", json.dumps(asked).encode()


def embeddings_answer(request: Request, body: bytes) -> bytes:
    """Return the answer of Ollama's /api/embed as OpenAI's."""
    native = json.loads(body)
    in_base64 = request.body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if in_base64 else vector}
        for index, vector in enumerate(native["embeddings"])
    ]
    tokens = native.get("prompt_eval_count", 0)
    usage = usage_field(tokens, 0)
    del usage["completion_tokens"]
    return json.dumps({"object": "list", "data": data, "model": request.model, "usage": usage}).encode()


def _native(message: dict[str, Any], body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a message as Ollama makes it of OpenAI's: a part of a list becomes a message of its own."""
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
                "function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])},
            }
            for call in calls
        ]
    if reasoning := message.get("reasoning"):
        native["thinking"] = reasoning
    if call_id := message.get("tool_call_id"):
        native |= {"tool_call_id": call_id, "tool_name": _tool_name(body, call_id)}
    return [native]


def _tool_name(body: dict[str, Any], call_id: str) -> str:
    calls = [call for message in body["messages"] for call in message.get("tool_calls", ())]
    return next((call["function"]["name"] for call in calls if call["id"] == call_id), "")


def _inputs(request: Request) -> list[str]:
    texts = request.body["input"]
    return [texts] if isinstance(texts, str) else texts


def _packed(vector: list[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _only(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: body[name]} if name in body else {}
