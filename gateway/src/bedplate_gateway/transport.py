"""The HTTP client that talks to the engines: one session for everything, without hidden queues and states."""

import aiohttp

from bedplate_gateway.settings import Engine

CONNECT_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 4.0
"""Below the 5 s after which uvicorn, which vLLM uses, closes an idle connection."""


def new_session() -> aiohttp.ClientSession:
    """Return a session; answers have no time limit but those that the caller sets."""
    return aiohttp.ClientSession(
        # No limit: admission counts, and a second queue in here would hide from it.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "bedplate-gateway", "Accept-Encoding": "identity"},
    )


async def ask(
    session: aiohttp.ClientSession, engine: Engine, path: str, body: bytes | None = None
) -> aiohttp.ClientResponse:
    """Return the answer of an engine once its head is there: POST where there is a body, else GET."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if engine.api_key:
        headers["Authorization"] = f"Bearer {engine.api_key}"
    return await session.request(
        "GET" if body is None else "POST",
        engine.url.rstrip("/") + path,
        data=body,
        headers=headers,
        allow_redirects=False,
    )


async def read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return a whole body; raises ValueError over `most` bytes, after closing the connection."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            hang_up(response)
            raise ValueError(f"more than {most} bytes")
    return b"".join(parts)


def hang_up(response: aiohttp.ClientResponse) -> None:
    """Close the connection of an answer that was not read to its end; who still reads it gets a ClientError.

    Left to itself, aiohttp raises one and the same exception each time, whose traceback then holds every
    request that was ever closed so.
    """
    if response.content.exception() is None:
        response.content.set_exception(aiohttp.ClientConnectionError("The connection was closed here."))
    response.close()
