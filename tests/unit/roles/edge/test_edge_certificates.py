"""edge_certificates: the CA and the hosts' certificates on the control machine, and TLS with them."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Run = Callable[..., dict[str, Any]]
NAMES: dict[str, Any] = {"dns_names": ["web1", "localhost"], "addresses": ["127.0.0.1", "::1", "10.0.0.1"]}
REMEDY = (
    "restore it from a backup, or replace the CA with make replace-ca; "
    "all clients then need the new CA (make ca)."
)
NEW_CA = "replace the CA with make replace-ca; all clients then need the new CA (make ca)"


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/edge/library/edge_certificates.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bedplate/lab"


@pytest.fixture
def make(plugin: ModuleType, run_module: Run, folder: Path) -> Run:
    """Run the module for web1 with NAMES, or with what is given."""

    def run(host: str = "web1", *, check: bool = False, **params: Any) -> dict[str, Any]:
        return run_module(plugin, {"directory": str(folder), "host": host, **NAMES, **params}, check=check)

    return run


@pytest.fixture
def warnings(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The module's warnings; Ansible's own way to a result depends on what else the process has imported."""
    texts: list[str] = []
    monkeypatch.setattr(plugin.AnsibleModule, "warn", lambda _, text: texts.append(text))
    return texts


@pytest.fixture
def at(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], datetime]:
    """Set the module's clock to the real time and this much."""
    real = plugin.utc_now

    def set_clock(offset: timedelta) -> datetime:
        when: datetime = real() + offset
        monkeypatch.setattr(plugin, "utc_now", lambda: when)
        return when

    return set_clock


def load(path: Path) -> x509.Certificate:
    """Read the first certificate of a file."""
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> tuple[Any, bool]:
    """Return an extension's value and whether it is critical."""
    found = certificate.extensions.get_extension_for_class(kind)
    return found.value, found.critical


def test_the_ca(make: Run, folder: Path) -> None:
    before = datetime.now(UTC)
    make(ca_dns_names=["api.example.org", "web2"], addresses=["203.0.113.7", "2001:db8::7", "10.0.0.2"])
    authority = load(folder / "ca.crt")
    assert extension(authority, x509.BasicConstraints) == (
        x509.BasicConstraints(ca=True, path_length=0),
        True,
    )
    usage, critical = extension(authority, x509.KeyUsage)
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature, critical) == (
        True,
        True,
        False,
        True,
    )
    constraints, critical = extension(authority, x509.NameConstraints)
    assert (constraints.excluded_subtrees, critical) == (None, True)
    # BoringSSL refuses a CA that restricts addresses.
    assert {type(tree) for tree in constraints.permitted_subtrees} == {x509.DNSName}
    names = {"localhost", "internal", "lan", "home.arpa", "local", "test", "web1", "web2", "api.example.org"}
    assert {tree.value for tree in constraints.permitted_subtrees} == names
    key = authority.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert timedelta(days=3649) < authority.not_valid_after_utc - before < timedelta(days=3651)


