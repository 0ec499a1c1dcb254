"""Every error that a client of the gateway can get, in OpenAI's shape; `api.messages` has Anthropic's.

The body is `{"error": {"message", "type", "param", "code"}}`; a message has a fact and a remedy. The columns
are status, code, and reason: the label in metrics and access log, by default the code.

ApiError
  400 -                          bad_request       the body is not valid JSON, the request not valid HTTP/1.1,
                                                   or the engine refused it
  400 missing_required_parameter                   a field is missing
  400 invalid_type                                 a field has the wrong type
  400 invalid_value                                a field has an unsupported value
  400 too_many_values                              the body has more values than can be parsed quickly
  400 <type>_<bound>                               a field is out of bounds, such as integer_below_min_value
  400 unsupported_parameter                        no engine, or not this model, does what the field requests
  400 unsupported_endpoint                         the model's engine has no /v1/responses
  400 context_length_exceeded                      the prompt does not fit into the model's context
  401 invalid_api_key            no_key            neither Authorization nor x-api-key has a key
                                 wrong_key         the key is unknown
                                 revoked_key       the key was revoked
                                 expired_key       the key has expired
                                 replaced_key      the secret was rotated
  403 -                          403               the peer may not read metrics (metrics port only)
  404 unknown_url                                  the path does not exist
  404 model_not_found                              the model is not declared, or not allowed for the key
  404 request_not_found                            no request of the key with this id waits or runs
  405 method_not_supported                         the path takes another method
  408 request_timeout                              header or body did not arrive in time
  413 request_too_large                            the body exceeds `max_body_bytes`, or its text 4 MiB
  429 rate_limit_exceeded        key_requests      the key has used its requests per minute
                                 key_tokens        the key has used its tokens per minute
                                 model_requests    all keys have used the model's requests per minute
                                 model_tokens      all keys have used the model's tokens per minute
                                 provider_limit    the provider limits the operator's account
  429 queue_full                                   the queue of the class, or the key's part of it, is full
  431 header_too_large                             the header exceeds 64 KiB
  500 internal_error                               a fault in the gateway itself
  502 engine_error                                 the engine failed, or returned an invalid response
                                 provider_key      the provider refuses the operator's key or account
                                 provider_model    the provider does not know its model
  502 litellm_unavailable                          LiteLLM returns no metrics (metrics port only)
  503 engine_unavailable                           no engine serves the model
  503 queue_timeout                                no slot became free in time; Anthropic's clients get a 529
  503 restarting                                   the gateway restarted before the answer had begun
  504 timeout                                      the engine did not answer in time, or too long
ClientDisconnected               client_left       the client closed the connection; logged as status 499

Source: platform.openai.com/docs/guides/error-codes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from typing import Any

ENGINE_RETRY_SECONDS = 5.0
RESTART_RETRY_SECONDS = 1.0
MAX_PROVIDER_RETRY_SECONDS = 86_400.0
CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"


class ClientDisconnected(Exception):  # noqa: N818 - a client may disconnect at any time, which is no error
    """The client closed the connection before its answer was complete."""


@dataclass
class ApiError(Exception):
    """An unsuccessful response: HTTP status, OpenAI's `code` and `type`, and a message with the remedy.

    `retry_after` is in seconds and becomes Retry-After (whole seconds, rounded up) and retry-after-ms.
    `reason` is the bounded word for metrics and access log; it defaults to the code, then to the status.
    """

    status: int
    code: str | None
    message: str
    _: KW_ONLY
    type: str = "invalid_request_error"
    param: str | None = None
    retry_after: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        self.reason = self.reason or self.code or str(self.status)
        super().__init__(self.message)

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """Return the body as JSON."""
        return json.dumps(self.to_dict()).encode()

    def all_headers(self) -> dict[str, str]:
        """Return the headers of the response, Retry-After included."""
        if self.retry_after is None:
            return self.headers
        wait = max(self.retry_after, 0.0)
        return self.headers | {
            "retry-after": str(max(1, math.ceil(wait))),
            "retry-after-ms": str(math.ceil(wait * 1000)),
        }


# 400: the request


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return a 400 that names the field; the reason in metrics is `bad_request` where there is no code."""
    return ApiError(400, code, message, param=param, reason=code or "bad_request")


