"""The WSGI application for gunicorn: `bedplate_dashboard.wsgi:app`.

Importing this module starts the poller, so gunicorn must import it in the worker (its default, no preload).
"""

import logging

from bedplate_dashboard import settings
from bedplate_dashboard.health.poller import Poller
from bedplate_dashboard.web.app import create_app

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request

_settings = settings.load()
_secrets = settings.load_secrets()
_poller = Poller(_settings, _secrets)
app = create_app(_poller)
_poller.start()
