"""Times the gateway's app and one that does nothing, call by call, in this process; prints JSON.

Runs in the gateway's own environment (overhead.py starts it); a stub stands for the engine.
"""

import asyncio
import hashlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvloop
from bedplate_gateway.admission.interface import AdmissionRequest
from bedplate_gateway.app import Gateway
from bedplate_gateway.engines.litellm import Lane
from bedplate_gateway.engines.request import Answer
from bedplate_gateway.keys import Keys, KeysFile
from bedplate_gateway.settings import Engine, Settings

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
SECRET = "sk-bench"  # noqa: S105 - of this process alone
BODY = json.dumps(
    {"model": "fast", "messages": [{"role": "user", "content": "Say one word."}], "max_tokens": 16}
).encode()
ANSWER = json.dumps({"choices": [{"message": {"content": "word"}}], "usage": {"total_tokens": 5}}).encode()
SCOPE = {
    "type": "http",
    "method": "POST",
    "raw_path": b"/v1/chat/completions",
    "query_string": b"",
    "client": ("127.0.0.1", 1),
    "headers": [
        (b"host", b"127.0.0.1"),
        (b"authorization", f"Bearer {SECRET}".encode()),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(BODY)).encode()),
    ],
}
WAITING = 1000
ROUNDS = 5


class NoErrors(logging.Handler):
    """Ends the bench at an error: the app logs it after its answer, so the status is 200."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the error."""
        raise SystemExit(self.format(record))


class StubEngines:
    """Engines that always serve."""

    def serves(self, engine: Engine, model: str) -> bool:
        """Every model is there."""
        return bool(engine and model)

    def loaded(self, engine: Engine, model: str) -> bool:
        """Every model is loaded."""
        return bool(engine and model)

    def lacks(self, model: str, capability: str) -> bool:
        """Every model can everything."""
        return not (model or capability)


async def no_events() -> AsyncIterator[bytes]:
    """Iterate over nothing: the answer is no stream."""
    nothing: tuple[bytes, ...] = ()
    for event in nothing:
        yield event


class StubEngineRequest:
    """A call of the engine that has its answer at once."""

    prompt_tokens, completion_tokens, estimated, retries, truncated, error = 4, 1, False, 0, False, None
    lane, cost = Lane.DIRECT, 0.0

    async def answer(self) -> Answer:
        """Return the answer."""
        return Answer(200, {}, ANSWER, no_events)

    async def close(self) -> None:
        """End it."""


class StubUpstream:
    """Calls no engine."""

    def new_request(self, *_: object) -> StubEngineRequest:
        """Return the engine request."""
        return StubEngineRequest()


async def no_op(
    _scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Read the body and answer."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER, "more_body": False})


async def call(app: App) -> int:
    """Send one request to an app; returns the status of its answer."""
    messages: list[Message] = [{"type": "http.request", "body": BODY, "more_body": False}]
    over = asyncio.Event()
    status = 0

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(dict(SCOPE), receive, send)
    return status


async def times(app: App, count: int) -> list[list[tuple[float, float]]]:
    """Return the seconds of `count` calls in each of five rounds: by the clock, and of CPU time."""
    return [await one_round(app, count) for _ in range(ROUNDS)]


async def one_round(app: App, count: int) -> list[tuple[float, float]]:
    """Return the seconds of `count` calls, one after the other."""
    for _ in range(count // 10):
        await call(app)
    found = []
    for _ in range(count):
        cpu, start = time.thread_time(), time.perf_counter()
        status = await call(app)
        wall = time.perf_counter() - start
        found.append((wall, time.thread_time() - cpu))
        if status != 200:
            raise SystemExit(f"the app answered {status}")
        # The watcher of the call ends between two calls, as it does on a real server.
        await asyncio.sleep(0)
    return found


def make_gateway(folder: Path) -> Gateway:
    """Return the app with limits set, its usage log on disk, and the engine's side stubbed."""
    settings = Settings.model_validate(
        {
            "api": {"address": "127.0.0.1", "port": 0},
            "metrics": {"address": "127.0.0.1", "port": 0},
            "engines": [
                {
                    "name": "one",
                    "kind": "ollama",
                    "url": "http://127.0.0.1:9",
                    "models": [{"name": "fast", "slots": 4}, {"name": "full", "slots": 1}],
                }
            ],
            "queues": {"low": {"size_per_key": WAITING}},
            "models": {"fast": {"rpm": 10_000_000, "max_output_tokens": 500}},
            "keys_file": str(folder / "keys.json"),
            "state_dir": str(folder),
        }
    )
    limits = {"rpm": 10_000_000, "tpm": 100_000_000, "max_parallel": 4}
    entry = {"alias": "any", **limits, "secrets": [{"sha256": hashlib.sha256(SECRET.encode()).hexdigest()}]}
    keys = Keys(
        KeysFile.model_validate(
            {"schema": 2, "keys": [entry, {"alias": "other", "class": "low", "secrets": []}]}
        ).keys
    )
    gateway = Gateway(settings, keys)
    stub: Any = StubEngines()
    gateway.engines = gateway.local.engines = stub
    gateway.local.scheduler._serves = stub.serves
    gateway.local.scheduler._loaded = stub.loaded
    upstream: Any = StubUpstream()
    gateway.upstream = upstream
    return gateway


async def main(count: int) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the times by what was called."""
    with tempfile.TemporaryDirectory() as name:
        gateway = make_gateway(Path(name))
        # The journal's lines are made and written, as in the service, but to nowhere.
        logging.basicConfig(filename="/dev/null", level=logging.INFO)
        logging.getLogger().addHandler(NoErrors(logging.ERROR))
        found = {"no-op app": await times(no_op, count), "gateway": await times(gateway, count)}
        other = gateway.keys.by_alias["other"]
        for _ in range(WAITING + 1):
            gateway.local.submit(AdmissionRequest(other, "low", "full", 10), lambda _: None, lambda _: None)
        found[f"gateway while {WAITING:,} requests wait for another model"] = await times(gateway, count)
        return found


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump(runner.run(main(int(sys.argv[1]))), sys.stdout)
