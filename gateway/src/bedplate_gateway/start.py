"""The command `bedplate-gateway`: checks its files, serves, takes over from a running process at a reload."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

import uvloop

from bedplate_gateway.app import Gateway
from bedplate_gateway.handover import Inheritance, Offer, Predecessor, fetch, take
from bedplate_gateway.keys import Keys, read_keys
from bedplate_gateway.notify import keep, kept_sockets, notify
from bedplate_gateway.server import ClientLimits, Door, StartError, is_at, listen
from bedplate_gateway.settings import Listener, Settings, SettingsError, read_settings

log = logging.getLogger(__name__)

EXIT_CONFIGURATION = 78
"""sysexits' EX_CONFIG: what is wrong stays wrong until somebody mends it."""
SETTINGS = Path("/etc/bedplate/bedplate-gateway/gateway.json")
START_SECONDS = 90.0
"""How long a reload's new process may take to start; less than systemd waits for the command."""


def main() -> None:
    """Run the command; exits 78 with one sentence when settings or keys cannot be used."""
    parser = argparse.ArgumentParser(prog="bedplate-gateway", description="The OpenAI-compatible gateway.")
    parser.add_argument("settings", type=Path, nargs="?", default=SETTINGS, help=f"default: {SETTINGS}")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="only say whether settings and keys are right")
    only.add_argument("--replace", action="store_true", help="serve in place of the process that runs now")
    only.add_argument(
        "--predecessor",
        type=Path,
        metavar="DIR",
        help="serve in place of another unit's process with this state",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = read_settings(arguments.settings)
        keys = read_keys(settings.keys_file)
        if arguments.check:
            return
        if arguments.replace:
            sys.exit(_replace(settings, keys))
        if arguments.predecessor and (offered := _offered(arguments.predecessor)):
            _succeed(settings, keys, offered)
        else:
            uvloop.run(serve(settings, keys, _kept_or_new(settings)))
    except (SettingsError, StartError) as error:
        sys.stderr.write(f"bedplate-gateway: {error}\n")
        sys.exit(EXIT_CONFIGURATION if isinstance(error, SettingsError) else 1)


def _elsewhere(settings: Settings, listeners: dict[str, socket.socket]) -> dict[str, Listener]:
    """Return the places of the settings, by the names of the doors, where no listening socket is yet."""
    return {
        name: place
        for name, place in {"api": settings.api, "metrics": settings.metrics}.items()
        if name not in listeners or not is_at(listeners[name], place.address, place.port)
    }


def _kept_or_new(settings: Settings) -> dict[str, socket.socket]:
    """Return the listening sockets: those that systemd kept, new ones where there is none at the place."""
    listeners = dict(kept_sockets())
    for name, place in _elsewhere(settings, listeners).items():
        if name in listeners:
            _give_up(listeners[name])
        listeners[name] = listen(place.address, place.port)
        keep(name, listeners[name])
    return listeners


def _give_up(listener: socket.socket) -> None:
    # It frees the port at once, whoever has copies of the socket, and systemd forgets its own.
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _replace(settings: Settings, keys: Keys) -> int:
    """Start a process that takes over from the running one; return the exit status when it has, or cannot.

    It is forked twice, so that it is systemd's child and not this command's, whom systemd forgets.
    """
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        os.waitpid(child, 0)
        status = os.read(reader, 1)
        return status[0] if status else 1
    if os.fork():
        os._exit(0)
    os.close(reader)

    def report(status: int) -> None:
        os.write(writer, bytes([status]))
        os.close(writer)

    try:
        _succeed(settings, keys, fetch(settings.state_dir), lambda: report(0))
    except StartError as error:
        sys.stderr.write(f"bedplate-gateway: {error}\n")
        report(1)
        return 1
    return 0


def _offered(state_dir: Path) -> Inheritance | None:
    """Return what a process of another unit hands over, None where none runs."""
    try:
        return fetch(state_dir)
    except StartError as error:
        log.info("Starting afresh: %s", error)
        return None


def _succeed(
    settings: Settings, keys: Keys, inheritance: Inheritance, when_up: Callable[[], None] = lambda: None
) -> None:
    """Serve in place of the process that hands over, and move its ports where the settings have others."""
    old = inheritance.listeners
    moved = {name: _beside(old[name], place) for name, place in _elsewhere(settings, old).items()}
    listeners = old | moved

    def keep_and_report() -> None:
        for name in moved:
            _give_up(old[name])
        for name, listener in listeners.items():
            keep(name, listener)
        when_up()

    uvloop.run(serve(settings, keys, listeners, inheritance, keep_and_report))


def _beside(old: socket.socket, place: Listener) -> socket.socket:
    """Return a new listening socket while the old one is there; one for all addresses excludes others."""
    try:
        return listen(place.address, place.port)
    except StartError:
        raise StartError(
            f"{place.address} port {place.port} cannot be had beside {old.getsockname()[0]}, "
            "where the running process listens: systemctl restart bedplate-gateway"
        ) from None


async def serve(
    settings: Settings,
    keys: Keys,
    listeners: dict[str, socket.socket],
    inheritance: Inheritance | None = None,
    when_up: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM, or until another process has taken over and the last request here has ended."""
    gateway = Gateway(settings, keys)
    doors = [
        Door("api", gateway, listeners["api"]),
        # Prometheus asks again by itself where its idle connection has ended; a restart need not wait for it.
        Door("metrics", gateway.metrics_app, listeners["metrics"], ClientLimits(leaving=0)),
    ]
    predecessor: Predecessor | None = None
    try:
        async with asyncio.timeout(START_SECONDS if inheritance else None):
            await gateway.start()
            if inheritance is None:
                gateway.local.open_ledger()
            else:
                # Nobody waits for this process yet.
                await gateway.translator_loaded()
                predecessor = await take(inheritance, gateway, doors)
    except TimeoutError:
        raise StartError(f"The start took more than {START_SECONDS:.0f} s: look at the engines.") from None
    # Before this a signal ends the process at once, as it should.
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    for door in doors:
        await door.open()
    offer = Offer(settings.state_dir, gateway, doors)
    await offer.open()
    notify("READY=1")
    when_up()

    await _first(stop.wait(), offer.taken.wait())
    if offer.taken.is_set():
        # Nobody waits for this process's end: requests may take their time, and so may what tidies up after.
        await _first(stop.wait(), _all_over(doors, predecessor, of_tasks=True))
    else:
        for door in doors:
            door.leave()
    await _first(asyncio.sleep(settings.drain_seconds), _all_over(doors, predecessor, of_tasks=False))
    for door in doors:
        await door.close()
    await gateway.stop()


async def _first(*waits: Coroutine[None, None, object]) -> None:
    """Return when the first of them does."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _all_over(doors: list[Door], predecessor: Predecessor | None, *, of_tasks: bool) -> None:
    """Return when nobody needs this process any more; an old process may still ask its admission."""
    for door in doors:
        await door.empty(of_tasks=of_tasks)
    if predecessor is not None and predecessor.listening is not None:
        await asyncio.wait([predecessor.listening])