def invalid_http() -> ApiError:
    """Return the 400 for bytes that are not HTTP."""
    return bad_request("This is not a valid HTTP/1.1 request: use an HTTP client.")


def websockets_unsupported() -> ApiError:
    """Return the 400 for an upgrade to a WebSocket."""
    return bad_request("WebSockets are not supported: use HTTP, with stream: true for a stream.")


def capability_unsupported(model: str, capability: str, param: str) -> ApiError:
    """Return the 400 for tools or images that no engine's version of the model supports."""
    return bad_request(
        f"The model {model!r} does not support {capability}: use a model that does, or leave it out.",
        param,
        "unsupported_parameter",
    )


def responses_unsupported(model: str) -> ApiError:
    """Return the 400 for /v1/responses where no engine of the model has it."""
    return bad_request(
        f"The engine of the model {model!r} has no /v1/responses: use /v1/chat/completions.",
        None,
        "unsupported_endpoint",
    )


def engine_refused(text: str) -> ApiError:
    """Return the 400 for a request that the engine itself refused; `text` is the engine's message."""
    return bad_request(f"The engine refused the request: {text}")


def json_schema_unsupported(text: str) -> ApiError:
    """Return the 400 for a JSON schema that the engine refused; `text` is the engine's message."""
    return bad_request(
        f"The engine cannot use this JSON schema ({text}): use fewer of its features.",
        "response_format",
        "invalid_value",
    )


def context_length_exceeded(model: str, prompt_bytes: int, context: int | None, param: str) -> ApiError:
    """Return the 400 for a prompt that does not fit into the context, in tokens (None: not known)."""
    bound = f", which is {context} tokens" if context else ""
    # Coding agents look for the first words, and then make the conversation shorter.
    return bad_request(
        f"The prompt is too long: its {prompt_bytes} bytes do not fit into the context of {model}{bound}"
        ": leave out the oldest messages, use a model with a longer context, or ask the operator for one"
        " (ollama_context_length; a coding agent needs 32768 tokens or more).",
        param,
        CONTEXT_LENGTH_EXCEEDED,
    )


# 401 and 403: the client


def _unauthorized(message: str, reason: str) -> ApiError:
    return ApiError(401, "invalid_api_key", message, reason=reason, headers={"www-authenticate": "Bearer"})


def no_api_key() -> ApiError:
    """Return the 401 for a request without a key."""
    return _unauthorized(
        'No API key was given: send it as "Authorization: Bearer KEY" or as "x-api-key: KEY".', "no_key"
    )


def wrong_api_key() -> ApiError:
    """Return the 401 for an unknown key."""
    return _unauthorized("The API key is not valid here: check it, or ask for a new one.", "wrong_key")


def revoked_api_key() -> ApiError:
    """Return the 401 for a revoked key."""
    return _unauthorized("This API key was revoked: ask for a new one.", "revoked_key")


def expired_api_key(at: datetime) -> ApiError:
    """Return the 401 for an expired key."""
    return _unauthorized(f"This API key expired at {at.isoformat()}: ask for a new one.", "expired_key")


def replaced_api_key(at: datetime) -> ApiError:
    """Return the 401 for a secret that was rotated."""
    return _unauthorized(f"This API key was replaced at {at.isoformat()}: use the new one.", "replaced_key")


def metrics_forbidden() -> ApiError:
    """Return the 403 for a peer that may not read metrics."""
    return ApiError(
        403, None, "Only monitoring hosts may read the metrics: add this host to the group 'monitoring'."
    )


# 404 and 405: the path


