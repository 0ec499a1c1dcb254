"""gunicorn's settings, for `gunicorn -c python:bedplate_exporter.gunicorn_conf`; its flags win over them."""

import sys

from bedplate_exporter import settings

try:
    # Checked here too: found by a worker, a bad setting is a traceback in the journal and not one line.
    settings.ollama_url()
    settings.expected_gpus()
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
