"""certificate_problem: certificates made by OpenSSL that clients accept, and what is wrong with others."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

NAMES = ["web1.example.org", "localhost"]
ADDRESSES = ["10.0.0.1", "fd00::1"]
SAN = "subjectAltName=DNS:web1.example.org,DNS:localhost,IP:10.0.0.1,IP:fd00::1"
SERVER = (SAN, "extendedKeyUsage=serverAuth")
CA = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
# What small private CAs make: no keyUsage and no key identifiers.
BARE_CA = ("basicConstraints=CA:TRUE", "subjectKeyIdentifier=none", "authorityKeyIdentifier=none")
BARE = (SAN, "subjectKeyIdentifier=none", "authorityKeyIdentifier=none")
RSA = ("RSA", "-pkeyopt", "rsa_keygen_bits:2048")
P256 = ("EC", "-pkeyopt", "ec_paramgen_curve:P-256")
Problem = Callable[..., str]


class Made(NamedTuple):
    """Files of a certificate and its key."""

    certificate: Path
    key_file: Path

    @property
    def pem(self) -> str:
        """Return the certificate in PEM."""
        return self.certificate.read_text()

    @property
    def key(self) -> str:
        """Return the key in PEM."""
        return self.key_file.read_text()


Make = Callable[..., Made]


def openssl(*arguments: str | Path) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def rsa_keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function that returns the RSA key of a name in PEM; each is made once, because that is slow."""
    folder = tmp_path_factory.mktemp("rsa")

    def key(name: str) -> str:
        path = folder / name
        if not path.exists():
            openssl("genpkey", "-algorithm", *RSA, "-out", path)
        return path.read_text()

    return key


@pytest.fixture
def make(tmp_path: Path, rsa_keys: Callable[[str], str]) -> Make:
    """A function that makes a certificate with openssl; self-signed unless there is an issuer."""
    numbers = count()

    def run(
        name: str,
        *extensions: str,
        issuer: Made | None = None,
        algorithm: tuple[str, ...] = P256,
        options: tuple[str, ...] = ("-sha256",),
    ) -> Made:
        number = next(numbers)
        made = Made(tmp_path / f"{number}.crt", tmp_path / f"{number}.key")
        request, extra = tmp_path / f"{number}.csr", tmp_path / f"{number}.ext"
        if algorithm == RSA:
            made.key_file.write_text(rsa_keys(name))
        else:
            openssl("genpkey", "-algorithm", *algorithm, "-out", made.key_file)
        openssl("req", "-new", "-key", made.key_file, "-subj", f"/CN={name}", "-out", request)
        # Without an extension it is of version 1.
        extra.write_text("\n".join(extensions) + "\n")
        signer = (
            ("-CA", issuer.certificate, "-CAkey", issuer.key_file, "-CAcreateserial")
            if issuer
            else ("-signkey", made.key_file)
        )
        extension_file = ("-extfile", extra) if extensions else ()
        openssl(
            "x509", "-req", "-in", request, *signer, *extension_file, "-days", "30", *options,
            "-out", made.certificate,
        )  # fmt: skip
        return made

    return run


@pytest.fixture(scope="module")
def problem(load_source: Callable[[str], ModuleType]) -> Problem:
    """The filter certificate_problem, with the names and addresses of SAN."""
    filter_function: Problem = (
        load_source("roles/edge/filter_plugins/certificate.py")
        .FilterModule()
        .filters()["certificate_problem"]
    )

    def check(
        certificate: str,
        key: str,
        authority: str,
        dns_names: list[str] = NAMES,
        addresses: list[str] = ADDRESSES,
        *,
        now: datetime | None = None,
    ) -> str:
        return filter_function(certificate, key, authority, dns_names, addresses, now=now)

    return check


