"""How gunicorn runs the dashboard; flags win over these settings.

    gunicorn -c python:bedplate_dashboard.gunicorn_conf --bind ADDRESS:3001 bedplate_dashboard.wsgi:app

One process with threads, since the poller's last look lives in it. It writes nowhere but in /dev/shm.
"""

from __future__ import annotations

from . import settings

try:
    # A wrong setting must end gunicorn here, before systemd is told that we are ready.
    settings.load()
    settings.load_key()
except settings.SettingsError as error:
    raise SystemExit(f"bedplate-dashboard: {error}") from error

bind = "127.0.0.1:3001"
worker_class = "gthread"
workers = 1
threads = 16
preload_app = False  # the poller's thread must start in the worker: threads do not survive a fork
worker_tmp_dir = "/dev/shm"  # noqa: S108 - gunicorn unlinks its heartbeat file at once; it must lie in memory
control_socket_disable = True  # it would lie in a home directory
keepalive = 15  # seconds, longer than the page's two between its questions
graceful_timeout = 5
