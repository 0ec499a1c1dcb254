"""The endpoint and its keys, checked before anything is sent."""

import ipaddress
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from bedplate_traffic.arguments import EndpointOptions
from bedplate_traffic.errors import CannotStartError

STDIN = Path("-")
MAX_KEY_FILE, MAX_KEYS_FILE = 4096, 2**20
"""The longest file with one key, and with keys by alias, in characters."""


def check_url(url: str | None, allow_public: bool) -> str:
    """Return the endpoint's URL without a trailing slash.

    Raises CannotStartError when the URL is missing or malformed, or when the host has a public address and
    `allow_public` is false.
    """
    if not url:
        raise CannotStartError(
            "No endpoint is set: set OPENAI_BASE_URL (`make env` prints it) or pass --url."
        )
    url = url.rstrip("/")
    unusable = CannotStartError(f"The endpoint {url!r} cannot be used: give http://HOST:PORT/v1.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise unusable from None
    if parts.scheme not in {"http", "https"} or not host or parts.username is not None:
        raise unusable
    if not parts.path.endswith("/v1") or parts.query or not url.isascii() or not url.isprintable():
        raise unusable
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise CannotStartError(f"The host {host!r} has no address: check the endpoint {url!r}.") from None
    public = sorted(address for entry in entries if _is_public(address := str(entry[4][0])))
    if public and not allow_public:
        raise CannotStartError(
            f"{url} is the public address {public[0]}: pass --allow-public to send there anyway."
        )
    return url


def check_key(key: str | None, name: str = "OPENAI_API_KEY") -> str:
    """Return the key; raises CannotStartError, naming its source `name`, when it cannot be a key."""
    if not key:
        raise CannotStartError(f"No key is given: set {name} (`make env` prints it).")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise CannotStartError(f"The key contains characters that no key has: check {name}.")
    return key


def read_secret_file(path: Path, kind: str, longest: int) -> str:
    """Return the text of a file, `-` is standard input.

    Raises CannotStartError, which names the file's `kind`, when it cannot be read or has more characters than
    `longest`.
    """
    try:
        if path == STDIN:
            text = sys.stdin.read(longest + 1)
        else:
            with path.open(encoding="utf-8") as file:
                text = file.read(longest + 1)
    except OSError as error:
        raise CannotStartError(
            f"The {kind} {path} cannot be read ({error.strerror}): check its path and its mode."
        ) from None
    except UnicodeDecodeError:
        raise CannotStartError(f"The {kind} {path} is not text: name the right file.") from None
    if len(text) > longest:
        raise CannotStartError(f"The {kind} {path} has more than {longest} characters: name the right file.")
    return text


def find_key(endpoint: EndpointOptions) -> str:
    """Return the endpoint's key; raises CannotStartError when there is none."""
    return read_key_file(endpoint.key_file) if endpoint.key_file else check_key(endpoint.key)


def read_key_file(path: Path) -> str:
    """Return the key in a file, `-` is standard input; raises CannotStartError when there is none."""
    key = read_secret_file(path, "key file", MAX_KEY_FILE).strip()
    return check_key(key, "standard input" if path == STDIN else str(path))


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped.is_global
    return ip.is_global
