"""One request to an engine: time-outs, retries, streaming, disconnected clients, and the tokens it used.

The states of a request. An attempt is one call of an engine, up to the first byte of its answer.

    IDLE          no attempt runs, and no engine has worked on the prompt
    SENT          an attempt waits for its first byte; whether the engine works on the prompt is not known
    PROCESSED     an attempt waits for its first byte; this or an earlier one has processed the prompt
    INTERRUPTED   no attempt runs; an engine has worked on the prompt, without a useful answer
    ANSWERING     the answer has begun
    DRAINING      the client has disconnected while an attempt waits for its first byte
    SETTLED       the tokens are final

The rules:

1. Tokens are charged once an engine has worked on the prompt (`WORKED`). No transition leads back from there,
   so a retry does not make the prompt free.
2. Ollama continues with the prompt of a disconnected client until the first token; then it stops. So
   DRAINING holds the slot until the attempt ends, or for the estimated time. It is not retried. Other engines
   stop at once, and so does DRAINING there.
3. Between two attempts and in its answer a disconnected client holds no slot: SETTLED follows at once.
4. An attempt on a lost host fails as one whose connection was closed. A stream from there ends with an error.
5. SETTLED is final. The cancelled attempt may still end, which changes nothing.

An event that a state does not have in `TRANSITIONS` is a bug and raises KeyError.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import aiohttp
from pydantic_core import to_json

from bedplate_gateway import errors
from bedplate_gateway.api.schema import RESPONSES, Request
from bedplate_gateway.engines import context, providers, responses_events
from bedplate_gateway.engines import errors as engine_errors
from bedplate_gateway.engines.client import NO_HEADERS, LeaseLike, abort, post, read_answer
from bedplate_gateway.engines.errors import EngineError, EngineGoneError
from bedplate_gateway.engines.health import HOLD_SECONDS, Engines
from bedplate_gateway.engines.litellm import (
    Lane,
    LiteLLM,
    LiteLLMError,
    LiteLLMEvents,
    ProviderEvents,
    restore_fields,
    restored_answer,
    restored_embeddings,
    restored_responses_event,
    stream_failure,
)
from bedplate_gateway.engines.speed_estimates import SpeedEstimate
from bedplate_gateway.engines.sse import (
    EventBuffer,
    EventStream,
    error_message,
    name_reasoning,
    read_usage,
    rename_model,
    usage_object,
)
from bedplate_gateway.errors import ApiError, ClientDisconnected
from bedplate_gateway.settings import Engine, EngineModel, Settings


class State(Enum):
    """The states of a request; the module describes them."""

    IDLE = auto()
    SENT = auto()
    PROCESSED = auto()
    INTERRUPTED = auto()
    ANSWERING = auto()
    DRAINING = auto()
    SETTLED = auto()


class Event(Enum):
    """What changes the state of a request."""

    SEND = auto()
    """An attempt starts."""
    PROMPT_DONE = auto()
    """The check whether the prompt fits has processed it."""
    ANSWER = auto()
    """The first byte of a stream has arrived, or a whole answer."""
    FAIL = auto()
    """The attempt failed or was cancelled."""
    TIME_OUT = auto()
    """The attempt took too long: the engine has worked on the prompt."""
    CLOSE_WAITING = auto()
    """The request is closed while an attempt waits."""
    SETTLE = auto()
    """The tokens are reported to the lease."""


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.IDLE: {
        Event.SEND: State.SENT,
        Event.SETTLE: State.SETTLED,
    },
    State.SENT: {
        Event.PROMPT_DONE: State.PROCESSED,
        Event.ANSWER: State.ANSWERING,
        Event.FAIL: State.IDLE,
        Event.TIME_OUT: State.INTERRUPTED,
        Event.CLOSE_WAITING: State.DRAINING,
    },
    State.PROCESSED: {
        Event.PROMPT_DONE: State.PROCESSED,
        Event.ANSWER: State.ANSWERING,
        Event.FAIL: State.INTERRUPTED,
        Event.TIME_OUT: State.INTERRUPTED,
        Event.CLOSE_WAITING: State.DRAINING,
    },
    State.INTERRUPTED: {
        Event.SEND: State.PROCESSED,
        Event.SETTLE: State.SETTLED,
    },
    State.ANSWERING: {
        Event.FAIL: State.INTERRUPTED,
        Event.SETTLE: State.SETTLED,
    },
    State.DRAINING: {
        Event.PROMPT_DONE: State.DRAINING,
        Event.ANSWER: State.DRAINING,
        Event.FAIL: State.DRAINING,
        Event.TIME_OUT: State.DRAINING,
        Event.SETTLE: State.SETTLED,
    },
    State.SETTLED: {
        Event.FAIL: State.SETTLED,
        Event.TIME_OUT: State.SETTLED,
    },
}
WAITING = frozenset({State.SENT, State.PROCESSED})
WORKED = frozenset({State.PROCESSED, State.INTERRUPTED, State.ANSWERING, State.DRAINING, State.SETTLED})

BACKOFF_SECONDS = 0.25
MAX_MOVES = 3
"""How often a request moves to another engine because its engine is gone, if it may be tried again at all."""
CHARGE_SECONDS = 0.25
"""How often the tokens of a running stream are charged."""
STREAM_SECONDS = 3600.0
"""How long a stream may last as a whole, from its first byte."""
HOLD_POLL_SECONDS = 0.5
"""How often a request that waits for LiteLLM's restart is sent again."""
DRAIN_SECONDS = 1.0
"""How long to wait for the end of a stream after its last event, so that its connection can be reused."""
PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s*(\d+)')
CALL_ID = "x-litellm-call-id"
"""The header with LiteLLM's id of a request, by which its callbacks name it."""
TRUNCATED_HEADERS = {"x-bedplate-context": "truncated"}


