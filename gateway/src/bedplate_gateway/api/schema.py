"""Check a request's body and rebuild it from OpenAI's fields, before it costs anything.

Known fields are checked. Fields that an engine would silently ignore are refused with a remedy. Unknown
fields are dropped: nothing that a client sends reaches an engine unchecked. The types are the allow-list.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, Required

from pydantic import Field, Tag, TypeAdapter
from typing_extensions import TypedDict

from bedplate_gateway.api.fields import (
    MAX_MESSAGES,
    MAX_PARTS,
    Arguments,
    Base64,
    Common,
    Effort,
    ImageUrl,
    Name,
    NonEmpty,
    PlainFormat,
    ProviderUrl,
    Refused,
    Temperature,
    Tokens,
    ToolChoice,
    TopP,
    by_field,
    missing_field,
    read_json,
    refuse,
    text_or,
    text_or_object,
    validated,
)
from bedplate_gateway.api.responses_request import from_chat
from bedplate_gateway.api.size import pack, unpack
from bedplate_gateway.errors import bad_request
from bedplate_gateway.settings import PriorityClass

CHAT: Final = "/v1/chat/completions"
RESPONSES: Final = "/v1/responses"
MaxOutput = Callable[[str], int | None]
"""Returns the maximum tokens of a model's answer; None: no limit is set."""


@dataclass(frozen=True)
class Request:
    """A checked request; `prompt_bytes` is its text in UTF-8, without images, `messages` a chat's number.

    It keeps its body packed: many requests wait at a time.
    """

    path: str
    model: str
    stream: bool
    want_usage: bool
    """Whether the client requested the usage of a stream; the gateway always requests it from the engine."""
    lower_to: PriorityClass | None
    """The class that the request lowers itself to; ignored where its key's class is lower."""
    packed: bytes
    held_bytes: int
    """The memory of the packed body, and of what the response repeats of it."""
    max_tokens: int | None
    messages: int
    prompt_bytes: int
    has_tools: bool
    has_images: bool

    @property
    def body(self) -> dict[str, Any]:
        """What `path` takes, but a conversation is always in the form of a chat; unpacked each time."""
        return unpack(self.packed)

    def for_model(self, model: str) -> "Request":
        """Return the request for another model."""
        if model == self.model:
            return self
        return replace(self, model=model, packed=pack(self.body | {"model": model}))

    def without(self, name: str) -> "Request":
        """Return the request without a field."""
        body = self.body
        return self if body.pop(name, None) is None else replace(self, packed=pack(body))

    def engine_body(self, *, for_ollama: bool) -> dict[str, Any]:
        """Return the body for an engine, or for LiteLLM in front of it."""
        return from_chat(self.body, for_ollama=for_ollama) if self.path == RESPONSES else self.body


_Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(TypedDict, total=False):
    """What a stream carries in addition to the answer."""

    include_usage: bool | None


class _ImageUrlField(TypedDict, total=False):
    url: Required[ImageUrl]
    detail: Literal["auto", "low", "high"] | None


class _TextPart(TypedDict):
    type: Literal["text"]
    text: str


class _ImagePart(TypedDict):
    type: Literal["image_url"]
    image_url: _ImageUrlField


