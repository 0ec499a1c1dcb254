"""The one setting, from the environment."""

import os
from urllib.parse import urlsplit

OLLAMA_URL_VARIABLE = "BEDPLATE_OLLAMA_URL"


class SettingsError(Exception):
    """A setting cannot be used; the message is one sentence that names it and the remedy."""


def ollama_url() -> str:
    """Return the engine's base URL without a slash at its end; raises SettingsError when it is none."""
    url = os.environ.get(OLLAMA_URL_VARIABLE, "http://127.0.0.1:11434")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise SettingsError(f"{OLLAMA_URL_VARIABLE} is {url!r}: give http://HOST:PORT and nothing after it.")
    return url.rstrip("/")
