"""Starts the LiteLLM proxy for systemd: `start.py PORT CONFIG`.

- LiteLLM reads its master key and the providers' keys from the environment. They are put there after the
  start, from the unit's credentials, so neither the command line nor /proc/PID/environ shows them.
- systemd is notified after LiteLLM has answered one request of each kind. The first of each kind loads
  modules, which takes up to 3 s. Afterwards the watchdog is notified as long as LiteLLM answers.
- On Python 3.11 garbage is collected at chosen times: https://github.com/python/cpython/issues/148891.
"""

import contextlib
import gc
import http.client
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

WATCHDOG_SECONDS = 2.0
GARBAGE_SECONDS = 5.0
FIXED_PYTHON = (3, 12)
MESSAGES = [{"role": "user", "content": "warm-up"}]
WARM_UP: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
    ("/v1/completions", {"prompt": "warm-up"}),
    ("/v1/embeddings", {"input": "warm-up"}),
    ("/v1/responses", {"input": "warm-up"}),
]


def master_key() -> str:
    """Return the master key. Without one, LiteLLM would accept every request."""
    key = Path(os.environ["CREDENTIALS_DIRECTORY"], "master-key").read_text().strip()
    if not key.startswith("sk-"):
        sys.exit("/etc/bedplate/litellm/master-key contains no key: ansible-playbook site.yml --tags litellm")
    return key


def read_environment() -> dict[str, str]:
    """Return the providers' keys by their names, as litellm_environment has them."""
    path = Path(os.environ["CREDENTIALS_DIRECTORY"], "environment.json")
    try:
        document: dict[str, object] = json.loads(path.read_text())
        return {name: str(value) for name, value in document.items()}
    except (ValueError, AttributeError):
        sys.exit(
            "/etc/bedplate/litellm/environment.json is not valid: ansible-playbook site.yml --tags litellm"
        )


def refuse_taken_port(port: int) -> None:
    """Exit if the port is in use: instead of port 4000, LiteLLM would take a random one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            sys.exit(
                f"127.0.0.1:{port} cannot be used ({error.strerror}): set litellm_listen_port to a free port."
            )


def status(port: int, path: str, key: str = "", body: dict[str, Any] | None = None) -> int:
    """Send one request to LiteLLM and return the HTTP status, or 0 if nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except ConnectionRefusedError:
        return 0
    finally:
        connection.close()


def warm_up(port: int, key: str) -> None:
    """Wait until LiteLLM listens, then send one request of each kind. No engine gets a request."""
    while status(port, "/health/liveliness") != 200:
        time.sleep(0.1)
    for path, body in WARM_UP:
        code = status(port, path, key, {"model": "warm-up", **body})
        if code != 200:
            raise RuntimeError(f"LiteLLM answered {code} at {path}")


def collect_garbage_between_steps() -> None:
    """Collect garbage regularly in the main thread, instead of whenever an object is made.

    Before Python 3.12 a collection in the middle of ContextVar.set crashes the process if it ends a coroutine
    that sets one too. Python calls a signal's handler only between two of its own steps.
    """
    gc.disable()
    signal.signal(signal.SIGALRM, lambda *_: gc.collect())
    signal.setitimer(signal.ITIMER_REAL, GARBAGE_SECONDS, GARBAGE_SECONDS)


def notify(message: bytes) -> None:
    """Send a message to systemd; see sd_notify(3)."""
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(message, "\0" + address[1:] if address.startswith("@") else address)


def report_state(port: int, key: str) -> None:
    """Warm LiteLLM up and notify systemd, then its watchdog; if the warm-up fails, end the process."""
    try:
        warm_up(port, key)
    except Exception as error:
        print(f"warm-up failed: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    else:
        # What exists now stays, so collections may leave it out; with it each takes a second.
        gc.freeze()
        notify(b"READY=1")
        notify_watchdog(port)


def notify_watchdog(port: int) -> None:
    """Notify systemd's watchdog for as long as LiteLLM answers."""
    while True:
        time.sleep(WATCHDOG_SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException):
            if status(port, "/health/liveliness") == 200:
                notify(b"WATCHDOG=1")


def main() -> None:
    """Run the `litellm` command of this interpreter's virtual environment."""
    port, config = int(sys.argv[1]), sys.argv[2]
    os.environ.update(read_environment())
    key = os.environ["LITELLM_MASTER_KEY"] = master_key()
    refuse_taken_port(port)
    if sys.version_info < FIXED_PYTHON:
        collect_garbage_between_steps()
    threading.Thread(target=report_state, args=(port, key), daemon=True).start()
    sys.argv = ["litellm", "--config", config, "--host", "127.0.0.1", "--port", str(port)]
    runpy.run_path(str(Path(sys.executable).with_name("litellm")), run_name="__main__")


if __name__ == "__main__":
    main()
