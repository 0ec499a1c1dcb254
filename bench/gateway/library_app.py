"""The way not taken: an app that has the LiteLLM library call the engine, without LiteLLM's proxy around it.

Started by throughput.py with uvicorn; ENGINE_URL names the engine. It does no more than a gateway must.
"""

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import litellm


async def app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Answer /v1/chat/completions; every other path gets an empty 200."""
    if scope["type"] != "http":
        return
    body = b""
    while scope["method"] == "POST":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"application/json")],
    }
    if not body:
        await send(start)
        await send({"type": "http.response.body", "body": b"{}"})
        return
    asked = json.loads(body)
    answer = await litellm.acompletion(
        **{**asked, "model": f"openai/{asked['model']}"},
        api_base=f"{os.environ['ENGINE_URL']}/v1",
        api_key="none",
    )
    await send(start)
    if not asked.get("stream"):
        await send({"type": "http.response.body", "body": answer.model_dump_json().encode()})
        return
    async for chunk in answer:
        data = f"data: {chunk.model_dump_json()}\n\n".encode()
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
