# SPDX-License-Identifier: Apache-2.0
"""Filter that checks a server's certificate that the user gives."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

DOCUMENTATION = r"""
name: certificate_problem
short_description: Return what is wrong with a server's certificate
description:
  - Runs on the control machine, where the library cryptography is a dependency of ansible-core.
  - Checks key, time, names, chain, purpose and strength. Then OpenSSL makes a TLS connection with the
    certificate in memory, as a client that trusts the CA.
positional: _input, key, authority, dns_names, addresses
options:
  _input:
    description: The certificate in PEM, followed by the intermediate certificates.
    type: str
    required: true
  key:
    description: Its private key in PEM.
    type: str
    required: true
  authority:
    description:
      - The CA's certificate in PEM, or the certificate itself if it is self-signed.
      - Empty for a public CA. Then the certificate is verified up to the last intermediate certificate that
        the file contains, but not up to the root.
    type: str
    required: true
  dns_names:
    description: The DNS names by which clients call the server.
    type: list
    elements: str
    required: true
  addresses:
    description: The IP addresses by which clients call the server.
    type: list
    elements: str
    required: true
  now:
    description: The time of the check with its zone, if it is not the present.
    type: raw
"""

EXAMPLES = r"""
problem: "{{ certificate | certificate_problem(key, authority, ['web1.example.org'], ['10.0.0.1']) }}"
"""

RETURN = r"""
_value:
  description: The end of a sentence that begins with the certificate's name; empty if it is valid.
  type: str
"""

MIN_RSA_BITS = 2048
# More certificates between server and root than any CA uses.
MAX_DEPTH = 10
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name.
NO_CHECK_TIME = 0x200000


class _ProblemError(Exception):
    """The end of a sentence that begins with the certificate's name."""


class _Given(NamedTuple):
    """What the user gives."""

    server: x509.Certificate
    intermediates: list[x509.Certificate]
    key: PrivateKeyTypes
    authorities: list[x509.Certificate]


def certificate_problem(
    certificate: str,
    key: str,
    authority: str,
    dns_names: list[str],
    addresses: list[str],
    *,
    now: datetime | None = None,
) -> str:
    """Return what is wrong, to follow the certificate's name in a sentence; empty if it is valid.

    An empty `authority` stands for a public CA. Its root is not checked: the certificate is verified up to
    the last intermediate certificate that the file contains.
    """
    when = now or datetime.now(UTC)
    try:
        given = _parse(certificate, key, authority)
        _check_key(given)
        _check_time(given.server, when, "")
        _check_names(given.server, dns_names, addresses)
        path = _path(given, when)
        _check_path(path, given.authorities)
        for issuer in path[1:]:
            _check_time(issuer, when, f"has an issuer ({_name(issuer.subject)}) that ")
        _check_purpose(given.server)
        _check_strength(path)
        # Of a public CA only what the file contains is known.
        _check_handshake(certificate, key, given.authorities or path[-1:], partial=not given.authorities)
    except _ProblemError as problem:
        return str(problem)
    return ""


def _parse(certificate: str, key: str, authority: str) -> _Given:
    chain = _certificates(certificate, "is not a certificate in PEM, or it is damaged")
    authorities = _certificates(authority, "has a CA that is not in PEM or is damaged") if authority else []
    try:
        private = load_pem_private_key(key.encode(), None)
    except TypeError:
        raise _ProblemError(
            "has a key with a passphrase; store it without one:  openssl pkey -in OLD -out NEW"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _ProblemError("has a key that is not in PEM or is damaged") from None
    return _Given(chain[0], chain[1:], private, authorities)


def _certificates(text: str, problem: str) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(text.encode())
        for certificate in found:
            # Certificates are parsed lazily, so a damaged one only shows here.
            _ = certificate.subject, certificate.issuer, certificate.extensions
            _ = certificate.public_key(), certificate.signature_hash_algorithm
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ):
        raise _ProblemError(problem) from None
    return found


def _check_key(given: _Given) -> None:
    public = given.key.public_key()
    if public == given.server.public_key():
        return
    if any(public == other.public_key() for other in given.intermediates):
        raise _ProblemError("is not the first in its file; put it before the intermediate certificates")
    raise _ProblemError("belongs to another key")


def _check_time(certificate: x509.Certificate, when: datetime, subject: str) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end < when:
        raise _ProblemError(f"{subject}expired on {end:%Y-%m-%d}")
    if start > when:
        raise _ProblemError(f"{subject}is valid only from {start:%Y-%m-%d}")


def _check_names(server: x509.Certificate, dns_names: Iterable[str], addresses: Iterable[str]) -> None:
    try:
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    patterns = [pattern.lower() for pattern in names.get_values_for_type(x509.DNSName)]
    found = names.get_values_for_type(x509.IPAddress)
    missing = [name for name in dns_names if not _matches(name.lower(), patterns)]
    missing += [address for address in addresses if ip_address(address) not in found]
    if missing:
        raise _ProblemError(f"does not name {', '.join(missing)} (subjectAltName)")


