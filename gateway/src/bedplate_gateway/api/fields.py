"""What all endpoints share: types of fields, reading of JSON, refusals, and errors in OpenAI's wording."""

import re
import string
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal, Required

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticKnownError, from_json
from typing_extensions import TypedDict

from bedplate_gateway.api.size import MAX_VALUES, check_size, values_in
from bedplate_gateway.errors import ApiError, bad_request

MAX_MESSAGES: Final = 8192
"""Messages, items or tool calls in an array; parts of a content and tools: `MAX_PARTS`."""
MAX_PARTS: Final = 1024


def _check_image(url: str) -> str:
    head = url[: url.find(",")]
    if head not in _IMAGE_HEADS:
        raise PydanticCustomError(
            "value", "images are not fetched: send a data: URL with a PNG, JPEG or WebP in base64"
        )
    _check_base64(url, len(head) + 1)
    return url


def _check_data(text: str) -> str:
    _check_base64(text, 0)
    return text


def _check_base64(text: str, start: int) -> None:
    # A third of a pattern's time; a piece fits into the processor's cache.
    padding = b"".join(
        text[piece : piece + _PIECE].encode("ascii", "replace").translate(None, _BASE64)
        for piece in range(start, len(text), _PIECE)
    )
    if (len(text) - start) % 4 or padding not in (b"", b"=", b"==") or not text.endswith(padding.decode()):
        raise PydanticCustomError("value", "its base64 is not valid: encode it again")


def _check_provider_url(url: str) -> str:
    if head := _DATA_HEAD.match(url):
        _check_base64(url, head.end())
    elif not _HTTPS_URL.fullmatch(url):
        raise PydanticCustomError("value", "send a data: URL in base64, or an https URL with a public name")
    return url


class _ValuesLeft:
    """How many JSON values the arguments of a request's tool calls may still have."""

    def __init__(self) -> None:
        self.values = MAX_VALUES


def _check_arguments(text: str, info: ValidationInfo[_ValuesLeft]) -> str:
    left = info.context
    left.values -= values_in(text.encode())
    if left.values < 0:
        raise PydanticCustomError(
            "value", f"the arguments of all calls have more than {MAX_VALUES} JSON values: send fewer"
        )
    try:
        if isinstance(from_json(text, allow_inf_nan=False), dict):
            return text
    except ValueError:
        pass
    raise PydanticCustomError("value", "expected the text of a JSON object")


def at_most(count: int) -> BeforeValidator:
    """Refuse an object with more members before it looks at them; pydantic would report each wrong one."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > count:
            context = {"field_type": "Dictionary", "max_length": count, "actual_length": len(value)}
            raise PydanticKnownError("too_long", context)
        return value

    return BeforeValidator(check)


# A union's tag starts with #, so that the path of an error can leave it out.
def _text_or_list(value: object) -> str | None:
    return "#text" if isinstance(value, str) else "#list" if isinstance(value, list) else None


def by_field(field: str, *supported: str, absent: str | None = None) -> Discriminator:
    """Choose among types of objects by a field, by default `absent`; a type's tag is # and the value."""
    return Discriminator(
        lambda value: f"#{value.get(field, absent)}" if isinstance(value, dict) else None,
        custom_error_type="by_field",
        # An error context would make the type unhashable, so the message carries both.
        custom_error_message=f"{field}|" + ", ".join(f"'{value}'" for value in supported),
    )


def text_or(expected: str) -> Discriminator:
    """Choose between a text, tagged #text, and a list, tagged #list; `expected` names both in the error."""
    return Discriminator(_text_or_list, custom_error_type="text_or", custom_error_message=expected)


def text_or_object() -> Discriminator:
    """Choose between a text, tagged #text, and an object, tagged #object."""
    return Discriminator(
        lambda value: "#text" if isinstance(value, str) else "#object" if isinstance(value, dict) else None,
        custom_error_type="text_or",
        custom_error_message="a string or an object",
    )


