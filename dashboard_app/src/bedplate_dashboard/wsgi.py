"""The WSGI application for gunicorn: `bedplate_dashboard.wsgi:app`.

Loading this module starts the poller, so it belongs in the worker (gunicorn's default, without preload).
"""

from __future__ import annotations

import logging

from . import settings
from .poller import Poller
from .web import create_app

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request

_settings = settings.load()
_secrets = settings.load_secrets(_settings)
_poller = Poller(_settings, _secrets)
app = create_app(_poller, _secrets)
_poller.start()
