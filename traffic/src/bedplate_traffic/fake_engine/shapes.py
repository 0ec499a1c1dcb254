"""The fake engine's requests and responses: OpenAI's API as Ollama speaks it, and Ollama's own API."""

import hashlib
import json
import time
from typing import Any

from aiohttp import web


def describe_model(name: str) -> dict[str, Any]:
    """Return a model as Ollama lists it."""
    # Ollama's own API always names the tag; requests may omit `latest`.
    tagged = name if ":" in name else f"{name}:latest"
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": "2026-01-01T00:00:00Z",
        "size": 1,
        # Each model has its own digest, as in Ollama.
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": {
            "format": "fake",
            "family": "fake",
            "families": ["fake"],
            "parameter_size": "0",
            "quantization_level": "",
        },
    }


def strip_default_tag(model: Any) -> str:
    """Return a model's name without the tag `latest`."""
    return str(model).removesuffix(":latest")


async def read_json(request: web.Request) -> dict[str, Any]:
    """Return the body of a request; raises HTTPBadRequest where it is not a JSON object."""
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(
            text='{"error": {"message": "the body is not a JSON object"}}', content_type="application/json"
        )
    return body


def error_response(request: web.Request, status: int, message: str) -> web.Response:
    """Return an error in the shape of the requested API."""
    if request.path.startswith("/api/"):
        return web.json_response({"error": message}, status=status)
    kind = {404: "not_found_error", 400: "invalid_request_error"}.get(status, "api_error")
    error = {"message": message, "type": kind, "param": None, "code": None}
    return web.json_response({"error": error}, status=status)


def prompt_text(body: dict[str, Any], *, last: bool = False) -> str:
    """Return the text of the prompt, or of its last message."""
    content = body.get("messages") or body.get("prompt") or body.get("input") or ""
    parts = content if isinstance(content, list) else [content]
    if instructions := body.get("instructions"):
        parts = [instructions, *parts]
    return " ".join(_part_text(part) for part in (parts[-1:] if last else parts))


def _part_text(part: Any) -> str:
    """Return the text of a message, of a part of one, or of a prompt."""
    if isinstance(part, dict):
        content = part.get("content") or part.get("text") or ""
        return " ".join(_part_text(piece) for piece in content) if isinstance(content, list) else str(content)
    return str(part)


def make_tool_call(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return a call of the first tool, None where tools are forbidden or the last message is a tool's."""
    tools, messages = body.get("tools") or [], body.get("messages") or body.get("input") or [{}]
    last = messages[-1] if isinstance(messages[-1], dict) else {}
    answered = last.get("role") == "tool" or last.get("type") == "function_call_output"
    if not tools or body.get("tool_choice") == "none" or answered:
        return None
    # In /v1/responses the tool itself has the function's fields.
    function = tools[0].get("function") or tools[0]
    parameters = function.get("parameters") or {}
    properties = parameters.get("properties") or {}
    # Tools that read a whole number, such as Codex's, declare it as a number.
    values = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}
    # As a model does, it leaves out what a tool does not require.
    named = parameters.get("required", properties)
    arguments = {name: values.get(properties.get(name, {}).get("type"), "fake") for name in named}
    return {
        "id": f"call_{time.monotonic_ns():x}",
        "index": 0,
        "type": "function",
        "function": {"name": function["name"], "arguments": json.dumps(arguments)},
    }


def wants_json(body: dict[str, Any]) -> bool:
    """Return whether a request wants its answer in JSON, in whichever API."""
    wanted = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    return bool(body.get("format")) or wanted.get("type", "text") != "text"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return OpenAI's usage block."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def envelope(model: str, kind: str) -> dict[str, Any]:
    """Return the fields that every OpenAI response has."""
    return {
        "id": "chatcmpl-fake",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        # As Ollama: LiteLLM passes the events of an Ollama on in another way.
        "system_fingerprint": "fp_ollama",
    }


def chat_chunk(model: str, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """Return one event of a streamed chat."""
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return envelope(model, "chat.completion.chunk") | {"choices": choices}


def text_chunk(model: str, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    """Return one event of a streamed completion, with the empty usage that Ollama sends."""
    choices = [{"index": 0, "text": delta["content"], "finish_reason": finish_reason}]
    return envelope(model, "text_completion") | {"choices": choices, "usage": usage(0, 0)}


def half_answer(path: str, model: str) -> dict[str, Any]:
    """Return the first event of a stream that ends after it."""
    if path == "/v1/responses":
        return {"type": "response.output_text.delta", "output_index": 0, "delta": "half"}
    return chat_chunk(model, {"role": "assistant", "content": "half"})


def response(
    model: str, item: dict[str, Any] | None = None, tokens: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """Return a response with its one item and the tokens of input and output, or one that has just begun."""
    return {
        "id": "resp_fake",
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "status": "completed" if item else "in_progress",
        "incomplete_details": None,
        "error": None,
        "output": [item] if item else [],
        "usage": item
        and {"input_tokens": tokens[0], "output_tokens": tokens[1], "total_tokens": sum(tokens)},
    }


def output_item(text: str, tool_call: dict[str, Any] | None) -> dict[str, Any]:
    """Return the item of a response: its text, or the call of a tool."""
    if tool_call:
        call: dict[str, Any] = {"id": "fc_fake", "type": "function_call", "status": "completed"}
        return call | {"call_id": tool_call["id"], **tool_call["function"]}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    shared = {"id": "msg_fake", "type": "message", "status": "completed", "role": "assistant"}
    return shared | {"content": [part]}


def response_event(kind: str, **data: Any) -> bytes:
    """Return an event of a streamed response as bytes."""
    return f"event: response.{kind}\n".encode() + event({"type": f"response.{kind}", **data})


def event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event as bytes."""
    return f"data: {json.dumps(data)}\n\n".encode()
