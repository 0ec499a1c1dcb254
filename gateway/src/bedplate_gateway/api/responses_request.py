"""A request for /v1/responses in the form of a chat, and back in the form that engines take at /v1/responses.

The gateway checks, measures and changes it as a chat, so a conversation has one form for all of these.
"""

from typing import Any

from bedplate_gateway.api.responses_tools import function_name, functions, text_arguments
from bedplate_gateway.errors import bad_request

_SAME = ("model", "stream", "temperature", "top_p", "parallel_tool_calls", "service_tier", "priority")
_CALLS = {"function_call", "custom_tool_call"}


def to_chat(request: dict[str, Any]) -> dict[str, Any]:
    """Return the body for /v1/chat/completions of a checked request; raises ApiError 400."""
    chat = {name: request[name] for name in _SAME if name in request}
    chat["messages"] = _messages(request)
    if chat.get("stream"):
        # A response always has its usage.
        chat["stream_options"] = {"include_usage": True}
    if "max_output_tokens" in request:
        chat["max_tokens"] = request["max_output_tokens"]
    if "tools" in request:
        chat["tools"] = functions(request["tools"])
    if choice := request.get("tool_choice"):
        chat["tool_choice"] = choice if isinstance(choice, str) else _with_function(choice)
    if effort := request.get("reasoning", {}).get("effort"):
        chat["reasoning_effort"] = effort
    wanted = request.get("text", {}).get("format", {"type": "text"})
    if wanted["type"] == "json_schema":
        chat["response_format"] = {"type": "json_schema", "json_schema": _without_type(wanted)}
    elif wanted["type"] == "json_object":
        chat["response_format"] = wanted
    return chat


def from_chat(chat: dict[str, Any], *, for_ollama: bool) -> dict[str, Any]:
    """Return the body for an engine's /v1/responses of a chat that `schema` has normalised."""
    first, *others = chat["messages"]
    items = [item for message in chat["messages"] for item in _items(message, for_ollama=for_ollama)]
    body: dict[str, Any] = {"model": chat["model"], "input": items, "stream": chat["stream"], "store": False}
    if first["role"] == "system" and others:
        body |= {"instructions": first["content"], "input": items[1:]}
    body |= {name: chat[name] for name in ("temperature", "top_p", "parallel_tool_calls") if name in chat}
    if "max_tokens" in chat:
        body["max_output_tokens"] = chat["max_tokens"]
    if "tools" in chat:
        body["tools"] = [_without_function(tool) for tool in chat["tools"]]
    if choice := chat.get("tool_choice"):
        body["tool_choice"] = choice if isinstance(choice, str) else _without_function(choice)
    if effort := chat.get("reasoning_effort"):
        body["reasoning"] = {"effort": effort}
    if wanted := chat.get("response_format"):
        body["text"] = {"format": {"type": wanted["type"], **wanted.get("json_schema", {})}}
    return body


# To a chat


def _messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if instructions := request.get("instructions"):
        messages.append({"role": "system", "content": instructions})
    given = request["input"]
    before = len(messages)
    called: set[str] = set()
    images: list[dict[str, Any]] = []
    for index, item in enumerate([{"role": "user", "content": given}] if isinstance(given, str) else given):
        kind = item.get("type", "message")
        if kind in {"function_call_output", "custom_tool_call_output"}:
            if item["call_id"] not in called:
                # LiteLLM would search for the call among those of all clients.
                raise bad_request(
                    "No tool call found for this function call output: send its function_call before it.",
                    f"input[{index}]",
                )
            texts, shown = _output(item["output"])
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": texts})
            images += shown
            continue
        if images:
            # After all outputs of the turn: nothing may stand between those.
            messages.append({"role": "user", "content": images})
            images = []
        if kind == "message" and item["role"] != "assistant":
            messages.append({"role": item["role"], "content": _content(item["content"])})
        else:
            if kind in _CALLS:
                called.add(item["call_id"])
            _add_to_turn(messages, kind, item)
    if images:
        messages.append({"role": "user", "content": images})
    if len(messages) == before:
        raise bad_request(
            "Invalid 'input': it contains nothing to answer: send a message.", "input", "invalid_value"
        )
    for message in messages:
        if "reasoning" in message:
            # Joined once, not with each item: a turn can have thousands of them.
            message["reasoning"] = "\n\n".join(message["reasoning"])
    return messages


def _add_to_turn(messages: list[dict[str, Any]], kind: str, item: dict[str, Any]) -> None:
    """Add reasoning, text or call to the model's turn: a chat has one message for all of them.

    A turn's reasoning is a list of texts until the end.
    """
    turn = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind in _CALLS:
        if turn is None:
            turn = _new_turn(messages)
        arguments = item["arguments"] if kind == "function_call" else text_arguments(item["input"])
        function = {"name": function_name(item["name"], item.get("namespace")), "arguments": arguments}
        call = {"id": item["call_id"], "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)
        turn["content"] = turn["content"] or None
        return
    text = _reasoning(item) if kind == "reasoning" else _content(item["content"])
    if kind == "reasoning" and not text:
        return
    if turn is None or turn["content"] or "tool_calls" in turn:
        turn = _new_turn(messages)
    if kind == "reasoning":
        turn.setdefault("reasoning", []).append(text)
    else:
        turn["content"] = text


def _new_turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _reasoning(item: dict[str, Any]) -> str:
    return "\n\n".join(part["text"] for part in item.get("content") or item.get("summary") or ())


def _content(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _output(output: str | list[dict[str, Any]]) -> tuple[str | list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the texts of a tool's output, and its images: the message of a tool has none in a chat."""
    parts = _content(output)
    if isinstance(parts, str):
        return parts, []
    texts = [part for part in parts if part["type"] == "text"]
    return texts or "", [part for part in parts if part["type"] == "image_url"]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "input_image":
        detail = {"detail": part["detail"]} if "detail" in part else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    return {"type": "text", "text": part["refusal"] if part["type"] == "refusal" else part["text"]}


def _with_function(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": _without_type(tool)}


def _without_type(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "type" and value is not None}


# From a chat


def _without_function(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", **tool["function"]}


def _items(message: dict[str, Any], *, for_ollama: bool) -> list[dict[str, Any]]:
    role, content, calls = message["role"], message["content"], message.get("tool_calls", ())
    if role == "tool":
        return [
            {"type": "function_call_output", "call_id": message["tool_call_id"], "output": content},
        ]
    items: list[dict[str, Any]] = []
    if reasoning := message.get("reasoning"):
        items.append(
            {"type": "reasoning", "id": "rs_0", "summary": [{"type": "summary_text", "text": reasoning}]}
        )
        if for_ollama:
            # It reads a turn's reasoning from this field only; vLLM refuses the field.
            items[0]["encrypted_content"] = reasoning
    if content or not (items or calls):
        parts = content if isinstance(content, str) else [_input_part(part) for part in content or ()]
        items.append({"type": "message", "role": role, "content": parts})
    items.extend(
        {
            "type": "function_call",
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        }
        for call in calls
    )
    return items


def _input_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    image = part["image_url"]
    return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail") or "auto"}
