"""The endpoint as a client sees it: the list of models, and streamed chat answers with their times."""

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_MESSAGE_CHARACTERS = 300


class CannotStartError(Exception):
    """Nothing can be sent; the message is one sentence that names the remedy."""


class RequestError(Exception):
    """One request failed; the message says how, `status` is the HTTP status or None when none came."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """`message` is one line for the report."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Result:
    """What one request gave; times are seconds since it was sent, None where there was no token."""

    ok: bool
    status: int | None
    seconds: float
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


class Endpoint:
    """An OpenAI-compatible endpoint, asked one request at a time."""

    def __init__(self, url: str, key: str, timeout_seconds: float) -> None:
        """`url` ends with /v1; `timeout_seconds` bounds the connection, each wait and a whole request."""
        self.url = url
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"},
            timeout=timeout_seconds,
            # The machine's proxy is not on the way that is measured; its certificates still count.
            trust_env=False,
            verify=ssl.create_default_context(),
        )

    def __enter__(self) -> Self:
        """Return the endpoint itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        self._client.close()

    def models(self) -> list[str]:
        """Return the ids of the models it offers; raises CannotStartError when it does not say."""
        try:
            with self._open("GET", "/models") as (response, deadline):
                body = b"".join(self._chunks(response, deadline))
        except RequestError as error:
            if error.status in {401, 403}:
                raise CannotStartError(
                    f"{self.url} refuses the key ({_end(error)}): check OPENAI_API_KEY, `make env` prints it."
                ) from None
            raise CannotStartError(f"{self.url} cannot be used: {_end(error)}.") from None
        try:
            return [str(model["id"]) for model in json.loads(body)["data"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise CannotStartError(
                f"{self.url}/models answered, but with no list of models: check what listens there."
            ) from None

    def ask(self, model: str, prompt: str, max_tokens: int) -> Result:
        """Send one chat request and read its stream to the end; a failure is a Result with `ok` False."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = time.monotonic()
        answer = _Answer()
        status: int | None = None
        error: str | None = None
        try:
            with self._open("POST", "/chat/completions", body) as (response, deadline):
                status = response.status_code
                for data in _events(self._chunks(response, deadline)):
                    answer.add(data, time.monotonic() - start)
            answer.check()
        except RequestError as failure:
            error = self._clean(str(failure))
            status = failure.status or status
        return Result(
            ok=error is None,
            status=status,
            seconds=round(time.monotonic() - start, 6),
            first_token_seconds=answer.first_token_seconds,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            error=error,
        )

    @contextmanager
    def _open(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Iterator[tuple[httpx.Response, float]]:
        """Yield the response, status 200, and the monotonic time at which the request is too late."""
        deadline = time.monotonic() + self._timeout_seconds
        try:
            with self._client.stream(method, self.url + path, json=body) as response:
                if response.status_code != httpx.codes.OK:
                    text = b"".join(self._chunks(response, deadline))
                    raise RequestError(
                        self._clean(_message(response.status_code, text)), response.status_code
                    )
                yield response, deadline
        except httpx.TimeoutException:
            raise RequestError(self._late()) from None
        except httpx.ConnectError as error:
            raise RequestError(f"no server answers there ({error})") from None
        except httpx.HTTPError as error:
            raise RequestError(f"the connection broke ({error or type(error).__name__})") from None

    def _chunks(self, response: httpx.Response, deadline: float) -> Iterator[bytes]:
        size = 0
        for chunk in response.iter_bytes():
            size += len(chunk)
            # httpx bounds each wait, not their sum.
            if time.monotonic() > deadline:
                raise RequestError(self._late(), response.status_code)
            if size > MAX_ANSWER_BYTES:
                raise RequestError(
                    f"the answer is longer than {MAX_ANSWER_BYTES} bytes", response.status_code
                )
            yield chunk

    def _late(self) -> str:
        return f"no whole answer within {self._timeout_seconds:g} s"

    def _clean(self, message: str) -> str:
        """Return a server's words as one printable line without the key."""
        line = " ".join(message.replace(self._key, "[key]").split())
        printable = "".join(character if character.isprintable() else "?" for character in line)
        return printable[:MAX_MESSAGE_CHARACTERS]


class _Answer:
    """A streamed answer as it comes in."""

    def __init__(self) -> None:
        self.first_token_seconds: float | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._has_usage = False
        self._done = False

    def add(self, data: bytes, seconds: float) -> None:
        """Take one event that came `seconds` after the request."""
        if data == b"[DONE]":
            self._done = True
            return
        try:
            chunk = json.loads(data)
            if error := chunk.get("error"):
                raise RequestError(f"the stream ended with an error: {error.get('message')}")
            if self.first_token_seconds is None and any(map(_has_token, chunk.get("choices") or ())):
                self.first_token_seconds = round(seconds, 6)
            if usage := chunk.get("usage"):
                self.prompt_tokens = int(usage["prompt_tokens"])
                self.completion_tokens = int(usage["completion_tokens"])
                self._has_usage = True
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise RequestError("the stream holds something that is no chunk of an answer") from None

    def check(self) -> None:
        """Raise RequestError unless the answer is whole: tokens, usage and the end mark."""
        if not self._done:
            raise RequestError("the stream ended without [DONE]")
        if self.first_token_seconds is None:
            raise RequestError("the answer is empty")
        if not self._has_usage:
            raise RequestError("the answer has no usage block")


def _end(error: RequestError) -> str:
    """Return a failure's words without a full stop, to stand inside a sentence."""
    return str(error).rstrip(".")


def _has_token(choice: dict[str, Any]) -> bool:
    # Text, reasoning and tool calls are tokens; a role alone is not.
    return any(value for name, value in (choice.get("delta") or {}).items() if name != "role")


def _events(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the data of each server-sent event."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def _message(status: int, body: bytes) -> str:
    """Return an error answer's status with the server's own words, where it has some."""
    try:
        answer = json.loads(body)
        words = answer.get("error", answer.get("detail"))
        words = words.get("message") if isinstance(words, dict) else words
    except (ValueError, AttributeError, RecursionError):
        words = None
    return f"status {status}: {words}" if words else f"status {status}"
