"""Decide who may call: the function that LiteLLM's `general_settings.custom_auth` names."""

from functools import cache

from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

from bedplate_gateway.keys import KeyStore, keys_file_from_environment

ALLOWED_ROUTES = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")


class InvalidKeyError(ProxyException):  # type: ignore[misc] # LiteLLM ships no types
    """A missing or wrong key, answered as OpenAI answers it: 401 and `code: invalid_api_key`."""

    def __init__(self, message: str) -> None:
        """`message` is one sentence for the client."""
        super().__init__(message=message, type="invalid_request_error", param=None, code=401)

    def to_dict(self) -> dict[str, str | None]:
        """Return the error object of the answer; LiteLLM's own would repeat the status as its code."""
        return {"message": self.message, "type": self.type, "param": None, "code": "invalid_api_key"}


@cache
def _store() -> KeyStore:
    return KeyStore(keys_file_from_environment())


async def user_api_key_auth(request: object, api_key: str) -> UserAPIKeyAuth:  # noqa: ARG001 - LiteLLM's signature
    """Return whose key this is with its limits; raises InvalidKeyError (401) when it is nobody's.

    LiteLLM calls this for each request that needs a key, with `api_key` freed of "Bearer ".
    """
    if not api_key:
        raise InvalidKeyError('No API key was given: send it as "Authorization: Bearer KEY".')
    key = _store().find(api_key)
    if key is None:
        raise InvalidKeyError("The API key is not valid here: check it, or ask for a new one.")
    return UserAPIKeyAuth(
        # LiteLLM counts by this and names it in its 429: the alias is stable and tells the client which key.
        api_key=key.alias,
        key_alias=key.alias,
        user_role=LitellmUserRoles.INTERNAL_USER,
        rpm_limit=key.rpm,
        tpm_limit=key.tpm,
        max_parallel_requests=key.max_parallel,
        allowed_routes=list(ALLOWED_ROUTES),
    )