def unknown_url(method: str, path: str, suggestion: str, base_url: str) -> ApiError:
    """Return the 404 for a path of the API's port, with the path to use and how a base URL ends."""
    return ApiError(
        404,
        "unknown_url",
        f"There is no endpoint {method} {path[:100]}: use {suggestion}. "
        f"If the client builds the URL itself, its base URL must end {base_url}.",
    )


def unknown_metrics_url() -> ApiError:
    """Return the 404 for a path of the metrics port."""
    return ApiError(
        404, "unknown_url", "This port serves metrics only: use GET /metrics or GET /metrics/litellm."
    )


def model_not_found(model: str) -> ApiError:
    """Return OpenAI's 404 for a model that is not declared or that the key may not use."""
    return ApiError(
        404,
        "model_not_found",
        f"The model {model!r} does not exist here or your key may not use it: GET /v1/models lists yours.",
        param="model",
    )


def request_not_found(request_id: str) -> ApiError:
    """Return the 404 for an id under which no request of the key waits or runs."""
    return ApiError(
        404,
        "request_not_found",
        f"No request of your key with the id {request_id[:100]!r} waits or runs: "
        "its client sets the id with the header x-request-id.",
    )


def method_not_supported(path: str, supported: str, used: str) -> ApiError:
    """Return the 405 for a known path."""
    return ApiError(
        405,
        "method_not_supported",
        f"{path} takes {supported} only, this was {used}: use {supported}.",
        headers={"allow": supported},
    )


# 408, 413 and 431: size and speed of the request


def request_timeout(part: str) -> ApiError:
    """Return the 408 for a `part` of the request (header or body) that did not arrive in time."""
    return ApiError(408, "request_timeout", f"The request's {part} did not arrive in time: send it again.")


def request_too_large(max_bytes: int) -> ApiError:
    """Return the 413 for a body."""
    return ApiError(
        413, "request_too_large", f"The body exceeds the limit of {max_bytes} bytes: send a smaller one."
    )


def text_too_large(max_bytes: int) -> ApiError:
    """Return the 413 for a body that is too large without its images."""
    return ApiError(
        413,
        "request_too_large",
        f"Without its images the body exceeds the limit of {max_bytes} bytes: send a smaller one.",
    )


def header_too_large(max_bytes: int) -> ApiError:
    """Return the 431 for a header."""
    return ApiError(
        431, "header_too_large", f"The header exceeds the limit of {max_bytes} bytes: send a smaller one."
    )


# 429: limits and queue


def rate_limit_exceeded(
    *, scope: str, name: str, unit: str, limit: int, seconds: float, headers: Mapping[str, str]
) -> ApiError:
    """Return the 429 for a limit per minute of a key or a model; `seconds` is when it has room again.

    The rate limit headers go with the refusal as with an answer.
    """
    owner = "your key" if scope == "key" else f"all keys together on the model {name!r}"
    return ApiError(
        429,
        "rate_limit_exceeded",
        f"The limit of {limit} {unit} per minute for {owner} is used up: try again in {seconds:.1f} s.",
        type=unit,
        retry_after=seconds,
        headers=dict(headers),
        reason=f"{scope}_{unit}",
    )


def provider_limits_operator(model: str, seconds: float) -> ApiError:
    """Return the 429 for a provider's own rate limit; `seconds` is its Retry-After."""
    return ApiError(
        429,
        "rate_limit_exceeded",
        f"The provider of the model {model!r} limits this gateway's account: try again in {seconds:.0f} s.",
        type="requests",
        retry_after=seconds,
        reason="provider_limit",
    )


def queue_full(fact: str, seconds: float) -> ApiError:
    """Return the 429 for a full queue; `fact` says which, `seconds` estimates when to try again."""
    return ApiError(
        429,
        "queue_full",
        f"{fact}: try again in {seconds:.0f} s, or send fewer at a time.",
        type="requests",
        retry_after=seconds,
    )


# 5xx: gateway and engines


