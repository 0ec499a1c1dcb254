# SPDX-License-Identifier: Apache-2.0
"""Filter that checks a server's certificate."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

DOCUMENTATION = r"""
name: certificate_problem
short_description: Return what is wrong with a server's certificate
description: Runs on the control machine, where the library cryptography is a dependency of ansible-core.
positional: _input, key, authority, address
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
    description: The CA's certificate in PEM, or the certificate itself if it is self-signed.
    type: str
    required: true
  address:
    description: The IP address that clients connect to.
    type: str
    required: true
"""

EXAMPLES = r"""
problem: "{{ certificate | certificate_problem(key, authority, '10.0.0.1') }}"
"""

RETURN = r"""
_value:
  description: The end of a sentence that begins with the certificate's name; empty if it is valid.
  type: str
"""


def certificate_problem(certificate: str, key: str, authority: str, address: str) -> str:
    """Return what is wrong, to follow the certificate's name in a sentence; empty if it is valid."""
    try:
        chain = x509.load_pem_x509_certificates(certificate.encode())
        private = load_pem_private_key(key.encode(), None)
        authorities = x509.load_pem_x509_certificates(authority.encode())
    except (ValueError, TypeError):
        return "cannot be read: certificate, key and CA must be PEM files, the key without a passphrase"
    server = chain[0]
    if private.public_key() != server.public_key():
        return "belongs to another key"
    if server.not_valid_after_utc < datetime.now(UTC):
        return f"expired on {server.not_valid_after_utc:%Y-%m-%d}"
    if ip_address(address) not in _addresses(server):
        return f"does not name the address {address} (subjectAltName)"
    if server not in authorities and not any(_issued(chain[-1], issuer) for issuer in authorities):
        return "was not signed by that CA"
    return ""


def _addresses(certificate: x509.Certificate) -> list[object]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(names.value.get_values_for_type(x509.IPAddress))


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return them by name."""
        return {"certificate_problem": certificate_problem}
