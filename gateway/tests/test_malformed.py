"""Odd requests over raw connections to the real server: never 5xx, never a hang, never a slot that is lost.

`examine` is shared with bench/gateway/malformed.py. It sends requests in batches and checks after each that
nothing leaks; hypothesis reports the smallest batch that breaks it.
"""

import asyncio
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from bedplate_gateway.app import Gateway
from bedplate_gateway.http import server
from bedplate_gateway.http.server import ClientLimits, HttpServer, listen, listen_unix
from bedplate_gateway.keys import Key, Keys, Secret
from bedplate_gateway.settings import PRIORITY_CLASSES, Engine, EngineModel, Listener, Settings
from bedplate_traffic.fake_engine.server import Behaviour, FakeEngine
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway.tests.odd_requests import CHAT, KEY, MAX_BODY, MINIMAL, MODEL, Case, cases, whole

BATCH = 20
LIMITS = ClientLimits(header=1.0, body=1.0, idle=1.0, reader=2.0)
HANG_SECONDS = 20.0
"""Far more than every limit of the server under test, on a busy machine too."""


@dataclass(frozen=True)
class Outcome:
    """The status of the answer (None: the connection just ended), or that nothing came in time."""

    status: int | None = None
    hung: bool = False


def _complete(case: Case, data: bytes) -> bool:
    answer_head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    if answer_head.startswith(b"HTTP/1.1 100"):
        return _complete(case, body)
    if length := re.search(rb"content-length: (\d+)", answer_head.lower()):
        return case.pieces[0].startswith(b"HEAD ") or len(body) >= int(length[1])
    return body.endswith(b"0\r\n\r\n")


def _status(data: bytes) -> int | None:
    if b"internal_error" in data:
        # A stream has said 200 before it breaks.
        return 500
    statuses = [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3}) ", data, re.MULTILINE)]
    return next((status for status in statuses if status != 100), None)


async def ask(port: int, case: Case) -> Outcome:
    """Send a case and read its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            with suppress(ConnectionError):
                for piece in case.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(case.pause)
                while (
                    not case.disconnects and not _complete(case, data) and (more := await reader.read(65536))
                ):
                    data += more
    except TimeoutError:
        return Outcome(_status(data), hung=True)
    finally:
        writer.close()
    return Outcome(_status(data))


# The server


@dataclass(frozen=True)
class Running:
    """A running gateway and its port."""

    gateway: Gateway
    port: int

    def left_over(self) -> dict[str, int]:
        """Return what it still holds without any request, once it had time to clean up."""
        for _ in range(60):
            scheduler = self.gateway.local.scheduler
            held = {
                "requests": self.gateway.in_flight,
                "slots": sum(sum(slots.running.values()) for slots in scheduler.engine_slots()),
                "queued": sum(scheduler.depth(name) for name in PRIORITY_CLASSES),
                "lost slots": self.gateway.local.lost_leases,
            }
            if not any(held.values()):
                break
            time.sleep(0.1)
        return {name: number for name, number in held.items() if number}


@contextmanager
def running_gateway(folder: Path, path: Path | None = None) -> Iterator[Running]:
    """Run the gateway in a thread, with limits of fractions of a second, on loopback or a Unix socket."""
    ready: list[Running] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        fake = web.AppRunner(
            FakeEngine(
                Behaviour((MODEL,), concurrency=4, prompt_seconds=0.01, seconds_per_token=0.002)
            ).application()
        )
        await fake.setup()
        site = web.TCPSite(fake, "127.0.0.1", 0)
        await site.start()
        engine = Engine(
            name="one",
            kind="ollama",
            url=f"http://127.0.0.1:{fake.addresses[0][1]}",
            models=(EngineModel(name=MODEL, slots=4, context=4096),),
        )
        listener = Listener(address="127.0.0.1", port=0)
        configured = Settings(
            api=listener,
            metrics=listener,
            engines=(engine,),
            max_body_bytes=MAX_BODY,
            keys_file=folder / "keys.json",
            state_dir=folder,
        )
        secret = Secret(sha256=hashlib.sha256(KEY.encode()).hexdigest())
        gateway = Gateway(configured, Keys((Key(alias="malformed", secrets=(secret,)),)))
        listening = listen_unix(path) if path else listen("127.0.0.1", 0, LIMITS)
        http_server = HttpServer("api", gateway, listening, LIMITS)
        await gateway.start()
        gateway.local.open_usage_log()
        await http_server.open()
        ready.append(Running(gateway, 0 if path else listening.getsockname()[1]))
        started.set()
        await stop.wait()
        http_server.drain()
        await http_server.close()
        await gateway.stop()
        await fake.cleanup()

    stop = asyncio.Event()
    tick, server.TICK_SECONDS = server.TICK_SECONDS, 0.1
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    try:
        if not started.wait(30):
            raise RuntimeError("the gateway did not start")
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        server.TICK_SECONDS = tick


def examine(
    folder: Path, requests: int, through: Callable[[Path], AbstractContextManager[int]] | None = None
) -> dict[str, Counter[int | None]]:
    """Send that many requests; return the statuses of the answers by kind. Raises AssertionError.

    `through` runs a proxy before the gateway's Unix socket, and yields its port on loopback.
    """
    seen: dict[str, Counter[int | None]] = {}
    fine = Case("fine", (whole(CHAT, json.dumps(MINIMAL[CHAT]).encode()),))
    path = folder / "http.sock" if through else None
    with (
        running_gateway(folder, path) as running,
        through(path) if through and path else nullcontext(running.port) as port,
    ):

        async def send(batch: list[Case]) -> list[Outcome]:
            return await asyncio.gather(*(ask(port, case) for case in batch))

        @settings(
            max_examples=requests // BATCH,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
        )
        @given(st.lists(cases, min_size=BATCH, max_size=BATCH))
        def batch_is_survived(batch: list[Case]) -> None:
            for case, outcome in zip(batch, asyncio.run(send(batch)), strict=True):
                assert not outcome.hung, case
                assert outcome.status is None or outcome.status < 500, case
                seen.setdefault(case.kind, Counter())[outcome.status] += 1
            assert running.left_over() == {}
            assert asyncio.run(ask(port, fine)).status == 200

        batch_is_survived()
    return seen


def test_no_request_breaks_the_gateway(tmp_path: Path) -> None:
    seen = examine(tmp_path, 200)
    # The random requests reached the app, not only the server.
    assert seen["JSON with odd fields"][200]
    assert seen["JSON with odd fields"][400]
    assert seen["right ones between"][200]
