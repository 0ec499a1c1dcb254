"""The endpoint and its keys, checked before anything is sent."""

import ipaddress
import socket
from urllib.parse import urlsplit

from bedplate_traffic.errors import CannotStartError


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


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped.is_global
    return ip.is_global
