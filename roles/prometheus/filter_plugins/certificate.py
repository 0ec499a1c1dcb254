# SPDX-License-Identifier: Apache-2.0
"""Says what is wrong with a certificate before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

DOCUMENTATION = r"""
name: certificate_problem
short_description: What is wrong with a server's certificate, or nothing
description: Runs on the control machine; the library cryptography is there, since ansible-core needs it.
positional: _input, key, authority, address
options:
  _input:
    description: The certificate in PEM, followed by those that lead to its authority.
    type: str
    required: true
  key:
    description: Its private key in PEM.
    type: str
    required: true
  authority:
    description: The authority's certificate in PEM, or the certificate itself where it signed itself.
    type: str
    required: true
  address:
    description: The IP address at which clients ask.
    type: str
    required: true
"""

EXAMPLES = r"""
problem: "{{ certificate | certificate_problem(key, authority, '10.0.0.1') }}"
"""

RETURN = r"""
_value:
  description: The end of a sentence that begins with the certificate's name, empty where all is well.
  type: str
"""


def certificate_problem(certificate: str, key: str, authority: str, address: str) -> str:
    """Return the end of a sentence that begins with the certificate's name, or nothing."""
    try:
        chain = x509.load_pem_x509_certificates(certificate.encode())
        private = load_pem_private_key(key.encode(), None)
        authorities = x509.load_pem_x509_certificates(authority.encode())
    except (ValueError, TypeError):
        return "cannot be read: certificate, key and authority are PEM files, the key without a passphrase"
    server = chain[0]
    if private.public_key() != server.public_key():
        return "belongs to another key"
    if server.not_valid_after_utc < datetime.now(UTC):
        return f"ended on {server.not_valid_after_utc:%Y-%m-%d}"
    if ip_address(address) not in _addresses(server):
        return f"does not name the address {address} (subjectAltName)"
    if server not in authorities and not any(_issued(chain[-1], issuer) for issuer in authorities):
        return "was not signed by that authority"
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
