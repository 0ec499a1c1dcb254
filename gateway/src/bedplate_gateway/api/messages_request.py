"""A request for /v1/messages in the form of a chat, which the gateway checks and every engine has."""

import json
from collections.abc import Iterator
from typing import Any

_SAME = ("model", "stream", "max_tokens", "temperature", "top_p", "priority")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Ollama knows three efforts; OpenAI's highest is made one of them later.
_EFFORTS = {"max": "xhigh"}
_LOW_BUDGET, _MEDIUM_BUDGET = 4096, 16384
"""Tokens below which a budget for thinking becomes the effort low, and medium."""


def to_chat(request: dict[str, Any]) -> dict[str, Any]:
    """Return the body for /v1/chat/completions of a checked request."""
    chat = {name: request[name] for name in _SAME if name in request}
    system = [{"role": "system", "content": request["system"]}] if request.get("system") else []
    chat["messages"] = [*system, *(part for message in request["messages"] for part in _messages(message))]
    if chat.get("stream"):
        # A message always has its usage.
        chat["stream_options"] = {"include_usage": True}
    if request.get("service_tier") == "flex":
        chat["service_tier"] = "flex"
    if stops := request.get("stop_sequences"):
        chat["stop"] = stops
    if "tools" in request:
        chat["tools"] = [_tool(tool) for tool in request["tools"]]
    if choice := request.get("tool_choice"):
        chat |= _tool_choice(choice)
    config = request.get("output_config", {})
    if wanted := config.get("format"):
        schema = {"name": "answer", "schema": wanted["schema"]}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    chat["reasoning_effort"] = _effort(request.get("thinking"), config.get("effort"))
    return chat


def wants_thinking(request: dict[str, Any]) -> bool:
    """Return whether the client asks the model to think, and reads the thoughts."""
    return request.get("thinking", {}).get("type") in {"enabled", "adaptive"}


def _effort(thinking: dict[str, Any] | None, effort: str | None) -> str:
    if thinking is None or thinking["type"] == "disabled":
        return "none"
    if effort:
        return _EFFORTS.get(effort, effort)
    budget = thinking.get("budget_tokens", _MEDIUM_BUDGET)
    return "low" if budget < _LOW_BUDGET else "medium" if budget < _MEDIUM_BUDGET else "high"


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: dict[str, Any]) -> dict[str, Any]:
    if choice["type"] == "tool":
        chosen: Any = {"type": "function", "function": {"name": choice["name"]}}
    else:
        chosen = _CHOICES[choice["type"]]
    one = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    return {"tool_choice": chosen} | one


def _messages(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the messages of a chat for one: the results of tools are messages of their own there."""
    role, content = message["role"], message["content"]
    if isinstance(content, str) or role == "system":
        yield {"role": role, "content": content}
    elif role == "assistant":
        yield _turn(content)
    else:
        rest = []
        for block in content:
            if block["type"] == "tool_result":
                texts, images = _result(block.get("content") or "")
                yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": texts}
                # The message of a tool has no images in a chat.
                rest += images
            else:
                rest.append(_part(block))
        if rest or not content:
            yield {"role": "user", "content": rest or ""}


def _turn(content: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the model's turn: a chat has one message for its thoughts, its text and its calls."""
    turn: dict[str, Any] = {"role": "assistant"}
    thoughts = [block["thinking"] for block in content if block["type"] == "thinking"]
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {
                "name": block["name"],
                "arguments": json.dumps(block["input"], ensure_ascii=False, separators=(",", ":")),
            },
        }
        for block in content
        if block["type"] == "tool_use"
    ]
    texts = [_part(block) for block in content if block["type"] == "text"]
    turn["content"] = texts or (None if calls else "")
    if calls:
        turn["tool_calls"] = calls
    if thoughts:
        turn["reasoning"] = "\n\n".join(thoughts)
    return turn


def _result(content: str | list[dict[str, Any]]) -> tuple[str | list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the texts of a tool's result, and its images."""
    if isinstance(content, str):
        return content, []
    texts = [_part(block) for block in content if block["type"] == "text"]
    images = [_part(block) for block in content if block["type"] == "image"]
    return texts or "", images


def _part(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] == "text":
        return block
    source = block["source"]
    url = f"data:{source['media_type']};base64,{source['data']}"
    return {"type": "image_url", "image_url": {"url": url}}