@dataclass(frozen=True)
class Answer:
    """An answer that has begun: a whole `body`, or None where it is a stream of `events`."""

    status: int
    headers: dict[str, str]
    body: bytes | None
    events: Callable[[], AsyncIterator[bytes]]


class Upstream:
    """Creates the requests to all engines, and keeps what they share: session, speeds and model loads."""

    def __init__(self, settings: Settings, engines: Engines, litellm: LiteLLM) -> None:
        self.settings = settings
        self.engines = engines
        self.litellm = litellm
        self._speeds: dict[tuple[str, str], SpeedEstimate] = {}
        self._loads: Counter[tuple[str, str]] = Counter()

    def new_request(
        self,
        request: Request,
        lease: LeaseLike,
        disconnected: asyncio.Event,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> "EngineRequest":
        """Return the engine request for a granted lease; it sends nothing before `answer`.

        `disconnected` is set when the client disconnects; `headers` are sent to the engine.
        """
        return EngineRequest(self, request, lease, disconnected, headers)

    def speed(self, engine: str, model: str) -> SpeedEstimate:
        """Return the speed estimate of a model on an engine."""
        return self._speeds.setdefault((engine, model), SpeedEstimate())

    def tokens(self, model: str, text_bytes: int) -> int:
        """Estimate the tokens of a prompt from the model's answers so far, on any engine."""
        learned = (speed for (_, name), speed in self._speeds.items() if name == model)
        return next(learned, SpeedEstimate()).tokens(text_bytes)

    @contextmanager
    def loading(self, engine: Engine, model: str) -> Iterator[bool]:
        """Yield, while a call waits for its first byte, whether the engine must load the model before."""
        key = engine.name, model
        # Ollama lists a model as loaded before it is ready, so earlier calls that still wait count too.
        loading = engine.kind == "ollama" and (self._loads[key] > 0 or not self.engines.loaded(engine, model))
        self._loads[key] += loading
        try:
            yield loading
        finally:
            self._loads[key] -= loading


class EngineRequest:
    """One request to an engine. Call `answer` once, then always `close`; the rest is for the access log."""

    def __init__(
        self,
        upstream: Upstream,
        request: Request,
        lease: LeaseLike,
        disconnected: asyncio.Event,
        headers: Mapping[str, str],
    ) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cost = 0.0
        """In dollars; 0 for local models."""
        self.estimated = False
        self.truncated = False
        self.ttft: float | None = None
        """Seconds from the start of the call that worked to the first byte of its stream."""
        self.retries = 0
        self.lane: Lane | None = None
        """The lane of the last attempt; None before the first."""
        self.error: ApiError | None = None
        """The error inside a stream, already sent to the client."""
        self._upstream = upstream
        self._settings = upstream.settings
        self._request = request
        self._lease = lease
        self._disconnected = disconnected
        self._request_headers = headers
        self._speed = upstream.speed(lease.engine.name, lease.model.name)
        self._provider_events: ProviderEvents | None = None
        self._stream = self._new_stream()
        self._call: asyncio.Task[Answer] | None = None
        self._disconnect_watch: asyncio.Task[None] | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._started = self._first_byte_at = self._charged_at = 0.0
        self._quiet_seconds = 0.0
        self._measured_prompt_seconds: float | None = None
        self._charged_events = 0
        self._text_bytes: int | None = None
        self._call_id = ""
        self._usage: tuple[int, int] | None = None
        self._state = State.IDLE
        self._watched = ""
        self._is_lost = False
        self._timeout: asyncio.Timeout | None = None

    async def answer(self) -> Answer:
        """Return the answer once it has begun; raises ApiError, EngineGoneError or ClientDisconnected."""
        over = asyncio.Event()
        self._call = asyncio.create_task(self._try_all())
        self._call.add_done_callback(lambda _: over.set())
        self._disconnect_watch = asyncio.create_task(self._abort_on_disconnect(over))
        await over.wait()
        if not self._call.done():
            raise ClientDisconnected
        return self._call.result()

    async def close(self) -> None:
        """End the call and settle its tokens; returns when the engine is free for another request."""
        try:
            if self._call is not None and not self._call.done() and self._state in WAITING:
                self._handle(Event.CLOSE_WAITING)
                if self._lease.engine.kind == "ollama":
                    await asyncio.wait((self._call,), timeout=self._hold_seconds())
        finally:
            for task in (self._call, self._disconnect_watch):
                if task is not None and not task.cancel() and not task.cancelled():
                    # Retrieve the exception; otherwise asyncio logs it as never retrieved.
                    task.exception()
            if self._response is not None:
                # Closes the connection, unless the answer was read to its end.
                abort(self._response)
            self._upstream.engines.unwatch(self._watched, self._end_lost)
            self._settle()

    def _end_lost(self) -> None:
        """End the attempt, or the wait for more of its stream: the engine's host is lost."""
        self._is_lost = True
        # Between two waits there is nothing to end; the next one sees the flag.
        with suppress(RuntimeError):
            if self._timeout is not None:
                self._timeout.reschedule(asyncio.get_running_loop().time())

    def _hold_seconds(self) -> float | None:
        """Return how long the prompt will still take; None where the call itself ends at the first byte."""
        if self._request.stream:
            return None
        return max(0.0, self._prompt_seconds() - (time.monotonic() - self._started))

    def _prompt_seconds(self) -> float:
        """Return how long the engine works on the prompt, measured or estimated."""
        return self._measured_prompt_seconds or self._speed.prompt_seconds(self._request.prompt_bytes)

    async def _abort_on_disconnect(self, over: asyncio.Event) -> None:
        """End the wait for the answer, or the reading of a stream, as soon as the client disconnects."""
        await self._disconnected.wait()
        over.set()
        if self._response is not None and self.ttft is not None:
            abort(self._response)

    def _handle(self, event: Event) -> None:
        self._state = TRANSITIONS[self._state][event]

    def _abandoned(self) -> bool:
        """Return whether nobody waits for an answer: no further attempt is made."""
        return self._disconnected.is_set() or self._state in {State.DRAINING, State.SETTLED}

    # Attempts

    async def _try_all(self) -> Answer:
        while True:
            try:
                return await self._try()
            except EngineError as failure:
                if self._abandoned():
                    raise ClientDisconnected from None
                lease = self._lease
                engines = self._upstream.engines
                waits = failure.gone and engines.serves_elsewhere(lease.engine, lease.model.name)
                most = self._settings.retries
                if waits and most:
                    # Its last retry may have been on this engine, while its host was dying.
                    most = max(most, MAX_MOVES)
                spent = self.retries >= most and not (failure.unsent and waits)
                if spent or not failure.elsewhere:
                    raise failure.error from None
                if not lease.swap():
                    if waits:
                        self.retries += 1
                        raise EngineGoneError(failure.error) from None
                    if not failure.again:
                        raise failure.error from None
                    jitter = 1 + random.random()  # noqa: S311 - no secret
                    await asyncio.sleep(BACKOFF_SECONDS * 2**self.retries * jitter)
                self.retries += 1

    async def _try(self) -> Answer:
        engine, model = self._lease.engine, self._lease.model
        self._speed = self._upstream.speed(engine.name, model.name)
        self.truncated = False
        self.lane = self._upstream.litellm.lane(engine, model.name)
        self._measured_prompt_seconds = None
        self._lease.touch()
        self._watch(engine.name)
        with self._upstream.loading(engine, model.name) as loading:
            seconds = self._settings.first_byte_seconds
            if loading:
                seconds = max(seconds, self._settings.load_seconds)
            self._started = time.monotonic()
            self._handle(Event.SEND)
            try:
                async with asyncio.timeout(seconds) as self._timeout:
                    answer = await self._send(engine, model)
            except TimeoutError:
                if self._is_lost:
                    self._handle(Event.FAIL)
                    raise engine_errors.lost() from None
                self._handle(Event.TIME_OUT)
                raise EngineError(errors.engine_timeout(seconds)) from None
            except BaseException:
                self._handle(Event.FAIL)
                raise
        if not loading:
            self._learn_speed()
        return answer

    def _watch(self, engine_name: str) -> None:
        """End the next attempt when this engine's host is lost."""
        engines = self._upstream.engines
        engines.unwatch(self._watched, self._end_lost)
        self._watched, self._is_lost = engine_name, False
        engines.watch(engine_name, self._end_lost)

    async def _send(self, engine: Engine, model: EngineModel) -> Answer:
        request = self._request
        if engine.kind == "litellm":
            return await self._forward_held(engine, model)
        tokens = self._upstream.engines.context(engine, model)
        if engine.kind == "ollama" and tokens is not None and context.could_overflow(request, tokens):
            if body := await self._check_fit():
                return self._whole(body)
            if self._abandoned():
                raise ClientDisconnected
        if self.lane is Lane.LITELLM:
            try:
                return await self._forward(engine, model)
            except LiteLLMError:
                if self._abandoned():
                    raise ClientDisconnected from None
                # Nothing has reached the client yet, and the engine stops when LiteLLM's connection closes.
                self.lane = Lane.BYPASS
        return await self._forward(engine, model)

    async def _forward_held(self, engine: Engine, model: EngineModel) -> Answer:
        """Forward the request as `_forward` does, but wait while LiteLLM restarts."""
        until = time.monotonic() + HOLD_SECONDS
        while True:
            try:
                return await self._forward(engine, model)
            except LiteLLMError as failure:
                if self._abandoned():
                    raise ClientDisconnected from None
                # What LiteLLM may have passed on is sent again only as often as any other request.
                spent = failure.sent and self.retries >= self._settings.retries
                if spent or time.monotonic() >= until:
                    raise EngineError(errors.engine_unavailable(self._request.model)) from None
                self.retries += failure.sent
            await asyncio.sleep(HOLD_POLL_SECONDS)

    async def _forward(self, engine: Engine, model: EngineModel) -> Answer:
        """Send the request in its lane, and return the answer once it has begun; raises LiteLLMError."""
        request, through_litellm = self._request, self.lane is Lane.LITELLM
        if request.stream:
            self._stream = self._new_stream()
        self._response = response = await self._open(engine, model)
        if not request.stream:
            try:
                body = await read_answer(response)
            except EngineError:
                if through_litellm:
                    raise LiteLLMError from None
                raise
            return self._whole(body)
        chunk = b""
        while not chunk:
            data = b""
            with suppress(aiohttp.ClientError, OSError):
                data = await response.content.readany()
            if not data:
                if through_litellm:
                    raise LiteLLMError
                raise engine_errors.failed("it closed the connection before it answered", again=True)
            chunk = self._stream.feed(data)
            if self._stream.begun or self._stream.failure:
                break
        self._first_byte_at = self._charged_at = time.monotonic()
        self.ttft = self._measured_prompt_seconds = self._first_byte_at - self._started
        self._handle(Event.ANSWER)
        if self._stream.failure and not chunk:
            raise engine_errors.failed(engine_errors.redact(self._stream.failure, engine))
        self._lease.charge(self._speed.tokens(request.prompt_bytes))
        return Answer(200, self._headers(), None, lambda: self._events(response, chunk))

    async def _open(self, engine: Engine, model: EngineModel) -> aiohttp.ClientResponse:
        """Return the 200 of the engine, or of LiteLLM, its body not read yet."""
        request, upstream = self._request, self._upstream
        if self.lane is not Lane.LITELLM:
            body = request.engine_body(for_ollama=engine.kind == "ollama")
            return await self._post(request.path, to_json(body))
        # One retry in all: LiteLLM asks the same engine again, but only where there is no other one to ask.
        elsewhere = upstream.engines.serves_elsewhere(engine, model.name)
        # After a provider's 429 LiteLLM would wait for twice its Retry-After, in the slot.
        by_gateway = elsewhere or engine.kind == "litellm"
        retries = 0 if by_gateway else self._settings.retries - self.retries
        response = await upstream.litellm.post(
            upstream.engines, self._lease, request, retries, self._request_headers
        )
        self.retries += int(response.headers.get("x-litellm-attempted-retries", "0"))
        self._call_id = response.headers.get(CALL_ID, "")
        if engine.kind == "litellm":
            self.cost = providers.read_cost(response.headers.get(providers.COST_HEADER))
        return response

    async def _check_fit(self) -> bytes | None:
        """Check whether the prompt fits into the context; return the answer where the check brings it."""
        request = self._request
        try:
            body = await read_answer(await self._post(*context.fit_check(request)))
        except EngineError as refusal:
            if refusal.error.status != 400:
                raise
            if refusal.error.code == errors.CONTEXT_LENGTH_EXCEEDED:
                # An agent makes its conversation shorter, but does not see that its task was cut off.
                if self._settings.refuse_truncation or request.has_tools:
                    raise
                self.truncated = True
            # Another 400 is about the check itself; the request gets its own answer.
            return None
        self._handle(Event.PROMPT_DONE)
        self._measured_prompt_seconds = time.monotonic() - self._started
        self._lease.touch()
        return context.embeddings_answer(request, body) if request.path == "/v1/embeddings" else None

    async def _post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        engines, lease, headers = self._upstream.engines, self._lease, self._request_headers
        return await post(engines, lease, self._request, path, body, headers=headers)

    def _headers(self) -> dict[str, str]:
        call_id = {CALL_ID: self._call_id} if self.lane is Lane.LITELLM else {}
        return call_id | (TRUNCATED_HEADERS if self.truncated else {})

    def _new_stream(self) -> EventBuffer:
        """Return what reads the stream of an attempt."""
        request, through_litellm = self._request, self.lane is Lane.LITELLM
        if self._lease.engine.kind == "litellm":
            return self._new_provider_stream()
        if request.path == RESPONSES:
            restore = restored_responses_event if through_litellm else None
            return responses_events.ResponsesEvents(limit=self._output_limit(), restore=restore)
        events = LiteLLMEvents() if through_litellm else None
        return EventStream(request.model, want_usage=request.want_usage, restore=events)

    def _new_provider_stream(self) -> EventBuffer:
        request, events = self._request, ProviderEvents(self._lease.engine)
        self._provider_events = events
        if request.path == RESPONSES:
            return responses_events.ResponsesEvents(limit=None, restore=events.of_responses)
        stream = EventStream(request.model, want_usage=request.want_usage, restore=events)
        # Its first event decides whether there is an answer.
        stream.begun = False
        return stream

    def _output_limit(self) -> int | None:
        """Return the limit on a response's tokens where the engine does not report that it was reached."""
        by_ollama = self._lease.engine.kind == "ollama" and self.lane is not Lane.LITELLM
        return self._request.max_tokens if by_ollama else None

    # Whole answers

    def _whole(self, body: bytes) -> Answer:
        """Return a complete answer, with the model's name as the client knows it."""
        self._handle(Event.ANSWER)
        if self._request.path == "/v1/embeddings":
            # Not parsed: its vectors can be 64 MiB, and only one number is needed.
            body = restored_embeddings(body) if self.lane is Lane.LITELLM else body
            match = PROMPT_TOKENS.search(body)
            self._usage = (int(match.group(1)), 0) if match else None
        elif self._request.path == RESPONSES:
            body = self._completed_response(body)
        else:
            body = self._completed(body)
        self._settle()
        body = rename_model(body, self._request.model)
        return Answer(200, self._headers(), body, lambda: _single(body))

    def _completed(self, body: bytes) -> bytes:
        """Read the usage of an answer; return the answer with the fields that the engine left out."""
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            raise self._invalid(body)
        if self._lease.engine.kind == "litellm":
            # The usage counts more than the tokens, and is kept.
            restore_fields(answer)
        elif self.lane is Lane.LITELLM:
            answer = restored_answer(answer)
        named = name_reasoning(answer)
        self._usage = read_usage(answer)
        if self._usage:
            return json.dumps(answer).encode() if named or self.lane is Lane.LITELLM else body
        # Ollama ends so after 30 equal tokens in a row; to the client that is a limit on the length.
        choices: list[dict[str, Any]] = answer["choices"]
        self._text_bytes = 0
        for choice in choices:
            fields = choice.get("message", choice).values()
            self._text_bytes += sum(len(text.encode()) for text in fields if isinstance(text, str))
            choice["finish_reason"] = choice.get("finish_reason") or "length"
        answer["usage"] = usage_object(*self._estimate())
        return json.dumps(answer).encode()

    def _completed_response(self, body: bytes) -> bytes:
        """Read the usage of a response; return the response with what the engine left out."""
        response, engine = responses_events.read_response(body), self._lease.engine
        if response is None:
            raise self._invalid(body)
        if response.get("error"):
            text = error_message(response)
            if self.lane is Lane.LITELLM:
                text = stream_failure(text) or "it failed"
            raise engine_errors.failed(engine_errors.redact(text, engine))
        self._usage = responses_events.read_usage(response)
        if self._usage is None:
            self._text_bytes = responses_events.text_bytes(response)
            response["usage"] = responses_events.usage_object(*self._estimate())
            if engine.kind == "ollama":
                # It ends so after 30 equal tokens in a row; to the client that is a limit on the length.
                response["status"] = "incomplete"
        responses_events.mend(response, self._output_limit())
        return json.dumps(response).encode()

    def _invalid(self, body: bytes) -> EngineError:
        text = engine_errors.error_text(body, self._lease.engine)
        return engine_errors.failed(f"it returned an invalid response: {text}")

    # Streams

    async def _events(self, response: aiohttp.ClientResponse, chunk: bytes) -> AsyncIterator[bytes]:
        """Iterate over the bytes for the client, complete events each; raises ClientDisconnected."""
        while True:
            self._charge_events()
            if chunk:
                yield chunk
            if self._stream.done or self.error:
                break
            chunk = await self._next_events(response)
        if not self.error:
            with suppress(TimeoutError, aiohttp.ClientError, OSError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    await response.content.read()

    async def _next_events(self, response: aiohttp.ClientResponse) -> bytes:
        stream, seconds = self._stream, self._settings.first_byte_seconds
        started, progress = time.monotonic(), stream.progress
        left = self._first_byte_at + STREAM_SECONDS - started
        try:
            # What has arrived is read without a wait, and so also from a lost host.
            limit = 0.0 if self._is_lost else min(seconds - self._quiet_seconds, left)
            async with asyncio.timeout(limit) as self._timeout:
                data = await response.content.readany()
        except TimeoutError:
            if self._is_lost:
                return self._fail_stream(errors.engine_error(engine_errors.LOST))
            if left < seconds - self._quiet_seconds:
                return self._fail_stream(errors.stream_too_long(STREAM_SECONDS))
            return self._fail_stream(errors.engine_timeout(seconds))
        except (aiohttp.ClientError, OSError):
            if self._disconnected.is_set():
                raise ClientDisconnected from None
            return self._fail_stream(
                errors.engine_error("it closed the connection in the middle of the answer")
            )
        if self._disconnected.is_set():
            raise ClientDisconnected
        if self.lane is Lane.LITELLM:
            self._upstream.litellm.note_byte()
        chunk = stream.feed(data)
        # Only the wait for the engine counts, not that for a client that reads slowly.
        self._quiet_seconds += time.monotonic() - started
        if stream.progress > progress:
            self._quiet_seconds = 0.0
        if not data and not stream.done and not stream.failure:
            chunk += stream.finish(*self._estimate())
        if stream.failure:
            text = engine_errors.redact(stream.failure, self._lease.engine)
            chunk += self._fail_stream(errors.engine_error(text))
        return chunk

    def _fail_stream(self, error: ApiError) -> bytes:
        """Note the error and return it as the last event of the stream."""
        self.error = error
        return b"data: " + error.body() + b"\n\n"

    def _charge_events(self) -> None:
        """Charge the events so far, and the final usage as soon as it is known."""
        now = time.monotonic()
        if self._stream.usage or self._stream.done or self.error:
            self._usage = self._stream.usage
            self._settle()
        elif now - self._charged_at >= CHARGE_SECONDS:
            self._lease.charge(self._stream.events - self._charged_events)
            self._charged_at, self._charged_events = now, self._stream.events

    # Usage

    def _settle(self) -> None:
        if self._state is State.SETTLED:
            return
        if self._request.stream and self._provider_events is not None:
            self.cost = self._provider_events.cost
        if self._usage is None:
            self.prompt_tokens, self.completion_tokens = self._estimate()
            self.estimated = self._state in WORKED
        else:
            self.prompt_tokens, self.completion_tokens = self._usage
            known = self._upstream.engines.context(self._lease.engine, self._lease.model)
            self.truncated |= known is not None and self.prompt_tokens >= known - context.EDGE_TOKENS
            if not self.truncated and not self._request.has_images:
                self._speed.learn_tokens(self._request.prompt_bytes, self.prompt_tokens)
            if self._request.stream:
                self._speed.learn_generation(self.completion_tokens, time.monotonic() - self._first_byte_at)
        self._handle(Event.SETTLE)
        self._lease.settle(self.prompt_tokens, self.completion_tokens)

    def _learn_speed(self) -> None:
        """Update the speed estimate from an answer that has just begun, or is complete."""
        prompt_bytes = self._request.prompt_bytes
        if self._request.has_images:
            return
        if self._measured_prompt_seconds is not None:
            self._speed.learn_first_byte(prompt_bytes, self._measured_prompt_seconds)
        elif self._usage is not None:
            self._speed.learn_whole(prompt_bytes, self._usage[1], time.monotonic() - self._started)

    def _estimate(self) -> tuple[int, int]:
        """Estimate the tokens of prompt and answer where the engine reports none."""
        request, speed = self._request, self._speed
        if self._state not in WORKED:
            return 0, 0
        completion = 0
        if request.stream:
            completion = self._stream.events
        elif self._text_bytes is not None:
            completion = speed.tokens(self._text_bytes)
        elif request.path != "/v1/embeddings":
            seconds = time.monotonic() - self._started - self._prompt_seconds()
            completion = speed.generated_tokens(seconds)
            completion = min(completion, request.max_tokens or completion)
        return speed.tokens(request.prompt_bytes), completion


async def _single(body: bytes) -> AsyncIterator[bytes]:
    yield body
