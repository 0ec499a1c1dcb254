"""The endpoint as a client sees it: the list of models, and chat answers with their times."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import orjson

from traffic.answer import Answer, error_message, printable
from traffic.target import CannotStartError, Target
from traffic.wire import Exchange, Pool, WireError


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

    __slots__ = ("answer", "began", "ended", "error", "exchange", "question")

    def __init__(self, question: Question) -> None:
        """Nothing was sent yet."""
        self.question = question
        self.answer = Answer(question.stream)
        self.exchange = Exchange(self.answer.take)
        self.began: float | None = None
        self.ended: float | None = None
        """When it was answered or failed; None while neither is so."""
        self.error: str | None = None

    @property
    def first_token(self) -> float | None:
        """When the first token came; None where none did or the answer came whole."""
        return self.answer.token_times[0] if self.answer.token_times else None

    @property
    def status(self) -> int | None:
        """The HTTP status, None where none came."""
        return self.exchange.status

    def number(self, header: bytes) -> float | None:
        """Return a header's number, None where it has none."""
        return _number(self.exchange.headers.get(header))


@dataclass(frozen=True)
class Listing:
    """What /v1/models says: ids, and the limits in the headers."""

    ids: list[str]
    headers: dict[bytes, bytes]

    def number(self, header: bytes) -> float | None:
        """Return a header's number, None where it has none."""
        return _number(self.headers.get(header))


class Client:
    """Asks one endpoint with one key; use it on one event loop and close it there."""

    def __init__(self, target: Target, key: str, timeout_seconds: float) -> None:
        """`timeout_seconds` bounds each request as a whole, the connection included."""
        self.target = target
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._pool = Pool(target)
        common = f"Host: {target.host_header}\r\nAuthorization: Bearer {key}\r\nUser-Agent: traffic\r\n"
        self._get = f"GET {target.path}/models HTTP/1.1\r\n{common}\r\n".encode()
        self._post = (
            f"POST {target.path}/chat/completions HTTP/1.1\r\n{common}"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    def close(self) -> None:
        """Close its connections."""
        self._pool.close()

    async def models(self) -> Listing:
        """Return the models it offers; raises CannotStartError when it does not say."""
        url = self.target.url
        pieces: list[bytes] = []
        exchange = Exchange(lambda _, piece: pieces.append(piece))
        error = await self._run(self._get, exchange)
        body = b"".join(pieces)
        if error is None and exchange.status != 200:
            error = error_message(exchange.status, body)
        if error is not None:
            words = printable(error, self._key).rstrip(".")
            if exchange.status in {401, 403}:
                raise CannotStartError(
                    f"{url} refuses the key ({words}): check OPENAI_API_KEY, `make env` prints it."
                )
            raise CannotStartError(f"{url} cannot be used: {words}.")
        try:
            ids = [str(model["id"]) for model in orjson.loads(body)["data"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CannotStartError(
                f"{url}/models answered, but with no list of models: check what listens there."
            ) from None
        return Listing(ids, exchange.headers)

    async def ask(self, reply: Reply) -> Reply:
        """Send the reply's question and read the answer to the end; a failure is in `error`."""
        body = reply.question.body()
        reply.began = time.monotonic()
        request = b"%b%d\r\n\r\n%b" % (self._post, len(body), body)
        error = await self._run(request, reply.exchange)
        reply.ended = time.monotonic()
        if error is None:
            error = reply.answer.fault(reply.exchange.status)
        reply.error = None if error is None else printable(error, self._key)
        return reply

    async def _run(self, request: bytes, exchange: Exchange) -> str | None:
        """Carry out one exchange; the return value, unless None, says why it broke off."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._pool.run(request, exchange)
        except TimeoutError:
            return f"no whole answer within {self._timeout_seconds:g} s"
        except WireError as error:
            return str(error)
        return None


def chosen_model(url: str, offered: list[str], wanted: str | None) -> str:
    """Return the model to ask, the first offered where none is wanted; raises CannotStartError."""
    if not offered:
        raise CannotStartError(f"{url} offers no model: look at `make health`.")
    if wanted is None:
        return offered[0]
    if wanted not in offered:
        raise CannotStartError(f"The model {wanted!r} is not offered: there is {', '.join(offered)}.")
    return wanted


def _number(text: bytes | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
