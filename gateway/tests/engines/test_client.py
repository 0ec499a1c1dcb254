"""The client closes the connection of a response that it has not read to its end."""

import asyncio
import gc
import weakref

import aiohttp
import pytest
from aiohttp import web
from bedplate_gateway.engines import client
from bedplate_gateway.settings import Engine


def test_abort_ends_the_read_and_leaves_nothing_behind() -> None:
    """aiohttp's own close raises one exception again and again, whose traceback would keep every request."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.05)

    async def abort(session: aiohttp.ClientSession, engine: Engine) -> weakref.ref[aiohttp.ClientResponse]:
        response = await client.send(session, engine, "/")
        reading = asyncio.create_task(response.content.read())
        await asyncio.sleep(0.1)
        client.abort(response)
        with pytest.raises(aiohttp.ClientError):
            await reading
        return weakref.ref(response)

    async def run() -> None:
        application = web.Application()
        application.router.add_get("/", stream)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        engine = Engine(name="e", kind="openai", url=url, models=())
        async with client.new_session() as session:
            aborted = [await abort(session, engine) for _ in range(3)]
            await asyncio.sleep(0.1)
            gc.collect()
            assert [response() for response in aborted] == [None] * 3
        await runner.cleanup()

    asyncio.run(run())
