"""OpenTelemetry traces: the spans of a request, and the thread that sends them as OTLP in JSON.

    POST /v1/chat/completions    from the request's arrival to the end of its answer
    ├── admission                its key, its limits and its body
    ├── wait                     in the queue
    └── chat MODEL               on the engine; LiteLLM's spans are below it

A fallback adds one more `wait` and `chat MODEL`. Names and values are fixed or declared in the settings, so
no span has a prompt, a key or another text of a client. Requests without a valid key have no trace.
"""

import json
import logging
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from bedplate_gateway.access_log import NONE, AccessRecord
from bedplate_gateway.settings import TracesSettings

log = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Traces that wait to be sent; what comes after them is dropped and counted. Each takes about 5 kB."""
BATCH = 50
"""Traces of one message: to write them takes a millisecond, in which the event loop may wait."""
SEND_SECONDS = 1.0
"""How long the thread waits for further traces."""
TIMEOUT_SECONDS = 10.0
STOP_SECONDS = 2.0
"""How long the end of the process waits for the last traces."""

TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
INTERNAL, SERVER, CLIENT = 1, 2, 3
ERROR = {"code": 2}
OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
"""The name of an operation in OpenTelemetry's conventions by its path; all others are chats."""

Values = dict[str, str | int | float | bool]


def read_traceparent(header: str | None) -> tuple[str, str, bool] | None:
    """Return a valid header's trace, its span, and whether the caller samples it; see W3C Trace Context."""
    match = TRACEPARENT.fullmatch(header or "")
    if match is None or (match.group(1) == "00" and match.group(5)):
        return None
    return match.group(2), match.group(3), bool(int(match.group(4), 16) & 1)


def operation(path: str) -> str:
    """Return OpenTelemetry's name for what an endpoint does."""
    return OPERATIONS.get(path, "chat")


@dataclass(slots=True)
class Span:
    """A part of a request, between two Unix times in nanoseconds; `error` is the reason of its failure."""

    name: str
    kind: int
    started: int
    ended: int = 0
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    values: Values = field(default_factory=dict)
    error: str = ""


class Trace:
    """The spans of one request, one after the other below that of the whole."""

    def __init__(self, send: Callable[["Trace"], None], traceparent: str | None, percent: int) -> None:
        given = read_traceparent(traceparent)
        self.id, self.parent, self.sampled = given or (
            secrets.token_hex(16),
            "",
            secrets.randbelow(100) < percent,
        )
        self._send = send
        # Only one clock, because another one can be set meanwhile.
        self._offset = time.time_ns() - time.monotonic_ns()
        self.root = Span("", SERVER, self._now())
        self.spans = [Span("admission", INTERNAL, self.root.started)]

    def begin(self, name: str, kind: int = INTERNAL) -> None:
        """End the current part and begin the next one."""
        self._end_part()
        self.spans.append(Span(name, kind, self.spans[-1].ended))

    def fail(self, reason: str) -> None:
        """Note that the current part failed."""
        self.spans[-1].error = reason

    def traceparent(self) -> str:
        """Return the header by which another service continues the current part."""
        return f"00-{self.id}-{self.spans[-1].id}-{int(self.sampled):02x}"

    def describe_engine(self, record: AccessRecord, kind: str) -> None:
        """Note what an engine of a kind did in the current part."""
        values: Values = {
            "gen_ai.provider.name": kind,
            "gen_ai.request.stream": record.stream,
            "bedplate.engine": record.engine,
            "bedplate.lane": record.lane,
            "bedplate.retries": record.retries,
        }
        self.spans[-1].values = _of_model(record) | values

    def end(self, record: AccessRecord) -> None:
        """End the request, and send its spans if they are a sample."""
        self._end_part()
        if not self.sampled or record.alias == NONE:
            return
        root, last, failed = self.root, self.spans[-1], record.reason != NONE
        last.error = record.reason if failed else ""
        root.name, root.ended = f"POST {record.path}", last.ended
        # What a client did wrong is no error of the service.
        root.error = record.reason if failed and not 400 <= record.status < 500 else ""
        root.values = {
            "http.request.method": "POST",
            "http.route": record.path,
            "http.response.status_code": record.status,
            "bedplate.request.id": record.id,
            "bedplate.key.alias": record.alias,
            **_of_model(record),
        }
        if record.requested != NONE:
            root.values["gen_ai.request.model"] = record.requested
        if record.first_byte is not None:
            root.values["gen_ai.response.time_to_first_chunk"] = record.first_byte
        if record.priority_class:
            root.values["bedplate.class"] = record.priority_class
        self._send(self)

    def to_otlp(self) -> Iterator[dict[str, Any]]:
        """Iterate over the spans in the form of OTLP."""
        yield self._otlp(self.root, self.parent)
        for span in self.spans:
            yield self._otlp(span, self.root.id)

    def _otlp(self, span: Span, parent: str) -> dict[str, Any]:
        values = span.values | ({"error.type": span.error} if span.error else {})
        return {
            "traceId": self.id,
            "spanId": span.id,
            "parentSpanId": parent,
            "name": span.name,
            "kind": span.kind,
            "startTimeUnixNano": str(span.started),
            "endTimeUnixNano": str(span.ended),
            "attributes": _attributes(values),
            "status": ERROR if span.error else {},
        }

    def _end_part(self) -> None:
        self.spans[-1].ended = self._now()

    def _now(self) -> int:
        return time.monotonic_ns() + self._offset