def internal_error() -> ApiError:
    """Return the 500 for a fault in the gateway itself."""
    return ApiError(
        500,
        "internal_error",
        "The gateway failed: try again; the operator sees why with: journalctl -u bedplate-gateway -n 50",
        type="server_error",
    )


def engine_error(text: str) -> ApiError:
    """Return the 502 for an engine that failed; `text` says how."""
    return ApiError(
        502,
        "engine_error",
        f"The engine failed ({text}): try again; the operator sees more with: make health",
        type="server_error",
        retry_after=ENGINE_RETRY_SECONDS,
    )


def provider_refuses_operator(model: str, what: str) -> ApiError:
    """Return the 502 for a provider that refuses the operator's key or account; `what` says which."""
    return ApiError(
        502,
        "engine_error",
        f"The provider of the model {model!r} {what}: your key is not the reason; "
        "the operator checks the key in litellm_environment.",
        type="server_error",
        headers={"x-should-retry": "false"},
        reason="provider_key",
    )


def provider_misses_model(model: str) -> ApiError:
    """Return the 502 for a provider's 404."""
    return ApiError(
        502,
        "engine_error",
        f"The provider of the model {model!r} does not have it: the operator checks litellm_model_list.",
        type="server_error",
        headers={"x-should-retry": "false"},
        reason="provider_model",
    )


def litellm_unavailable() -> ApiError:
    """Return the 502 for LiteLLM's metrics while it does not answer."""
    return ApiError(
        502,
        "litellm_unavailable",
        "LiteLLM returns no metrics: the operator sees why with: systemctl status litellm",
        type="server_error",
    )


def empty_stream() -> ApiError:
    """Return the 502 for a stream that the engine ended before the first event of its answer."""
    return ApiError(
        502,
        "engine_error",
        "The engine ended the stream before its answer began: try again.",
        type="server_error",
    )


def engine_unavailable(model: str) -> ApiError:
    """Return the 503 for a declared model that no engine serves at this moment."""
    return ApiError(
        503,
        "engine_unavailable",
        f"No engine serves the model {model!r} at the moment: try again in {ENGINE_RETRY_SECONDS:.0f} s; "
        "the operator sees why with: make health",
        type="server_error",
        retry_after=ENGINE_RETRY_SECONDS,
    )


def not_ready() -> ApiError:
    """Return the 503 of the readiness check, which needs no key, where no engine serves a model."""
    return ApiError(
        503,
        "engine_unavailable",
        "No engine serves a model now: the operator sees why with: make health",
        type="server_error",
    )


def queue_timeout(model: str, waited: float, seconds: float) -> ApiError:
    """Return the 503 for a request that `waited` in vain; `seconds` estimates when to try again."""
    return ApiError(
        503,
        "queue_timeout",
        f"No slot became free for {model!r} in {waited:.0f} s: "
        f"try again in {seconds:.0f} s, or ask for a key of a higher class.",
        type="server_error",
        retry_after=seconds,
    )


def restarting() -> ApiError:
    """Return the 503 for a request that a restart cut off before its answer had begun."""
    return ApiError(
        503,
        "restarting",
        "The gateway is restarting: try again.",
        type="server_error",
        retry_after=RESTART_RETRY_SECONDS,
    )


def engine_timeout(seconds: float | None = None) -> ApiError:
    """Return the 504 for an answer, or its next part, that took too long; clients must not retry it."""
    bound = f"within the limit of {seconds:g} s" if seconds else "in time"
    return ApiError(
        504,
        "timeout",
        f"The engine did not answer {bound}: "
        "request a shorter answer (max_tokens), shorten the prompt, or use stream: true.",
        type="server_error",
        headers={"x-should-retry": "false"},
    )


def stream_too_long(seconds: float) -> ApiError:
    """Return the 504 inside a stream that has lasted too long as a whole."""
    return ApiError(
        504,
        "timeout",
        f"The answer took more than the limit of {seconds:g} s: request a shorter one (max_tokens).",
        type="server_error",
    )
