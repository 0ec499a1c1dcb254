"""The WSGI application for gunicorn; `gunicorn_conf` starts its poller in the worker."""

from __future__ import annotations

import logging

from . import settings
from .poller import Poller
from .web import create_app

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request

try:
    poller = Poller(settings.load(), settings.load_key())
except settings.SettingsError as error:
    raise SystemExit(f"bedplate-dashboard: {error}") from error

app = create_app(poller)