def test_the_certificate_of_a_host(make: Run, folder: Path) -> None:
    before = datetime.now(UTC)
    result = make()
    assert (result["changed"], result["reason"]) == (True, "there was none")
    assert (result["certificate"], result["trust"]) == (
        str(folder / "edge-web1.pem"),
        str(folder / "trust.crt"),
    )
    pem = (folder / "edge-web1.pem").read_bytes()
    assert pem.index(b"BEGIN CERTIFICATE") < pem.index(b"BEGIN PRIVATE KEY")
    leaf = load(folder / "edge-web1.pem")
    assert load_pem_private_key(pem, None).public_key() == leaf.public_key()
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "web1"
    names, _ = extension(leaf, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == NAMES["dns_names"]
    assert names.get_values_for_type(x509.IPAddress) == [*map(ip_address, NAMES["addresses"])]
    assert list(extension(leaf, x509.ExtendedKeyUsage)[0]) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert extension(leaf, x509.BasicConstraints) == (x509.BasicConstraints(ca=False, path_length=None), True)
    # Apple's clients refuse more than 825 days, both ends included.
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert life == timedelta(days=825, seconds=-1)
    assert leaf.not_valid_before_utc < before
    assert result["expires"] == leaf.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (folder / "trust.crt").read_bytes() == (folder / "ca.crt").read_bytes()


def test_the_modes(make: Run, folder: Path) -> None:
    make()
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {
        ".edge-certificates.lock": 0o600,
        "ca.crt": 0o644,
        "ca.key": 0o600,
        "edge-web1.pem": 0o600,
        "trust.crt": 0o644,
    }
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_result_contains_no_key(make: Run) -> None:
    assert "PRIVATE" not in json.dumps(make())


def test_a_second_run_changes_nothing(make: Run, folder: Path) -> None:
    first = make()
    before = contents(folder)
    # The order of the names and their case do not matter.
    second = make(dns_names=["LOCALHOST", "web1"], addresses=["10.0.0.1", "0:0::1", "127.0.0.1"])
    assert second == {**first, "changed": False, "reason": "", "invocation": second["invocation"]}
    assert contents(folder) == before


def test_a_second_host_has_the_same_ca(make: Run, folder: Path) -> None:
    make()
    before = contents(folder)
    assert make("web2", dns_names=["web2.internal"], addresses=[])["reason"] == "there was none"
    after = contents(folder)
    assert after.keys() - before.keys() == {"edge-web2.pem"}
    assert before.items() <= after.items()


def test_check_mode_writes_nothing(make: Run, folder: Path) -> None:
    assert make(check=True)["changed"] is True
    assert not folder.parent.exists()
    make()
    before = contents(folder)
    assert make(check=True)["changed"] is False
    renewed = make(check=True, addresses=["10.0.0.2"])
    assert (renewed["changed"], renewed["reason"]) == (True, "it was for other names")
    assert make(check=True, replace_ca=True)["changed"] is True
    assert contents(folder) == before


@pytest.mark.parametrize(
    "changed", [{"addresses": ["127.0.0.1"]}, {"dns_names": ["web1", "localhost", "api.lan"]}]
)
def test_other_names_need_another_certificate(make: Run, folder: Path, changed: dict[str, Any]) -> None:
    make()
    authority = (folder / "ca.crt").read_bytes()
    result = make(**changed)
    assert (result["changed"], result["reason"]) == (True, "it was for other names")
    assert (folder / "ca.crt").read_bytes() == authority
    assert make(**changed)["changed"] is False


@pytest.mark.parametrize(("days", "renewed"), [(548, False), (552, True), (900, True)])
def test_a_certificate_is_renewed_in_its_last_third(
    make: Run, at: Callable[[timedelta], datetime], days: int, renewed: bool
) -> None:
    first = make()
    now = at(timedelta(days=days))
    result = make()
    assert result["changed"] is renewed
    if renewed:
        assert result["reason"].startswith("it was valid from ")
        assert timedelta(days=820) < datetime.fromisoformat(result["expires"]) - now < timedelta(days=825)
    else:
        assert result["expires"] == first["expires"]


def test_a_certificate_of_the_future_is_made_anew(make: Run, at: Callable[[timedelta], datetime]) -> None:
    make()
    at(timedelta(days=10))
    make(addresses=["10.0.0.2"])
    at(timedelta(0))
    assert make(addresses=["10.0.0.2"])["reason"].startswith("it was valid from ")


def test_no_certificate_outlives_its_ca(
    make: Run, folder: Path, at: Callable[[timedelta], datetime], warnings: list[str]
) -> None:
    make()
    end = load(folder / "ca.crt").not_valid_after_utc
    at(timedelta(days=3650 - 400))
    late = make()
    assert not warnings
    assert datetime.fromisoformat(late["expires"]) == end
    # Less than a third is left, but a new one would have the same end.
    at(timedelta(days=3650 - 89))
    assert make()["changed"] is False
    assert warnings == [
        f"{folder}/ca.crt ends on {end:%Y-%m-%d}, and so do the certificates that it issues; {NEW_CA}."
    ]
    at(timedelta(days=3651))
    refused = make()
    assert refused["msg"] == f"{folder}/ca.crt expired on {end:%Y-%m-%d}; {NEW_CA}."
    replaced = make(replace_ca=True)
    assert (replaced["changed"], replaced["reason"]) == (True, "another CA had issued it")
    # An expired CA is trusted no longer.
    assert not (folder / "ca-old.crt").exists()
    assert (folder / "trust.crt").read_bytes() == (folder / "ca.crt").read_bytes()


def test_a_ca_of_the_future_is_refused(make: Run, folder: Path, at: Callable[[timedelta], datetime]) -> None:
    make()
    at(timedelta(hours=-3))
    assert make()["msg"].startswith(f"{folder}/ca.crt is valid only from ")


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ({"dns_names": ["web1", "api.example.org"]}, "api.example.org"),
        ({"dns_names": ["xweb1"]}, "xweb1"),
    ],
)
def test_a_name_that_the_ca_does_not_permit(
    make: Run, folder: Path, names: dict[str, Any], named: str
) -> None:
    make()
    before = contents(folder)
    assert (
        make(**names)["msg"] == f"{folder}/ca.crt does not permit {named}, which is new for web1; {NEW_CA}."
    )
    assert contents(folder) == before
    assert make(**names, replace_ca=True)["changed"] is True
    assert make(**names)["changed"] is False