_Part = Annotated[
    Annotated[_TextPart, Tag("#text")] | Annotated[_ImagePart, Tag("#image_url")],
    by_field("type", "text", "image_url"),
]
_Texts = Annotated[
    Annotated[str, Tag("#text")]
    | Annotated[list[_TextPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
    text_or("a string or an array of text parts"),
]
_TextsAndImages = Annotated[
    Annotated[str, Tag("#text")]
    | Annotated[list[_Part], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
    text_or("a string or an array of text and image_url parts"),
]


class _Call(TypedDict):
    name: NonEmpty
    arguments: Arguments


class _ToolCall(TypedDict):
    id: NonEmpty
    type: Literal["function"]
    function: _Call


class _SystemMessage(TypedDict, total=False):
    role: Required[Literal["system", "developer"]]
    content: Required[_Texts]
    name: str | None


class _UserMessage(TypedDict, total=False):
    role: Required[Literal["user"]]
    content: Required[_TextsAndImages]
    name: str | None


class _AssistantMessage(TypedDict, total=False):
    role: Required[Literal["assistant"]]
    content: _Texts | None
    name: str | None
    tool_calls: Annotated[list[_ToolCall], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None
    # Not OpenAI's: engines return it, by either name, and need it back between calls of a tool.
    reasoning: str | None
    reasoning_content: str | None


class _ToolMessage(TypedDict, total=False):
    role: Required[Literal["tool"]]
    content: Required[_Texts]
    tool_call_id: Required[NonEmpty]


_Message = Annotated[
    Annotated[_SystemMessage, Tag("#system")]
    | Annotated[_SystemMessage, Tag("#developer")]
    | Annotated[_UserMessage, Tag("#user")]
    | Annotated[_AssistantMessage, Tag("#assistant")]
    | Annotated[_ToolMessage, Tag("#tool")],
    by_field("role", "system", "developer", "user", "assistant", "tool"),
]


class _Function(TypedDict, total=False):
    name: Required[Name]
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class _Tool(TypedDict):
    type: Literal["function"]
    function: _Function


class _FunctionName(TypedDict):
    name: Name


class _NamedTool(TypedDict):
    type: Literal["function"]
    function: _FunctionName


class _JsonSchema(TypedDict, total=False):
    name: Required[Name]
    description: str | None
    schema: Required[dict[str, Any]]
    strict: bool | None


class _SchemaFormat(TypedDict):
    type: Literal["json_schema"]
    json_schema: _JsonSchema


_ResponseFormat = Annotated[
    Annotated[PlainFormat, Tag("#text")]
    | Annotated[PlainFormat, Tag("#json_object")]
    | Annotated[_SchemaFormat, Tag("#json_schema")],
    by_field("type", "text", "json_object", "json_schema"),
]
_Stop = Annotated[
    Annotated[NonEmpty, Tag("#text")]
    | Annotated[list[NonEmpty], Field(max_length=4, fail_fast=True), Tag("#list")],
    text_or("a string or an array of strings"),
]
_Input = Annotated[
    Annotated[NonEmpty, Tag("#text")]
    | Annotated[list[NonEmpty], Field(min_length=1, max_length=2048, fail_fast=True), Tag("#list")],
    text_or("a string or an array of strings"),
]


class _Generation(Common, total=False):
    stream: bool | None
    stream_options: StreamOptions | None
    max_tokens: Tokens | None
    temperature: Temperature | None
    top_p: TopP | None
    frequency_penalty: _Penalty | None
    presence_penalty: _Penalty | None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None
    stop: _Stop | None


class _ChatOptions(_Generation, total=False):
    max_completion_tokens: Tokens | None
    response_format: _ResponseFormat | None
    tool_choice: (
        Annotated[
            Annotated[ToolChoice, Tag("#text")] | Annotated[_NamedTool, Tag("#object")], text_or_object()
        ]
        | None
    )
    parallel_tool_calls: bool | None
    logprobs: bool | None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None
    reasoning_effort: Effort | None


class _Chat(_ChatOptions, total=False):
    messages: Required[
        Annotated[list[_Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    ]
    tools: Annotated[list[_Tool], Field(max_length=MAX_PARTS, fail_fast=True)] | None


class _Completion(_Generation, total=False):
    prompt: Required[NonEmpty]
    suffix: str | None


class _Embeddings(Common, total=False):
    input: Required[_Input]
    encoding_format: Literal["float", "base64"] | None
    dimensions: Tokens | None


# What a chat with a provider's model may have in addition. Nothing in it steers LiteLLM.


class _CacheControl(TypedDict, total=False):
    type: Required[Literal["ephemeral"]]
    ttl: Literal["5m", "1h"]


class _Cached(TypedDict, total=False):
    cache_control: _CacheControl


class _ProviderTextPart(_Cached, total=False):
    type: Required[Literal["text"]]
    text: Required[str]


class _ProviderImageUrl(TypedDict, total=False):
    url: Required[ProviderUrl]
    detail: Literal["auto", "low", "high"] | None


class _ProviderImagePart(_Cached, total=False):
    type: Required[Literal["image_url"]]
    image_url: Required[_ProviderImageUrl]


class _File(TypedDict, total=False):
    file_data: ProviderUrl
    file_id: Name
    filename: Annotated[str, Field(max_length=256)]


class _FilePart(_Cached, total=False):
    type: Required[Literal["file"]]
    file: Required[_File]


class _InputAudio(TypedDict):
    data: Base64
    format: Literal["wav", "mp3"]


class _AudioPart(_Cached, total=False):
    type: Required[Literal["input_audio"]]
    input_audio: Required[_InputAudio]


_ProviderPart = Annotated[
    Annotated[_ProviderTextPart, Tag("#text")]
    | Annotated[_ProviderImagePart, Tag("#image_url")]
    | Annotated[_FilePart, Tag("#file")]
    | Annotated[_AudioPart, Tag("#input_audio")],
    by_field("type", "text", "image_url", "file", "input_audio"),
]
_ProviderContent = Annotated[
    Annotated[str, Tag("#text")]
    | Annotated[list[_ProviderPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("#list")],
    text_or("a string or an array of parts"),
]


class _ThinkingBlock(TypedDict, total=False):
    type: Required[Literal["thinking", "redacted_thinking"]]
    thinking: str
    signature: str
    data: str


class _ProviderSystemMessage(_Cached, total=False):
    role: Required[Literal["system", "developer"]]
    content: Required[_ProviderContent]
    name: str | None


class _ProviderUserMessage(_Cached, total=False):
    role: Required[Literal["user"]]
    content: Required[_ProviderContent]
    name: str | None


class _ProviderAssistantMessage(_Cached, total=False):
    role: Required[Literal["assistant"]]
    content: _ProviderContent | None
    name: str | None
    tool_calls: Annotated[list[_ToolCall], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None
    reasoning_content: str | None
    thinking_blocks: Annotated[list[_ThinkingBlock], Field(max_length=MAX_PARTS, fail_fast=True)] | None


class _ProviderToolMessage(_Cached, total=False):
    role: Required[Literal["tool"]]
    content: Required[_ProviderContent]
    tool_call_id: Required[NonEmpty]


_ProviderMessage = Annotated[
    Annotated[_ProviderSystemMessage, Tag("#system")]
    | Annotated[_ProviderSystemMessage, Tag("#developer")]
    | Annotated[_ProviderUserMessage, Tag("#user")]
    | Annotated[_ProviderAssistantMessage, Tag("#assistant")]
    | Annotated[_ProviderToolMessage, Tag("#tool")],
    by_field("role", "system", "developer", "user", "assistant", "tool"),
]


class _ProviderTool(_Cached, total=False):
    type: Required[Literal["function"]]
    function: Required[_Function]


class _Thinking(TypedDict, total=False):
    type: Required[Literal["enabled", "disabled", "adaptive"]]
    budget_tokens: Tokens


class _Audio(TypedDict):
    voice: NonEmpty
    format: Literal["wav", "mp3", "flac", "opus", "aac", "pcm16"]


class _ProviderChat(_ChatOptions, total=False):
    messages: Required[
        Annotated[list[_ProviderMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    ]
    tools: Annotated[list[_ProviderTool], Field(max_length=MAX_PARTS, fail_fast=True)] | None
    n: Annotated[int, Field(ge=1, le=128)] | None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_PARTS)] | None
    )
    user: Annotated[str, Field(max_length=256)] | None
    modalities: Annotated[list[Literal["text", "audio"]], Field(max_length=2)] | None
    audio: _Audio | None
    thinking: _Thinking | None


_ONE_ANSWER: Final = "a request gets one answer: send one request per answer."
_LEAVE_OUT: Final = "engines ignore it: leave it out."
_REFUSED: Final[Mapping[str, Refused]] = {
    CHAT: {
        "n": ((None, 1), _ONE_ANSWER),
        "logit_bias": ((None, {}), _LEAVE_OUT),
        "functions": ((None, []), "OpenAI has deprecated it: use 'tools'."),
        "function_call": ((None, "auto", "none"), "OpenAI has deprecated it: use 'tool_choice'."),
        "modalities": ((None, ["text"]), "answers are text: leave it out."),
        "audio": ((None,), "answers are text: leave it out."),
        "web_search_options": ((None,), "there is no web search: leave it out."),
    },
    "/v1/completions": {
        "n": ((None, 1), _ONE_ANSWER),
        "best_of": ((None, 1), _ONE_ANSWER),
        "logit_bias": ((None, {}), _LEAVE_OUT),
        "echo": ((None, False), "engines ignore it: put the prompt before the answer yourself."),
        "logprobs": ((None,), "engines ignore it: use /v1/chat/completions."),
    },
    "/v1/embeddings": {},
}
_PROVIDER_REFUSED: Final[Refused] = {
    name: refused
    for name, refused in _REFUSED[CHAT].items()
    if name in {"functions", "function_call", "web_search_options"}
}
_PROVIDER_CHAT: Final[TypeAdapter[Any]] = TypeAdapter(_ProviderChat)
_ADAPTERS: Final[Mapping[str, TypeAdapter[Any]]] = {
    CHAT: TypeAdapter(_Chat),
    "/v1/completions": TypeAdapter(_Completion),
    "/v1/embeddings": TypeAdapter(_Embeddings),
}
# Ollama refuses OpenAI's lowest and highest effort.
_EFFORTS: Final[Mapping[str, str]] = {"minimal": "low", "xhigh": "high"}


def parse_request(
    path: str,
    raw: bytes,
    *,
    default_max_output: MaxOutput,
    provider_models: frozenset[str] = frozenset(),
) -> Request:
    """Return the checked request in `raw`; raises ApiError 400. Whether its model exists is not checked.

    A chat with one of the `provider_models` may have fields that engines ignore and providers do not.
    """
    body = read_json(raw)
    model = body.get("model")
    if path == CHAT and isinstance(model, str) and model in provider_models:
        return _build_provider_chat(path, body, default_max_output)
    return build_request(path, body, default_max_output=default_max_output)


def _build_provider_chat(path: str, body: dict[str, Any], default_max_output: MaxOutput) -> Request:
    refuse(body, _PROVIDER_REFUSED)
    checked = validated(_PROVIDER_CHAT, body)
    want_usage = _normalise_stream(checked)
    _limit_output(checked, default_max_output(checked["model"]))
    _check_options(checked)
    checked["messages"] = [
        _without_nulls(message, index) for index, message in enumerate(checked["messages"])
    ]
    return _packed(path, checked, want_usage=want_usage, prompt_bytes=_chat_bytes(checked))


def _without_nulls(message: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a message as the client sent it; LiteLLM gives it the form that its provider takes."""
    if message.get("content") is None and not message.get("tool_calls"):
        raise missing_field(f"messages[{index}].content")
    return {name: value for name, value in message.items() if value is not None} | {
        "content": message.get("content")
    }


def build_request(path: str, body: dict[str, Any], *, default_max_output: MaxOutput) -> Request:
    """Return the checked request for a parsed body; raises ApiError 400."""
    refuse(body, _REFUSED[path])
    if path == "/v1/completions":
        body = _with_single_prompt(body)
    elif path == "/v1/embeddings":
        _refuse_token_ids("input", body.get("input"))
    checked = validated(_ADAPTERS[path], body)
    want_usage = False
    if path != "/v1/embeddings":
        want_usage = _normalise_stream(checked)
        _limit_output(checked, default_max_output(checked["model"]))
    if path == CHAT:
        _normalise_tools(checked)
        prompt_bytes = _normalise_chat(checked)
    else:
        prompt_bytes = _text_bytes(checked)
    return _packed(path, checked, want_usage=want_usage, prompt_bytes=prompt_bytes)


def _packed(path: str, checked: dict[str, Any], *, want_usage: bool, prompt_bytes: int) -> Request:
    """Return the request for a body that was checked and normalised."""
    lower_to = _lower_to(checked.pop("service_tier", None), checked.pop("priority", 0))
    messages = checked.get("messages", ())
    packed = pack(checked)
    return Request(
        path=path,
        model=checked["model"],
        stream=checked.get("stream", False),
        want_usage=want_usage,
        lower_to=lower_to,
        packed=packed,
        held_bytes=len(packed),
        max_tokens=checked.get("max_tokens"),
        messages=len(messages),
        prompt_bytes=prompt_bytes,
        has_tools="tools" in checked,
        has_images=any(
            part["type"] != "text"
            for message in messages
            if isinstance(message["content"], list)
            for part in message["content"]
        ),
    )


def _lower_to(service_tier: str | None, priority: int) -> PriorityClass | None:
    if service_tier == "flex" or priority >= 100:
        return "low"
    return "normal" if priority else None


def _normalise_stream(checked: dict[str, Any]) -> bool:
    """Request a stream's usage from the engine; return whether the client requested it."""
    options = checked.pop("stream_options", None)
    if checked.setdefault("stream", False):
        checked["stream_options"] = {"include_usage": True}
        return bool(options and options.get("include_usage"))
    if options is not None:
        raise bad_request(
            "The 'stream_options' parameter is only allowed when 'stream' is true.", "stream_options"
        )
    return False


def _limit_output(checked: dict[str, Any], bound: int | None) -> None:
    bounds = (checked.pop("max_completion_tokens", None), checked.get("max_tokens"), bound)
    if known := [tokens for tokens in bounds if tokens is not None]:
        checked["max_tokens"] = min(known)


def _normalise_tools(chat: dict[str, Any]) -> None:
    # Ollama would offer the tools nevertheless.
    if not chat.get("tools") or chat.get("tool_choice") == "none":
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            chat.pop(name, None)


def _normalise_chat(chat: dict[str, Any]) -> int:
    """Check and normalise what depends on several fields; return the bytes of the prompt."""
    _check_options(chat)
    if effort := chat.get("reasoning_effort"):
        chat["reasoning_effort"] = _EFFORTS.get(effort, effort)
    chat["messages"] = [_normalise_message(message, index) for index, message in enumerate(chat["messages"])]
    return _chat_bytes(chat)


def _check_options(chat: dict[str, Any]) -> None:
    if chat.get("top_logprobs") and not chat.get("logprobs"):
        raise bad_request(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is true.", "top_logprobs"
        )
    _json_bytes(chat.get("response_format"), "response_format")


def _chat_bytes(chat: dict[str, Any]) -> int:
    tools = _json_bytes(chat["tools"], "tools") if "tools" in chat else 0
    return tools + sum(_message_bytes(message) for message in chat["messages"])


def _normalise_message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a message in the form that every engine accepts."""
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and not calls:
        raise missing_field(f"messages[{index}].content")
    if isinstance(content, list) and all(part["type"] == "text" for part in content):
        # Ollama would make a message of each part, lose a tool's id, and join them with an empty line.
        content = "\n\n".join(part["text"] for part in content)
    # Chat templates have no developer role and would drop the message.
    role = "system" if message["role"] == "developer" else message["role"]
    kept = {name: value for name, value in message.items() if value} | {"role": role, "content": content}
    if reasoning := kept.pop("reasoning_content", None):
        kept.setdefault("reasoning", reasoning)
    return kept


def _message_bytes(message: dict[str, Any]) -> int:
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
    texts += [text for call in message.get("tool_calls", ()) for text in call["function"].values()]
    texts += [message.get("reasoning", ""), message.get("reasoning_content", "")]
    texts += [block.get("thinking", "") for block in message.get("thinking_blocks", ())]
    return sum(len(text.encode()) for text in texts)


def _text_bytes(checked: dict[str, Any]) -> int:
    text = checked["input"] if "input" in checked else checked["prompt"] + checked.get("suffix", "")
    return sum(len(part.encode()) for part in ([text] if isinstance(text, str) else text))


def _json_bytes(value: object, param: str) -> int:
    try:
        return len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        raise bad_request(
            f"Invalid '{param}': it contains a number that is too large.", param, "invalid_value"
        ) from None


def _with_single_prompt(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body.get("prompt")
    _refuse_token_ids("prompt", prompt)
    if not isinstance(prompt, list):
        return body
    if len(prompt) != 1:
        raise bad_request("Invalid 'prompt': send one text per request.", "prompt", "invalid_value")
    return body | {"prompt": prompt[0]}


def _refuse_token_ids(param: str, value: object) -> None:
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise bad_request(
            f"Invalid type for '{param}': token ids are not supported: send text.", param, "invalid_type"
        )
