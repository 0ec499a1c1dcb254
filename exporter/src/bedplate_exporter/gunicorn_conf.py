"""gunicorn's settings, for `gunicorn -c python:bedplate_exporter.gunicorn_conf`; its flags override them."""

import sys

from bedplate_exporter import settings

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