def _matches(name: str, patterns: list[str]) -> bool:
    # A wildcard stands for one label, and clients refuse it directly below a top-level domain.
    domain = name.partition(".")[2]
    return name in patterns or ("." in domain and f"*.{domain}" in patterns)


def _path(given: _Given, when: datetime) -> list[x509.Certificate]:
    """Return the certificates from the server's to a root that the user gives, or as far as they go."""
    # Of several issuers with the same name and key one may have expired.
    pool = sorted(
        [*given.intermediates, *given.authorities], key=lambda issuer: issuer.not_valid_after_utc < when
    )

    def longest(path: list[x509.Certificate]) -> list[x509.Certificate]:
        if len(path) == MAX_DEPTH or _self_signed(path[-1]):
            return path
        best = path
        for issuer in pool:
            if issuer not in path and _issued(path[-1], issuer):
                found = longest([*path, issuer])
                if _self_signed(found[-1]) and found[-1] in given.authorities:
                    return found
                best = max(best, found, key=len)
        return best

    return longest([given.server])


def _check_path(path: list[x509.Certificate], authorities: list[x509.Certificate]) -> None:
    last = path[-1]
    if not authorities:
        if _self_signed(path[0]):
            raise _ProblemError("is self-signed, so it must be given as its own CA too")
        # Public CAs never sign a server's certificate with their root.
        if len(path) == 1:
            raise _ProblemError(
                f"lacks the intermediate certificate of its issuer ({_name(last.issuer)}); "
                "append it, or give the CA's certificate if the CA is not a public one"
            )
    elif not _self_signed(last):
        if last in authorities:
            raise _ProblemError(
                f"cannot be verified up to a root: its CA was itself signed by {_name(last.issuer)}; "
                "append that certificate to the CA's"
            )
        if any(authority.subject == last.issuer for authority in authorities):
            raise _ProblemError(f"was signed by another CA with the same name ({_name(last.issuer)})")
        raise _ProblemError(
            f"cannot be verified up to the CA: the certificate of an issuer ({_name(last.issuer)}) is "
            "missing; append it"
        )
    elif last not in authorities:
        signer = "itself" if len(path) == 1 else _name(last.subject)
        raise _ProblemError(f"was signed by {signer} instead of that CA")


def _check_purpose(server: x509.Certificate) -> None:
    try:
        usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        pass
    else:
        if ExtendedKeyUsageOID.SERVER_AUTH not in usage:
            raise _ProblemError("is no server's certificate (extendedKeyUsage lacks serverAuth)")
    try:
        constraints = server.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return
    if constraints.ca and not _self_signed(server):
        raise _ProblemError("is no server's certificate but a CA's (basicConstraints)")


def _check_strength(path: list[x509.Certificate]) -> None:
    for certificate in path:
        subject = "has" if certificate == path[0] else f"has an issuer ({_name(certificate.subject)}) with"
        public = certificate.public_key()
        if isinstance(public, RSAPublicKey) and public.key_size < MIN_RSA_BITS:
            raise _ProblemError(
                f"{subject} an RSA key of {public.key_size} bits; clients want {MIN_RSA_BITS} or more"
            )
        # Nobody checks the signature of a root.
        if (name := _weak_hash(certificate)) and not _self_signed(certificate):
            raise _ProblemError(f"{subject} a signature with {name}, which clients refuse")


def _check_handshake(certificate: str, key: str, trusted: list[x509.Certificate], *, partial: bool) -> None:
    """Make a TLS connection in memory, which finds what the other checks do not look for."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The names and times are already checked.
    client.check_hostname = False
    client.verify_flags |= NO_CHECK_TIME | (ssl.VERIFY_X509_PARTIAL_CHAIN if partial else 0)
    client.load_verify_locations(cadata="".join(one.public_bytes(Encoding.PEM).decode() for one in trusted))
    try:
        _load(server, f"{certificate}\n{key}\n".encode())
        _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        raise _ProblemError(f"is refused by OpenSSL: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise _ProblemError(f"cannot be used by OpenSSL: {error.reason or error}") from None


def _load(server: ssl.SSLContext, pem: bytes) -> None:
    # Python loads a key only from a file, and this one never reaches a disk.
    handle = os.memfd_create("certificate")
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
        file.flush()
        server.load_cert_chain(f"/proc/self/fd/{handle}")


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    # In the second turn the client sees the certificate.
    for end in ends * 2:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()


def _self_signed(certificate: x509.Certificate) -> bool:
    return _issued(certificate, certificate)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if _weak_hash(certificate):
        # Cryptography does not verify such signatures, and they are refused except for a root's.
        return certificate.issuer == issuer.subject
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _weak_hash(certificate: x509.Certificate) -> str:
    """Return the name of the signature's hash if clients refuse it."""
    names = {"md5": "MD5", "sha1": "SHA-1"}
    algorithm = certificate.signature_hash_algorithm
    return names.get(algorithm.name, "") if algorithm else ""


def _name(name: x509.Name) -> str:
    return name.rfc4514_string()


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return them by name."""
        return {"certificate_problem": certificate_problem}
