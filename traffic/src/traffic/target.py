"""Where requests go: the endpoint and its keys, checked before anything is sent."""

import ipaddress
import socket
from urllib.parse import urlsplit


class CannotStartError(Exception):
    """Nothing can be sent; the message is one sentence that names the remedy."""


def checked_url(url: str | None, allow_public: bool) -> str:
    """Return the endpoint without a slash at its end; raises CannotStartError when it is none, or public
    without leave.
    """
    if not url:
        raise CannotStartError(
            "No endpoint is named: set OPENAI_BASE_URL (`make env` prints it) or give --url."
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
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise CannotStartError(f"The host {host!r} has no address: check the endpoint {url!r}.") from None
    public = sorted(address for entry in found if _is_public(address := str(entry[4][0])))
    if public and not allow_public:
        raise CannotStartError(
            f"{url} is the public address {public[0]}: give --allow-public if you mean it."
        )
    return url


def checked_key(key: str | None, name: str = "OPENAI_API_KEY") -> str:
    """Return the key; raises CannotStartError, naming where it comes from, when it is none."""
    if not key:
        raise CannotStartError(f"No key is given: set {name} (`make env` prints it).")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise CannotStartError(f"The key holds characters that no key has: check {name}.")
    return key


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped.is_global
    return ip.is_global
