"""The endpoint as a client sees it: the list of models, and chat answers with their times."""

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

from traffic.answer import Answer, error_message, printable
from traffic.target import CannotStartError

JSON = {"Content-Type": "application/json"}
# Servers close idle connections, the first of them after 5 s: an older one may be gone when it is used.
MAX_IDLE_SECONDS = 3.0
MAX_REASON_CHARACTERS = 150


@dataclass(frozen=True, slots=True)
class Question:
    """One chat request; lengths are tokens."""

    model: str
    prompt: str
    max_tokens: int
    stream: bool = True

    def body(self) -> bytes:
        """Return the JSON that is sent; the same question gives the same bytes."""
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


class Reply:
    """What becomes of one question, filled while it is asked. Times are seconds of the monotonic clock."""

    __slots__ = ("answer", "ended", "error", "headers", "question", "sent", "status")

    def __init__(self, question: Question) -> None:
        """Nothing was sent yet."""
        self.question = question
        self.answer = Answer(question.stream)
        self.sent: float | None = None
        self.ended: float | None = None
        """When it was answered or failed; None while neither is so."""
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.error: str | None = None

    @property
    def first_token(self) -> float | None:
        """When the first token came; None where none did or the answer came whole."""
        return self.answer.token_times[0] if self.answer.token_times else None

    def number(self, header: str) -> float | None:
        """Return a header's number, None where it has none."""
        return _number(self.headers.get(header))


@dataclass(frozen=True)
class Listing:
    """What /v1/models says: ids, and the limits in the headers."""

    ids: list[str]
    headers: Mapping[str, str]

    def number(self, header: str) -> float | None:
        """Return a header's number, None where it has none."""
        return _number(self.headers.get(header))


class Client:
    """Asks one endpoint with one key, on one event loop: `async with Client(…) as client`."""

    def __init__(self, url: str, key: str, timeout_seconds: float) -> None:
        """`url` ends with /v1; `timeout_seconds` bounds each request as a whole, the connection included."""
        self.url = url
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._models_url = URL(f"{url}/models")
        self._chat_url = URL(f"{url}/chat/completions")
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open it; connections are made as they are needed."""
        self._session = ClientSession(
            # As many connections as there are requests; a name is looked up once.
            connector=TCPConnector(limit=0, ttl_dns_cache=None, keepalive_timeout=MAX_IDLE_SECONDS),
            headers={"Authorization": f"Bearer {self._key}", "User-Agent": "traffic"},
            timeout=ClientTimeout(total=self._timeout_seconds),
            cookie_jar=DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()

    async def models(self) -> Listing:
        """Return the models it offers; raises CannotStartError when it does not say."""
        pieces: list[bytes] = []
        reply = Reply(Question("", "", 1))

        def take(_: int, piece: bytes) -> None:
            pieces.append(piece)

        error = await self._run("GET", self._models_url, None, reply, take)
        body = b"".join(pieces)
        if error is None and reply.status != 200:
            error = error_message(reply.status, body)
        if error is not None:
            words = printable(error, self._key).rstrip(".")
            if reply.status in {401, 403}:
                raise CannotStartError(
                    f"{self.url} refuses the key ({words}): check OPENAI_API_KEY, `make env` prints it."
                )
            raise CannotStartError(f"{self.url} cannot be used: {words}.")
        try:
            ids = [str(model["id"]) for model in orjson.loads(body)["data"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CannotStartError(
                f"{self.url}/models answered, but with no list of models: check what listens there."
            ) from None
        return Listing(ids, reply.headers)

    async def ask(self, reply: Reply) -> Reply:
        """Send the reply's question and read the answer to the end; a failure is in `error`."""
        body = reply.question.body()
        error = await self._run("POST", self._chat_url, body, reply, reply.answer.take)
        reply.ended = time.monotonic()
        if error is None:
            error = reply.answer.fault(reply.status)
        reply.error = None if error is None else printable(error, self._key)
        return reply

    async def _run(
        self,
        method: str,
        url: URL,
        body: bytes | None,
        reply: Reply,
        take: Callable[[int, bytes], str | None],
    ) -> str | None:
        """Carry out one exchange; the return value, unless None, says why it broke off."""
        assert self._session is not None  # noqa: S101 - it was opened
        headers = JSON if body else None
        reply.sent = time.monotonic()
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                reply.status, reply.headers = response.status, response.headers
                while piece := await response.content.readany():
                    if (error := take(response.status, piece)) is not None:
                        response.close()
                        return error
        except (ClientError, OSError) as error:
            return self._why(error)
        return None

    def _why(self, error: ClientError | OSError) -> str:
        """Return why an exchange broke off."""
        match error:
            case TimeoutError():
                return f"no whole answer within {self._timeout_seconds:g} s"
            case ClientConnectorError():
                number = error.os_error.errno
                return f"no server answers there ({os.strerror(number) if number else error})"
            case ClientPayloadError():
                return "the connection broke in the middle of the answer"
            case ClientResponseError():
                return "what answers there speaks no HTTP"
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"the connection broke ({reason[:MAX_REASON_CHARACTERS]})"


def chosen_model(url: str, offered: list[str], wanted: str | None) -> str:
    """Return the model to ask, the first offered where none is wanted; raises CannotStartError."""
    if not offered:
        raise CannotStartError(f"{url} offers no model: look at `make health`.")
    if wanted is None:
        return offered[0]
    if wanted not in offered:
        raise CannotStartError(f"The model {wanted!r} is not offered: there is {', '.join(offered)}.")
    return wanted


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
