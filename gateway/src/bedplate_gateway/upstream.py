"""One request's way over an engine: time-outs, retries, the stream's relay, leavers, and what it cost."""

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from bedplate_gateway import context, trouble
from bedplate_gateway.call import LeaseLike, post, read
from bedplate_gateway.engines import Engines
from bedplate_gateway.errors import ApiError, ClientLeft
from bedplate_gateway.pace import Pace
from bedplate_gateway.relay import Relay, rename, usage_field, usage_in
from bedplate_gateway.schema import Request
from bedplate_gateway.settings import Engine, EngineModel, Settings
from bedplate_gateway.transport import hang_up
from bedplate_gateway.trouble import EngineError

BACKOFF_SECONDS = 0.25
CHARGE_SECONDS = 0.25
"""How often a stream's tokens are charged while they flow."""
DRAIN_SECONDS = 1.0
"""How long a stream may stay open after its last event; then its connection can be used again."""
PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s*(\d+)')
TRUNCATED = {"x-bedplate-context": "truncated"}


@dataclass(frozen=True)
class Answer:
    """An answer that has begun: a whole `body`, or None where it is a stream of `events`."""

    status: int
    headers: dict[str, str]
    body: bytes | None
    events: Callable[[], AsyncIterator[bytes]]


class Upstream:
    """The way to all engines."""

    def __init__(self, settings: Settings, engines: Engines) -> None:
        """Use the session of the engines, which their `start` opens."""
        self.settings = settings
        self.engines = engines
        self._paces: dict[tuple[str, str], Pace] = {}
        self._loads: Counter[tuple[str, str]] = Counter()

    def run(self, request: Request, lease: LeaseLike, left: asyncio.Event) -> "Exchange":
        """Return the exchange for a request whose lease was granted; nothing happens before `answer`."""
        return Exchange(self, request, lease, left)

    def pace(self, engine: str, model: str) -> Pace:
        """Return what was learned of a model on an engine."""
        return self._paces.setdefault((engine, model), Pace())

    @contextmanager
    def loading(self, engine: Engine, model: str) -> Iterator[bool]:
        """Say, while a call waits for its first byte, whether the engine must load the model before."""
        key = engine.name, model
        # Ollama names a model as loaded before it is ready, so earlier calls that still wait count too.
        loading = engine.kind == "ollama" and (self._loads[key] > 0 or not self.engines.loaded(engine, model))
        self._loads[key] += loading
        try:
            yield loading
        finally:
            self._loads[key] -= loading


