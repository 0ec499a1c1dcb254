"""gunicorn's settings for the dashboard; command-line flags override them.

    gunicorn -c python:bedplate_dashboard.gunicorn_conf --bind unix:SOCKET bedplate_dashboard.wsgi:app

One process, since it holds the poller's last poll, with a thread for each event stream. Waiting threads
cost little (docs/results/dashboard.md has the numbers). gunicorn writes to /dev/shm only.
"""

import math
import time
from pathlib import Path
from typing import Any

from gunicorn.systemd import sd_notify

from bedplate_dashboard import settings
from bedplate_dashboard.web import assets
from bedplate_dashboard.web.events import MAX_STREAMS

ALIVE_SECONDS = 5.0
"""How often systemd hears that the stack is polled and requests are answered; WatchdogSec must be longer."""

try:
    # An invalid setting must end gunicorn here, before it reports to systemd that it is ready.
    settings.load()
    settings.load_secrets()
    assets.load()
except (settings.SettingsError, assets.AssetError) as error:
    raise SystemExit(f"bedplate-dashboard: {error}") from error

bind = "127.0.0.1:3001"
worker_class = "gthread"
workers = 1
threads = MAX_STREAMS + 30
worker_connections = threads + 100  # connections beyond the threads wait for one
limit_request_line = 1024
limit_request_fields = 50
preload_app = False  # the poller's thread must start in the worker: threads do not survive a fork
worker_tmp_dir = "/dev/shm"  # noqa: S108 - gunicorn unlinks its heartbeat file at once; it must be in memory
control_socket_disable = True  # it would be created in a home directory
keepalive = 15  # seconds; the page polls every two
graceful_timeout = 5


class Watchdog:
    """Tells systemd that the poller made a pass, the worker's loop runs and one of its threads was free.

    It says nothing where somebody removed the file of the socket: only a restart makes it again.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._beat = worker.notify
        self._files = [Path(address) for address in worker.cfg.address if isinstance(address, str)]
        self._due = 0.0
        self._passes = 0

    def notify(self) -> None:
        """Stand in for the worker's `notify`, which its loop calls every second."""
        self._beat()
        passes = self._worker.wsgi.extensions["poller"].passes
        if time.monotonic() < self._due or passes <= self._passes:
            return
        if all(file.is_socket() for file in self._files):
            self._due = math.inf
            self._passes = passes
            self._worker.tpool.submit(self._tell)

    def _tell(self) -> None:
        sd_notify("WATCHDOG=1", self._worker.log)
        self._due = time.monotonic() + ALIVE_SECONDS


def post_worker_init(worker: Any) -> None:
    """Feed the watchdog, and end the event streams when the worker stops: each would keep it alive."""
    worker.notify = Watchdog(worker).notify
    worker.wsgi.extensions["events"].stop_when(lambda: not worker.alive)
