"""`traffic fake-server`: an engine without a model, with configured delays, concurrency and faults.

It speaks OpenAI's API as Ollama 0.24.0 does, and the part of Ollama's own API that LiteLLM and Bedplate's
gateway use. One word of a prompt counts as one token. Waiting requests start in the order of their arrival. A
request whose client disconnects during its prompt keeps its slot to the prompt's end, as in Ollama.
"""

import argparse
import asyncio
import base64
import json
import random
import signal
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import uvloop
from aiohttp import web

from bedplate_traffic.arguments import EXIT_OK, Parser, positive
from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.fake_engine import shapes

FaultKind = Literal["error", "cut", "garbage", "silent", "stall"]
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_ARRIVALS = 50_000
EMBEDDING = (0.6, 0.0, -0.8)


@dataclass(frozen=True)
class Fault:
    """One fault: status 500, a response cut in the middle, garbage, silence, or a stall in the middle."""

    kind: FaultKind
    probability: float = 1.0
    model: str | None = None
    """The model whose requests it affects; None: every model."""


@dataclass(frozen=True)
class Behaviour:
    """The behaviour of the fake engine. Times are seconds; lengths are tokens."""

    models: tuple[str, ...] = ("fake",)
    concurrency: int = 1
    prompt_seconds: float = 0.0
    seconds_per_token: float = 0.0
    tokens: int = 16
    """Length of a completion that the request does not bound."""
    context: int = 4096
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The command line; port 0 is a free port."""

    behaviour: Behaviour
    address: str
    port: int


@dataclass(kw_only=True)
class Arrival:
    """One request as /fake/stats shows it; times are those of the machine's monotonic clock."""

    marker: str
    """The first word of the last message, by which a caller recognises its request."""
    model: str
    path: str
    arrived: float
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    outcome: Literal["waiting", "running", "served", "cancelled", "fault"] = "waiting"
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The completion that a request gets, in whichever API."""

    model: str
    prompt_tokens: int
    pieces: tuple[str, ...]
    tool_call: dict[str, Any] | None
    finish_reason: str
    stream: bool
    include_usage: bool


class _CutError(Exception):
    """Makes the handler abort the connection."""


Write = Callable[[bytes], Awaitable[None]]


@dataclass
class FakeEngine:
    """The engine behind the routes; `application` makes the web application that serves it."""

    behaviour: Behaviour
    running: int = 0
    max_running: int = 0
    waiting: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: {"served": 0, "cancelled": 0, "fault": 0})
    arrivals: deque[Arrival] = field(default_factory=lambda: deque(maxlen=MAX_ARRIVALS))

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.behaviour.concurrency)
        # A fixed seed: the same requests in the same order get the same faults.
        self._random = random.Random(0)  # noqa: S311 - not a secret

    def application(self) -> web.Application:
        """Return the web application with every route."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.add_routes(
            [
                web.get("/", self._root),
                web.get("/fake/stats", self._stats),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._serve(self._openai)),
                web.post("/v1/completions", self._serve(self._openai)),
                web.post("/v1/responses", self._serve(self._responses)),
                web.post("/v1/embeddings", self._serve(self._embeddings)),
                web.post("/api/chat", self._serve(self._ollama)),
                web.post("/api/embed", self._serve(self._embeddings)),
                web.get("/api/tags", self._tags),
                web.get("/api/ps", self._loaded),
                web.post("/api/show", self._show),
                web.get("/api/version", self._version),
            ]
        )
        return application

    async def _root(self, _: web.Request) -> web.Response:
        return web.Response(text="traffic fake-server: an engine without a model")

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.0.0-fake"})

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "running": self.running,
                "max_running": self.max_running,
                "waiting": self.waiting,
                **self.outcomes,
                "arrivals": [asdict(arrival) for arrival in self.arrivals],
            }
        )

    async def _models(self, _: web.Request) -> web.Response:
        entries = [
            {"id": name, "object": "model", "created": 0, "owned_by": "fake"}
            for name in self.behaviour.models
        ]
        return web.json_response({"object": "list", "data": entries})

    async def _tags(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [shapes.describe_model(name) for name in self.behaviour.models]})

    async def _loaded(self, _: web.Request) -> web.Response:
        loaded = [
            shapes.describe_model(name)
            | {
                "expires_at": "2100-01-01T00:00:00Z",
                "size_vram": 0,
                "context_length": self.behaviour.context,
            }
            for name in self.behaviour.models
        ]
        return web.json_response({"models": loaded})

    async def _show(self, request: web.Request) -> web.Response:
        body = await shapes.read_json(request)
        name = shapes.strip_default_tag(body.get("model"))
        if name not in self.behaviour.models:
            return shapes.error_response(request, 404, f"model '{name}' not found")
        return web.json_response(
            {
                "template": "{{ .Tools }}",
                "parameters": f"num_ctx {self.behaviour.context}",
                "details": shapes.describe_model(name)["details"],
                "model_info": {"general.architecture": "fake", "fake.context_length": self.behaviour.context},
                "capabilities": ["completion", "tools", "embedding"],
            }
        )

    def _serve(
        self, respond: Callable[[web.Request, dict[str, Any], Arrival], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return the handler of a request that needs a slot; it counts the request's outcome."""

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await shapes.read_json(request)
            model = shapes.strip_default_tag(body.get("model"))
            if model not in self.behaviour.models:
                return shapes.error_response(request, 404, f"model '{model}' not found")
            words = shapes.prompt_text(body).split()
            last = shapes.prompt_text(body, last=True).split()
            arrival = Arrival(
                marker=last[0][:64] if last else "",
                model=model,
                path=request.path,
                arrived=time.monotonic(),
                prompt_tokens=min(len(words), self.behaviour.context),
            )
            if len(words) > self.behaviour.context and body.get("truncate") is False:
                return shapes.error_response(request, 400, "the input length exceeds the context length")
            self.arrivals.append(arrival)
            try:
                async with self._hold_slot(arrival):
                    response = await self._inject_fault(request, body, arrival)
                    response = response or await respond(request, body, arrival)
                    arrival.outcome = "served" if arrival.outcome == "running" else arrival.outcome
                    return response
            except _CutError:
                arrival.outcome = "fault"
                if request.transport is not None:
                    request.transport.abort()
                return web.Response(status=500)
            except (asyncio.CancelledError, ConnectionError) as disconnect:
                if arrival.outcome != "fault":
                    arrival.outcome = "cancelled"
                if isinstance(disconnect, asyncio.CancelledError):
                    raise
                # Nobody reads this response; aiohttp would log a raised error.
                return web.Response(status=500)
            finally:
                arrival.ended = time.monotonic()
                self.outcomes[arrival.outcome] += 1

        return handle

    @asynccontextmanager
    async def _hold_slot(self, arrival: Arrival) -> AsyncIterator[None]:
        """Wait for a slot, spend the prompt's time, then hold the slot."""
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        arrival.started, arrival.outcome = time.monotonic(), "running"
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        prompt = asyncio.ensure_future(asyncio.sleep(self.behaviour.prompt_seconds))
        try:
            await asyncio.shield(prompt)
            yield
        finally:
            if prompt.done():
                self._free_slot()
            else:
                # An engine finishes a prompt that it has started, even when its client has disconnected.
                prompt.add_done_callback(lambda _: self._free_slot())

    def _free_slot(self) -> None:
        self.running -= 1
        self._slots.release()

    def _choose_fault(self, request: web.Request, model: str) -> FaultKind | None:
        """Return the fault of this request: that of the header X-Fake-Fault, else a random one."""
        header = request.headers.get("X-Fake-Fault")
        for kind in get_args(FaultKind):
            if header == kind:
                return kind  # type: ignore[no-any-return]
        for fault in self.behaviour.faults:
            if fault.model in {None, model} and self._random.random() < fault.probability:
                return fault.kind
        return None

    async def _inject_fault(
        self, request: web.Request, body: dict[str, Any], arrival: Arrival
    ) -> web.StreamResponse | None:
        """Return a faulty response, None where the request gets no fault; a cut raises _CutError."""
        kind = self._choose_fault(request, arrival.model)
        if kind is None:
            return None
        arrival.outcome = "fault"
        if kind == "error":
            return shapes.error_response(request, 500, "the fake engine was configured to fail")
        if kind == "garbage":
            return web.Response(body=b"\x00\xff<html>{" * 20, content_type="application/json")
        if kind == "silent":
            await asyncio.Event().wait()
        response = web.StreamResponse()
        response.content_type = "text/event-stream" if body.get("stream") else "application/json"
        await response.prepare(request)
        if body.get("stream"):
            await response.write(shapes.event(shapes.half_answer(request.path, arrival.model)))
        else:
            await response.write(b'{"id": "half')
        if kind == "stall":
            await asyncio.Event().wait()
        raise _CutError

    def _plan(self, body: dict[str, Any], arrival: Arrival) -> _Plan:
        options = body.get("options") or {}
        limits = (body.get(name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
        limit = next(filter(None, limits), None) or options.get("num_predict") or 0
        length = min(self.behaviour.tokens, limit) if limit > 0 else self.behaviour.tokens
        tool_call = shapes.make_tool_call(body)
        if tool_call:
            pieces: tuple[str, ...] = ()
        elif shapes.wants_json(body):
            pieces = ('{"answer": "fake"}',)
        else:
            pieces = tuple(f"word{number} " for number in range(length))
        cut = not tool_call and len(pieces) == limit < self.behaviour.tokens
        streams_by_default = arrival.path == "/api/chat"
        return _Plan(
            model=arrival.model,
            prompt_tokens=arrival.prompt_tokens,
            pieces=pieces,
            tool_call=tool_call,
            finish_reason="tool_calls" if tool_call else "length" if cut else "stop",
            stream=bool(body.get("stream", streams_by_default)),
            include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )

    async def _generate(self, plan: _Plan, arrival: Arrival) -> AsyncIterator[str]:
        """Yield the completion's pieces, each at its time; a late wake-up does not delay the next ones."""
        start = time.monotonic()
        for number, piece in enumerate(plan.pieces or ("",)):
            wait = start + (number + 1) * self.behaviour.seconds_per_token - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            arrival.first_token = arrival.first_token or time.monotonic()
            arrival.completion_tokens += 1
            yield piece

    async def _openai(
        self, request: web.Request, body: dict[str, Any], arrival: Arrival
    ) -> web.StreamResponse:
        """Serve /v1/chat/completions or /v1/completions."""
        plan = self._plan(body, arrival)
        chat = request.path == "/v1/chat/completions"
        if not plan.stream:
            text = "".join([piece async for piece in self._generate(plan, arrival)])
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if plan.tool_call:
                message["tool_calls"] = [plan.tool_call]
            choice = {"message": message} if chat else {"text": text}
            return web.json_response(
                shapes.envelope(plan.model, "chat.completion" if chat else "text_completion")
                | {
                    "choices": [{"index": 0, **choice, "finish_reason": plan.finish_reason}],
                    "usage": shapes.usage(arrival.prompt_tokens, arrival.completion_tokens),
                }
            )
        chunk = shapes.chat_chunk if chat else shapes.text_chunk
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for piece in self._generate(plan, arrival):
            delta: dict[str, Any] = {"role": "assistant", "content": piece}
            if plan.tool_call:
                delta["tool_calls"] = [plan.tool_call]
            await response.write(shapes.event(chunk(plan.model, delta)))
        await response.write(
            shapes.event(chunk(plan.model, {"role": "assistant", "content": ""}, plan.finish_reason))
        )
        if plan.include_usage:
            usage = shapes.envelope(plan.model, "chat.completion.chunk" if chat else "text_completion")
            await response.write(
                shapes.event(
                    usage
                    | {"choices": [], "usage": shapes.usage(arrival.prompt_tokens, arrival.completion_tokens)}
                )
            )
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _responses(
        self, request: web.Request, body: dict[str, Any], arrival: Arrival
    ) -> web.StreamResponse:
        """Serve /v1/responses as Ollama does: an answer that the limit cut off is completed too."""
        plan = self._plan(body, arrival)
        if not plan.stream:
            text = "".join([piece async for piece in self._generate(plan, arrival)])
            item = shapes.output_item(text, plan.tool_call)
            tokens = arrival.prompt_tokens, arrival.completion_tokens
            return web.json_response(shapes.response(plan.model, item, tokens))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        text = ""
        for kind in ("created", "in_progress"):
            await response.write(shapes.response_event(kind, response=shapes.response(plan.model)))
        async for piece in self._generate(plan, arrival):
            text += piece
            if piece:
                delta = {"item_id": "msg_fake", "output_index": 0, "content_index": 0, "delta": piece}
                await response.write(shapes.response_event("output_text.delta", **delta))
        item = shapes.output_item(text, plan.tool_call)
        if plan.tool_call:
            added = item | {"arguments": "", "status": "in_progress"}
            await response.write(shapes.response_event("output_item.added", output_index=0, item=added))
            delta = {"item_id": item["id"], "output_index": 0, "delta": item["arguments"]}
            await response.write(shapes.response_event("function_call_arguments.delta", **delta))
        await response.write(shapes.response_event("output_item.done", output_index=0, item=item))
        tokens = arrival.prompt_tokens, arrival.completion_tokens
        whole = shapes.response(plan.model, item, tokens)
        await response.write(shapes.response_event("completed", response=whole))
        await response.write_eof()
        return response

    async def _ollama(
        self, request: web.Request, body: dict[str, Any], arrival: Arrival
    ) -> web.StreamResponse:
        """Serve /api/chat, Ollama's own API: lines of JSON."""
        plan = self._plan(body, arrival)

        def line(content: str, **fields: Any) -> dict[str, Any]:
            message = {"role": "assistant", "content": content, **fields.pop("message", {})}
            return {
                "model": plan.model,
                "created_at": "2026-01-01T00:00:00Z",
                "message": message,
                "done": False,
                **fields,
            }

        def last(content: str) -> dict[str, Any]:
            return line(
                content,
                done=True,
                done_reason="length" if plan.finish_reason == "length" else "stop",
                total_duration=1,
                prompt_eval_count=arrival.prompt_tokens,
                prompt_eval_duration=1,
                eval_count=arrival.completion_tokens,
                eval_duration=1,
            )

        tool_calls: dict[str, Any] = {}
        if plan.tool_call:
            function = plan.tool_call["function"]
            arguments = json.loads(function["arguments"])
            tool_calls = {"tool_calls": [{"function": {"name": function["name"], "arguments": arguments}}]}
        if not plan.stream:
            response_body = last("".join([piece async for piece in self._generate(plan, arrival)]))
            response_body["message"] |= tool_calls
            return web.json_response(response_body)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for piece in self._generate(plan, arrival):
            await response.write(json.dumps(line(piece, message=tool_calls)).encode() + b"\n")
        await response.write(json.dumps(last("")).encode() + b"\n")
        await response.write_eof()
        return response

    async def _embeddings(
        self, request: web.Request, body: dict[str, Any], arrival: Arrival
    ) -> web.StreamResponse:
        """Serve /v1/embeddings or /api/embed: the same vector for every text."""
        texts = body.get("input")
        count = len(texts) if isinstance(texts, list) else 1
        if request.path == "/api/embed":
            return web.json_response(
                {
                    "model": arrival.model,
                    "embeddings": [EMBEDDING] * count,
                    "prompt_eval_count": arrival.prompt_tokens,
                }
            )
        packed = base64.b64encode(struct.pack(f"<{len(EMBEDDING)}f", *EMBEDDING)).decode()
        vector: Any = packed if body.get("encoding_format") == "base64" else EMBEDDING
        return web.json_response(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "embedding": vector, "index": index} for index in range(count)
                ],
                "model": arrival.model,
                "usage": {"prompt_tokens": arrival.prompt_tokens, "total_tokens": arrival.prompt_tokens},
            }
        )


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _parse_fault(text: str) -> Fault:
    """Parse KIND[=PROBABILITY][@MODEL]."""
    fault, _, model = text.partition("@")
    kind, _, probability = fault.partition("=")
    for known in get_args(FaultKind):
        if kind == known:
            try:
                value = float(probability or 1)
            except ValueError:
                value = -1.0
            if not 0 <= value <= 1:
                raise argparse.ArgumentTypeError(f"{probability!r} is not a probability from 0 to 1")
            return Fault(known, value, model or None)
    raise argparse.ArgumentTypeError(f"{kind!r} is not a fault: use {', '.join(get_args(FaultKind))}")


def parse(arguments: Sequence[str]) -> ServerOptions:
    """Return the command's options; exits with a message where they are wrong."""
    parser = Parser(
        prog="traffic fake-server",
        description="Serve an engine without a model, with configured delays, concurrency and faults.",
        epilog="GET /fake/stats counts the requests. The header X-Fake-Fault: KIND makes one request fail.",
    )
    parser.add_argument(
        "--address", default="127.0.0.1", metavar="A", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=_port, default=0, metavar="P", help="port (default: a free one)")
    parser.add_argument(
        "--model", action="append", metavar="M", help="a model to offer; may be repeated (default: fake)"
    )
    parser.add_argument(
        "--concurrency",
        type=positive(int),
        default=1,
        metavar="N",
        help="requests that run at a time; the others queue in the engine (default: 1)",
    )
    parser.add_argument(
        "--prompt-seconds", type=_not_negative, default=0.0, metavar="S", help="time before the first token"
    )
    parser.add_argument(
        "--seconds-per-token", type=_not_negative, default=0.0, metavar="S", help="time for each token"
    )
    parser.add_argument(
        "--tokens",
        type=positive(int),
        default=16,
        metavar="N",
        help="length of a completion that the request does not bound (default: 16)",
    )
    parser.add_argument(
        "--context",
        type=positive(int),
        default=4096,
        metavar="N",
        help="longest prompt in words; a longer one is truncated silently, as by Ollama (default: 4096)",
    )
    parser.add_argument(
        "--fault",
        action="append",
        type=_parse_fault,
        default=[],
        metavar="KIND[=PROBABILITY][@MODEL]",
        help=f"make requests fail: {', '.join(get_args(FaultKind))}; may be repeated",
    )
    values = parser.parse_args(arguments)
    behaviour = Behaviour(
        models=tuple(values.model or Behaviour.models),
        concurrency=values.concurrency,
        prompt_seconds=values.prompt_seconds,
        seconds_per_token=values.seconds_per_token,
        tokens=values.tokens,
        context=values.context,
        faults=tuple(values.fault),
    )
    return ServerOptions(behaviour=behaviour, address=values.address, port=values.port)


async def _serve_until_signal(behaviour: Behaviour, address: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; prints the address as the first line of standard output."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(
        FakeEngine(behaviour).application(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port, backlog=4096).start()
        print(f"http://{address}:{runner.addresses[0][1]}", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()


def run(options: ServerOptions) -> int:
    """Serve until a signal, and return the exit status."""
    try:
        uvloop.run(_serve_until_signal(options.behaviour, options.address, options.port))
    except OSError as error:
        raise CannotStartError(
            f"The fake engine cannot listen on {options.address} port {options.port} ({error}): "
            "choose another --address or --port."
        ) from None
    return EXIT_OK
