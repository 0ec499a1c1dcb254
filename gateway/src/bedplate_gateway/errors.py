"""One error class for everything that a client is told, in OpenAI's shape.

Source: platform.openai.com/docs/guides/error-codes.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any


class ClientLeft(Exception):  # noqa: N818 - nothing is wrong here, so it is no error
    """The client went away before its answer was whole."""


@dataclass
class ApiError(Exception):
    """An answer that is no success: HTTP status, OpenAI's `code` and `type`, one sentence with the remedy.

    `retry_after` is in seconds and becomes Retry-After (whole seconds, rounded up) and retry-after-ms.
    `reason` is the bounded word that metrics and the journal use; it is the code where it is not given.
    """

    status: int
    code: str | None
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    retry_after: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        """Name the reason after the code where none was given."""
        self.reason = self.reason or self.code or str(self.status)
        super().__init__(self.message)

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """Return the body as JSON."""
        return json.dumps(self.to_dict()).encode()

    def all_headers(self) -> dict[str, str]:
        """Return the headers that go with it, Retry-After included."""
        if self.retry_after is None:
            return self.headers
        wait = max(self.retry_after, 0.0)
        return self.headers | {
            "retry-after": str(max(1, math.ceil(wait))),
            "retry-after-ms": str(math.ceil(wait * 1000)),
        }


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return a 400 that names the field; the reason in metrics is `bad_request` where there is no code."""
    return ApiError(400, code, message, param=param, reason=code or "bad_request")


def model_not_found(model: str) -> ApiError:
    """Return OpenAI's 404 for a model that is not declared here or that the key may not use."""
    return ApiError(
        404,
        "model_not_found",
        f"The model {model!r} does not exist here or your key may not use it: GET /v1/models lists yours.",
        param="model",
    )
