"""Where requests go: the endpoint's address and keys, checked before anything is sent."""

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit


class CannotStartError(Exception):
    """Nothing can be sent; the message is one sentence that names the remedy."""


@dataclass(frozen=True)
class Target:
    """An endpoint whose address is known, so that no request waits for a name server."""

    url: str
    """As it was given, without a slash at its end; it ends with /v1."""
    path: str
    host: str
    """The name that the server and its certificate are asked for."""
    host_header: str
    address: str
    port: int
    tls: ssl.SSLContext | None


def checked_target(url: str | None, allow_public: bool) -> Target:
    """Return the endpoint `url`; raises CannotStartError when it is none, or public without leave."""
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
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise CannotStartError(f"The host {host!r} has no address: check the endpoint {url!r}.") from None
    addresses = [str(entry[4][0]) for entry in found]
    public = sorted(address for address in addresses if _is_public(address))
    if public and not allow_public:
        raise CannotStartError(
            f"{url} is the public address {public[0]}: give --allow-public if you mean it."
        )
    return Target(
        url=url,
        path=parts.path,
        host=host,
        host_header=parts.netloc,
        address=_answering(addresses, port),
        port=port,
        tls=ssl.create_default_context() if parts.scheme == "https" else None,
    )


def checked_key(key: str | None, name: str = "OPENAI_API_KEY") -> str:
    """Return the key; raises CannotStartError, naming where it comes from, when it is none."""
    if not key:
        raise CannotStartError(f"No key is given: set {name} (`make env` prints it).")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise CannotStartError(f"The key holds characters that no key has: check {name}.")
    return key


def _answering(addresses: list[str], port: int) -> str:
    """Return the first address that takes a connection, since a name may stand for IPv6 and IPv4."""
    distinct = list(dict.fromkeys(addresses))
    for address in distinct[:-1]:
        try:
            socket.create_connection((address, port), timeout=5).close()
        except OSError:
            continue
        return address
    return distinct[-1]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped.is_global
    return ip.is_global
