"""The ASGI app on port 8000: the endpoints, and the steps of each request from key to answer."""

import asyncio
import json
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Never
from urllib.parse import unquote

from bedplate_gateway import background, errors
from bedplate_gateway.access_log import NONE, UNREAD, AccessRecord, KeylessRefusals
from bedplate_gateway.admission.body_memory import BodyMemory
from bedplate_gateway.admission.interface import Admission, AdmissionRequest, Lease, acquire, acquire_again
from bedplate_gateway.admission.local import LocalAdmission
from bedplate_gateway.admission.usage_log import UsageLog
from bedplate_gateway.api import messages
from bedplate_gateway.api.adapter import Adapter, PassThrough
from bedplate_gateway.api.messages import COUNT_TOKENS, MESSAGES, MessagesAdapter
from bedplate_gateway.api.responses import ResponsesAdapter
from bedplate_gateway.api.schema import CHAT, RESPONSES, Request
from bedplate_gateway.chat import pages
from bedplate_gateway.clock import ExpiryClock
from bedplate_gateway.engines.client import NO_HEADERS
from bedplate_gateway.engines.drains import FILE as DRAINS_FILE
from bedplate_gateway.engines.drains import Drains
from bedplate_gateway.engines.errors import PROMPT_FIELDS, EngineGoneError
from bedplate_gateway.engines.health import Engines
from bedplate_gateway.engines.litellm import LiteLLM
from bedplate_gateway.engines.request import MAX_MOVES, Upstream
from bedplate_gateway.errors import ApiError, ClientDisconnected
from bedplate_gateway.http.request import ClientRequest, Receive, Scope, Send
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.metrics import CONTENT_TYPE, Metrics
from bedplate_gateway.settings import PRIORITY_CLASSES, PriorityClass, Settings
from bedplate_gateway.traces import CLIENT, Tracer, operation

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
CHECK_SECONDS = 5.0
"""How often the usage log is tried again, the clock is looked at, and a failure that repeats is logged."""
INFERENCE = frozenset({CHAT, "/v1/completions", "/v1/embeddings", RESPONSES, MESSAGES})
MODELS = "/v1/models"
QUEUE = "/v1/queue"
OWN_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""An id that a client may give its request, with the header x-request-id."""
LIVELINESS, READINESS = "/health/liveliness", "/health/readiness"
MOVED = {"/health": READINESS, "/metrics": "port 9464, from a monitoring host"}
FALLBACK_CODES = frozenset({"engine_unavailable", "engine_error", "queue_full", "queue_timeout", "timeout"})
STATUS_CLIENT_DISCONNECTED = 499
"""nginx's status for a client that closed the connection; it is only counted and logged."""