class Exchange:
    """One request on its way. Use `answer` once, then `close` in any case; the rest is for the records."""

    def __init__(self, upstream: Upstream, request: Request, lease: LeaseLike, left: asyncio.Event) -> None:
        """Hold the parts together."""
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.estimated = False
        self.truncated = False
        self.ttft: float | None = None
        """Seconds from the start of the call that worked to the first byte of its stream."""
        self.retries = 0
        self.error: ApiError | None = None
        """What went wrong inside a stream, already told to the client."""
        self._upstream = upstream
        self._settings = upstream.settings
        self._request = request
        self._lease = lease
        self._left = left
        self._pace = upstream.pace(lease.engine.name, lease.model.name)
        self._relay = Relay(request.model, want_usage=request.want_usage)
        self._call: asyncio.Task[Answer] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._started = self._first_byte_at = self._charged_at = 0.0
        self._measured_prompt_seconds: float | None = None
        self._charged_events = 0
        self._text_bytes: int | None = None
        self._usage: tuple[int, int] | None = None
        self._busy = False  # A call waits for its first byte.
        self._leaving = False  # The client has gone.
        self._worked = False  # The engine has worked on the prompt.
        self._settled = False

    async def answer(self) -> Answer:
        """Return the answer once it has begun; raises ApiError, and ClientLeft when the client has gone."""
        self._call = asyncio.create_task(self._try_all())
        self._watch = asyncio.create_task(self._hang_up())
        await asyncio.wait((self._call, self._watch), return_when=asyncio.FIRST_COMPLETED)
        if not self._call.done():
            raise ClientLeft
        return self._call.result()

    async def close(self) -> None:
        """End the call and settle its cost; returns when the engine is free for another request.

        An engine goes on with a prompt whose client has left until its first token, and only then stops.
        """
        try:
            if self._call is not None and not self._call.done() and self._busy:
                self._leaving = self._worked = True
                await asyncio.wait((self._call,), timeout=self._hold_seconds())
        finally:
            for task in (self._call, self._watch):
                if task is not None and not task.cancel() and not task.cancelled():
                    task.exception()  # Somebody must have looked at it, else asyncio complains.
            if self._response is not None:
                # This closes the connection, unless the answer was read to its end.
                hang_up(self._response)
            self._settle()

    def _hold_seconds(self) -> float | None:
        """Return how long the prompt still takes; None: the call itself ends at the first byte."""
        if self._request.stream:
            return None
        return max(0.0, self._prompt_seconds() - (time.monotonic() - self._started))

    def _prompt_seconds(self) -> float:
        """Return how long the engine works on the prompt, measured or estimated."""
        return self._measured_prompt_seconds or self._pace.prompt_seconds(self._request.prompt_bytes)

    async def _hang_up(self) -> None:
        """Stop reading a stream as soon as the client leaves."""
        await self._left.wait()
        self._leaving = True
        if self._response is not None and self.ttft is not None:
            hang_up(self._response)

    # Tries

    async def _try_all(self) -> Answer:
        while True:
            try:
                return await self._try()
            except EngineError as failure:
                if self._leaving:
                    raise ClientLeft from None
                if not failure.elsewhere or self.retries >= self._settings.retries:
                    raise failure.error from None
                if not self._lease.swap():
                    if not failure.again:
                        raise failure.error from None
                    jitter = 1 + random.random()  # noqa: S311 - no secret
                    await asyncio.sleep(BACKOFF_SECONDS * 2**self.retries * jitter)
                self.retries += 1

    async def _try(self) -> Answer:
        engine, model = self._lease.engine, self._lease.model
        self._pace = self._upstream.pace(engine.name, model.name)
        self.truncated = False
        self._measured_prompt_seconds = None
        self._lease.touch()
        with self._upstream.loading(engine, model.name) as loading:
            seconds = self._settings.first_byte_seconds
            if loading:
                seconds = max(seconds, self._settings.load_seconds)
            self._started = time.monotonic()
            self._busy = True
            try:
                async with asyncio.timeout(seconds):
                    answer = await self._ask(engine, model)
            except TimeoutError:
                self._worked = True
                raise EngineError(trouble.timed_out(seconds)) from None
            finally:
                self._busy = False
        if not loading:
            self._learn_speed()
        return answer

    async def _ask(self, engine: Engine, model: EngineModel) -> Answer:
        request = self._request
        if (
            engine.kind == "ollama"
            and model.context is not None
            and context.could_overflow(request, model.context)
        ):
            if body := await self._ask_whether_it_fits():
                return self._whole(body)
            if self._leaving:
                raise ClientLeft
        self._response = response = await self._post(request.path, json.dumps(request.body).encode())
        if not request.stream:
            return self._whole(await read(response))
        try:
            data = await response.content.readany()
        except (aiohttp.ClientError, OSError):
            data = b""
        if not data:
            raise trouble.failed("it closed the connection before it answered", again=True)
        self._first_byte_at = self._charged_at = time.monotonic()
        self.ttft = self._measured_prompt_seconds = self._first_byte_at - self._started
        self._worked = True
        chunk = self._relay.feed(data)
        if self._relay.failure and not chunk:
            raise trouble.failed(trouble.plain(self._relay.failure, engine))
        self._lease.charge(self._pace.tokens(request.prompt_bytes))
        return Answer(200, self._headers(), None, lambda: self._events(response, chunk))

    async def _ask_whether_it_fits(self) -> bytes | None:
        """Find out whether the prompt is too long; return the answer where the question brought it."""
        request = self._request
        try:
            body = await read(await self._post(*context.question(request)))
        except EngineError as refusal:
            if refusal.error.status != 400:
                raise
            if refusal.error.code == trouble.CONTEXT_CODE:
                if self._settings.refuse_truncation:
                    raise
                self.truncated = True
            # Another 400 is about the question's form; the request itself gets its own answer.
            return None
        self._worked = True
        self._measured_prompt_seconds = time.monotonic() - self._started
        self._lease.touch()
        return context.embeddings_answer(request, body) if request.path == "/v1/embeddings" else None

    async def _post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        return await post(self._upstream.engines, self._lease, self._request, path, body)

    def _headers(self) -> dict[str, str]:
        return TRUNCATED if self.truncated else {}

    # Whole answers

    def _whole(self, body: bytes) -> Answer:
        """Return an answer that is there as a whole, in the client's terms."""
        self._worked = True
        if self._request.path == "/v1/embeddings":
            # Not parsed: its vectors can be 64 MiB, and only one number is asked for.
            found = PROMPT_TOKENS.search(body)
            self._usage = (int(found.group(1)), 0) if found else None
        else:
            body = self._completed(body)
        self._settle()
        body = rename(body, self._request.model)
        return Answer(200, self._headers(), body, lambda: _just(body))

    def _completed(self, body: bytes) -> bytes:
        """Take the usage of an answer; return it with what the engine left out."""
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            raise trouble.failed(f"its answer is none: {trouble.said(body, self._lease.engine)}")
        self._usage = usage_in(answer)
        if self._usage:
            return body
        # Ollama ends so after 30 equal tokens in a row; to the client that is a bound on the length.
        choices: list[dict[str, Any]] = answer["choices"]
        self._text_bytes = 0
        for choice in choices:
            fields = choice.get("message", choice).values()
            self._text_bytes += sum(len(text.encode()) for text in fields if isinstance(text, str))
            choice["finish_reason"] = choice.get("finish_reason") or "length"
        answer["usage"] = usage_field(*self._estimate())
        return json.dumps(answer).encode()

    # Streams

    async def _events(self, response: aiohttp.ClientResponse, chunk: bytes) -> AsyncIterator[bytes]:
        """Iterate over the bytes for the client, whole events each; raises ClientLeft when it has gone."""
        while True:
            self._count_events()
            if chunk:
                yield chunk
            if self._relay.done or self.error:
                break
            chunk = await self._next_events(response)
        if not self.error:
            with suppress(TimeoutError, aiohttp.ClientError, OSError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await response.content.read()

    async def _next_events(self, response: aiohttp.ClientResponse) -> bytes:
        relay, seconds = self._relay, self._settings.first_byte_seconds
        try:
            async with asyncio.timeout(seconds):
                data = await response.content.readany()
        except TimeoutError:
            return self._broken(trouble.timed_out(seconds))
        except (aiohttp.ClientError, OSError):
            if self._leaving:
                raise ClientLeft from None
            return self._broken(trouble.engine_failed("it closed the connection in the middle of the answer"))
        if self._leaving:
            raise ClientLeft
        chunk = relay.feed(data)
        if not data and not relay.done and not relay.failure:
            chunk += relay.end(*self._estimate())
        if relay.failure:
            words = trouble.plain(relay.failure, self._lease.engine)
            chunk += self._broken(trouble.engine_failed(words))
        return chunk

    def _broken(self, error: ApiError) -> bytes:
        """Return the last event of a stream that goes wrong."""
        self.error = error
        return b"data: " + error.body() + b"\n\n"

    def _count_events(self) -> None:
        """Charge what has come, and the real usage as soon as it is known."""
        now = time.monotonic()
        if self._relay.usage or self._relay.done or self.error:
            self._usage = self._relay.usage
            self._settle()
        elif now - self._charged_at >= CHARGE_SECONDS:
            self._lease.charge(self._relay.events - self._charged_events)
            self._charged_at, self._charged_events = now, self._relay.events

    # What it cost

    def _settle(self) -> None:
        if self._settled:
            return
        self._settled = True
        if self._usage is None:
            self.prompt_tokens, self.completion_tokens = self._estimate()
            self.estimated = self._worked
        else:
            self.prompt_tokens, self.completion_tokens = self._usage
            known = self._lease.model.context
            self.truncated |= known is not None and self.prompt_tokens >= known - context.EDGE_TOKENS
            if not self.truncated and not self._request.has_images:
                self._pace.learn_tokens(self._request.prompt_bytes, self.prompt_tokens)
            if self._request.stream:
                self._pace.learn_generation(self.completion_tokens, time.monotonic() - self._first_byte_at)
        self._lease.settle(self.prompt_tokens, self.completion_tokens)

    def _learn_speed(self) -> None:
        """Learn how fast the engine is from an answer that has just begun, or is there as a whole."""
        prompt_bytes = self._request.prompt_bytes
        if self._request.has_images:
            return
        if self._measured_prompt_seconds is not None:
            self._pace.learn_first_byte(prompt_bytes, self._measured_prompt_seconds)
        elif self._usage is not None:
            self._pace.learn_whole(prompt_bytes, self._usage[1], time.monotonic() - self._started)

    def _estimate(self) -> tuple[int, int]:
        """Estimate the tokens of prompt and answer where the engine tells none."""
        request, pace = self._request, self._pace
        if not self._worked:
            return 0, 0
        completion = 0
        if request.stream:
            completion = self._relay.events
        elif self._text_bytes is not None:
            completion = pace.tokens(self._text_bytes)
        elif request.path != "/v1/embeddings":
            seconds = time.monotonic() - self._started - self._prompt_seconds()
            completion = pace.generated_tokens(seconds)
            completion = min(completion, request.body.get("max_tokens", completion))
        return pace.tokens(request.prompt_bytes), completion


async def _just(body: bytes) -> AsyncIterator[bytes]:
    yield body
