"""The body of POST /v1/messages: the allow-list of its fields, and the fields that are refused."""

from typing import Annotated, Any, Final, Literal, NotRequired, Required

from pydantic import Field, Tag, TypeAdapter
from typing_extensions import TypedDict

from bedplate_gateway.api.fields import (
    MAX_MESSAGES,
    MAX_PARTS,
    Base64,
    ModelName,
    Name,
    NonEmpty,
    Refused,
    Temperature,
    Tokens,
    TopP,
    by_field,
    text_or,
)


class _Text(TypedDict):
    type: Literal["text"]
    text: str


class _Source(TypedDict):
    type: Literal["base64"]
    media_type: Literal["image/png", "image/jpeg", "image/webp"]
    data: Base64


class _Image(TypedDict):
    type: Literal["image"]
    source: Annotated[Annotated[_Source, Tag("#base64")], by_field("type", "base64")]


class _ToolUse(TypedDict):
    type: Literal["tool_use"]
    id: NonEmpty
    name: NonEmpty
    input: dict[str, Any]


class _Thinking(TypedDict):
    type: Literal["thinking"]
    thinking: str


class _RedactedThinking(TypedDict):
    type: Literal["redacted_thinking"]


_TextOrImage = Annotated[
    Annotated[_Text, Tag("#text")] | Annotated[_Image, Tag("#image")], by_field("type", "text", "image")
]


class _ToolResult(TypedDict, total=False):
    type: Required[Literal["tool_result"]]
    tool_use_id: Required[NonEmpty]
    content: (
        Annotated[
            Annotated[str, Tag("#text")]
            | Annotated[list[_TextOrImage], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
            text_or("a string or an array of text and image blocks"),
        ]
        | None
    )


_UserBlock = Annotated[
    Annotated[_Text, Tag("#text")]
    | Annotated[_Image, Tag("#image")]
    | Annotated[_ToolResult, Tag("#tool_result")],
    by_field("type", "text", "image", "tool_result"),
]
_AssistantBlock = Annotated[
    Annotated[_Text, Tag("#text")]
    | Annotated[_ToolUse, Tag("#tool_use")]
    | Annotated[_Thinking, Tag("#thinking")]
    | Annotated[_RedactedThinking, Tag("#redacted_thinking")],
    by_field("type", "text", "tool_use", "thinking", "redacted_thinking"),
]
_Texts = Annotated[
    Annotated[str, Tag("#text")]
    | Annotated[list[_Text], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
    text_or("a string or an array of text blocks"),
]


class _UserMessage(TypedDict):
    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("#text")]
        | Annotated[list[_UserBlock], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
        text_or("a string or an array of content blocks"),
    ]


class _AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("#text")]
        | Annotated[list[_AssistantBlock], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
        text_or("a string or an array of content blocks"),
    ]


class _SystemMessage(TypedDict):
    role: Literal["system"]
    content: _Texts


# Anthropic's API has the system prompt in a field of its own; Claude Code also sends messages of that role.
_Message = Annotated[
    Annotated[_UserMessage, Tag("#user")]
    | Annotated[_AssistantMessage, Tag("#assistant")]
    | Annotated[_SystemMessage, Tag("#system")],
    by_field("role", "user", "assistant", "system"),
]


class _Tool(TypedDict, total=False):
    name: Required[Name]
    input_schema: Required[dict[str, Any]]
    type: Literal["custom"] | None
    description: str | None
    strict: bool | None


class _Choice(TypedDict):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: NotRequired[bool]


class _NamedChoice(TypedDict):
    type: Literal["tool"]
    name: Name
    disable_parallel_tool_use: NotRequired[bool]


_ToolChoice = Annotated[
    Annotated[_Choice, Tag("#auto")]
    | Annotated[_Choice, Tag("#any")]
    | Annotated[_Choice, Tag("#none")]
    | Annotated[_NamedChoice, Tag("#tool")],
    by_field("type", "auto", "any", "tool", "none"),
]


class _Budget(TypedDict):
    type: Literal["enabled"]
    budget_tokens: Tokens


class _NoBudget(TypedDict):
    type: Literal["adaptive", "disabled"]


_ThinkingOptions = Annotated[
    Annotated[_Budget, Tag("#enabled")]
    | Annotated[_NoBudget, Tag("#adaptive")]
    | Annotated[_NoBudget, Tag("#disabled")],
    by_field("type", "enabled", "adaptive", "disabled"),
]


class _Format(TypedDict):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _OutputConfig(TypedDict, total=False):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None
    format: _Format | None


class _CountTokens(TypedDict, total=False):
    """What /v1/messages/count_tokens takes: whatever is part of the prompt."""

    model: Required[ModelName]
    messages: Required[
        Annotated[list[_Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    ]
    system: _Texts | None
    tools: Annotated[list[_Tool], Field(max_length=MAX_PARTS, fail_fast=True)] | None
    tool_choice: _ToolChoice | None
    thinking: _ThinkingOptions | None
    output_config: _OutputConfig | None


class _Messages(_CountTokens, total=False):
    max_tokens: Required[Tokens]
    stream: bool | None
    temperature: Temperature | None
    top_p: TopP | None
    stop_sequences: Annotated[list[NonEmpty], Field(max_length=4, fail_fast=True)] | None
    service_tier: Literal["auto", "standard_only", "flex"] | None
    priority: Annotated[int, Field(ge=0)] | None


MESSAGES: Final[TypeAdapter[Any]] = TypeAdapter(_Messages)
COUNT_TOKENS: Final[TypeAdapter[Any]] = TypeAdapter(_CountTokens)
REFUSED: Final[Refused] = {
    "top_k": ((None,), "engines ignore it: leave it out."),
    "mcp_servers": ((None, []), "the gateway calls no tools: let the client call them, and send 'tools'."),
    "container": ((None,), "the gateway stores nothing and runs no code: leave it out."),
    "output_format": ((None,), "Anthropic has deprecated it: use 'output_config.format'."),
}