_BASE64: Final = (string.ascii_letters + string.digits + "+/").encode()
_PIECE: Final = 256 * 1024
_IMAGE_HEADS: Final = frozenset(f"data:image/{kind};base64" for kind in ("png", "jpeg", "jpg", "webp"))
_DATA_HEAD: Final = re.compile(r"data:[a-z]+/[a-z0-9.+-]+;base64,(?=.)")
# LiteLLM fetches it for some providers, unless its name has a private address. No user, port or address.
_HTTPS_URL: Final = re.compile(r"https://([a-z0-9-]{1,63}\.)+[a-z]{2,63}(/[!-~]{0,4000})?", re.IGNORECASE)
NonEmpty = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
ToolChoice = Literal["auto", "none", "required"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Arguments = Annotated[str, AfterValidator(_check_arguments)]
ImageUrl = Annotated[str, AfterValidator(_check_image)]
ProviderUrl = Annotated[str, AfterValidator(_check_provider_url)]
Base64 = Annotated[str, AfterValidator(_check_data)]


class Common(TypedDict, total=False):
    """Fields of every request. The last two lower its class, and are not sent to the engine."""

    model: Required[ModelName]
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None
    priority: Annotated[int, Field(ge=0)] | None


class PlainFormat(TypedDict):
    """An answer as text, or as any JSON object."""

    type: Literal["text", "json_object"]


# Reading a body

Refused = Mapping[str, tuple[Collection[object], str]]
"""Fields that engines silently ignore: the values without effect, and the remedy for all others."""


def read_json(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; raises ApiError. Its size is bounded."""
    check_size(raw)
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(f"The body is not valid JSON ({error}): send a JSON object in UTF-8.") from None
    if not isinstance(body, dict):
        raise bad_request(f"The body is {_JSON_NAMES[type(body)]}: send a JSON object.")
    return body


def refuse(body: Mapping[str, Any], refused: Refused) -> None:
    """Raise ApiError 400 for the first field that requests what no engine does."""
    for name, (harmless, remedy) in refused.items():
        if name in body and body[name] not in harmless:
            raise bad_request(f"Unsupported parameter: '{name}': {remedy}", name, "unsupported_parameter")


def validated(adapter: TypeAdapter[Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the type, without nulls; raises ApiError 400 that names the invalid field."""
    try:
        checked = adapter.validate_python(body, strict=True, context=_ValuesLeft())
    except ValidationError as error:
        raise _to_openai_error(error.errors(include_url=False)[0]) from None
    return {name: value for name, value in checked.items() if value is not None}


# OpenAI's wording

_JSON_NAMES: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_EXPECTED: Final[Mapping[str, str]] = {
    "bool_type": "a boolean",
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "an array",
    "dict_type": "an object",
}


# The expectation, and the end of OpenAI's code; the code starts with the type of the value.
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than_equal": ("a value >= {ge}", "below_min_value"),
    "less_than_equal": ("a value <= {le}", "above_max_value"),
    "too_short": ("a minimum length of {min_length}", "below_min_length"),
    "too_long": ("a maximum length of {max_length}", "above_max_length"),
    "string_too_short": ("a minimum length of {min_length}", "below_min_length"),
    "string_too_long": ("a maximum length of {max_length}", "above_max_length"),
    "string_pattern_mismatch": ("a string that matches {pattern}", "does_not_match_pattern"),
}


def _to_openai_error(error: ErrorDetails) -> ApiError:
    """Return an error of pydantic's in OpenAI's wording."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    param = _param(error["loc"])
    if kind == "missing":
        return missing_field(param)
    if kind == "literal_error":
        return _unsupported(param, value, context["expected"])
    if kind == "by_field" and isinstance(value, dict):
        field, _, supported = error["msg"].partition("|")
        param = f"{param}.{field}"
        return _unsupported(param, value[field], supported) if field in value else missing_field(param)
    if kind in _BOUNDS:
        expected, code = _BOUNDS[kind]
        code = f"{_JSON_NAMES[type(value)].split()[-1]}_{code}"
        return bad_request(f"Invalid '{param}': expected {expected.format(**context)}.", param, code)
    if kind == "value":
        return bad_request(f"Invalid '{param}': {error['msg']}.", param, "invalid_value")
    expected = error["msg"] if kind == "text_or" else _EXPECTED.get(kind, "an object")
    message = f"Invalid type for '{param}': expected {expected}, but got {_JSON_NAMES[type(value)]} instead."
    return bad_request(message, param, "invalid_type")


def _param(loc: tuple[int | str, ...]) -> str:
    """Return the path of an error as OpenAI writes it: messages[0].content."""
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc if not str(part).startswith("#")
    ]
    return "".join(parts).removeprefix(".")


def missing_field(param: str) -> ApiError:
    """Return the 400 for a required field."""
    return bad_request(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def _unsupported(param: str, value: object, supported: str) -> ApiError:
    shown = _JSON_NAMES[type(value)] if isinstance(value, list | dict) else f"'{str(value)[:40]}'"
    return bad_request(
        f"Invalid value for '{param}': {shown}. Supported: {supported}.", param, "invalid_value"
    )
