"""Messages to systemd (sd_notify), and the listening sockets that systemd stores (FDSTORE)."""

import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress

FIRST_FD = 3
ALIVE_SECONDS = 5.0
"""How often systemd hears that the process lives; WatchdogSec must be longer. Not derived from WATCHDOG_USEC:
the command of a reload does not get that, and its process serves on."""


def notify(message: str, sockets: Iterable[socket.socket] = (), *, wait: bool = True) -> None:
    """Send one message, with copies of sockets, to systemd; does nothing where NOTIFY_SOCKET is unset.

    Raises OSError where systemd has no room for the message and the caller does not `wait`.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # A name with @ is in the abstract namespace, which the kernel marks with a zero byte.
    address = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(wait)
        channel.connect(address)
        socket.send_fds(channel, [message.encode()], [each.fileno() for each in sockets])


class Watchdog:
    """Tells systemd's watchdog that the process lives; systemd ends a process that it does not hear of."""

    def __init__(self) -> None:
        self._told = float("-inf")

    def alive(self) -> None:
        """Send the message where it is due; never waits, even where systemd reads nothing."""
        if (now := time.monotonic()) - self._told >= ALIVE_SECONDS:
            self._told = now
            with suppress(OSError):
                notify("WATCHDOG=1", wait=False)


def store_socket(name: str, listener: socket.socket) -> None:
    """Have systemd keep a listening socket until the service stops: a restart then refuses no connection."""
    notify(f"FDSTORE=1\nFDNAME={name}", [listener])


def stored_sockets() -> list[tuple[str, socket.socket]]:
    """Return the sockets that systemd kept from an earlier process, with their names; the first call only."""
    environment = os.environ
    if environment.pop("LISTEN_PID", None) != str(os.getpid()):
        return []
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    stored = []
    for number, name in zip(range(int(environment.pop("LISTEN_FDS", "0"))), names, strict=False):
        os.set_inheritable(FIRST_FD + number, False)
        stored.append((name, socket.socket(fileno=FIRST_FD + number)))
    return stored
