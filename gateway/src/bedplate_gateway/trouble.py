"""What can go wrong with an engine, in words for the client, without its address, and what may help."""

import json
import re
from urllib.parse import urlsplit

from bedplate_gateway.admission import ENGINE_RETRY_SECONDS, engine_unavailable
from bedplate_gateway.context import TOO_LONG
from bedplate_gateway.errors import ApiError, bad_request
from bedplate_gateway.relay import words_of
from bedplate_gateway.schema import Request
from bedplate_gateway.settings import Engine

MOST_WORDS = 300
ADDRESS = re.compile(r"""https?://[^\s"'<>]+|\[[0-9a-fA-F:]+\](:\d+)?|\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b""")
PARAMS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/embeddings": "input"}
CONTEXT_CODE = "context_length_exceeded"


class EngineError(Exception):
    """An engine did not answer as it should: the client's `error` if nothing helps, and what might.

    `again`: the same engine may do better a little later; `elsewhere`: another one may.
    """

    def __init__(self, error: ApiError, *, again: bool = False, elsewhere: bool = False) -> None:
        """Know what the client is told and what may help."""
        super().__init__(error.message)
        self.error = error
        self.again = again
        self.elsewhere = elsewhere or again


def unreachable(request: Request) -> EngineError:
    """Return what an engine that refuses connections is."""
    return EngineError(engine_unavailable(request.model), again=True)


def failed(words: str, *, again: bool = False) -> EngineError:
    """Return what an engine is that failed; `words` say how."""
    return EngineError(engine_failed(words), again=again)


def engine_failed(words: str) -> ApiError:
    """Return the 502 for an engine that failed."""
    return ApiError(
        502,
        "engine_error",
        f"The engine failed ({words}): try again; the operator sees more with: make health",
        type="server_error",
        retry_after=ENGINE_RETRY_SECONDS,
    )


def timed_out(seconds: float) -> ApiError:
    """Return the 504 for an answer, or its next part, that did not come in time; retrying does not help."""
    return ApiError(
        504,
        "timeout",
        f"The engine did not answer within {seconds:g} s, which is the limit here: "
        "ask for a shorter answer (max_tokens), shorten the prompt, or use stream: true.",
        type="server_error",
        headers={"x-should-retry": "false"},
    )


def too_long(request: Request, context: int | None) -> ApiError:
    """Return OpenAI's 400 for a prompt that does not fit."""
    bound = f", which is {context} tokens" if context else ""
    return bad_request(
        f"The prompt of {request.prompt_bytes} bytes does not fit into the context of {request.model}{bound}"
        ": shorten it, leave out the oldest messages, or use a model with a longer context.",
        PARAMS[request.path],
        CONTEXT_CODE,
    )


def of_answer(status: int, body: bytes, request: Request, engine: Engine, context: int | None) -> EngineError:
    """Return what an answer other than 200 is."""
    words = said(body, engine)
    if "invalid JSON schema" in words:
        # Ollama says so with a 500.
        message = f"The engine cannot use this JSON schema ({words}): use fewer of its features."
        return EngineError(bad_request(message, "response_format", "invalid_value"))
    if status in {400, 413, 422}:
        if TOO_LONG.search(words):
            return EngineError(too_long(request, context))
        return EngineError(bad_request(f"The engine refused the request: {words}"))
    if status == 404:
        return EngineError(engine_unavailable(request.model), elsewhere=True)
    if status in {429, 503}:
        return EngineError(engine_unavailable(request.model), again=True)
    return failed(f"HTTP {status}: {words}", again=status >= 500)


def said(body: bytes, engine: Engine) -> str:
    """Return an engine's own words as one short line without its address."""
    text = body.decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        text = words_of(answer) or text
    return plain(text, engine)


def plain(words: str, engine: Engine) -> str:
    """Return words of an engine as one short line without its address."""
    # Ollama puts its registry before a model's name, which nobody asked for.
    words = " ".join(words.replace("registry.ollama.ai/library/", "").split())
    words = ADDRESS.sub("(address)", words)
    if host := urlsplit(engine.url).hostname:
        words = re.sub(rf"\b{re.escape(host)}(:\d+)?\b", "(address)", words)
    return words if len(words) <= MOST_WORDS else words[: MOST_WORDS - 1] + "…"
