"""gunicorn's settings for the dashboard; command-line flags override them.

    gunicorn -c python:bedplate_dashboard.gunicorn_conf --bind unix:SOCKET bedplate_dashboard.wsgi:app

One process, since it holds the poller's last poll, with a thread for each event stream. Waiting threads
cost little (docs/results/dashboard.md has the numbers). gunicorn writes to /dev/shm only.
"""

from typing import Any

from bedplate_dashboard import settings
from bedplate_dashboard.web import assets
from bedplate_dashboard.web.events import MAX_STREAMS

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


def post_worker_init(worker: Any) -> None:
    """End the event streams when the worker stops: each would keep it alive."""
    worker.wsgi.extensions["events"].stop_when(lambda: not worker.alive)
