"""Requests that no client should send, made at random: bodies of JSON with odd values, and whole requests."""

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

KEY = "sk-malformed"
MODEL = "fake"
MAX_BODY = 256 * 1024
"""The limit of the server under test, in bytes."""

# Bodies

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES, COUNT_TOKENS = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": MODEL, "prompt": "hi"},
    EMBEDDINGS: {"model": MODEL, "input": "hi"},
    RESPONSES: {"model": MODEL, "input": "hi"},
    MESSAGES: {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    COUNT_TOKENS: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
}
PNG = "data:image/png;base64,iVBORw0KGgo="
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
FIELDS = [
    "model",
    "messages",
    "prompt",
    "suffix",
    "input",
    "encoding_format",
    "dimensions",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "stop",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "logprobs",
    "top_logprobs",
    "reasoning_effort",
    "reasoning",
    "service_tier",
    "priority",
    "n",
    "best_of",
    "echo",
    "logit_bias",
    "functions",
    "function_call",
    "modalities",
    "audio",
    "instructions",
    "metadata",
    "text",
    "include",
    "previous_response_id",
    "background",
    "store",
    "system",
    "stop_sequences",
    "thinking",
    "output_config",
    "mcp_servers",
    "truncation",
    "user",
]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)
parts = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            [
                *("text", "image_url", "input_audio", "input_text", "input_image"),
                *("image", "tool_use", "tool_result", "thinking", "redacted_thinking"),
            ]
        )
        | anything,
        "source": st.fixed_dictionaries(
            {"type": st.just("base64"), "media_type": st.just("image/png"), "data": st.just("iVBORw0KGgo=")}
        )
        | anything,
        "tool_use_id": st.text(max_size=5),
        "id": st.text(max_size=5),
        "name": st.text(max_size=5),
        "input": st.dictionaries(st.text(max_size=5), anything, max_size=2) | anything,
        "content": st.text(max_size=5) | anything,
        "text": st.text(max_size=10) | anything,
        "image_url": st.fixed_dictionaries({"url": st.sampled_from([PNG, "x"]) | anything}) | anything,
    },
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
            | anything,
            "content": st.text(max_size=10) | st.lists(parts, max_size=3) | anything,
            "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]),
            "name": anything,
            "tool_call_id": st.text(max_size=5) | anything,
            "tool_calls": st.lists(st.just(CALL) | anything, max_size=2) | anything,
        },
    )
    | anything,
    max_size=4,
)
odd_fields = st.dictionaries(st.sampled_from(FIELDS), anything, max_size=4) | st.fixed_dictionaries(
    {}, optional={"messages": messages, "input": messages, "stream": st.just(True)}
)
"""Fields to put over those of a minimal body."""

# Requests

OTHER_PATHS = (
    *("/", "*", "/v1", "/v1/models", "/v1/models/fake", "/v1/models/..%2f", "/v1/models/" + "a" * 300),
    *("/chat/completions", "/v1//chat/completions", "/v1/chat/completions/", "/v1/../v1/models", "/health"),
    *(
        "/health/liveliness",
        "/health/readiness",
        "/metrics",
        "/v1/key/generate",
        "/%00",
        "/\xff\xfe",
        "//x",
        "x",
    ),
    *(
        "http://other.example/v1/models",
        "/v1/models?model=x&model=y",
        "/v1/chat/completions?model=other",
        "/" + "x" * 70_000,
    ),
)
METHODS = (
    "GET",
    "HEAD",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "get",
    "BREW",
    "P" * 300,
    "",
)
VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", "http/1.1", "")
KEYS = (
    f"Bearer {KEY}",
    f"bearer  {KEY} ",
    "Bearer wrong",
    "Bearer",
    "Basic eDp4",
    "",
    f"Bearer {KEY}\x00",
    "Bearer \xff",
)
NOISE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\r\n" * 50,
    b"\x00" * 100,
)


@dataclass(frozen=True)
class Case:
    """What a client sends, piece by piece with a pause after each, and whether it disconnects then."""

    kind: str
    pieces: tuple[bytes, ...]
    pause: float = 0.0
    disconnects: bool = False


def head(
    path: str, headers: dict[str, str], method: str = "POST", version: str = "HTTP/1.1", key: str = KEYS[0]
) -> bytes:
    """Return the head of a request as it is, whatever it may hold."""
    lines = [f"{method} {path} {version}", "Host: gateway.test", "Content-Type: application/json"]
    lines += [f"Authorization: {key}"] if key else []
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def whole(path: str, body: bytes, **more: Any) -> bytes:
    """Return a request whose framing is right."""
    return head(path, more.pop("headers", {}) | {"Content-Length": str(len(body))}, **more) + body


paths = st.sampled_from(list(MINIMAL))


