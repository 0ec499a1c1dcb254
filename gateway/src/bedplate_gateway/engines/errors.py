"""How an engine failed: the error for the client, without addresses and keys, and if a retry may help."""

import json
import logging
import re
from urllib.parse import urlsplit

from bedplate_gateway import errors
from bedplate_gateway.api.schema import Request
from bedplate_gateway.engines.context import CONTEXT_ERROR
from bedplate_gateway.engines.sse import error_message
from bedplate_gateway.errors import ApiError
from bedplate_gateway.settings import Engine

log = logging.getLogger(__name__)

MAX_TEXT_LENGTH = 300
MAX_READ_LENGTH = 10 * MAX_TEXT_LENGTH
"""More of an engine's words is not searched: that takes time, and a client sees only the beginning."""
ADDRESS = re.compile(
    r"""
    https?://[^\s"'<>]+
    | \[[0-9a-fA-F:]+\](:\d+)?
    | \b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b
    | (?<![\w.-])[a-z][a-z0-9.-]*+:(80|443|\d{4,5})\b         # a host with a port
    | (?<![\w.-])([a-z0-9-]++\.){2,}+[a-z]{2,}+(?![\w-])      # a host; a name with one dot may be a file's
    | (?<=\blookup\ )[^\s:]+                                 # a host in the words of Go's resolver
    """,
    re.VERBOSE,
)
KEY = re.compile(r"\b(?:sk|pk|key|tok)-[\w*.-]{4,}|\bBearer\s+\S+", re.IGNORECASE)
OPERATOR_STATUSES = {
    401: "refuses its API key",
    402: "requires payment",
    403: "forbids the request",
    407: "is behind a proxy that requires a login",
}
"""What only the operator can change; the engine's words may hold the operator's key and account."""
PROMPT_FIELDS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/responses": "input",
}
LOST = "its host cannot be reached any more"
NO_MODEL = re.compile(r"model.*(not found|not exist)", re.IGNORECASE)


class EngineError(Exception):
    """An engine failed: the client's `error` if no retry helps, and which retry may help.

    `again`: the same engine may succeed a little later; `elsewhere`: another engine may succeed; `gone`: the
    engine counts as down, so it is better to wait for another one; `unsent`: it got nothing of the request.
    """

    def __init__(
        self,
        error: ApiError,
        *,
        again: bool = False,
        elsewhere: bool = False,
        gone: bool = False,
        unsent: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.again = again
        self.elsewhere = elsewhere or again
        self.gone = gone
        self.unsent = unsent


class EngineGoneError(Exception):
    """The engine is gone, no other one has a free slot, and another one may answer once it has one.

    `error` is for a client that waits no longer.
    """

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


def unreachable(model: str) -> EngineError:
    """Return the error for an engine that refuses connections."""
    return EngineError(errors.engine_unavailable(model), again=True, gone=True, unsent=True)


def lost() -> EngineError:
    """Return the error for an engine whose host cannot be reached any more."""
    return EngineError(errors.engine_error(LOST), again=True, gone=True)


def failed(text: str, *, again: bool = False) -> EngineError:
    """Return the error for an engine that failed; `text` says how."""
    return EngineError(errors.engine_error(text), again=again)


def no_responses(model: str) -> EngineError:
    """Return the error for an engine without /v1/responses."""
    return EngineError(errors.responses_unsupported(model), elsewhere=True)


def names_model(text: str) -> bool:
    """Return whether a 404 says that the model is missing; otherwise it is the path that is missing."""
    return NO_MODEL.search(text) is not None


def from_response(
    status: int, body: bytes, request: Request, engine: Engine, context: int | None
) -> EngineError:
    """Return the error for a response other than 200; `context` is the model's, in tokens."""
    text = error_text(body, engine)
    if "invalid JSON schema" in text:
        # Ollama reports it with a 500.
        return EngineError(errors.json_schema_unsupported(text))
    if status in {400, 413, 422}:
        if CONTEXT_ERROR.search(text):
            param = PROMPT_FIELDS[request.path]
            return EngineError(
                errors.context_length_exceeded(request.model, request.prompt_bytes, context, param)
            )
        return EngineError(errors.engine_refused(text))
    if status in OPERATOR_STATUSES:
        log.warning("Engine %s %s (HTTP %d): %s", engine.name, OPERATOR_STATUSES[status], status, text)
        return failed(OPERATOR_STATUSES[status])
    if status in {404, 429, 503}:
        return EngineError(errors.engine_unavailable(request.model), again=status != 404, elsewhere=True)
    return failed(f"HTTP {status}: {text}", again=status >= 500)


def error_text(body: bytes, engine: Engine) -> str:
    """Return the message in an engine's error response, as one short line without addresses and keys."""
    text = body.decode(errors="replace")
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict):
        text = error_message(document) or text
    return redact(text, engine)


def redact(text: str, engine: Engine) -> str:
    """Return an engine's message on one line, shortened, with every address and key replaced."""
    # Ollama puts its registry before the name of a model.
    text = text[:MAX_READ_LENGTH]
    text = " ".join(text.replace("registry.ollama.ai/library/", "").split())
    text = ADDRESS.sub("(address)", text)
    if engine.api_key:
        text = text.replace(engine.api_key, "(key)")
    text = KEY.sub("(key)", text)
    for name in (urlsplit(engine.url).hostname, engine.name):
        if name:
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(:\d+)?(?![\w-])", "(address)", text)
    return text if len(text) <= MAX_TEXT_LENGTH else text[: MAX_TEXT_LENGTH - 1] + "…"
