"""How the body of an endpoint becomes a request to an engine, and the engine's answer the response."""

from collections.abc import AsyncIterator
from typing import Protocol

from bedplate_gateway.api.schema import MaxOutput, Request, parse_request


class Adapter(Protocol):
    """The check and the repair of one request. Call `decode_request` first, then one of the others."""

    def decode_request(self, raw: bytes) -> Request:
        """Return the checked request in a body; raises ApiError 400."""

    def fall_back(self, request: Request) -> None:
        """Note that another model answers, with the request for it."""

    def encode_response(self, body: bytes) -> bytes:
        """Return the body for the client, from the engine's answer."""

    def encode_stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Return the events for the client, from those of the engine's answer."""


class PassThrough:
    """An endpoint whose answers need no repair beyond the one in `engines`."""

    def __init__(
        self, path: str, default_max_output: MaxOutput, provider_models: frozenset[str] = frozenset()
    ) -> None:
        self._path = path
        self._provider_models = provider_models
        self._default_max_output = default_max_output

    def decode_request(self, raw: bytes) -> Request:
        """Return the checked request in a body; raises ApiError 400."""
        return parse_request(
            self._path,
            raw,
            default_max_output=self._default_max_output,
            provider_models=self._provider_models,
        )

    def fall_back(self, request: Request) -> None:
        """Do nothing: the engine's answer names its model."""

    def encode_response(self, body: bytes) -> bytes:
        """Return the engine's answer."""
        return body

    def encode_stream(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Return the engine's events."""
        return events
