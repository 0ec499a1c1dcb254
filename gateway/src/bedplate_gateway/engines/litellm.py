"""The LiteLLM proxy between gateway and inference hosts: whether it answers, and the requests through it.

A request reaches its engine in one of three lanes:

    LITELLM   through LiteLLM, whose model `<engine>/<model>` is that model on that engine
    DIRECT    without LiteLLM: the setting `direct` names the engine or the model, or the engine is no
              inference host
    BYPASS    without LiteLLM, because it is down or hangs

Requests for the models of other providers always go through LiteLLM; `providers` has what is theirs alone.

LiteLLM changes answers and errors. `LiteLLMEvents`, `restored_answer` and others undo that, so that
clients cannot tell the lanes apart. Source: answers of LiteLLM 1.110.2 with the prefix hosted_vllm/.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, Never

import aiohttp
from pydantic_core import to_json

from bedplate_gateway import background, errors
from bedplate_gateway.api.schema import Request
from bedplate_gateway.engines import errors as engine_errors
from bedplate_gateway.engines import providers
from bedplate_gateway.engines.client import (
    CONNECTION_REFUSED,
    MAX_ERROR_BYTES,
    NO_HEADERS,
    EngineHealth,
    LeaseLike,
    read_body,
)
from bedplate_gateway.engines.errors import EngineError
from bedplate_gateway.engines.sse import (
    ENDED_EARLY,
    error_message,
    json_of,
    read_usage,
    to_event,
    usage_object,
)
from bedplate_gateway.settings import Engine, LiteLLMSettings, read_secret

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_MISSES = 3
"""Consecutive polls without an answer, and without a byte of any other answer, after which LiteLLM hangs."""
STEADY_POLLS = 5
"""Consecutive answers after which LiteLLM is used again: at first it loads modules for seconds."""
METRICS_SECONDS = 8.0
MAX_METRICS_BYTES = 8 * 1024 * 1024

ENGINE_TEXT = re.compile(r"Exception - (.*?)\s*(?:\n\n(?:LiteLLM: |Deployment Info: )|$)", re.DOTALL)
CANNOT_CONNECT = re.compile(r"Cannot connect to host|Connect call failed|Connection error")
DISCONNECTED = re.compile(r"Server disconnected|Connection reset|Connection closed")
CUT = "payload is not completed"
NO_FINISH_REASON = "Stream ended before a finish_reason was received"
EMBEDDINGS_USAGE = re.compile(
    rb'"usage":\{"completion_tokens":0,("prompt_tokens":\d+,"total_tokens":\d+)'
    rb',"completion_tokens_details":null,"prompt_tokens_details":null\}'
)


class Lane(StrEnum):
    """The way of a request to its engine; the module describes them."""

    LITELLM = "litellm"
    DIRECT = "direct"
    BYPASS = "bypass"


class LiteLLMError(Exception):
    """LiteLLM itself failed before it passed on a byte of an answer: the request can go to the engine.

    `sent` is whether LiteLLM may have begun to work on it.
    """

    def __init__(self, *, sent: bool = True) -> None:
        super().__init__("LiteLLM failed.")
        self.sent = sent


class LiteLLM:
    """The proxy's state, polled each second after `start`; without settings every request goes directly.

    Raises SettingsError where the key cannot be read.
    """

    def __init__(self, settings: LiteLLMSettings | None) -> None:
        self.up = False
        self._settings = settings
        self._headers = {"Content-Type": "application/json"}
        if settings is not None:
            self._headers["Authorization"] = f"Bearer {read_secret(settings.key_file)}"
        self._session: aiohttp.ClientSession | None = None
        self._poller: asyncio.Task[Never] | None = None
        self._last_byte = 0.0
        self._misses = self._answers = 0

    async def start(self, session: aiohttp.ClientSession) -> None:
        """Poll once, then start to poll regularly; `session` is used until `stop`."""
        self._session = session
        if self._settings is not None:
            with suppress(aiohttp.ClientConnectorError, LiteLLMError):
                self.up = await self._poll()
            self._poller = background.start("poller of LiteLLM", self._poll_regularly())

    async def stop(self) -> None:
        """Stop polling."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    @property
    def configured(self) -> bool:
        """Whether there is a proxy at all."""
        return self._settings is not None

    def lane(self, engine: Engine, model: str) -> Lane:
        """Return the lane of a request that starts now."""
        if engine.kind == "litellm":
            return Lane.LITELLM
        if self._settings is None or engine.kind != "ollama" or {engine.name, model} & self._settings.direct:
            return Lane.DIRECT
        return Lane.LITELLM if self.up else Lane.BYPASS

    def note_byte(self) -> None:
        """Note that a part of an answer has arrived: a proxy that answers late is busy, it does not hang."""
        self._last_byte = time.monotonic()

    async def post(
        self,
        health: EngineHealth,
        lease: LeaseLike,
        request: Request,
        retries: int,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> aiohttp.ClientResponse:
        """Return LiteLLM's 200, its body not read yet; it tries the engine up to `retries` times again.

        Raises LiteLLMError, or EngineError for what the engine did.
        """
        of_provider = lease.engine.kind == "litellm"
        model = lease.model.name if of_provider else f"{lease.engine.name}/{lease.model.name}"
        own = {"x-litellm-num-retries": str(retries)} | (providers.COST_HEADERS if of_provider else {})
        body = to_json(request.engine_body(for_ollama=False) | {"model": model})
        try:
            response = await self._send("POST", request.path, body, own | dict(headers))
            self.note_byte()
            if response.status == 200:
                return response
            async with response:
                error_body = await response.content.read(MAX_ERROR_BYTES)
        except aiohttp.ClientConnectorError:
            self._set(up=False)
            raise LiteLLMError(sent=False) from None
        except (aiohttp.ClientError, OSError):
            raise LiteLLMError from None
        if of_provider:
            raise self._provider_error(response, _message(error_body), request, lease.engine)
        failure = self._engine_error(health, lease, request, response.status, error_body)
        # What LiteLLM has tried again is not tried once more.
        raise EngineError(failure.error) if retries else failure

    async def metrics(self) -> bytes:
        """Return LiteLLM's own metrics in Prometheus' text format; raises ApiError 502."""
        try:
            async with asyncio.timeout(METRICS_SECONDS):
                response = await self._send("GET", "/metrics/")
                async with response:
                    if response.status == 200:
                        return await read_body(response, MAX_METRICS_BYTES)
                    log.warning("LiteLLM answers with HTTP %d at /metrics/.", response.status)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            pass
        raise errors.litellm_unavailable()

    async def _send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        if self._session is None or self._settings is None:
            raise aiohttp.ClientConnectionError("There is no LiteLLM.")
        return await self._session.request(
            method,
            self._settings.url + path,
            data=body,
            headers=self._headers | (headers or {}),
            allow_redirects=False,
        )

    # State

    async def _poll_regularly(self) -> Never:
        while True:
            started = time.monotonic()
            try:
                await self._update()
            except Exception:
                # Otherwise the task would end, and the state would never change again.
                log.exception("Polling LiteLLM failed in the gateway itself.")
            await asyncio.sleep(max(0.0, POLL_SECONDS - (time.monotonic() - started)))

    async def _update(self) -> None:
        """Poll once and set the state."""
        started = time.monotonic()
        try:
            answered = await self._poll()
        except (aiohttp.ClientConnectorError, LiteLLMError):
            self._set(up=False)
            return
        if answered:
            self._misses = 0
            self._answers += 1
            if self._answers >= STEADY_POLLS:
                self._set(up=True)
            return
        self._answers = 0
        self._misses = 0 if self._last_byte >= started else self._misses + 1
        if self._misses >= MAX_MISSES:
            self._set(up=False)

    async def _poll(self) -> bool:
        """Return whether LiteLLM answered in time.

        Raises ClientConnectorError where nothing listens, and LiteLLMError where something else does.
        """
        try:
            async with asyncio.timeout(POLL_SECONDS):
                response = await self._send("GET", "/health/liveliness")
                async with response:
                    if response.status != 200:
                        raise LiteLLMError
                    return True
        except aiohttp.ClientConnectorError:
            raise
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    def _set(self, *, up: bool) -> None:
        if up != self.up:
            self.up = up
            log.warning(
                "LiteLLM %s.", "answers again" if up else "does not answer: requests go to the engines"
            )
        if not up:
            self._answers = 0

    # Errors

    def _engine_error(
        self, health: EngineHealth, lease: LeaseLike, request: Request, status: int, body: bytes
    ) -> EngineError:
        """Return the engine's failure from LiteLLM's response; raises LiteLLMError for LiteLLM's own."""
        engine, model = lease.engine, lease.model
        message = _message(body)
        text = engine_text(message)
        if text is None:
            # LiteLLM refuses the key, or does not know the model before its restart.
            log.warning("LiteLLM answers with HTTP %d: %s", status, engine_errors.redact(message, engine))
            raise LiteLLMError
        if status >= 500 and CANNOT_CONNECT.search(text):
            health.report_failure(engine.name, CONNECTION_REFUSED)
            return engine_errors.unreachable(request.model)
        if status >= 500 and DISCONNECTED.search(text):
            return engine_errors.failed("it closed the connection before it answered", again=True)
        if status == 408:
            return EngineError(errors.engine_timeout())
        if status == 404:
            health.report_missing(engine.name, model.name)
        tokens = health.context(engine, model)
        return engine_errors.from_response(status, text.encode(), request, engine, tokens)

    def _provider_error(
        self, response: aiohttp.ClientResponse, message: str, request: Request, engine: Engine
    ) -> EngineError:
        """Return the provider's failure from LiteLLM's response; raises LiteLLMError for LiteLLM's own."""
        log.warning(
            "LiteLLM answers with HTTP %d for %s: %s",
            response.status,
            request.model,
            engine_errors.redact(providers.RAISED.sub("", message), engine),
        )
        if providers.is_litellms_own(response.status, message):
            raise LiteLLMError(sent=False)
        text = engine_text(message) or message
        error = providers.failure(response.status, response.headers, text, request, engine)
        return EngineError(error, again=error.reason == "engine_error")


def engine_text(message: str) -> str | None:
    """Return what the engine sent, from LiteLLM's error message; None where the error is LiteLLM's own."""
    match = ENGINE_TEXT.search(message)
    return match.group(1) if match else None


def stream_failure(message: str) -> str | None:
    """Return what failed in an engine's stream, from LiteLLM's message; None where the stream just ended."""
    text = engine_text(message) or ""
    if NO_FINISH_REASON in text:
        return None
    return "it closed the connection in the middle of the answer" if CUT in text else text


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


# Answers


def restored_answer(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a whole answer as the engine sent it."""
    restore_fields(answer)
    usage = read_usage(answer)
    if usage is None:
        # Where Ollama ends an answer without usage, it gives no finish reason either; LiteLLM says stop.
        for choice in answer["choices"]:
            choice["finish_reason"] = None
    else:
        answer["usage"] = usage_object(*usage)
    return answer


def restore_fields(answer: dict[str, Any]) -> None:
    """Restore the fields that a whole answer and a chunk of a stream share."""
    fields = answer.pop("provider_specific_fields", None) or {}
    answer["id"] = fields.get("original_response_id", answer.get("id"))
    for choice in answer.get("choices") or ():
        choice.pop("provider_specific_fields", None)
        choice.setdefault("finish_reason", None)
        if "logprobs" in choice and choice["logprobs"] is None:
            del choice["logprobs"]
        message = choice.get("message", choice.get("delta"))
        if message is None:
            choice.setdefault("text", "")
        else:
            message.pop("provider_specific_fields", None)


def restored_embeddings(body: bytes) -> bytes:
    """Return an answer of /v1/embeddings as the engine sent it; it is not parsed, because it can be large."""
    return EMBEDDINGS_USAGE.sub(rb'"usage":{\1}', body)


def restored_responses_event(event: bytes) -> bytes:
    """Return an event with the engine's words and usage, and nothing where its stream just ended."""
    chunk = (json_of(event) if b'"error"' in event or b'"usage"' in event else None) or {}
    response = chunk.get("response")
    source = response if isinstance(response, dict) else chunk
    if source.get("error") or chunk.get("type") == "error":
        text = stream_failure(error_message(source))
        return b"" if text is None else to_event({"type": "response.failed", "error": {"message": text}})
    if not isinstance(response, dict):
        return event + b"\n\n"
    if isinstance(usage := response.get("usage"), dict):
        # LiteLLM counts these itself.
        usage.pop("output_tokens_details", None)
    return to_event({"type": chunk.get("type"), "response": response})


def ends_only(chunk: dict[str, Any]) -> bool:
    """Return whether a chunk has nothing but an end, which LiteLLM writes where nothing came."""
    choices = chunk.get("choices") or []
    return bool(choices) and not any(each.get("delta") or each.get("text") for each in choices)


class LiteLLMEvents:
    """Restores the events of one stream: call it with each event, without the empty line at its end.

    LiteLLM counts tokens itself where the engine reports no usage. It passes on the engine's event with the
    usage as one without content, so a usage that follows no such event is dropped.
    """

    def __init__(self) -> None:
        self._finished = False
        self._engine_counted = False
        self._cut = False
        self._begun = False

    def __call__(self, event: bytes) -> bytes:
        """Return the event with the empty line, or nothing where the engine has not sent it."""
        if self._cut:
            return b""
        chunk = json_of(event)
        if chunk is None:
            # Such as the [DONE] at the end.
            return event + b"\n\n"
        if "error" in chunk:
            return self._restored_error(chunk)
        return self._restored_chunk(chunk)

    def _restored_error(self, chunk: dict[str, Any]) -> bytes:
        text = stream_failure(error_message(chunk))
        if text is None:
            self._cut = True
            return b""
        return to_event({"error": {"message": text}})

    def _restored_chunk(self, chunk: dict[str, Any]) -> bytes:
        choices = chunk.get("choices") or []
        is_text = chunk.get("object") == "text_completion"
        if not self._begun and not is_text and ends_only(chunk):
            self._cut = True
            return to_event({"error": {"message": ENDED_EARLY}})
        self._begun = self._begun or bool(choices)
        if choices and self._finished and not choices[0].get("delta") and not choices[0].get("finish_reason"):
            self._engine_counted = True
            return b""
        if chunk.get("usage") and not (self._engine_counted or is_text):
            del chunk["usage"]
            if not choices:
                return b""
        self._finished = self._finished or any(choice.get("finish_reason") for choice in choices)
        restore_fields(chunk)
        if usage := read_usage(chunk):
            chunk["usage"] = usage_object(*usage)
        return to_event(chunk)


class ProviderEvents:
    """As LiteLLMEvents, for a provider's stream, whose usage counts more than the tokens, and is kept.

    `cost` is in dollars, and known at its end. An answer that begins with its end is held back until a usage
    shows that the provider has sent it.
    """

    def __init__(self, engine: Engine) -> None:
        self.cost = 0.0
        self._engine = engine
        self._begun = False
        self._held = b""

    def __call__(self, event: bytes) -> bytes:
        """Return the event of a chat or a completion with the empty line."""
        chunk = json_of(event)
        if chunk is None:
            return to_event({"error": {"message": providers.FAILED}}) if self._held else event + b"\n\n"
        if "error" in chunk:
            text = engine_errors.redact(error_message(chunk), self._engine)
            log.warning("A provider failed in a stream: %s", text)
            return to_event({"error": {"message": providers.FAILED_IN_STREAM}})
        self._take_cost(chunk.get("usage"))
        restore_fields(chunk)
        restored = self._held + to_event(chunk)
        usage = read_usage(chunk)
        is_end = ends_only(chunk) or (self._held and not chunk.get("choices"))
        if not self._begun and is_end and not (usage and usage[1]):
            self._held = restored
            return b""
        self._begun, self._held = True, b""
        return restored

    def of_responses(self, event: bytes) -> bytes:
        """Return the event of a response with the empty line."""
        chunk = (json_of(event) if b'"error"' in event or b'"usage"' in event else None) or {}
        response = chunk.get("response")
        source = response if isinstance(response, dict) else chunk
        if source.get("error") or chunk.get("type") == "error":
            return to_event({"type": "response.failed", "error": {"message": providers.FAILED_IN_STREAM}})
        if not isinstance(response, dict):
            return event + b"\n\n"
        self._take_cost(response.get("usage"))
        return to_event(chunk)

    def _take_cost(self, usage: object) -> None:
        if isinstance(usage, dict):
            self.cost = providers.read_cost(usage.pop("cost", None)) or self.cost