def _of_model(record: AccessRecord) -> Values:
    """Return what OpenTelemetry's conventions for generative AI name."""
    if record.model.startswith((NONE, "(")):
        return {}
    return {
        "gen_ai.operation.name": operation(record.path),
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
    }


def _attributes(values: Mapping[str, str | int | float | bool]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: str | int | float | bool) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}


class Tracer:
    """Begins the trace of each request, and sends the samples: no request waits for the receiver.

    A client that sends a valid `traceparent` decides itself whether its trace is a sample.
    """

    def __init__(self, settings: TracesSettings) -> None:
        self.sent = 0
        self.dropped = 0
        """Spans, as `sent`: too many waited, or the receiver did not take them."""
        self._percent = settings.percent
        self._url = urlsplit(settings.endpoint.rstrip("/") + "/v1/traces")
        self._waiting: deque[Trace] = deque()
        self._answers = True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._send_forever, name="traces", daemon=True)
        own_version = version("bedplate-gateway")
        resource = {"service.name": "bedplate-gateway", "service.version": own_version}
        self._resource = {"attributes": _attributes(resource)}
        self._scope = {"name": __name__, "version": own_version}

    def start(self) -> None:
        """Start the thread. Threads do not survive a fork: call it in the process that serves."""
        self._thread.start()

    def stop(self) -> None:
        """Send what waits, for a bounded time."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def begin(self, traceparent: str | None) -> Trace:
        """Return the trace of a request that has just arrived, with its header."""
        return Trace(self._add, traceparent, self._percent)

    def _add(self, trace: Trace) -> None:
        # Nothing wakes the thread, because that would cost each request more than the rest.
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1 + len(trace.spans)
        else:
            self._waiting.append(trace)

    def _send_forever(self) -> None:
        stopping = False
        while not stopping:
            # What waits at the end is sent, too.
            stopping = self._stopping.wait(SEND_SECONDS)
            while self._waiting:
                traces = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                spans = [span for trace in traces for span in trace.to_otlp()]
                problem = self._send(spans)
                if problem:
                    self.dropped += len(spans)
                else:
                    self.sent += len(spans)
                self._note(problem)

    def _send(self, spans: list[dict[str, Any]]) -> str:
        """Send the spans; return what failed."""
        scoped = [{"scope": self._scope, "spans": spans}]
        body = json.dumps({"resourceSpans": [{"resource": self._resource, "scopeSpans": scoped}]})
        connect = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = connect(self._url.netloc, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("POST", self._url.path, body, {"Content-Type": "application/json"})
            status = connection.getresponse().status
        except (OSError, HTTPException, ValueError) as error:
            return str(error) or type(error).__name__
        finally:
            connection.close()
        return "" if 200 <= status < 300 else f"HTTP {status}"

    def _note(self, problem: str) -> None:
        """Log it where the receiver begins or ceases to answer."""
        if problem and self._answers:
            log.warning("%s takes no spans (%s): they are dropped.", self._url.geturl(), problem)
        elif not problem and not self._answers:
            log.warning("%s takes spans again.", self._url.geturl())
        self._answers = not problem