def verified_by_openssl(made: Made, authority: Made, *chain: Made) -> bool:
    """Return whether openssl verifies the server's certificate as a client would."""
    untrusted = [item for one in chain for item in ("-untrusted", str(one.certificate))]
    command = ["openssl", "verify", "-auth_level", "2", "-purpose", "sslserver", "-CAfile"]
    command += [str(authority.certificate), *untrusted, str(made.certificate)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("ca_extensions", [CA, BARE_CA, ()], ids=["usual", "bare", "version 1"])
@pytest.mark.parametrize("extensions", [SERVER, BARE], ids=["usual", "bare"])
@pytest.mark.parametrize("algorithm", [P256, RSA, ("ED25519",)])
def test_certificates_of_a_private_ca(
    problem: Problem,
    make: Make,
    ca_extensions: tuple[str, ...],
    extensions: tuple[str, ...],
    algorithm: tuple[str, ...],
) -> None:
    options = () if algorithm == ("ED25519",) else ("-sha256",)
    authority = make("ca", *ca_extensions, algorithm=algorithm, options=options)
    server = make("web1", *extensions, issuer=authority, algorithm=algorithm, options=options)
    assert verified_by_openssl(server, authority)
    assert problem(server.pem, server.key, authority.pem) == ""
    # The CA's file may contain others, and the server's file the CA.
    other = make("other", *CA)
    assert problem(server.pem + authority.pem, server.key, other.pem + authority.pem) == ""


def test_a_chain_with_intermediates(problem: Problem, make: Make) -> None:
    root = make("root", *CA)
    first = make("first", *CA, issuer=root)
    second = make("second", *CA, issuer=first)
    server = make("web1", *SERVER, issuer=second)
    assert verified_by_openssl(server, root, first, second)
    # Clients do not mind the order after the first.
    for chain in (second.pem + first.pem, first.pem + second.pem, second.pem + first.pem + root.pem):
        assert problem(server.pem + chain, server.key, root.pem) == ""
        assert problem(server.pem + chain, server.key, "") == ""
    assert not verified_by_openssl(server, root, first)
    for chain, issuer in ((first.pem, "second"), ("", "second"), (second.pem, "first")):
        assert problem(server.pem + chain, server.key, root.pem) == (
            f"cannot be verified up to the CA: the certificate of an issuer (CN={issuer}) is missing; "
            "append it"
        )
    # Clients that have the intermediates from the CA's file need no chain.
    assert problem(server.pem, server.key, first.pem + second.pem + root.pem) == ""


def test_half_a_chain_of_a_public_ca(problem: Problem, make: Make) -> None:
    root = make("root", *CA)
    intermediate = make("E7", *CA, issuer=root)
    server = make("web1", *SERVER, issuer=intermediate)
    unrelated = make("R3", *CA, issuer=root)
    assert problem(server.pem + intermediate.pem, server.key, "") == ""
    for chain in (server.pem, server.pem + unrelated.pem):
        assert problem(chain, server.key, "") == (
            "lacks the intermediate certificate of its issuer (CN=E7); "
            "append it, or give the CA's certificate if the CA is not a public one"
        )


def test_a_cross_signed_root(problem: Problem, make: Make, tmp_path: Path) -> None:
    """The new root also has a certificate of the old one, for clients that do not know it yet."""
    old, new = make("old root", *CA), make("new root", *CA)
    request, cross = tmp_path / "cross.csr", Made(tmp_path / "cross.crt", new.key_file)
    (tmp_path / "ca.ext").write_text("\n".join(CA))
    openssl("req", "-new", "-key", new.key_file, "-subj", "/CN=new root", "-out", request)
    openssl(
        "x509", "-req", "-in", request, "-CA", old.certificate, "-CAkey", old.key_file, "-CAcreateserial",
        "-extfile", tmp_path / "ca.ext", "-days", "30", "-out", cross.certificate,
    )  # fmt: skip
    intermediate = make("intermediate", *CA, issuer=new)
    server = make("web1", *SERVER, issuer=intermediate)
    for root in (old, new):
        assert verified_by_openssl(server, root, intermediate, cross)
        assert problem(server.pem + intermediate.pem + cross.pem, server.key, root.pem) == ""
    assert problem(server.pem + intermediate.pem + cross.pem, server.key, "") == ""


@pytest.mark.parametrize(
    "options",
    [
        ("-sha224",),
        ("-sha512",),
        ("-sha3-256",),
        ("-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1"),
    ],
)
def test_other_signatures(problem: Problem, make: Make, options: tuple[str, ...]) -> None:
    root = make("root", *CA, algorithm=RSA)
    server = make("web1", *SERVER, issuer=root, options=options)
    assert verified_by_openssl(server, root)
    assert problem(server.pem, server.key, root.pem) == ""


def test_an_intermediate_as_the_ca(problem: Problem, make: Make) -> None:
    root = make("root", *CA)
    intermediate = make("intermediate", *CA, issuer=root)
    server = make("web1", *SERVER, issuer=intermediate)
    assert not verified_by_openssl(server, intermediate)
    assert problem(server.pem, server.key, intermediate.pem) == (
        "cannot be verified up to a root: its CA was itself signed by CN=root; "
        "append that certificate to the CA's"
    )
    assert problem(server.pem, server.key, intermediate.pem + root.pem) == ""


@pytest.mark.parametrize("extensions", [(SAN,), SERVER, (*SERVER, "basicConstraints=CA:TRUE"), BARE])
def test_a_self_signed_certificate(problem: Problem, make: Make, extensions: tuple[str, ...]) -> None:
    own, other = make("web1", *extensions), make("web1", *extensions)
    assert verified_by_openssl(own, own)
    assert problem(own.pem, own.key, own.pem) == ""
    assert problem(own.pem, own.key, other.pem) == "was signed by itself instead of that CA"
    assert problem(own.pem, own.key, "") == "is self-signed, so it must be given as its own CA too"


def test_a_certificate_of_another_ca(problem: Problem, make: Make) -> None:
    authority, other, namesake = make("ca", *CA), make("other", *CA), make("ca", *CA)
    server = make("web1", *SERVER, issuer=authority)
    assert (
        problem(server.pem + authority.pem, server.key, other.pem) == "was signed by CN=ca instead of that CA"
    )
    assert problem(server.pem, server.key, namesake.pem) == (
        "was signed by another CA with the same name (CN=ca)"
    )


def test_a_certificate_of_another_key(problem: Problem, make: Make) -> None:
    authority = make("ca", *CA)
    server, other = make("web1", *SERVER, issuer=authority), make("web1", *SERVER, issuer=authority)
    assert problem(server.pem, other.key, authority.pem) == "belongs to another key"
    assert problem(authority.pem + server.pem, server.key, authority.pem) == (
        "is not the first in its file; put it before the intermediate certificates"
    )


def test_unreadable_files(problem: Problem, make: Make, tmp_path: Path) -> None:
    own = make("web1", *SERVER)
    locked, der = tmp_path / "locked.key", tmp_path / "der.crt"
    openssl("pkey", "-in", own.key_file, "-aes256", "-passout", "pass:word", "-out", locked)
    openssl("x509", "-in", own.certificate, "-outform", "DER", "-out", der)
    for text in ("", "no certificate", own.pem[:300], der.read_bytes().decode("latin1"), own.key):
        assert problem(text, own.key, own.pem) == "is not a certificate in PEM, or it is damaged"
    for text in ("", "no key", own.key[:60], own.pem):
        assert problem(own.pem, text, own.pem) == "has a key that is not in PEM or is damaged"
    assert problem(own.pem, locked.read_text(), own.pem) == (
        "has a key with a passphrase; store it without one:  openssl pkey -in OLD -out NEW"
    )
    assert problem(own.pem, own.key, "no CA") == "has a CA that is not in PEM or is damaged"


def test_damage_is_never_a_traceback(problem: Problem, make: Make) -> None:
    authority = make("ca", *CA)
    server = make("web1", *SERVER, issuer=authority)
    for place in range(30, len(server.pem) - 30, 3):
        text = server.pem[:place] + ("A" if server.pem[place] != "A" else "B") + server.pem[place + 1 :]
        assert problem(text, server.key, authority.pem)
        assert problem(server.pem, server.key, text)


def test_times(problem: Problem, make: Make) -> None:
    authority = make("ca", *CA)
    server = make("web1", *SERVER, issuer=authority)
    now = datetime.now(UTC)

    def at(days: float) -> str:
        return problem(server.pem, server.key, authority.pem, now=now + timedelta(days=days))

    assert at(0) == at(29.9) == ""
    assert at(30.1) == f"expired on {now + timedelta(days=30):%Y-%m-%d}"
    assert at(-0.1) == f"is valid only from {now:%Y-%m-%d}"


def test_an_expired_issuer(problem: Problem, make: Make) -> None:
    root = make("root", *CA, options=("-days", "1000"))
    intermediate = make("intermediate", *CA, issuer=root)
    server = make("web1", *SERVER, issuer=intermediate, options=("-days", "100"))
    now = datetime.now(UTC)
    chain = server.pem + intermediate.pem
    assert problem(chain, server.key, root.pem) == ""
    for authority in (root.pem, ""):
        assert problem(chain, server.key, authority, now=now + timedelta(days=50)) == (
            f"has an issuer (CN=intermediate) that expired on {now + timedelta(days=30):%Y-%m-%d}"
        )


@pytest.mark.parametrize(
    ("names", "addresses", "missing"),
    [
        (["web1.example.org", "api.example.org"], ["10.0.0.2"], "api.example.org, 10.0.0.2"),
        ([], ["10.0.0.1", "fd00::2"], "fd00::2"),
        (["LOCALHOST"], ["fd00:0::1"], ""),
        (["example.org"], [], "example.org"),
        (["web1"], [], "web1"),
    ],
)
def test_names(problem: Problem, make: Make, names: list[str], addresses: list[str], missing: str) -> None:
    own = make("web1", *SERVER)
    expected = f"does not name {missing} (subjectAltName)" if missing else ""
    assert problem(own.pem, own.key, own.pem, names, addresses) == expected


def test_a_certificate_without_subject_alternative_names(problem: Problem, make: Make) -> None:
    own = make("web1.example.org", "extendedKeyUsage=serverAuth")
    assert problem(own.pem, own.key, own.pem, ["web1.example.org"], []) == (
        "does not name web1.example.org (subjectAltName)"
    )


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("web1.example.org", True),
        ("WEB1.example.org", True),
        ("example.org", False),
        ("a.web1.example.org", False),
        ("web1.lan", False),
        ("10.0.0.1", False),
    ],
)
def test_a_wildcard_stands_for_one_label(problem: Problem, make: Make, name: str, matches: bool) -> None:
    own = make("any", "subjectAltName=DNS:*.Example.org,DNS:*.lan,DNS:*.0.0.1")
    addresses = [name] if name[0].isdigit() else []
    names = [] if addresses else [name]
    expected = "" if matches else f"does not name {name} (subjectAltName)"
    assert problem(own.pem, own.key, own.pem, names, addresses) == expected


