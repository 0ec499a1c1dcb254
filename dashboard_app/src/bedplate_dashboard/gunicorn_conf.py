"""How gunicorn runs the dashboard; flags win over these settings.

    gunicorn -c python:bedplate_dashboard.gunicorn_conf --bind ADDRESS:3001 bedplate_dashboard.wsgi:app

One process, since the poller's last look lives in it, with a thread for each browser that gets events.
Waiting threads cost little (docs/results/dashboard.md has the numbers). It writes nowhere but in /dev/shm.
"""

from __future__ import annotations

from typing import Any

from . import assets, settings
from .events import MOST_STREAMS

try:
    # A wrong setting must end gunicorn here, before systemd is told that we are ready.
    settings.load_secrets(settings.load())
    assets.load()
except (settings.SettingsError, assets.AssetError) as error:
    raise SystemExit(f"bedplate-dashboard: {error}") from error

bind = "127.0.0.1:3001"
worker_class = "gthread"
workers = 1
threads = MOST_STREAMS + 30
worker_connections = threads + 100  # those beyond the threads wait for their turn
limit_request_line = 1024
limit_request_fields = 50
preload_app = False  # the poller's thread must start in the worker: threads do not survive a fork
worker_tmp_dir = "/dev/shm"  # noqa: S108 - gunicorn unlinks its heartbeat file at once; it must lie in memory
control_socket_disable = True  # it would lie in a home directory
keepalive = 15  # seconds, longer than the page's two between its questions
graceful_timeout = 5


def post_worker_init(worker: Any) -> None:
    """Let streams end when the worker is told to: else each would keep it alive."""
    worker.wsgi.extensions["events"].stop_when(lambda: not worker.alive)