class Gateway:
    """Both apps, of the API and the metrics, and the parts they share.

    Nothing runs before `start`; `local.open_usage_log` restores the limits' usage.
    """

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self.settings = settings
        self.keys = keys
        self.engines = Engines(settings)
        self.litellm = LiteLLM(settings.litellm)
        self.upstream = Upstream(settings, self.engines, self.litellm)
        self.usage_log = UsageLog(settings.state_dir / "limits.jsonl")
        self.local = LocalAdmission(settings, keys, self.engines, time.monotonic, self.usage_log)
        self.admission: Admission = self.local
        self._body_memory = BodyMemory(settings.max_body_bytes)
        self.engines.on_change = self.local.engines_changed
        # systemd names a folder that outlives a reboot.
        lasting = Path(os.environ.get("STATE_DIRECTORY") or settings.state_dir)
        self.clock = ExpiryClock(lasting / "clock")
        self._drains = Drains(lasting / DRAINS_FILE)
        self.engines.set_drains(self._drains.by_engine)
        keys.now = self.clock.now
        self.tracer = Tracer(settings.traces) if settings.traces else None
        self.metrics = Metrics(self.local, self.engines, self.litellm, self.clock, lambda: self.in_flight)
        self.metrics.tracer = self.tracer
        # After a reload the new process, which Prometheus scrapes, counts the requests that end here.
        self.count: Callable[[AccessRecord], None] = self.metrics.count
        self.in_flight = 0
        self.on_pass: Callable[[], None] = lambda: None
        """Called after each pass of the ticker that did not fail."""
        self._keyless = KeylessRefusals()
        self._pages = pages.load()
        self._models = frozenset(model.name for engine in settings.engines for model in engine.models)
        self._provider_models = settings.provider_models
        self._ticker: asyncio.Task[Never] | None = None

    async def start(self) -> None:
        """Poll the engines once, then regularly; returns when requests can be served."""
        await self.engines.start()
        await self.litellm.start(self.engines.session)
        self._ticker = background.start("ticker", self._tick())
        if self.tracer:
            self.tracer.start()

    async def stop(self) -> None:
        """Stop the tasks that `start` began."""
        if self._ticker:
            self._ticker.cancel()
        self._keyless.write()
        await self.litellm.stop()
        await self.engines.stop()
        if self.tracer:
            await asyncio.to_thread(self.tracer.stop)

    async def _tick(self) -> Never:
        checked = logged = float("-inf")
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            try:
                if self._drains.check():
                    self.engines.set_drains(self._drains.by_engine)
                self.local.tick()
                self._keyless.tick()
                if now - checked >= CHECK_SECONDS:
                    checked = now
                    self.usage_log.retry()
                    self.clock.check()
                self.on_pass()
            except Exception:
                # Without the ticker no queued request would time out. If no pass works, the watchdog acts.
                if now - logged >= CHECK_SECONDS:
                    logged = now
                    log.exception("A pass of the ticker failed in the gateway itself; it goes on.")

    # The two apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request on the API's port."""
        client = ClientRequest(scope, receive, send)
        own = client.header("x-request-id")
        if own is not None and OWN_ID.fullmatch(own):
            client.own_id = own
        record = AccessRecord(client.own_id or f"req_{secrets.token_hex(12)}", time.monotonic())
        # OpenAI's name for it, and Anthropic's.
        client.extra_headers = {"x-request-id": record.id, "request-id": record.id}
        if self.tracer is not None and client.path in INFERENCE:
            client.trace = self.tracer.begin(client.header("traceparent"))
        self.in_flight += 1
        try:
            await self._route(client, record)
        except ApiError as error:
            record.status, record.reason = error.status, error.reason
            if not client.started:
                await client.discard_body()
                await self._respond_error(client, record, error)
        except ClientDisconnected:
            record.status, record.reason = STATUS_CLIENT_DISCONNECTED, "client_left"
        except Exception:
            log.exception("Request %s failed in the gateway itself.", record.id)
            failure = errors.internal_error()
            record.status, record.reason = failure.status, failure.reason
            if not client.started:
                await self._respond_error(client, record, failure)
        finally:
            self.in_flight -= 1
            record.seconds = time.monotonic() - record.arrived
            self.count(record)
            if client.trace is not None:
                client.trace.end(record)
            if record.status >= 400 and record.alias == NONE:
                self._keyless.add(record)
            elif client.method != "GET" or record.status >= 400:
                record.write()

    async def metrics_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request on the metrics port, from an allowed client."""
        client = ClientRequest(scope, receive, send)
        allowed = self.settings.metrics.allowed_clients
        if allowed and scope["client"][0] not in allowed:
            error = errors.metrics_forbidden()
        elif client.path == "/metrics":
            await client.respond(200, await self.metrics.scrape(), {}, CONTENT_TYPE)
            return
        elif client.path == "/metrics/litellm" and self.litellm.configured:
            try:
                await client.respond(200, await self.litellm.metrics(), {}, CONTENT_TYPE)
                return
            except ApiError as unavailable:
                error = unavailable
        else:
            error = errors.unknown_metrics_url()
        await client.respond(error.status, error.body(), {})

    async def _route(self, client: ClientRequest, record: AccessRecord) -> None:
        path = client.path
        if path in INFERENCE:
            _only("POST", client)
            record.path = path
            await self._infer(client, record)
        elif path == COUNT_TOKENS:
            _only("POST", client)
            record.path = path
            await self._count_tokens(client, record)
        elif path == MODELS or (path.startswith(f"{MODELS}/") and len(path) > len(MODELS) + 1):
            _only("GET", client)
            record.path = MODELS
            key = self._authenticate(client, record)
            headers = self.local.limits.headers(key.alias, "", time.monotonic())
            model = unquote(path[len(MODELS) + 1 :])
            listed = self._list_models(key, model)
            if _is_anthropic(client):
                listed = messages.listed_models(listed)
            await self._respond_json(client, record, listed, headers)
        elif path.startswith(f"{QUEUE}/") and len(path) > len(QUEUE) + 1:
            _only("GET", client)
            record.path = QUEUE
            key = self._authenticate(client, record)
            await self._respond_json(client, record, self._place(key, unquote(path[len(QUEUE) + 1 :])))
        elif path in self._pages:
            _only("GET", client)
            record.path, record.status = pages.PAGE, 200
            await self._pages[path].respond(client)
        elif path == LIVELINESS:
            _only("GET", client)
            record.path = path
            await self._respond_json(client, record, {"status": "alive"})
        elif path == READINESS:
            _only("GET", client)
            record.path = path
            self._check_ready()
            await self._respond_json(client, record, {"status": "ready"})
        else:
            raise _unknown_url(client)

    async def _respond_json(
        self,
        client: ClientRequest,
        record: AccessRecord,
        document: dict[str, Any],
        headers: dict[str, str] | None = None,
    ) -> None:
        record.status = 200
        await client.respond(200, json.dumps(document).encode(), headers or {})

    async def _respond_error(self, client: ClientRequest, record: AccessRecord, error: ApiError) -> None:
        body = error.body()
        if _is_anthropic(client):
            record.status = messages.status_of(error)
            body = json.dumps(messages.error_object(error, record.id)).encode()
        await client.respond(record.status, body, error.all_headers())

    def _authenticate(self, client: ClientRequest, record: AccessRecord) -> Key:
        authorization = client.header("authorization")
        api_key = client.header("x-api-key") if authorization is None else None
        key = self.keys.authenticate(authorization, api_key=api_key)
        record.alias = key.alias
        return key

    def _check_ready(self) -> None:
        if not any(map(self.local.can_be_served, self._models)):
            raise errors.not_ready()

    def _list_models(self, key: Key, model: str) -> dict[str, Any]:
        """Return the models that the key may use and that can be served, or the one named `model`."""
        names = sorted(name for name in self._models if key.may_use(name) and self.local.can_be_served(name))
        if model:
            if model not in names:
                raise errors.model_not_found(model)
            return self._model_object(model)
        return {"object": "list", "data": [self._model_object(name) for name in names]}

    def _model_object(self, model: str) -> dict[str, Any]:
        listed = {"id": model, "object": "model", "created": 0, "owned_by": "bedplate"}
        known = self.engines.capabilities(model)
        return listed if known is None else listed | {"capabilities": sorted(known)}

    def _place(self, key: Key, request_id: str) -> dict[str, Any]:
        """Return where the key's own request is that its client named so."""
        place = self.local.place(key.alias, request_id)
        if place is None:
            raise errors.request_not_found(request_id)
        return {
            "id": request_id,
            "object": "queue.place",
            "model": place.model,
            "state": "waiting" if place.position else "running",
            "position": place.position,
            "waiting": place.waiting,
            "waited_seconds": round(place.waited, 3),
        }

    # Inference

    async def _infer(self, client: ClientRequest, record: AccessRecord) -> None:
        key = self._authenticate(client, record)
        with self._body_memory.hold(key.alias) as grow:
            adapter = self._adapter(record.path)
            try:
                # Nothing else keeps the body once the request has it packed.
                request = adapter.decode_request(await self._body(client, key, grow))
                grow(request.held_bytes)
            except ApiError as error:
                if error.status == 429:
                    record.model = UNREAD
                raise
            await self._answer(client, record, key, request, adapter)

    async def _count_tokens(self, client: ClientRequest, record: AccessRecord) -> None:
        """Answer with an estimate: no engine counts a prompt without a slot and the work on it."""
        key = self._authenticate(client, record)
        with self._body_memory.hold(key.alias) as grow:
            request = messages.decode_count(await self._body(client, key, grow))
        self._check_model(request.model, key)
        record.model = request.model
        tokens = self.upstream.tokens(request.model, request.prompt_bytes)
        await self._respond_json(client, record, {"input_tokens": tokens})

    async def _body(self, client: ClientRequest, key: Key, grow: Callable[[int], None]) -> bytes:
        """Return the body; what is refused anyway is refused before its body costs anything."""
        self.local.check_limits(key)
        return await client.body(self.settings.max_body_bytes, grow)

    def _check_model(self, model: str, key: Key) -> None:
        if model not in self._models or not key.may_use(model):
            raise errors.model_not_found(model)

    async def _answer(
        self, client: ClientRequest, record: AccessRecord, key: Key, request: Request, adapter: Adapter
    ) -> None:
        self._check_model(request.model, key)
        fallbacks = [name for name in self.settings.fallbacks.get(request.model, ()) if key.may_use(name)]
        own = request.model
        while True:
            try:
                await self._answer_by(client, record, key, request, adapter)
                return
            except ApiError as error:
                if client.started or not fallbacks or not _may_fall_back(error):
                    raise
                if client.trace is not None:
                    client.trace.fail(error.reason)
            request = request.for_model(fallbacks.pop(0))
            adapter.fall_back(request)
            record.requested = own

    async def _answer_by(
        self, client: ClientRequest, record: AccessRecord, key: Key, request: Request, adapter: Adapter
    ) -> None:
        """Answer with the request's own model."""
        request = self._for_capabilities(request)
        priority_class = _lowered(key.priority_class, request.lower_to)
        admission_request = AdmissionRequest(
            key, priority_class, request.model, request.prompt_bytes, client.own_id
        )
        record.model, record.priority_class, record.stream = request.model, priority_class, request.stream
        record.retries = moves = 0
        if client.trace is not None:
            client.trace.begin("wait")
        watcher = asyncio.create_task(client.watch())
        try:
            lease = await acquire(self.admission, admission_request, client.on_disconnect)
            try:
                while True:
                    try:
                        await self._run(client, record, request, lease, adapter)
                        break
                    except EngineGoneError as gone:
                        moves += 1
                        if moves > MAX_MOVES:
                            raise gone.error from None
                        reason = gone.error.reason
                    if client.trace is not None:
                        client.trace.fail(reason)
                        client.trace.begin("wait")
                    lease = await acquire_again(lease, client.on_disconnect)
            finally:
                lease.release()
        finally:
            watcher.cancel()

    def _adapter(self, path: str) -> Adapter:
        if path == RESPONSES:
            return ResponsesAdapter(self._max_output)
        if path == MESSAGES:
            return MessagesAdapter(self._max_output, self.upstream.tokens, self._provider_models)
        return PassThrough(path, self._max_output, self._provider_models)

    async def _run(
        self,
        client: ClientRequest,
        record: AccessRecord,
        request: Request,
        lease: Lease,
        adapter: Adapter,
    ) -> None:
        started = time.monotonic()
        record.wait, record.engine = lease.waited, lease.engine.name
        headers = NO_HEADERS
        if client.trace is not None:
            client.trace.begin(f"{operation(record.path)} {request.model}", CLIENT)
            headers = {"traceparent": client.trace.traceparent()}
        engine_request = self.upstream.new_request(request, lease, client.disconnected, headers)
        # Also those on engines that are gone.
        engine_request.retries = record.retries
        try:
            answer = await engine_request.answer()
            record.status = answer.status
            if request.stream:
                record.first_byte = time.monotonic() - record.arrived
            answer_headers = (
                answer.headers | lease.headers | {"x-bedplate-queue-ms": str(round(lease.waited * 1000))}
            )
            if record.requested != NONE:
                answer_headers["x-bedplate-fallback"] = request.model
            if answer.body is not None:
                await client.respond(answer.status, adapter.encode_response(answer.body), answer_headers)
            else:
                await self._stream(client, answer_headers, adapter.encode_stream(answer.events()))
        finally:
            # It keeps the slot until the engine is free, which can be after the client has disconnected.
            await engine_request.close()
            record.service = time.monotonic() - started
            record.engine = lease.engine.name
            record.lane = engine_request.lane or NONE
            record.prompt_tokens, record.completion_tokens = (
                engine_request.prompt_tokens,
                engine_request.completion_tokens,
            )
            record.estimated, record.retries = engine_request.estimated, engine_request.retries
            record.truncated, record.cost = engine_request.truncated, engine_request.cost
            if client.trace is not None:
                client.trace.describe_engine(record, lease.engine.kind)
        if engine_request.error is not None:
            record.reason = engine_request.error.reason

    async def _stream(
        self, client: ClientRequest, headers: dict[str, str], events: AsyncIterator[bytes]
    ) -> None:
        stream_headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await client.start(200, headers | stream_headers)
        async for chunk in events:
            if client.disconnected.is_set():
                raise ClientDisconnected
            await client.write(chunk)
        await client.write(b"", more=False)

    def _for_capabilities(self, request: Request) -> Request:
        """Return the request as its model can answer it; raises ApiError 400."""
        for needed, capability, param in (
            (request.has_tools, "tools", "tools"),
            (request.has_images, "vision", PROMPT_FIELDS[request.path]),
        ):
            if needed and self.engines.lacks(request.model, capability):
                raise errors.capability_unsupported(request.model, capability, param)
        if self.engines.lacks(request.model, "thinking"):
            # Clients send it to every model, and Ollama refuses it.
            return request.without("reasoning_effort")
        return request

    def _max_output(self, model: str) -> int | None:
        limits = self.settings.models.get(model)
        return (limits and limits.max_output_tokens) or self.settings.max_output_tokens


