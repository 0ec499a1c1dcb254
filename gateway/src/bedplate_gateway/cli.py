"""The command `bedplate-gateway`: checks its files, serves, or takes over from the running process."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Never

import uvloop

from bedplate_gateway import background, log_writer
from bedplate_gateway.app import Gateway
from bedplate_gateway.http.server import HttpServer, StartError, is_reachable, listen, listen_unix
from bedplate_gateway.keys import Keys, read_keys
from bedplate_gateway.reload.handover import InheritedSockets, Offer, Predecessor, connect, take_over
from bedplate_gateway.reload.sd_notify import Watchdog, notify, store_socket, stored_sockets
from bedplate_gateway.settings import Listener, Settings, SettingsError, UnixListener, read_settings

log = logging.getLogger(__name__)

STORED = "api"
"""The listener that systemd keeps while no process runs, so that clients wait.

The unit's address filter (IPAddressAllow) stays with a socket as it was when the socket was made. A restart
with another filter therefore needs a new socket for the metrics, which the filter protects.
"""

EXIT_CONFIGURATION = 78
"""sysexits' EX_CONFIG: a restart does not help until somebody corrects the files."""
SETTINGS = Path("/etc/bedplate/bedplate-gateway/gateway.json")
START_SECONDS = 90.0
"""How long the new process of a reload may take to start; less than systemd waits for the command."""
REACHABLE_SECONDS = 5.0
"""How often the file of the API's Unix socket is looked at."""


def main() -> None:
    """Run the command; exits 78 with one sentence when settings or keys are unusable."""
    parser = argparse.ArgumentParser(prog="bedplate-gateway", description="The OpenAI-compatible gateway.")
    parser.add_argument("settings", type=Path, nargs="?", default=SETTINGS, help=f"default: {SETTINGS}")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only check settings and keys")
    mode.add_argument("--replace", action="store_true", help="take over from the running process")
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments.settings)
        keys = read_keys(settings.keys_file)
        if arguments.check:
            return
        if arguments.replace:
            sys.exit(_replace(settings, keys))
        uvloop.run(serve(settings, keys, _open_listeners(settings)))
    except (SettingsError, StartError) as error:
        sys.stderr.write(f"bedplate-gateway: {error}\n")
        sys.exit(EXIT_CONFIGURATION if isinstance(error, SettingsError) else 1)


def _unbound(settings: Settings, listeners: dict[str, socket.socket]) -> dict[str, Listener | UnixListener]:
    """Return the settings of the listeners, by name, that have no socket at their address yet."""
    return {
        name: listener
        for name, listener in {"api": settings.api, "metrics": settings.metrics}.items()
        if name not in listeners or not _is_bound_to(listeners[name], listener)
    }


def _is_bound_to(listening: socket.socket, listener: Listener | UnixListener) -> bool:
    name = listening.getsockname()
    if isinstance(listener, UnixListener):
        return bool(name == str(listener.path)) and is_reachable(listener.path)
    return bool(name == socket.getaddrinfo(listener.address, listener.port, type=socket.SOCK_STREAM)[0][4])


def _listen(listener: Listener | UnixListener) -> socket.socket:
    if isinstance(listener, UnixListener):
        return listen_unix(listener.path)
    return listen(listener.address, listener.port)


def _open_listeners(settings: Settings) -> dict[str, socket.socket]:
    """Return the listening sockets: the one that systemd stored, and new ones for other addresses."""
    sockets = {}
    for name, stored in stored_sockets():
        if name == STORED:
            sockets[name] = stored
        else:
            # A release before 2026-11-28 stored the metrics' socket, too.
            _free_port(stored)
    for name, listener in _unbound(settings, sockets).items():
        if name in sockets:
            _free_port(sockets[name])
        sockets[name] = _listen(listener)
        if name == STORED:
            store_socket(name, sockets[name])
    return sockets


