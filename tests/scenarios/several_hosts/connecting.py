"""Connections between the scenario's hosts; `localhost` is the control machine."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.support.hosts import run_script

TIMEOUT_SECONDS = 3


def connects(client: str, address: str, port: int) -> bool:
    """Return whether a host, or this machine as `localhost`, can connect to a port."""
    if client != "localhost":
        attempt = f"timeout {TIMEOUT_SECONDS} bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null"
        return run_script(client, f"if {attempt}; then echo open; fi") == "open\n"
    try:
        socket.create_connection((address, port), timeout=TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True


def connecting(attempts: Iterable[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    """Return which of these clients, addresses and ports can connect, several tried at once."""
    wanted = list(attempts)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda attempt: connects(*attempt), wanted))
    return {attempt for attempt, answer in zip(wanted, answers, strict=True) if answer}
