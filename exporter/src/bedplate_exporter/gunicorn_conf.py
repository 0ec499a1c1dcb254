"""gunicorn's settings, for `gunicorn -c python:bedplate_exporter.gunicorn_conf`; its flags win over them."""

import sys

from bedplate_exporter import settings

try:
    # A bad setting must end gunicorn here: found in a worker, it would be started over and over.
    settings.ollama_url()
except settings.SettingsError as error:
    sys.exit(f"bedplate-exporter: {error}")

bind = "127.0.0.1:9101"
workers = 1
worker_class = "gthread"
# Prometheus, the dashboard and a few curious people at once; one thread more for each engine that hangs.
threads = 8
graceful_timeout = 5
# The control socket would lie in a home directory, which the service has not.
control_socket_disable = True