def _free_port(listener: socket.socket) -> None:
    # It frees the port at once, whoever has copies of the socket, and systemd drops its own.
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def _replace(settings: Settings, keys: Keys) -> int:
    """Start a process that takes over from the running one; return the exit status of the reload command.

    It forks twice, so that the new process is a child of systemd, which would ignore a child of the command.
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
        _take_over(settings, keys, connect(settings.state_dir), lambda: report(0))
    except StartError as error:
        sys.stderr.write(f"bedplate-gateway: {error}\n")
        report(1)
        return 1
    return 0


def _take_over(
    settings: Settings, keys: Keys, inherited: InheritedSockets, on_ready: Callable[[], None]
) -> None:
    """Serve in place of the process that hands over; move listeners to new addresses."""
    old = inherited.listeners
    moved = {name: _listen_next_to(old[name], listener) for name, listener in _unbound(settings, old).items()}
    listeners = old | moved

    def store_and_report() -> None:
        for name in moved:
            _free_port(old[name])
        store_socket(STORED, listeners[STORED])
        on_ready()

    uvloop.run(serve(settings, keys, listeners, inherited, store_and_report))


def _listen_next_to(old: socket.socket, listener: Listener | UnixListener) -> socket.socket:
    """Return a new listening socket while the old one is open; one for all addresses excludes others."""
    try:
        return _listen(listener)
    except StartError as error:
        raise StartError(
            f"A reload cannot move the socket while the running process listens on {old.getsockname()}: "
            f"systemctl restart bedplate-gateway. {error}"
        ) from None


async def serve(
    settings: Settings,
    keys: Keys,
    listeners: dict[str, socket.socket],
    inherited: InheritedSockets | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM, or until another process has taken over and the last request here has ended."""
    writer = log_writer.install()
    gateway = Gateway(settings, keys)
    gateway.metrics.dropped_log_lines = lambda: writer.dropped
    servers = [
        HttpServer("api", gateway, listeners["api"]),
        HttpServer("metrics", gateway.metrics_app, listeners["metrics"]),
    ]
    predecessor: Predecessor | None = None
    try:
        async with asyncio.timeout(START_SECONDS if inherited else None):
            await gateway.start()
            if inherited is None:
                gateway.local.open_usage_log()
            else:
                predecessor = await take_over(inherited.channel, gateway)
    except TimeoutError:
        raise StartError(
            f"The start took more than {START_SECONDS:.0f} s: check the engines with: make health"
        ) from None
    # Before this a signal ends the process at once, which is correct.
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    for server in servers:
        await server.open()
    offer = Offer(settings.state_dir, gateway, servers)
    await offer.open()
    notify("READY=1")
    gateway.on_pass = Watchdog().alive
    on_ready()

    keeping = None
    if isinstance(settings.api, UnixListener):
        keeping = background.start("socket", _keep_reachable(servers[0], settings.api.path))
    await _wait_first(stop.wait(), offer.taken.wait())
    if keeping is not None:
        keeping.cancel()
    if offer.taken.is_set():
        # systemd listens to the new process only.
        gateway.on_pass = lambda: None
        # Nobody waits for this process to end: requests may take their time, and so may their cleanup.
        await _wait_first(stop.wait(), _wait_drained(servers, predecessor, with_tasks=True))
    else:
        for server in servers:
            server.drain()
    await _wait_first(
        asyncio.sleep(settings.drain_seconds), _wait_drained(servers, predecessor, with_tasks=False)
    )
    for server in servers:
        await server.close()
    await gateway.stop()


async def _keep_reachable(server: HttpServer, path: Path) -> Never:
    """Make a socket again whose file somebody removed or replaced: no client could connect any more."""
    while True:
        await asyncio.sleep(REACHABLE_SECONDS)
        if not server.draining and not is_reachable(path):
            log.warning("No client could connect to %s, which is made again: find out who removed it.", path)
            await server.move_to(listen_unix(path))
            store_socket(STORED, server.listener)


async def _wait_first(*waits: Coroutine[None, None, object]) -> None:
    """Return when the first of them does; cancel the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _wait_drained(
    servers: list[HttpServer], predecessor: Predecessor | None, *, with_tasks: bool
) -> None:
    """Return when no client and no predecessor, which uses this process's admission, needs it any more."""
    for server in servers:
        await server.wait_drained(with_tasks=with_tasks)
    if predecessor is not None and predecessor.listening is not None:
        await asyncio.wait([predecessor.listening])
