"""The body of POST /v1/responses: the allow-list of its fields, and the fields that are refused."""

from typing import Annotated, Any, Final, Literal, NotRequired, Required

from pydantic import Field, Tag, TypeAdapter
from typing_extensions import TypedDict

from bedplate_gateway.api.fields import (
    MAX_MESSAGES,
    MAX_PARTS,
    Arguments,
    Common,
    Effort,
    ImageUrl,
    Name,
    NonEmpty,
    PlainFormat,
    Refused,
    Temperature,
    Tokens,
    ToolChoice,
    TopP,
    at_most,
    by_field,
    text_or,
    text_or_object,
)


class _Text(TypedDict):
    type: Literal["input_text", "output_text", "text"]
    text: str


class _Image(TypedDict):
    type: Literal["input_image"]
    image_url: ImageUrl
    detail: NotRequired[Literal["auto", "low", "high"]]


class _Refusal(TypedDict):
    type: Literal["refusal"]
    refusal: str


_TextTypes = (
    Annotated[_Text, Tag("#input_text")]
    | Annotated[_Text, Tag("#output_text")]
    | Annotated[_Text, Tag("#text")]
)
_UserPart = Annotated[
    _TextTypes | Annotated[_Image, Tag("#input_image")], by_field("type", "input_text", "input_image")
]
_AssistantPart = Annotated[
    _TextTypes | Annotated[_Refusal, Tag("#refusal")], by_field("type", "output_text", "refusal")
]
_UserContent = Annotated[
    Annotated[str, Tag("#text")]
    | Annotated[list[_UserPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
    text_or("a string or an array of input_text and input_image parts"),
]
_AssistantContent = Annotated[
    Annotated[str, Tag("#text")]
    | Annotated[list[_AssistantPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
    text_or("a string or an array of output_text parts"),
]
_TextContent = Annotated[
    Annotated[str, Tag("#text")]
    | Annotated[list[_Text], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
    text_or("a string or an array of input_text parts"),
]


class _SystemItem(TypedDict):
    role: Literal["system", "developer"]
    content: _TextContent


class _UserItem(TypedDict):
    role: Literal["user"]
    content: _UserContent


class _AssistantItem(TypedDict):
    role: Literal["assistant"]
    content: _AssistantContent


class _Call(TypedDict):
    type: Literal["function_call"]
    call_id: NonEmpty
    name: NonEmpty
    arguments: Arguments
    namespace: NotRequired[Name | None]


class _TextCall(TypedDict):
    type: Literal["custom_tool_call"]
    call_id: NonEmpty
    name: NonEmpty
    input: str
    namespace: NotRequired[Name | None]


class _CallOutput(TypedDict):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: NonEmpty
    output: _UserContent


class _ReasoningText(TypedDict):
    type: Literal["summary_text", "reasoning_text"]
    text: str


class _Reasoning(TypedDict, total=False):
    type: Required[Literal["reasoning"]]
    summary: Annotated[list[_ReasoningText], Field(max_length=MAX_PARTS, fail_fast=True)]
    content: Annotated[list[_ReasoningText], Field(max_length=MAX_PARTS, fail_fast=True)] | None


_Message = Annotated[
    Annotated[_SystemItem, Tag("#system")]
    | Annotated[_SystemItem, Tag("#developer")]
    | Annotated[_UserItem, Tag("#user")]
    | Annotated[_AssistantItem, Tag("#assistant")],
    by_field("role", "system", "developer", "user", "assistant"),
]
_Item = Annotated[
    Annotated[_Message, Tag("#message")]
    | Annotated[_Call, Tag("#function_call")]
    | Annotated[_CallOutput, Tag("#function_call_output")]
    | Annotated[_TextCall, Tag("#custom_tool_call")]
    | Annotated[_CallOutput, Tag("#custom_tool_call_output")]
    | Annotated[_Reasoning, Tag("#reasoning")],
    by_field(
        "type",
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "reasoning",
        absent="message",
    ),
]
_Input = Annotated[
    Annotated[NonEmpty, Tag("#text")]
    | Annotated[list[_Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), Tag("#list")],
    text_or("a string or an array of items"),
]


class _Function(TypedDict, total=False):
    type: Required[Literal["function"]]
    name: Required[Name]
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class _Grammar(TypedDict, total=False):
    type: Required[Literal["text", "grammar"]]
    syntax: str | None
    definition: str | None


class _TextTool(TypedDict, total=False):
    type: Required[Literal["custom"]]
    name: Required[Name]
    description: str | None
    format: _Grammar | None


_OneTool = Annotated[_Function, Tag("#function")] | Annotated[_TextTool, Tag("#custom")]


class _Namespace(TypedDict, total=False):
    type: Required[Literal["namespace"]]
    name: Required[Name]
    description: str | None
    tools: Required[
        Annotated[
            list[Annotated[_OneTool, by_field("type", "function", "custom")]],
            Field(max_length=MAX_PARTS, fail_fast=True),
        ]
    ]


_Tool = Annotated[
    _OneTool | Annotated[_Namespace, Tag("#namespace")], by_field("type", "function", "custom", "namespace")
]


class _NamedTool(TypedDict):
    type: Literal["function"]
    name: Name


class _SchemaFormat(TypedDict, total=False):
    type: Required[Literal["json_schema"]]
    name: Required[Name]
    schema: Required[dict[str, Any]]
    description: str | None
    strict: bool | None


class _TextOptions(TypedDict, total=False):
    format: Annotated[
        Annotated[PlainFormat, Tag("#text")]
        | Annotated[PlainFormat, Tag("#json_object")]
        | Annotated[_SchemaFormat, Tag("#json_schema")],
        by_field("type", "text", "json_object", "json_schema"),
    ]


class _ReasoningOptions(TypedDict, total=False):
    effort: Effort | None


class _Responses(Common, total=False):
    input: Required[_Input]
    instructions: str | None
    max_output_tokens: Tokens | None
    metadata: Annotated[dict[str, str], at_most(16)] | None
    parallel_tool_calls: bool | None
    reasoning: _ReasoningOptions | None
    stream: bool | None
    temperature: Temperature | None
    text: _TextOptions | None
    tool_choice: (
        Annotated[
            Annotated[ToolChoice, Tag("#text")] | Annotated[_NamedTool, Tag("#object")], text_or_object()
        ]
        | None
    )
    tools: Annotated[list[_Tool], Field(max_length=MAX_PARTS, fail_fast=True)] | None
    top_p: TopP | None
    truncation: Literal["auto", "disabled"] | None
    user: str | None


RESPONSES: Final[TypeAdapter[Any]] = TypeAdapter(_Responses)
_NOTHING_STORED: Final = "the gateway stores nothing: send the whole conversation in 'input'."
REFUSED: Final[Refused] = {
    "previous_response_id": ((None,), _NOTHING_STORED),
    "conversation": ((None,), _NOTHING_STORED),
    "prompt": ((None,), "the gateway stores no prompts: send the text in 'instructions' and 'input'."),
    "background": ((None, False), "the gateway stores no responses: leave it out and use stream: true."),
    "context_management": (
        (None, []),
        "the gateway does not shorten the input: send only what the model is to read.",
    ),
    "top_logprobs": ((None, 0), "it is not supported here: use /v1/chat/completions."),
    # Clients request encrypted reasoning routinely, and work without it.
    "include": (
        (None, [], ["reasoning.encrypted_content"]),
        "nothing else can be included: leave it out.",
    ),
}
