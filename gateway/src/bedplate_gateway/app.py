"""The ASGI app on port 8000: the few paths that are meant, and each request's way from key to answer."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from bedplate_gateway import responses
from bedplate_gateway.admission import Admission, Ask, Lease, LocalAdmission, acquire
from bedplate_gateway.engines import Engines
from bedplate_gateway.errors import ApiError, ClientLeft, bad_request, model_not_found
from bedplate_gateway.keys import Key, Keys
from bedplate_gateway.ledger import Ledger
from bedplate_gateway.metrics import CONTENT_TYPE, Metrics
from bedplate_gateway.record import Record
from bedplate_gateway.schema import Request, parse_request
from bedplate_gateway.settings import CLASSES, Class, Settings
from bedplate_gateway.upstream import Upstream

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TICK_SECONDS = 0.25
RESPONSES = "/v1/responses"
INFERENCE = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", RESPONSES})
MODELS = "/v1/models"
LIVELINESS, READINESS = "/health/liveliness", "/health/readiness"
STATUS_CLIENT_LEFT = 499
"""nginx's status for a client that went away; it is only counted and logged."""


class Client:
    """One request's side towards its client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take ASGI's three arguments."""
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send
        self._when_left: Callable[[], None] = lambda: None
        self.left = asyncio.Event()
        self.started = False
        self.extra_headers: dict[str, str] = {}

    def header(self, name: str) -> str | None:
        """Return a request header, the first where it was sent twice."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self._headers if key == wanted), None)

    async def body(self, most: int) -> bytes:
        """Return the body; raises ApiError 413 over `most` bytes and ClientLeft when it does not come."""
        too_large = ApiError(
            413,
            "request_too_large",
            f"The body has more than {most} bytes, which is the limit here: send less.",
        )
        length = self.header("content-length") or ""
        if length.isdecimal() and int(length) > most:
            raise too_large
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise too_large
            if not message.get("more_body"):
                return b"".join(parts)

    async def watch(self) -> None:
        """Wait until the client leaves, and tell; the body must have been read before."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left.set()
        self._when_left()

    def when_left(self, call: Callable[[], None]) -> None:
        """Have something called when the client leaves; it replaces what was to be called before."""
        self._when_left = call
        if self.left.is_set():
            call()

    async def start(self, status: int, headers: dict[str, str]) -> None:
        """Send the head of the answer."""
        self.started = True
        pairs = [
            (name.encode(), value.encode("latin-1", "replace"))
            for name, value in (headers | self.extra_headers).items()
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def write(self, chunk: bytes, *, more: bool = True) -> None:
        """Send a part of the answer."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def answer(
        self, status: int, body: bytes, headers: dict[str, str], content_type: str = "application/json"
    ) -> None:
        """Send a whole answer."""
        fixed = {"content-type": content_type, "content-length": str(len(body))}
        await self.start(status, headers | fixed)
        await self.write(body, more=False)


class Gateway:
    """Everything behind the two ports."""

    def __init__(self, settings: Settings, keys: Keys) -> None:
        """Nothing runs before `start`, and the limits' ledger is not read before `local.open_ledger`."""
        self.settings = settings
        self.keys = keys
        self.engines = Engines(settings)
        self.upstream = Upstream(settings, self.engines)
        self.local = LocalAdmission(
            settings, keys, self.engines, time.monotonic, Ledger(settings.state_dir / "limits.jsonl")
        )
        self.admission: Admission = self.local
        self.engines.on_change = self.local.engines_changed
        self.metrics = Metrics(self.local, lambda: self.in_flight)
        # After a reload the process that is scraped counts what still ends here.
        self.count: Callable[[Record], None] = self.metrics.count
        self.in_flight = 0
        self._models = frozenset(model.name for engine in settings.engines for model in engine.models)
        self._ticker: asyncio.Task[None] | None = None
        self._translator: asyncio.Task[object] | None = None

    async def start(self) -> None:
        """Look at the engines once, then keep looking; returns when requests can be served."""
        # It takes seconds, and only /v1/responses needs it.
        self._translator = asyncio.create_task(asyncio.to_thread(responses.load_translator))
        await self.engines.start()
        self._ticker = asyncio.create_task(self._tick())

    async def translator_loaded(self) -> None:
        """Return when /v1/responses can be served."""
        if self._translator:
            await asyncio.shield(self._translator)

    async def stop(self) -> None:
        """End what `start` began."""
        if self._ticker:
            self._ticker.cancel()
        await self.engines.stop()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.local.tick()

    # The doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request on the API's port."""
        client = Client(scope, receive, send)
        record = Record(f"req_{secrets.token_hex(12)}", time.monotonic())
        client.extra_headers = {"x-request-id": record.id}
        self.in_flight += 1
        try:
            await self._route(client, record)
        except ApiError as error:
            record.status, record.reason = error.status, error.reason
            if not client.started:
                await client.answer(error.status, error.body(), error.all_headers())
        except ClientLeft:
            record.status, record.reason = STATUS_CLIENT_LEFT, "client_left"
        except Exception:
            log.exception("Request %s failed in the gateway itself.", record.id)
            record.status, record.reason = 500, "internal_error"
            if not client.started:
                await client.answer(500, INTERNAL_ERROR.body(), {})
        finally:
            self.in_flight -= 1
            record.seconds = time.monotonic() - record.arrived
            self.count(record)
            if client.method != "GET" or record.status >= 400:
                record.write()

    async def metrics_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request on the metrics' port, to those who may ask."""
        client = Client(scope, receive, send)
        allowed = self.settings.metrics.allowed_clients
        if allowed and scope["client"][0] not in allowed:
            error = ApiError(
                403, None, "Only the monitoring hosts may ask here: add this host to that group."
            )
        elif client.path != "/metrics":
            error = ApiError(404, "unknown_url", "Here is only GET /metrics.")
        else:
            await client.answer(200, self.metrics.exposition(), {}, CONTENT_TYPE)
            return
        await client.answer(error.status, error.body(), {})

    async def _route(self, client: Client, record: Record) -> None:
        path = client.path
        if path in INFERENCE:
            _only("POST", client)
            record.path = path
            await self._infer(client, record)
        elif path == MODELS or (path.startswith(f"{MODELS}/") and len(path) > len(MODELS) + 1):
            _only("GET", client)
            record.path = MODELS
            key = self.keys.authenticate(client.header("authorization"))
            record.alias = key.alias
            headers = self.local.limits.headers(key.alias, "", time.monotonic())
            await self._answer_json(client, record, self._list_models(key, path[len(MODELS) + 1 :]), headers)
        elif path == LIVELINESS:
            _only("GET", client)
            record.path = path
            await self._answer_json(client, record, {"status": "alive"})
        elif path == READINESS:
            _only("GET", client)
            record.path = path
            self._check_ready()
            await self._answer_json(client, record, {"status": "ready"})
        else:
            raise _unknown_url(client)

    async def _answer_json(
        self, client: Client, record: Record, document: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        record.status = 200
        await client.answer(200, json.dumps(document).encode(), headers or {})

    def _check_ready(self) -> None:
        if not any(map(self.local.scheduler.can_be_served, self._models)):
            names = ", ".join(engine.name for engine in self.settings.engines)
            message = f"No engine serves a model now, of {names}: the operator sees why with: make health"
            raise ApiError(503, "engine_unavailable", message, type="server_error")

    def _list_models(self, key: Key, model: str) -> dict[str, Any]:
        """Return the models that the key may use and an engine serves now, or the one that was asked for."""
        names = sorted(
            name for name in self._models if key.may_use(name) and self.local.scheduler.can_be_served(name)
        )
        if model:
            if model not in names:
                raise model_not_found(model)
            return _described(model)
        return {"object": "list", "data": [_described(name) for name in names]}

    # The way of a request

    async def _infer(self, client: Client, record: Record) -> None:
        key = self.keys.authenticate(client.header("authorization"))
        record.alias = key.alias
        raw = await client.body(self.settings.max_body_bytes)
        translation: responses.ResponsesContext | None = None
        if record.path == RESPONSES:
            await self.translator_loaded()
            translation, raw = responses.to_chat(raw)
        path = "/v1/chat/completions" if translation else record.path
        request = parse_request(path, raw, default_max_output=self._max_output)
        if request.model not in self._models or not key.may_use(request.model):
            raise model_not_found(request.model)
        self._check_capabilities(request)
        ask = Ask(key, _lowered(key.priority_class, request.lower_to), request.model, request.prompt_bytes)
        record.model, record.priority_class, record.stream = request.model, ask.priority_class, request.stream
        watcher = asyncio.create_task(client.watch())
        try:
            lease = await acquire(self.admission, ask, client.when_left)
            try:
                await self._run(client, record, request, lease, translation)
            finally:
                lease.release()
        finally:
            watcher.cancel()

    async def _run(
        self,
        client: Client,
        record: Record,
        request: Request,
        lease: Lease,
        translation: responses.ResponsesContext | None,
    ) -> None:
        started = time.monotonic()
        record.wait, record.engine = lease.waited, lease.engine.name
        exchange = self.upstream.run(request, lease, client.left)
        try:
            answer = await exchange.answer()
            record.status = answer.status
            if request.stream:
                record.first_byte = time.monotonic() - record.arrived
            headers = (
                answer.headers | lease.headers | {"x-bedplate-queue-ms": str(round(lease.waited * 1000))}
            )
            if answer.body is not None:
                body = responses.from_chat(translation, answer.body) if translation else answer.body
                await client.answer(answer.status, body, headers)
            else:
                events = answer.events()
                if translation:
                    events = responses.stream_from_chat(translation, events)
                await self._stream(client, headers, events)
        finally:
            # It holds the slot until the engine is free, which can be later than the client's leaving.
            await exchange.close()
            record.service = time.monotonic() - started
            record.engine = lease.engine.name
            record.prompt_tokens, record.completion_tokens = (
                exchange.prompt_tokens,
                exchange.completion_tokens,
            )
            record.estimated, record.retries = exchange.estimated, exchange.retries
            record.truncated = exchange.truncated
        if exchange.error is not None:
            record.reason = exchange.error.reason

    async def _stream(self, client: Client, headers: dict[str, str], events: AsyncIterator[bytes]) -> None:
        stream_headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await client.start(200, headers | stream_headers)
        async for chunk in events:
            if client.left.is_set():
                raise ClientLeft
            await client.write(chunk)
        await client.write(b"", more=False)

    def _check_capabilities(self, request: Request) -> None:
        for has, capability, what in (
            (request.has_tools, "tools", "tools"),
            (request.has_images, "vision", "messages"),
        ):
            if has and self.engines.lacks(request.model, capability):
                raise bad_request(
                    f"The model {request.model!r} has no {capability}: use one that has, or leave it out.",
                    what,
                    "unsupported_parameter",
                )

    def _max_output(self, model: str) -> int | None:
        limits = self.settings.models.get(model)
        return (limits and limits.max_output_tokens) or self.settings.max_output_tokens


MOVED = {"/health": READINESS, "/metrics": "port 9464, from a monitoring host"}
INTERNAL_ERROR = ApiError(
    500,
    "internal_error",
    "The gateway failed: try again; the operator sees why with: journalctl -u bedplate-gateway -n 50",
    type="server_error",
)


def _lowered(own: Class, wished: Class | None) -> Class:
    return own if wished is None else CLASSES[max(CLASSES.index(own), CLASSES.index(wished))]


def _described(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "bedplate"}


def _only(method: str, client: Client) -> None:
    if client.method != method:
        raise ApiError(
            405,
            "method_not_supported",
            f"{client.path} takes {method} only, this was {client.method}.",
            headers={"allow": method},
        )


def _unknown_url(client: Client) -> ApiError:
    known = {path.removeprefix("/v1") for path in (*INFERENCE, MODELS)}
    meant = (
        f"/v1{client.path}"
        if client.path in known
        else MOVED.get(client.path, "/v1/chat/completions or its like")
    )
    return ApiError(
        404,
        "unknown_url",
        f"There is nothing at {client.method} {client.path[:100]}: use {meant}. "
        "If the client builds the address itself, its base URL must end with /v1.",
    )
