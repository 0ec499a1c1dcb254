"""The models of other providers, which only LiteLLM reaches: their errors, and what their answers cost.

A provider's words about its operator's key or account never reach a client. Source: answers of LiteLLM
1.110.2 for a provider that answers with each status.
"""

import re
from collections.abc import Mapping

from bedplate_gateway import errors
from bedplate_gateway.api.schema import Request
from bedplate_gateway.engines import errors as engine_errors
from bedplate_gateway.engines.context import CONTEXT_ERROR
from bedplate_gateway.engines.errors import OPERATOR_STATUSES, PROMPT_FIELDS
from bedplate_gateway.errors import ApiError
from bedplate_gateway.settings import Engine

COST_HEADERS = {"x-litellm-include-cost-in-streaming-usage": "true"}
COST_HEADER = "x-litellm-response-cost"
MAX_COST = 1e6
"""In dollars; no answer costs more, so a larger number is an error."""
FAILED = "its provider failed"
FAILED_IN_STREAM = "its provider failed in the middle of the answer"
UNKNOWN_MODEL = "Invalid model name passed in"
# LiteLLM's advice to its own operator follows the fact.
ADVICE = re.compile(r"\s*(To drop these, |\n).*", re.DOTALL)
RAISED = re.compile(r"^(litellm\.)?(\w+Error: )+")


def is_litellms_own(status: int, message: str) -> bool:
    """Return whether LiteLLM refuses its key or does not know the model, as before its restart."""
    return UNKNOWN_MODEL in message or (status == 401 and not message.startswith("litellm."))


def failure(status: int, headers: Mapping[str, str], text: str, request: Request, engine: Engine) -> ApiError:
    """Return the error for the client; `text` is the provider's message, or LiteLLM's without one."""
    model = request.model
    if status in {400, 413, 422}:
        return _refusal(text, request, engine)
    if status in OPERATOR_STATUSES:
        return errors.provider_refuses_operator(model, OPERATOR_STATUSES[status])
    if status == 404:
        return errors.provider_misses_model(model)
    if status in {408, 504}:
        return errors.engine_timeout()
    if status == 429:
        return errors.provider_limits_operator(model, _retry_after(headers))
    return errors.engine_error(FAILED)


def _refusal(text: str, request: Request, engine: Engine) -> ApiError:
    """Return the 400 for what the provider refuses about the request itself."""
    text = engine_errors.error_text(ADVICE.sub("", RAISED.sub("", text)).encode(), engine)
    if CONTEXT_ERROR.search(text):
        param = PROMPT_FIELDS[request.path]
        return errors.context_length_exceeded(request.model, request.prompt_bytes, None, param)
    return errors.engine_refused(text)


def read_cost(value: object) -> float:
    """Return a cost in dollars; 0 where LiteLLM does not know the model's price."""
    try:
        cost = float(str(value))
    except ValueError:
        return 0.0
    return cost if 0 < cost < MAX_COST else 0.0


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the provider's Retry-After in seconds, or that of a failing engine where it is no number."""
    try:
        seconds = float(headers["llm_provider-retry-after"])
    except (KeyError, ValueError):
        return errors.ENGINE_RETRY_SECONDS
    return seconds if 0 <= seconds < errors.MAX_PROVIDER_RETRY_SECONDS else errors.ENGINE_RETRY_SECONDS
