"""gunicorn's settings, for `gunicorn -c python:bedplate_exporter.gunicorn_conf`; its flags override them."""

import math
import sys
import time
from typing import Any

from gunicorn.systemd import sd_notify

from bedplate_exporter import settings

ALIVE_SECONDS = 5.0
"""How often systemd hears that requests are answered; WatchdogSec must be longer."""

try:
    # Checked before a worker starts: there an invalid setting would be a traceback instead of one line.
    settings.read_ollama_url()
    settings.read_expected_gpus()
except settings.SettingsError as error:
    sys.exit(f"bedplate-exporter: {error}")

bind = "127.0.0.1:9101"
workers = 1
worker_class = "gthread"
# Prometheus, the dashboard and a few people at the same time, also while an engine hangs.
threads = 8
graceful_timeout = 5
# The control socket would be created in a home directory, which the service lacks.
control_socket_disable = True


class Watchdog:
    """Tells systemd that the worker's loop runs and that one of its threads was free."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._beat = worker.notify
        self._due = 0.0

    def notify(self) -> None:
        """Stand in for the worker's `notify`, which its loop calls every second."""
        self._beat()
        if time.monotonic() >= self._due:
            self._due = math.inf
            self._worker.tpool.submit(self._tell)

    def _tell(self) -> None:
        sd_notify("WATCHDOG=1", self._worker.log)
        self._due = time.monotonic() + ALIVE_SECONDS


def post_worker_init(worker: Any) -> None:
    """Let the worker's loop feed the watchdog."""
    worker.notify = Watchdog(worker).notify