@pytest.fixture
def former_ca(make: Run, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a CA as before 2026-11-29, which also restricts addresses."""
    domains = [x509.DNSName("web1"), x509.DNSName("localhost")]
    networks = [x509.IPAddress(ip_network(text)) for text in ("127.0.0.0/8", "10.0.0.0/8", "::1/128")]
    constraints = x509.NameConstraints([*domains, *networks], excluded_subtrees=None)
    with monkeypatch.context() as patched:
        patched.setattr(plugin, "name_constraints", lambda _: constraints)
        make()


@pytest.mark.usefixtures("former_ca")
def test_a_ca_that_restricts_addresses_stays_until_it_is_replaced(make: Run, folder: Path) -> None:
    before = contents(folder)
    assert make()["changed"] is False
    for address in ("203.0.113.7", "2001:db8::1", "11.0.0.1"):
        assert make(addresses=["10.0.0.1", address])["msg"] == (
            f"{folder}/ca.crt does not permit {address}, which is new for web1; {NEW_CA}."
        )
    assert contents(folder) == before
    assert make(addresses=["10.0.0.1", "10.0.0.2"])["changed"] is True
    make(replace_ca=True, addresses=["203.0.113.7"])
    constraints, _ = extension(load(folder / "ca.crt"), x509.NameConstraints)
    assert {type(tree) for tree in constraints.permitted_subtrees} == {x509.DNSName}
    assert (folder / "ca-old.crt").read_bytes() == before["ca.crt"]
    assert handshake(folder / "edge-web1.pem", folder / "trust.crt", "203.0.113.7") == ""


def test_names_of_the_inventory_and_below_permitted_ones_need_no_new_ca(make: Run) -> None:
    make(ca_dns_names=["example.org"])
    result = make(
        "web2", dns_names=["chat.example.org", "a.b.internal"], addresses=["203.0.113.7", "fd00::1"]
    )
    assert result["reason"] == "there was none"


def test_a_replaced_ca_stays_trusted(make: Run, folder: Path) -> None:
    make()
    old = [(folder / "ca.crt").read_bytes()]
    replaced = make(replace_ca=True)
    assert (replaced["changed"], replaced["reason"]) == (True, "another CA had issued it")
    assert (folder / "ca-old.crt").read_bytes() == old[0]
    old.insert(0, (folder / "ca.crt").read_bytes())
    make(replace_ca=True)
    assert (folder / "ca-old.crt").read_bytes() == b"".join(old)
    current = (folder / "ca.crt").read_bytes()
    assert (folder / "trust.crt").read_bytes() == current + b"".join(old)
    assert len({load(folder / "ca.crt").subject, *x509.load_pem_x509_certificates(b"".join(old))}) == 3
    assert make()["changed"] is False
    # To distrust the old ones.
    (folder / "ca-old.crt").unlink()
    result = make()
    assert (result["changed"], result["reason"]) == (True, "")
    assert (folder / "trust.crt").read_bytes() == current


def test_a_replaced_ca_is_dropped_when_it_expires(
    make: Run, folder: Path, at: Callable[[timedelta], datetime]
) -> None:
    make()
    at(timedelta(days=3000))
    make(replace_ca=True)
    assert (folder / "trust.crt").read_bytes().count(b"BEGIN") == 2
    at(timedelta(days=3660))
    make()
    assert (folder / "trust.crt").read_bytes() == (folder / "ca.crt").read_bytes()


@pytest.mark.parametrize("damage", ["crt", "key"])
@pytest.mark.parametrize("content", [b"", b"half", None])
def test_a_damaged_ca_is_refused_until_it_is_replaced(
    make: Run, folder: Path, damage: str, content: bytes | None
) -> None:
    make()
    path = folder / f"ca.{damage}"
    other = folder / ("ca.key" if damage == "crt" else "ca.crt")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == b"half" else content or b"")
    what = "one whole certificate" if damage == "crt" else "a P-256 key"
    message = f"{path} does not contain {what} in PEM; {REMEDY}"
    if content is None:
        path.unlink()
        message = f"{path} is missing although {other} is there; {REMEDY}"
    before = contents(folder)
    assert make()["msg"] == message
    assert contents(folder) == before
    assert make(replace_ca=True)["changed"] is True
    assert make()["changed"] is False
    # A certificate that was whole stays trusted.
    assert (folder / "ca-old.crt").exists() is (damage == "key")


@pytest.mark.parametrize("place", [100, 200, 300, 500, 700])
def test_a_ca_with_a_wrong_letter_is_refused(make: Run, folder: Path, place: int) -> None:
    make()
    path = folder / "ca.crt"
    text = path.read_text()
    path.write_text(text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :])
    before = contents(folder)
    assert make()["msg"] == f"{path} does not contain one whole certificate in PEM; {REMEDY}"
    assert contents(folder) == before


def test_a_ca_with_another_key_is_refused(make: Run, folder: Path) -> None:
    make()
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert make()["msg"] == f"{folder}/ca.key is not the key of {folder}/ca.crt; {REMEDY}"


@pytest.mark.parametrize("kind", ["P-384", "RSA"])
def test_a_key_of_another_kind_is_refused(make: Run, folder: Path, kind: str) -> None:
    make()
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    key = (
        ec.generate_private_key(ec.SECP384R1()) if kind == "P-384" else rsa.generate_private_key(65537, 2048)
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "ca.key").write_bytes(pem)
    assert make()["msg"] == f"{folder}/ca.key does not contain a P-256 key in PEM; {REMEDY}"


def test_a_ca_without_constraints_is_refused(make: Run, folder: Path, plugin: ModuleType) -> None:
    make()
    key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "any")])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1000))
    (folder / "ca.crt").write_bytes(plugin.certificates_pem([builder.sign(key, plugin.SHA256())]))
    assert make()["msg"] == (
        f"{folder}/ca.crt lacks name constraints or a key identifier, so Bedplate did not make it; {REMEDY}"
    )


@pytest.mark.parametrize("left", ["trust.crt", "edge-web1.pem"])
def test_a_lost_ca_is_not_made_again(make: Run, folder: Path, left: str) -> None:
    make()
    for name in {"ca.crt", "ca.key", "trust.crt", "edge-web1.pem"} - {left}:
        (folder / name).unlink()
    assert make()["msg"] == f"{folder}/ca.crt is missing although {folder}/{left} is there; {REMEDY}"
    assert make(replace_ca=True)["changed"] is True


def test_damaged_old_cas_are_refused(make: Run, folder: Path) -> None:
    make()
    make(replace_ca=True)
    (folder / "ca-old.crt").write_text("half")
    for replace in (False, True):
        assert make(replace_ca=replace)["msg"] == (
            f"{folder}/ca-old.crt does not contain certificates in PEM; restore it from a backup, or "
            "delete it if no client or host uses a replaced CA any longer."
        )


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_damaged_certificate_is_made_anew(make: Run, folder: Path, kept: float) -> None:
    make()
    path = folder / "edge-web1.pem"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert make()["reason"] == "it was damaged"
    assert make()["changed"] is False


def test_a_certificate_with_another_key_is_made_anew(make: Run, folder: Path) -> None:
    make()
    path = folder / "edge-web1.pem"
    certificate = path.read_text().partition("-----BEGIN PRIVATE")[0]
    path.write_text(certificate + (folder / "ca.key").read_text())
    assert make()["reason"] == "it was damaged"


@pytest.mark.parametrize("name", ["ca.key", "edge-web1.pem"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o777])
def test_a_key_that_others_can_read_is_refused(make: Run, folder: Path, name: str, mode: int) -> None:
    make()
    path = folder / name
    path.chmod(mode)
    assert make()["msg"] == (
        f"{path} has mode {mode:04o}, so other users can read the private key; run: chmod 0600 {path}"
    )


@pytest.mark.parametrize("name", ["ca.crt", "ca-old.crt", "trust.crt"])
def test_a_ca_that_others_can_write_is_refused(make: Run, folder: Path, name: str) -> None:
    make()
    make(replace_ca=True)
    (folder / name).chmod(0o664)
    message = f"{folder / name} has mode 0664, so other users can write it; run: chmod 0644 {folder / name}"
    assert make()["msg"] == message


def test_a_folder_that_others_can_write_is_refused(make: Run, folder: Path) -> None:
    make()
    folder.chmod(0o770)
    assert make()["msg"] == f"{folder} is writable for other users; run: chmod 0700 {folder}"


def test_a_file_in_the_folder_s_place(make: Run, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()
    assert make()["msg"] == (
        f"{folder} cannot be used (File exists); make it writable for the user of the playbook."
    )


def test_something_in_a_file_s_place(make: Run, folder: Path) -> None:
    make()
    (folder / "edge-web1.pem").unlink()
    (folder / "edge-web1.pem").mkdir(mode=0o700)
    assert make()["msg"] == (
        f"{folder}/edge-web1.pem cannot be read (Is a directory); "
        "make it readable for the user of the playbook."
    )


@pytest.mark.parametrize("synced", [0, 1, 3])
def test_a_full_disk_keeps_the_old_files(
    make: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, synced: int
) -> None:
    make()
    before = contents(folder)
    calls = []

    def full(_: int) -> None:
        calls.append(1)
        if len(calls) > synced:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused = make(replace_ca=True)
    assert refused["msg"].endswith(
        " cannot be written (No space left on device); free space or correct its folder, then run again."
    )
    assert contents(folder) == before


def test_symlinks_are_kept(make: Run, folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    vault = tmp_path / "vault"
    vault.mkdir()
    (folder / "ca.key").symlink_to(vault / "ca.key")
    make()
    make(replace_ca=True)
    assert (folder / "ca.key").is_symlink()
    assert [path.name for path in vault.iterdir()] == ["ca.key"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"host": "../web1"}, "the host '../web1' cannot be part of a file's name; use letters"),
        ({"host": "web/1"}, "the host 'web/1' cannot be part of a file's name; use letters"),
        ({"dns_names": [], "addresses": []}, "web1 has neither DNS names nor addresses; set dns_names or"),
        ({"dns_names": ["*.example.org"]}, "'*.example.org' is no DNS name of ASCII letters"),
        ({"dns_names": ["münchen.test"]}, "'münchen.test' is no DNS name of ASCII letters"),
        ({"dns_names": ["10.0.0.1"]}, "'10.0.0.1' is no DNS name of ASCII letters"),
        ({"dns_names": ["a..b"]}, "'a..b' is no DNS name of ASCII letters"),
        ({"dns_names": ["web1\n"]}, "'web1\\n' is no DNS name of ASCII letters"),
        ({"dns_names": ["a" * 64]}, f"'{'a' * 64}' is no DNS name of ASCII letters"),
        ({"dns_names": [".".join(["a" * 50] * 6)]}, f"'{'.'.join(['a' * 50] * 6)}' is no DNS name"),
        ({"addresses": ["web1"]}, "'web1' is no IP address that a client can connect to; use one such as"),
        ({"addresses": ["224.0.0.1"]}, "'224.0.0.1' is no IP address that a client can connect to"),
        ({"addresses": ["::"]}, "'::' is no IP address that a client can connect to"),
        ({"addresses": ["fe80::1%eth0"]}, "'fe80::1%eth0' is no IP address that a client can connect to"),
        ({"addresses": ["10.0.0.0/8"]}, "'10.0.0.0/8' is no IP address that a client can connect to"),
        (
            {"addresses": [f"10.0.0.{number}" for number in range(100)]},
            "those of web1 are 102 names and addresses; use 100 or fewer.",
        ),
        (
            {"ca_dns_names": [f"web{number}" for number in range(1000)]},
            "those of the CA are 1002 names and addresses; use 1000 or fewer.",
        ),
    ],
)
def test_invalid_parameters_are_refused(
    make: Run, folder: Path, params: dict[str, Any], message: str
) -> None:
    assert make(**params)["msg"].startswith(f"edge_certificates: {message}")
    assert not folder.exists()


def handshake(server_file: Path, trust: Path, name: str, *, strict: bool = True) -> str:
    """Make a TLS connection on loopback as a client of `name`; returns OpenSSL's complaint or nothing."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(server_file)
    client = ssl.create_default_context(cafile=str(trust))
    if strict:
        # The default of Python 3.13 and newer.
        client.verify_flags |= ssl.VERIFY_X509_STRICT

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        # A client that refuses the certificate ends the handshake.
        try:
            with server.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1)
        except OSError:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname=name) as secure,
            ):
                secure.send(b"x")
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            thread.join(10)
    return ""


