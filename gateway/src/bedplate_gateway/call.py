"""One call of an engine, and how it fails before the first byte of its answer."""

from typing import Protocol

import aiohttp

from bedplate_gateway import transport, trouble
from bedplate_gateway.engines import REFUSES, Engines
from bedplate_gateway.schema import Request
from bedplate_gateway.settings import Engine, EngineModel

MOST_ANSWER_BYTES = 64 * 1024 * 1024
MOST_ERROR_BYTES = 64 * 1024


class LeaseLike(Protocol):
    """What an exchange needs of a lease; the slot is given back by the caller."""

    @property
    def engine(self) -> Engine:
        """Return whose slot is held now."""

    @property
    def model(self) -> EngineModel:
        """Return the model as it is on that engine."""

    def touch(self) -> None:
        """Say that the request lives."""

    def charge(self, tokens: int) -> None:
        """Count tokens as they flow, which also says that the request lives."""

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Correct what was charged."""

    def swap(self) -> bool:
        """Move to a slot of another engine; False where there is none."""


async def post(
    engines: Engines, lease: LeaseLike, request: Request, path: str, body: bytes
) -> aiohttp.ClientResponse:
    """Return a 200 of the lease's engine, whose body is still to come; raises EngineError."""
    engine, model = lease.engine, lease.model
    try:
        response = await transport.ask(engines.session, engine, path, body)
        if response.status == 200:
            return response
        async with response:
            words = await response.content.read(MOST_ERROR_BYTES)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        engines.report_failure(engine.name, REFUSES)
        raise trouble.unreachable(request) from None
    except (aiohttp.ClientError, OSError):
        raise trouble.failed("it closed the connection before it answered", again=True) from None
    if response.status == 404:
        engines.report_missing(engine.name, model.name)
    raise trouble.of_answer(response.status, words, request, engine, model.context)


async def read(response: aiohttp.ClientResponse) -> bytes:
    """Return a whole body; raises EngineError."""
    try:
        async with response:
            return await transport.read(response, MOST_ANSWER_BYTES)
    except (aiohttp.ClientError, OSError):
        raise trouble.failed("it closed the connection in the middle of the answer") from None
    except ValueError:
        raise trouble.failed(f"it answered with more than {MOST_ANSWER_BYTES} bytes") from None