def _lowered(own: PriorityClass, requested: PriorityClass | None) -> PriorityClass:
    if requested is None:
        return own
    return PRIORITY_CLASSES[max(PRIORITY_CLASSES.index(own), PRIORITY_CLASSES.index(requested))]


def _may_fall_back(error: ApiError) -> bool:
    """Return whether another model may answer: this one is down, full or failed, and no limit of a key is."""
    return error.code in FALLBACK_CODES or error.reason == "provider_limit"


def _only(method: str, client: ClientRequest) -> None:
    if client.method != method:
        raise errors.method_not_supported(client.path, method, client.method)


def _is_anthropic(client: ClientRequest) -> bool:
    """Return whether the client is one of Anthropic's API, all of which send the header."""
    return client.path in {MESSAGES, COUNT_TOKENS} or client.header("anthropic-version") is not None


def _unknown_url(client: ClientRequest) -> ApiError:
    known = {path.removeprefix("/v1") for path in (*INFERENCE, COUNT_TOKENS, MODELS)}
    path = client.path.removeprefix("/v1/v1")
    suggestion = (
        f"/v1{path}"
        if path in known
        else MOVED.get(path, f"{MESSAGES if _is_anthropic(client) else CHAT} or another path of the API")
    )
    base_url = "without /v1" if _is_anthropic(client) else "with /v1"
    return errors.unknown_url(client.method, client.path, suggestion, base_url)
