"""What is said of a certificate before it is used."""

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
        """The certificate's text."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def key_pem(self, encryption: KeySerializationEncryption | None = None) -> str:
        """The key's text."""
        return self.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()
        ).decode()


def make(*, days: int = 30, signer: EllipticCurvePrivateKey | None = None) -> Pair:
    """Make a certificate that ends in `days`; it signs itself unless there is a signer."""
    key = generate_private_key(SECP256R1())
    ends = datetime.now(UTC) + timedelta(days=days)
    builder = x509.CertificateBuilder(
        NAME, NAME, key.public_key(), x509.random_serial_number(), ends - timedelta(days=90), ends
    ).add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(ADDRESS))]), critical=False)
    return Pair(builder.sign(signer or key, SHA256()), key)


@pytest.fixture(scope="module")
def problem(load_source: Callable[[str], ModuleType]) -> Problem:
    """The filter."""
    found: Problem = (
        load_source("roles/prometheus/filter_plugins/certificate.py")
        .FilterModule()
        .filters()["certificate_problem"]
    )
    return found


def test_one_that_signed_itself(problem: Problem) -> None:
    own = make()
    assert problem(own.pem, own.key_pem(), own.pem, ADDRESS) == ""


def test_one_that_an_authority_signed(problem: Problem) -> None:
    authority, other = make(), make()
    signed = make(signer=authority.key)
    assert problem(signed.pem, signed.key_pem(), authority.pem, ADDRESS) == ""
    # Others may stand in the file too.
    assert problem(signed.pem, signed.key_pem(), other.pem + authority.pem, ADDRESS) == ""
    said = problem(signed.pem, signed.key_pem(), other.pem, ADDRESS)
    assert said == "was not signed by that authority"


def test_one_of_another_key(problem: Problem) -> None:
    own, other = make(), make()
    assert problem(own.pem, other.key_pem(), own.pem, ADDRESS) == "belongs to another key"


def test_one_for_another_address(problem: Problem) -> None:
    own = make()
    said = problem(own.pem, own.key_pem(), own.pem, "10.0.0.11")
    assert said == "does not name the address 10.0.0.11 (subjectAltName)"


def test_one_that_has_ended(problem: Problem) -> None:
    old = make(days=-2)
    ended = old.certificate.not_valid_after_utc.date().isoformat()
    assert problem(old.pem, old.key_pem(), old.pem, ADDRESS) == f"ended on {ended}"


def test_what_cannot_be_read(problem: Problem) -> None:
    own = make()
    locked = own.key_pem(BestAvailableEncryption(b"word"))
    for certificate, key in (("", own.key_pem()), (own.pem, "no key"), (own.pem, locked)):
        assert problem(certificate, key, own.pem, ADDRESS).startswith("cannot be read: ")
