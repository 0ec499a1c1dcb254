"""How gunicorn runs the dashboard; only the address is left to the command line.

    gunicorn -c python:bedplate_dashboard.gunicorn_conf --bind ADDRESS:3001 bedplate_dashboard.wsgi:app

One process with threads, since the poller's last look lives in it. It writes nowhere but in /dev/shm.
"""

from __future__ import annotations

worker_class = "gthread"
workers = 1
threads = 16
preload_app = True  # a wrong setting then ends the start before systemd is told that we are ready
worker_tmp_dir = "/dev/shm"  # noqa: S108 - the heartbeat file must lie in memory; gunicorn unlinks it at once
control_socket_disable = True  # it would be made in the home directory
keepalive = 15
timeout = 30
graceful_timeout = 5
accesslog = None


def post_worker_init(worker: object) -> None:
    """Start the poller in the process that answers requests: threads do not survive the fork."""
    from .wsgi import poller  # noqa: PLC0415 - not before the worker has loaded the application

    del worker
    poller.start()
