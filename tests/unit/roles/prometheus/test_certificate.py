"""certificate_problem: valid certificates, and what is wrong with others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from types import ModuleType
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

ADDRESS = "10.0.0.1"
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
Problem = Callable[[str, str, str, str], str]


class Pair(NamedTuple):
    """A certificate with its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        """Return the certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def key_pem(self, encryption: KeySerializationEncryption | None = None) -> str:
        """Return the key in PEM."""
        return self.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()
        ).decode()


def make(*, days: int = 30, signer: EllipticCurvePrivateKey | None = None) -> Pair:
    """Generate a certificate that expires in `days`; self-signed unless there is a signer."""
    key = generate_private_key(SECP256R1())
    ends = datetime.now(UTC) + timedelta(days=days)
    builder = x509.CertificateBuilder(
        NAME, NAME, key.public_key(), x509.random_serial_number(), ends - timedelta(days=90), ends
    ).add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(ADDRESS))]), critical=False)
    return Pair(builder.sign(signer or key, SHA256()), key)


@pytest.fixture(scope="module")
def problem(load_source: Callable[[str], ModuleType]) -> Problem:
    """The filter certificate_problem."""
    filter_function: Problem = (
        load_source("roles/prometheus/filter_plugins/certificate.py")
        .FilterModule()
        .filters()["certificate_problem"]
    )
    return filter_function


def test_a_self_signed_certificate(problem: Problem) -> None:
    own = make()
    assert problem(own.pem, own.key_pem(), own.pem, ADDRESS) == ""


def test_a_certificate_signed_by_a_ca(problem: Problem) -> None:
    authority, other = make(), make()
    signed = make(signer=authority.key)
    assert problem(signed.pem, signed.key_pem(), authority.pem, ADDRESS) == ""
    # The file may contain other CAs, too.
    assert problem(signed.pem, signed.key_pem(), other.pem + authority.pem, ADDRESS) == ""
    text = problem(signed.pem, signed.key_pem(), other.pem, ADDRESS)
    assert text == "was not signed by that CA"


def test_a_certificate_of_another_key(problem: Problem) -> None:
    own, other = make(), make()
    assert problem(own.pem, other.key_pem(), own.pem, ADDRESS) == "belongs to another key"


def test_a_certificate_for_another_address(problem: Problem) -> None:
    own = make()
    text = problem(own.pem, own.key_pem(), own.pem, "10.0.0.11")
    assert text == "does not name the address 10.0.0.11 (subjectAltName)"


def test_an_expired_certificate(problem: Problem) -> None:
    old = make(days=-2)
    expired = old.certificate.not_valid_after_utc.date().isoformat()
    assert problem(old.pem, old.key_pem(), old.pem, ADDRESS) == f"expired on {expired}"


def test_unreadable_files(problem: Problem) -> None:
    own = make()
    locked = own.key_pem(BestAvailableEncryption(b"word"))
    for certificate, key in (("", own.key_pem()), (own.pem, "no key"), (own.pem, locked)):
        assert problem(certificate, key, own.pem, ADDRESS).startswith("cannot be read: ")
