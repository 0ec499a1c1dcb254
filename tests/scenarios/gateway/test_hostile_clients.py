"""Hostile clients, with a key and without, take neither the gateway's memory nor an honest key's answers."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx

from tests.support.stack import Stack

ATTACK_SECONDS = float(os.environ.get("ATTACK_SECONDS", "20"))
"""`make test-all` attacks for ten minutes."""
MEMORY_BYTES = 512 * 1024 * 1024
HOSTILE, HONEST = "batch", "interactive"


class Attack:
    """Threads that each do one hostile thing over and over."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._over = threading.Event()
        self.outcomes: Counter[str] = Counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Attack for the duration of the block."""
        kinds = [self.endless_trailers, self.half_headers, self.silence, self.large_text, self.many_values]
        threads = [threading.Thread(target=self._repeat, args=(kind,)) for kind in kinds + [self.chat] * 20]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _repeat(self, kind: Callable[[], str]) -> None:
        while not self._over.is_set():
            try:
                outcome = kind()
            except (OSError, httpx.HTTPError) as error:
                outcome = type(error).__name__
            self.outcomes[f"{kind.__name__} {outcome}"] += 1

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self._stack.address, 8000), timeout=20)
        return self._stack.trusted().wrap_socket(plain, server_hostname=self._stack.address)

    def endless_trailers(self) -> str:
        """Send trailers until the connection ends."""
        start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        with self._connect() as client, suppress(OSError):
            client.sendall(start)
            for _ in range(10_000):
                client.sendall(b"a: " + b"b" * 1000 + b"\r\n")
            return "was never ended"
        return "ended"

    def _hold(self, data: bytes, seconds: float) -> str:
        clients = [self._connect() for _ in range(20)]
        for client in clients:
            if data:
                client.sendall(data)
        self._over.wait(seconds)
        for client in clients:
            client.close()
        return "held"

    def half_headers(self) -> str:
        """Keep connections open with a header that does not end."""
        return self._hold(b"GET /v1/models HTTP/1.1\r\nHost: x\r\na: " + b"b" * 20_000, 5)

    def silence(self) -> str:
        """Keep connections open and say nothing."""
        return self._hold(b"", 5)

    def _post(self, body: bytes) -> str:
        with self._stack.client(self._stack.key(HOSTILE)) as client:
            return str(client.post("/v1/chat/completions", content=body).status_code)

    def large_text(self) -> str:
        """Send a body as large as the settings allow."""
        content = "a" * 16_000_000
        return self._post(
            json.dumps(
                {"model": self._stack.model, "messages": [{"role": "user", "content": content}]}
            ).encode()
        )

    def many_values(self) -> str:
        """Send a body of many small values."""
        return self._post(b'{"model":"m","messages":[' + b'{"role":"user","content":""},' * 300_000 + b"{}]}")

    def chat(self) -> str:
        """Ask as often as possible."""
        with self._stack.client(self._stack.key(HOSTILE)) as client:
            return str(self._stack.chat(client).status_code)


def peak_bytes(stack: Stack) -> int:
    """Return the most memory that the gateway's main process has had."""
    status = stack(f"cat /proc/{stack.main_pid()}/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def test_hostile_clients_take_nothing_from_an_honest_key(stack: Stack) -> None:
    stack("systemctl restart bedplate-gateway")
    before = stack.main_pid()
    attack = Attack(stack)
    honest: Counter[int] = Counter()
    seconds = []
    until = time.monotonic() + ATTACK_SECONDS
    with attack.running(), stack.client(stack.key(HONEST)) as client:
        while time.monotonic() < until:
            began = time.monotonic()
            honest[stack.chat(client).status_code] += 1
            seconds.append(time.monotonic() - began)
    peak = peak_bytes(stack)
    print(
        f"\nhonest: {dict(honest)}, at most {max(seconds):.1f} s; the gateway's peak: {peak / 2**20:.0f} MiB"
    )
    print(f"hostile: {dict(sorted(attack.outcomes.items()))}")
    assert honest.keys() == {200}
    assert sum(honest.values()) > ATTACK_SECONDS / 4
    assert stack.main_pid() == before
    assert peak < MEMORY_BYTES
    # Each kind was tried, and refused where it must be.
    assert attack.outcomes["large_text 413"] > 0
    assert attack.outcomes["many_values 413"] + attack.outcomes["many_values 400"] > 0
    assert attack.outcomes["endless_trailers ended"] > 0
    assert attack.outcomes["endless_trailers was never ended"] == 0