def test_tls_with_names_and_addresses(make: Run, folder: Path) -> None:
    make(addresses=["127.0.0.1", "::1", "10.0.0.1", "203.0.113.7"])
    leaf, trust = folder / "edge-web1.pem", folder / "trust.crt"
    for name in ("web1", "localhost", "127.0.0.1", "::1", "10.0.0.1", "203.0.113.7"):
        assert handshake(leaf, trust, name) == ""
    assert "Hostname mismatch" in handshake(leaf, trust, "web2")
    assert "IP address mismatch" in handshake(leaf, trust, "10.0.0.2")


@pytest.mark.parametrize("host", ["gpu.example.org", "203.0.113.9"])
def test_tls_with_an_address_only(make: Run, folder: Path, host: str) -> None:
    """The host's name, which the CA does not permit, must not count as a name of the certificate."""
    make(host, dns_names=[], addresses=["10.0.0.1"])
    assert handshake(folder / f"edge-{host}.pem", folder / "trust.crt", "10.0.0.1") == ""


def test_tls_while_the_ca_is_replaced(make: Run, folder: Path, tmp_path: Path) -> None:
    make()
    before = tmp_path / "before.pem"
    before.write_bytes((folder / "edge-web1.pem").read_bytes())
    old_trust = tmp_path / "old.crt"
    old_trust.write_bytes((folder / "trust.crt").read_bytes())
    make(replace_ca=True)
    assert handshake(before, folder / "trust.crt", "web1") == ""
    assert handshake(folder / "edge-web1.pem", folder / "trust.crt", "web1") == ""
    assert "unable to get local issuer" in handshake(folder / "edge-web1.pem", old_trust, "web1")


