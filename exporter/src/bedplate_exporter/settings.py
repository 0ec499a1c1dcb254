"""The settings, read from the environment."""

import os
import re
from urllib.parse import urlsplit

OLLAMA_URL_VARIABLE = "BEDPLATE_OLLAMA_URL"
EXPECTED_GPUS_VARIABLE = "BEDPLATE_EXPECTED_GPUS"


class SettingsError(Exception):
    """A setting is invalid; the message is one sentence that names it and the remedy."""


def read_ollama_url() -> str:
    """Return the engine's base URL without a trailing slash; raises SettingsError if it is invalid."""
    url = os.environ.get(OLLAMA_URL_VARIABLE, "http://127.0.0.1:11434")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise SettingsError(f"{OLLAMA_URL_VARIABLE} is {url!r}: give http://HOST:PORT and nothing after it.")
    return url.rstrip("/")


def read_expected_gpus() -> dict[str, int]:
    """Return the expected number of GPUs by vendor; raises SettingsError if it is invalid."""
    text = os.environ.get(EXPECTED_GPUS_VARIABLE, "")
    if not re.fullmatch(r"((nvidia|amd)=\d{1,3}( |$))*", text):
        raise SettingsError(f"{EXPECTED_GPUS_VARIABLE} is {text!r}: give VENDOR=NUMBER, such as nvidia=1.")
    return {vendor: int(number) for vendor, number in (word.split("=") for word in text.split())}
