"""A client of one endpoint: lists its models, and sends chat requests and times their completions."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientPayloadError,
    ClientResponseError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from yarl import URL

from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.load.completion_stream import Completion, describe_error_response, sanitize

JSON = {"Content-Type": "application/json"}
# Servers close idle connections, the first of them after 5 s: an older one may be closed when it is used.
LIST_SECONDS = 10.0
"""How long the list of models may take."""
MAX_IDLE_SECONDS = 3.0
MAX_REASON_CHARACTERS = 150


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat request; lengths are tokens."""

    model: str
    prompt: str
    max_tokens: int
    stream: bool = True

    def body(self) -> bytes:
        """Return the JSON that is sent; equal requests give equal bytes."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": self.stream,
        }
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return orjson.dumps(body)


class Exchange:
    """One request and its response, filled while it is sent. Times are seconds of the monotonic clock."""

    __slots__ = ("completion", "ended", "error", "headers", "request", "sent", "status")

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.completion = Completion(request.stream)
        self.sent: float | None = None
        self.ended: float | None = None
        """When it was answered or failed; None before."""
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.error: str | None = None

    @property
    def first_token(self) -> float | None:
        """When the first token arrived; None without one, or where the response was not streamed."""
        return self.completion.token_times[0] if self.completion.token_times else None

    def header_number(self, name: str) -> float | None:
        """Return a response header as a number, None where it is absent or not a number."""
        return _parse_number(self.headers.get(name))


@dataclass(frozen=True)
class ModelList:
    """The response of /v1/models: the models' ids, and the headers with the key's limits."""

    ids: list[str]
    headers: Mapping[str, str]

    def header_number(self, name: str) -> float | None:
        """Return a response header as a number, None where it is absent or not a number."""
        return _parse_number(self.headers.get(name))


class Client:
    """Sends requests to one endpoint with one key, on one event loop: `async with Client(…) as client`.

    `url` ends with /v1; `timeout_seconds` bounds each request as a whole, including the connection. The list
    of models, which needs no engine, has at most LIST_SECONDS.
    """

    def __init__(self, url: str, key: str, timeout_seconds: float) -> None:
        self.url = url
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._models_url = URL(f"{url}/models")
        self._chat_url = URL(f"{url}/chat/completions")
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = ClientSession(
            # As many connections as there are requests; a name is looked up once.
            connector=TCPConnector(limit=0, ttl_dns_cache=None, keepalive_timeout=MAX_IDLE_SECONDS),
            headers={"Authorization": f"Bearer {self._key}", "User-Agent": "traffic"},
            cookie_jar=DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def list_models(self) -> ModelList:
        """Return the endpoint's models; raises CannotStartError when it does not list any."""
        pieces: list[bytes] = []
        exchange = Exchange(ChatRequest("", "", 1))

        def feed(_: int, piece: bytes) -> None:
            pieces.append(piece)

        seconds = min(LIST_SECONDS, self._timeout_seconds)
        error = await self._transfer("GET", self._models_url, None, exchange, feed, seconds=seconds)
        body = b"".join(pieces)
        if error is None and exchange.status != 200:
            error = describe_error_response(exchange.status, body)
        if error is not None:
            reason = sanitize(error, self._key).rstrip(".")
            if exchange.status in {401, 403}:
                raise CannotStartError(
                    f"{self.url} refuses the key ({reason}): check OPENAI_API_KEY, `make env` prints it."
                )
            raise CannotStartError(f"{self.url} cannot be used: {reason}.")
        try:
            ids = [str(model["id"]) for model in orjson.loads(body)["data"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CannotStartError(
                f"{self.url}/models returned no list of models: check which server listens there."
            ) from None
        return ModelList(ids, exchange.headers)

    async def send(self, exchange: Exchange) -> Exchange:
        """Send the request and read the response to its end; a failure is in `exchange.error`."""
        body = exchange.request.body()
        error = await self._transfer(
            "POST", self._chat_url, body, exchange, exchange.completion.feed, seconds=self._timeout_seconds
        )
        exchange.ended = time.monotonic()
        if error is None:
            error = exchange.completion.finish(exchange.status)
        exchange.error = None if error is None else sanitize(error, self._key)
        return exchange

    async def _transfer(
        self,
        method: str,
        url: URL,
        body: bytes | None,
        exchange: Exchange,
        feed: Callable[[int, bytes], str | None],
        *,
        seconds: float,
    ) -> str | None:
        """Send one HTTP request and feed its response; returns why that failed, None on success."""
        assert self._session is not None  # noqa: S101 - the caller is inside `async with`
        headers = JSON if body else None
        exchange.sent = time.monotonic()
        try:
            async with self._session.request(
                method,
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=ClientTimeout(total=seconds),
            ) as response:
                exchange.status, exchange.headers = response.status, response.headers
                while piece := await response.content.readany():
                    if (error := feed(response.status, piece)) is not None:
                        response.close()
                        return error
        except (ClientError, OSError) as error:
            return self._describe(error, seconds)
        return None

    def _describe(self, error: ClientError | OSError, seconds: float) -> str:
        """Return in words why a transfer failed."""
        match error:
            case TimeoutError():
                return f"no complete answer within {seconds:g} s"
            case ClientConnectorError():
                number = error.os_error.errno
                return f"no connection to the server ({os.strerror(number) if number else error})"
            case ClientPayloadError():
                return "the connection broke in the middle of the answer"
            case ClientResponseError():
                return "the server's response is not valid HTTP"
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"the connection broke ({reason[:MAX_REASON_CHARACTERS]})"


def choose_model(url: str, offered: list[str], wanted: str | None) -> str:
    """Return the wanted model, by default the first offered; raises CannotStartError where it is absent."""
    if not offered:
        raise CannotStartError(f"{url} offers no model: run `make health`.")
    if wanted is None:
        return offered[0]
    if wanted not in offered:
        raise CannotStartError(f"The model {wanted!r} is not offered: choose one of {', '.join(offered)}.")
    return wanted


def _parse_number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