@pytest.mark.parametrize("dns_names", [["bank.example"], ["web1.com", "web1"]])
def test_openssl_refuses_what_the_ca_does_not_permit(
    make: Run, folder: Path, plugin: ModuleType, dns_names: list[str]
) -> None:
    """Whoever steals the CA's key cannot pose as a public name."""
    make()
    authority = plugin.Pair(
        load(folder / "ca.crt"), load_pem_private_key((folder / "ca.key").read_bytes(), None)
    )
    names = plugin.Names(dns_names, [])
    forced = plugin.new_leaf(authority, "web1", names, plugin.utc_now())
    path = folder / "forced.pem"
    path.write_bytes(plugin.certificates_pem([forced.certificate]) + plugin.key_pem(forced.key))
    assert handshake(path, folder / "trust.crt", dns_names[0]) == "permitted subtree violation"


PLAY = """
import importlib.util, sys
from ansible.module_utils.testing import patch_module_args
spec = importlib.util.spec_from_file_location("edge_certificates", sys.argv[1])
module = sys.modules["edge_certificates"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
params = {"directory": sys.argv[2], "host": "web" + sys.argv[3], "addresses": ["10.0.0.1"]}
print("ready", flush=True)
sys.stdin.readline()
with patch_module_args(params):
    module.main()
"""


def test_concurrent_hosts_get_one_ca(repo_root: Path, folder: Path) -> None:
    module = repo_root / "roles/edge/library/edge_certificates.py"
    plays = [
        subprocess.Popen(
            [sys.executable, "-c", PLAY, str(module), str(folder), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for play in plays:
        assert play.stdout is not None
        assert play.stdout.readline() == "ready\n"
    for play in plays:
        assert play.stdin is not None
        play.stdin.write("go\n")
        play.stdin.flush()
    results = [json.loads(play.communicate(timeout=60)[0]) for play in plays]
    assert [result["reason"] for result in results] == ["there was none"] * 4
    for number in range(4):
        assert handshake(folder / f"edge-web{number}.pem", folder / "trust.crt", "10.0.0.1") == ""


def test_without_cryptography(make: Run, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "MISSING", "No module named 'cryptography'")
    assert make()["msg"] == (
        "edge_certificates cannot import cryptography (No module named 'cryptography'); run it with the "
        "Python of ansible-playbook: ansible_python_interpreter: '{{ ansible_playbook_python }}'"
    )
