"""Tools of /v1/responses that a chat does not have, in the form of functions, and their calls back.

Codex groups tools in namespaces, and has tools that take a text instead of JSON.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

_TEXT_PARAMETERS = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


@dataclass(frozen=True)
class Tool:
    """How the client names a tool."""

    name: str
    namespace: str | None = None
    takes_text: bool = False
    """Whether it is a `custom` tool, which takes a text."""


def function_name(name: str, namespace: str | None) -> str:
    """Return the name of a tool's function in a chat, which has no namespaces."""
    return f"{namespace.rstrip('_')}__{name}" if namespace else name


def functions(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the functions of a chat for a request's tools."""
    return [_function(tool, namespace) for tool, namespace in _each(tools)]


def by_function(tools: list[dict[str, Any]]) -> dict[str, Tool]:
    """Return a request's tools by the names of their functions."""
    return {
        function_name(tool["name"], namespace): Tool(tool["name"], namespace, tool["type"] == "custom")
        for tool, namespace in _each(tools)
    }


def text_arguments(text: str) -> str:
    """Return the arguments of the function for the text that a tool takes."""
    return json.dumps({"input": text}, ensure_ascii=False)


def text_of(arguments: str) -> str:
    """Return the text for a tool that takes one; a model may also write it without the JSON around it."""
    try:
        given = from_json(arguments)
    except ValueError:
        return arguments
    text = given.get("input") if isinstance(given, dict) else given
    return text if isinstance(text, str) else arguments


def _each(tools: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield each tool with its namespace."""
    for tool in tools:
        if tool["type"] == "namespace":
            yield from ((inner, tool["name"]) for inner in tool["tools"])
        else:
            yield tool, None


def _function(tool: dict[str, Any], namespace: str | None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": function_name(tool["name"], namespace)}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    if tool["type"] == "custom":
        function["parameters"] = _TEXT_PARAMETERS
        if grammar := (tool.get("format") or {}).get("definition"):
            # No engine is held to it, so the model has to read it.
            function["description"] = f"{tool.get('description') or ''}\n\nGrammar of the input:\n{grammar}"
    elif tool.get("parameters") is not None:
        function["parameters"] = tool["parameters"]
    return {"type": "function", "function": function}
