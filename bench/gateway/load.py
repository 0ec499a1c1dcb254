"""Requests as clients send them, with the times that matter, and what is computed from them."""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

LIMIT = aiohttp.ClientTimeout(total=600)


@dataclass(frozen=True)
class Answer:
    """One answer; times are of the monotonic clock in seconds, status 0 means that the connection broke."""

    status: int
    sent: float
    ended: float
    first: float | None = None
    tokens: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""

    @property
    def seconds(self) -> float:
        """End to end."""
        return self.ended - self.sent


def session(**options: Any) -> aiohttp.ClientSession:
    """Return a client without a bound on connections and without the machine's proxy."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, **options), timeout=LIMIT)


async def ask(
    client: aiohttp.ClientSession,
    url: str,
    key: str,
    model: str,
    text: str = "one two three",
    *,
    stream: bool = False,
    path: str = "/v1/chat/completions",
    **fields: Any,
) -> Answer:
    """Send one request and read its answer to the end; `tokens` is the whole usage where it is reported."""
    body: dict[str, Any] = {"model": model, "stream": stream, **fields}
    body["messages"] = [{"role": "user", "content": text}]
    if stream:
        body["stream_options"] = {"include_usage": True}
    first: float | None = None
    sent = time.monotonic()
    try:
        async with client.post(url + path, json=body, headers={"Authorization": f"Bearer {key}"}) as response:
            pieces = []
            async for piece in response.content.iter_any():
                first = first or time.monotonic()
                pieces.append(piece)
            content = b"".join(pieces).decode(errors="replace")
            return Answer(
                response.status,
                sent,
                time.monotonic(),
                first,
                _tokens(content, stream) if response.status == 200 else 0,
                {name.lower(): value for name, value in response.headers.items()},
                content,
            )
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
        return Answer(0, sent, time.monotonic(), first, text=repr(error))


def _tokens(content: str, stream: bool) -> int:
    documents = [content]
    if stream:
        documents = [line[6:] for line in content.splitlines() if line.startswith("data: {")]
    for document in reversed(documents):
        try:
            usage = json.loads(document).get("usage") or {}
        except ValueError:
            continue
        if usage.get("total_tokens"):
            return int(usage["total_tokens"])
    return 0


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of the values do not exceed; NaN when there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def most_in_window(moments: Iterable[float], seconds: float = 60.0) -> int:
    """Return the most moments that fall into any half-open window of that length."""
    ordered = sorted(moments)
    most = start = 0
    for end, moment in enumerate(ordered):
        while moment - ordered[start] >= seconds:
            start += 1
        most = max(most, end - start + 1)
    return most
