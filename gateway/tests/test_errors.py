import inspect
import re
from datetime import UTC, datetime

import pytest
from bedplate_gateway import errors
from bedplate_gateway.errors import ApiError

AT = datetime(2026, 6, 1, tzinfo=UTC)
EVERY = [
    errors.bad_request("It is wrong: correct it.", "field"),
    errors.invalid_http(),
    errors.websockets_unsupported(),
    errors.capability_unsupported("m", "tools", "tools"),
    errors.responses_unsupported("m"),
    errors.engine_refused("no"),
    errors.json_schema_unsupported("no"),
    errors.context_length_exceeded("m", 5000, 600, "messages"),
    errors.no_api_key(),
    errors.wrong_api_key(),
    errors.revoked_api_key(),
    errors.expired_api_key(AT),
    errors.replaced_api_key(AT),
    errors.metrics_forbidden(),
    errors.unknown_url("GET", "/" + "x" * 500, "/v1/models", "with /v1"),
    errors.unknown_metrics_url(),
    errors.model_not_found("m"),
    errors.request_not_found("x" * 500),
    errors.method_not_supported("/v1/models", "GET", "PUT"),
    errors.request_timeout("body"),
    errors.text_too_large(5),
    errors.stream_too_long(5),
    errors.request_too_large(100),
    errors.header_too_large(100),
    errors.rate_limit_exceeded(scope="key", name="a", unit="tokens", limit=5, seconds=1.5, headers={}),
    errors.provider_limits_operator("m", 7.0),
    errors.provider_refuses_operator("m", "refuses its API key"),
    errors.provider_misses_model("m"),
    errors.queue_full("The queue is full", 2.0),
    errors.internal_error(),
    errors.engine_error("it stopped"),
    errors.empty_stream(),
    errors.litellm_unavailable(),
    errors.engine_unavailable("m"),
    errors.not_ready(),
    errors.queue_timeout("m", 20.0, 3.0),
    errors.restarting(),
    errors.engine_timeout(120.0),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: f"{error.status} {error.reason}")
def test_every_error_states_a_fact_and_a_remedy_in_one_line_and_is_in_the_list(error: ApiError) -> None:
    fact, colon, remedy = error.message.partition(": ")
    assert fact
    assert colon
    assert remedy
    assert "\n" not in error.message
    assert len(error.message) < 400
    assert error.type == "server_error" if error.status >= 500 else error.type != "server_error"
    assert error.to_dict() == {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    }
    tree = errors.__doc__ or ""
    assert re.search(rf"^  {error.status} {error.code or '-'}\s", tree, re.MULTILINE)
    assert re.search(rf"\b{error.reason}\b", tree)


def test_no_constructor_is_missing_above() -> None:
    constructors = [
        name
        for name, value in inspect.getmembers(errors, inspect.isfunction)
        if value.__module__ == errors.__name__ and not name.startswith("_")
    ]
    assert len(EVERY) == len(constructors)


def test_retry_after_is_whole_seconds_rounded_up_and_exact_milliseconds() -> None:
    headers = errors.queue_full("The queue is full", 1.2).all_headers()
    assert headers == {"retry-after": "2", "retry-after-ms": "1200"}
    assert ApiError(429, "x", "y", retry_after=-1.0).all_headers()["retry-after"] == "1"
    assert errors.engine_timeout(1.0).all_headers() == {"x-should-retry": "false"}


def test_the_reason_is_the_code_and_else_the_status() -> None:
    assert ApiError(404, "unknown_url", "x").reason == "unknown_url"
    assert ApiError(403, None, "x").reason == "403"
    assert errors.bad_request("x").reason == "bad_request"