@st.composite
def minimal_bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a path and a body that is right, half of them for a stream."""
    path = draw(paths)
    stream = {"stream": True} if draw(st.booleans()) and path != EMBEDDINGS else {}
    return path, json.dumps(MINIMAL[path] | stream).encode()


@st.composite
def odd_json(draw: st.DrawFn) -> Case:
    """Draw a body of JSON with odd values."""
    path = draw(paths)
    document = draw(
        st.just(MINIMAL[path]).flatmap(lambda minimal: odd_fields.map(lambda odd: minimal | odd)) | anything
    )
    return Case("JSON with odd fields", (whole(path, json.dumps(document).encode()),))


@st.composite
def odd_bytes(draw: st.DrawFn) -> Case:
    """Draw a body of any bytes, or of JSON with some bytes changed."""
    path, right = draw(minimal_bodies())
    changed = bytearray(right)
    for position in draw(st.lists(st.integers(0, len(right) - 1), max_size=3)):
        changed[position] = draw(st.integers(0, 255))
    body = draw(st.just(bytes(changed)) | st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
    return Case("bytes for a body", (whole(path, body),))


@st.composite
def large(draw: st.DrawFn) -> Case:
    """Draw a body that is long, deep or wide; some are over the limit."""
    path = draw(paths)
    size = draw(st.sampled_from([1000, 100_000, MAX_BODY - 100, MAX_BODY + 1, 2 * MAX_BODY]))
    unit, end = draw(
        st.sampled_from(
            [
                (b"[", b""),
                (b'{"a":', b""),
                (b"[],", b"[]]"),
                (b"9", b""),
                (b'"\\ud800",', b"0]"),
                (b" ", b"{}"),
            ]
        )
    )
    start = b'{"model": "fake", "messages": [' if unit in {b"[],", b'"\\ud800",'} else b""
    return Case("large bodies", (whole(path, start + unit * (size // len(unit)) + end),))


@st.composite
def odd_heads(draw: st.DrawFn) -> Case:
    """Draw a method, address, version, key or header that is odd."""
    path, body = draw(minimal_bodies())
    headers = draw(
        st.dictionaries(
            st.text(st.characters(max_codepoint=255), min_size=1, max_size=12)
            | st.sampled_from(
                ["Expect", "Upgrade", "Connection", "Content-Encoding", "Content-Type", "Host", "Cookie"]
            ),
            st.text(st.characters(max_codepoint=255), max_size=30)
            | st.sampled_from(
                ["100-continue", "websocket", "h2c", "Upgrade", "gzip", "keep-alive", "x" * 70_000]
            ),
            max_size=4,
        )
    )
    request = whole(
        draw(st.just(path) | st.sampled_from(OTHER_PATHS)),
        body,
        headers=headers,
        method=draw(st.just("POST") | st.sampled_from(METHODS)),
        version=draw(st.just("HTTP/1.1") | st.sampled_from(VERSIONS)),
        key=draw(st.just(KEYS[0]) | st.sampled_from(KEYS)),
    )
    return Case("odd heads", (request,))


@st.composite
def odd_framing(draw: st.DrawFn) -> Case:
    """Draw a length or chunks that do not fit the body."""
    path, body = draw(minimal_bodies())
    headers = draw(
        st.sampled_from(
            [
                {"Content-Length": str(len(body) - 5)},
                {"Content-Length": str(len(body) + 5)},
                {"Content-Length": "-1"},
                {"Content-Length": "9" * 30},
                {"Content-Length": "0x10"},
                {"Content-Length": f"{len(body)}, {len(body)}"},
                {"Content-Length": str(len(body)), "Transfer-Encoding": "chunked"},
                {"Transfer-Encoding": "chunked"},
                {"Transfer-Encoding": "gzip, chunked"},
                {"Transfer-Encoding": "identity"},
                {},
            ]
        )
    )
    size = draw(st.sampled_from([b"%x" % len(body), b"ffffffffffffffff", b"-1", b"zz", b"0", b"5;x=y", b""]))
    sent = size + b"\r\n" + body + b"\r\n0\r\n\r\n" if "Transfer-Encoding" in headers else body
    return Case("odd framing", (head(path, headers) + sent,))


@st.composite
def pipelined(draw: st.DrawFn) -> Case:
    """Draw several requests at once on one connection."""
    several = draw(st.lists(minimal_bodies(), min_size=2, max_size=4))
    return Case("pipelined", (b"".join(whole(path, body) for path, body in several),))


@st.composite
def slow(draw: st.DrawFn) -> Case:
    """Draw a request that stops somewhere, or that trickles."""
    request = whole(*draw(minimal_bodies()))
    cut = draw(st.integers(0, len(request) - 1))
    if draw(st.booleans()):
        return Case("stops midway", (request[:cut],))
    return Case("trickles", (request[:cut], *(request[at : at + 1] for at in range(cut, cut + 5))), pause=0.1)


@st.composite
def disconnecting(draw: st.DrawFn) -> Case:
    """Draw a request whose client disconnects at once or a little later, maybe before it has sent all."""
    request = whole(*draw(minimal_bodies()))
    cut = draw(st.just(len(request)) | st.integers(1, len(request)))
    return Case("leaves", (request[:cut],), pause=draw(st.sampled_from([0.0, 0.01, 0.05])), disconnects=True)


noise = (st.sampled_from(NOISE) | st.binary(min_size=1, max_size=80)).map(
    lambda sent: Case("no HTTP", (sent,))
)
right = minimal_bodies().map(lambda request: Case("right ones between", (whole(*request),)))
cases = st.one_of(
    *[odd_json()] * 5,
    *[odd_bytes()] * 2,
    large(),
    *[odd_heads()] * 4,
    *[odd_framing()] * 3,
    pipelined(),
    slow(),
    *[disconnecting()] * 2,
    noise,
    right,
)