def test_certificates_for_something_else(problem: Problem, make: Make) -> None:
    authority = make("ca", *CA)
    client = make("web1", SAN, "extendedKeyUsage=clientAuth", issuer=authority)
    sub = make("web1", SAN, *CA, issuer=authority)
    assert problem(client.pem, client.key, authority.pem) == (
        "is no server's certificate (extendedKeyUsage lacks serverAuth)"
    )
    assert (
        problem(sub.pem, sub.key, authority.pem) == "is no server's certificate but a CA's (basicConstraints)"
    )


def test_weak_certificates(problem: Problem, make: Make) -> None:
    small = ("RSA", "-pkeyopt", "rsa_keygen_bits:1024")
    own = make("web1", *SERVER, algorithm=small)
    assert problem(own.pem, own.key, own.pem) == "has an RSA key of 1024 bits; clients want 2048 or more"
    authority = make("ca", *CA, algorithm=small)
    server = make("web1", *SERVER, issuer=authority)
    assert not verified_by_openssl(server, authority)
    assert problem(server.pem, server.key, authority.pem) == (
        "has an issuer (CN=ca) with an RSA key of 1024 bits; clients want 2048 or more"
    )


def test_weak_signatures(problem: Problem, make: Make) -> None:
    # The signature of a root does not count.
    root = make("root", *CA, options=("-sha1",))
    server = make("web1", *SERVER, issuer=root)
    assert verified_by_openssl(server, root)
    assert problem(server.pem, server.key, root.pem) == ""
    weak = make("web1", *SERVER, issuer=root, options=("-sha1",))
    assert not verified_by_openssl(weak, root)
    assert problem(weak.pem, weak.key, root.pem) == "has a signature with SHA-1, which clients refuse"
    intermediate = make("intermediate", *CA, issuer=root, options=("-sha1",))
    server = make("web1", *SERVER, issuer=intermediate)
    for authority in (root.pem, ""):
        assert problem(server.pem + intermediate.pem, server.key, authority) == (
            "has an issuer (CN=intermediate) with a signature with SHA-1, which clients refuse"
        )


@pytest.mark.parametrize(
    ("ca_extensions", "complaint"),
    [
        (("basicConstraints=critical,CA:FALSE",), "invalid CA certificate"),
        ((*CA, "nameConstraints=permitted;DNS:example.com"), "permitted subtree violation"),
    ],
)
def test_what_only_openssl_finds(
    problem: Problem, make: Make, ca_extensions: tuple[str, ...], complaint: str
) -> None:
    root = make("root", *CA)
    intermediate = make("intermediate", *ca_extensions, issuer=root)
    server = make("web1", *SERVER, issuer=intermediate)
    assert not verified_by_openssl(server, root, intermediate)
    for authority in (root.pem, ""):
        assert problem(server.pem + intermediate.pem, server.key, authority) == (
            f"is refused by OpenSSL: {complaint}"
        )


def test_a_chain_that_is_too_long_for_its_root(problem: Problem, make: Make) -> None:
    root = make("root", "basicConstraints=critical,CA:TRUE,pathlen:0")
    intermediate = make("intermediate", *CA, issuer=root)
    server = make("web1", *SERVER, issuer=intermediate)
    assert problem(server.pem + intermediate.pem, server.key, root.pem) == (
        "is refused by OpenSSL: path length constraint exceeded"
    )
