"""A fake engine in a thread, for tests that run the command like its users."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import web
from bedplate_traffic.fake_engine.server import Behaviour, FakeEngine

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def serving(application: Callable[[], web.Application]) -> Iterator[str]:
    """Serve an application until the block ends; yields its URL with /v1."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    address: list[str] = []

    async def start() -> web.AppRunner:
        runner = web.AppRunner(application(), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@contextmanager
def engine(behaviour: Behaviour | None = None) -> Iterator[tuple[str, FakeEngine]]:
    """Serve a fake engine; yields its URL with /v1, and the engine itself."""
    engines: list[FakeEngine] = []

    def application() -> web.Application:
        # Made inside the server's thread: the engine's semaphore belongs to that event loop.
        engines.append(FakeEngine(behaviour or Behaviour(concurrency=50, tokens=4)))
        return engines[0].application()

    with serving(application) as url:
        yield url, engines[0]


def answering(handle: Handler, models: Handler | None = None) -> Callable[[], web.Application]:
    """Return a factory of applications in which `handle` serves chat requests."""

    async def one_model(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    def make() -> web.Application:
        application = web.Application()
        application.add_routes(
            [web.get("/v1/models", models or one_model), web.post("/v1/chat/completions", handle)]
        )
        return application

    return make
