#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Makes the edge's certificates on the control machine: a CA of this installation, and one per host."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import (
        SECP256R1,
        EllipticCurvePrivateKey,
        generate_private_key,
    )
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    MISSING = str(error)
else:
    MISSING = ""
    # What cryptography raises for damaged certificates and keys.
    DAMAGED = (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    )

DOCUMENTATION = r"""
module: edge_certificates
short_description: Make and renew the edge's certificates with a CA of this installation
description:
  - Runs on the control machine without becoming another user. The library cryptography is a dependency of
    ansible-core.
  - Makes the CA once, as C(ca.crt) and C(ca.key). Name constraints restrict it to private names, and to the
    other names that were asked for when it was made. A permitted name includes the names below it.
    Addresses are not restricted, because BoringSSL refuses each CA that restricts them.
  - Makes the certificate of a host as C(edge-HOST.pem), which contains the certificate and its private key.
    It is made anew if it is missing or damaged, was issued by another CA or for other names, or if less
    than a third of its life is left.
  - Writes C(trust.crt), which contains the CA and the replaced CAs that have not expired (C(ca-old.crt)).
    Clients and hosts get this file. Whoever distrusts a replaced CA deletes C(ca-old.crt).
  - Never replaces a CA unless C(replace_ca) says so. A damaged one is refused.
  - In check mode nothing is written.
options:
  directory:
    description: The folder of the files. It is created with mode 0700.
    type: path
    required: true
  host:
    description: The inventory's name of the host.
    type: str
    required: true
  dns_names:
    description: The DNS names by which clients call the host, without wildcards.
    type: list
    elements: str
    default: []
  addresses:
    description: The IP addresses by which clients call the host.
    type: list
    elements: str
    default: []
  ca_dns_names:
    description: The DNS names of all hosts. A new CA permits them besides those of this host.
    type: list
    elements: str
    default: []
  replace_ca:
    description:
      - Make a new CA. The old one stays trusted until it expires.
      - Each call makes one, so set it in a task with run_once, before the task that runs for every host.
    type: bool
    default: false
author: Bedplate
"""

EXAMPLES = r"""
- name: Replace the CA
  edge_certificates:
    <<: &certificates
      directory: ~/.config/bedplate/lab
      host: "{{ inventory_hostname }}"
      dns_names: [localhost, web1.example.org]
      addresses: [127.0.0.1, 10.0.0.1]
      ca_dns_names: [localhost, web1.example.org, web2.example.org]
    replace_ca: true
  delegate_to: localhost
  become: false
  run_once: true

- name: Make the host's certificate
  edge_certificates: *certificates
  delegate_to: localhost
  become: false
  register: edge_certificate
"""

RETURN = r"""
certificate:
  description: Path of the file with the host's certificate and private key.
  returned: success
  type: str
trust:
  description: Path of the file with the CAs that clients trust.
  returned: success
  type: str
expires:
  description: When the host's certificate ends (ISO 8601).
  returned: success
  type: str
reason:
  description: Why the host's certificate was made anew, as the end of a sentence; empty if it was not.
  returned: success
  type: str
"""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

CA_LIFE = timedelta(days=3650)
# Apple's clients refuse longer ones. The last second counts, too.
LEAF_LIFE = timedelta(days=825) - timedelta(seconds=1)
# Certificates begin in the past, for hosts and clients whose clocks are behind.
CLOCK_SKEW = timedelta(hours=1)
CA_WARNING = timedelta(days=90)
MAX_NAMES = 100
MAX_CA_NAMES = 1000
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,199}")
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){LABEL}(?:\.{LABEL})*")
# What every CA permits: names that mean something else in each network.
PRIVATE_DOMAINS = ("localhost", "internal", "lan", "home.arpa", "local", "test")
NEW_CA = "make replace-ca; all clients then need the new CA (make ca)"
REMEDY = f"restore it from a backup, or replace the CA with {NEW_CA}"


class CertificatesError(Exception):
    """A refusal; the text is one sentence that contains no secret."""


class Names(NamedTuple):
    """DNS names and addresses, each only once."""

    dns: list[str]
    addresses: list[Address]


@dataclass(frozen=True)
class Pair:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def ends(self) -> datetime:
        """Return when the certificate ends."""
        return self.certificate.not_valid_after_utc


class Files:
    """The files of an installation; symlinks are followed, so that they stay when a file is replaced."""

    def __init__(self, directory: str, host: str) -> None:
        self.folder = Path(os.path.realpath(directory))
        self.ca = self._path("ca.crt")
        self.ca_key = self._path("ca.key")
        self.old = self._path("ca-old.crt")
        self.trust = self._path("trust.crt")
        self.leaf = self._path(f"edge-{host}.pem")

    def _path(self, name: str) -> Path:
        return Path(os.path.realpath(self.folder / name))


def utc_now() -> datetime:
    """Return the time in whole seconds, like the times in certificates."""
    return datetime.now(UTC).replace(microsecond=0)


def format_utc(when: datetime) -> str:
    """Format a time in UTC, to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_names(dns: list[str], addresses: list[str], limit: int, option: str) -> Names:
    """Parse names and addresses; raises CertificatesError for those that no certificate can contain."""
    if len(dns) + len(addresses) > limit:
        raise CertificatesError(
            f"edge_certificates: {option} are {len(dns) + len(addresses)} names and addresses; "
            f"use {limit} or fewer."
        )
    for name in dns:
        if not DNS_NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
            raise CertificatesError(
                f"edge_certificates: {name!r} is no DNS name of ASCII letters, digits, dots, dashes and "
                "underscores; correct it, or list it under the addresses if it is one."
            )
    parsed: list[Address] = []
    for text in addresses:
        try:
            address = ip_address(text)
        except ValueError:
            address = None
        if address is None or "%" in text or address.is_unspecified or address.is_multicast:
            raise CertificatesError(
                f"edge_certificates: {text!r} is no IP address that a client can connect to; "
                "use one such as 10.0.0.1 or fd00::1."
            )
        parsed.append(address)
    return Names(list(dict.fromkeys(name.lower() for name in dns)), list(dict.fromkeys(parsed)))


def domain_covers(domain: str, name: str) -> bool:
    """Return whether a name is the domain or below it."""
    return name == domain or name.endswith(f".{domain}")


def network_covers(network: Network, address: Address) -> bool:
    """Return whether an address belongs to a network of its own version."""
    return address.version == network.version and address in network


def name_constraints(asked: list[str]) -> x509.NameConstraints:
    """Return what a new CA permits: the private names, the others that are asked for, and any address.

    BoringSSL (Claude Code and other programs of bun) cannot check a constraint on addresses and refuses what
    such a CA has signed for one. A kind of name that no constraint mentions is permitted (RFC 5280).
    """
    domains = [*PRIVATE_DOMAINS]
    for name in sorted(asked, key=len):
        if not any(domain_covers(domain, name) for domain in domains):
            domains.append(name)
    return x509.NameConstraints(permitted_subtrees=[*map(x509.DNSName, domains)], excluded_subtrees=None)


def not_permitted(authority: x509.Certificate, names: Names) -> str:
    """Return the first name or address that the CA does not permit; empty if it permits all."""
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    permitted = [tree.value for tree in constraints.permitted_subtrees or ()]
    domains = [value for value in permitted if isinstance(value, str)]
    networks = [value for value in permitted if isinstance(value, IPv4Network | IPv6Network)]
    for name in names.dns:
        if not any(domain_covers(domain, name) for domain in domains):
            return name
    # Only a CA of an earlier release restricts addresses.
    for address in names.addresses if networks else ():
        if not any(network_covers(network, address) for network in networks):
            return str(address)
    return ""


def new_authority(asked: list[str], now: datetime) -> Pair:
    """Generate a CA that permits these names besides the private ones."""
    key = generate_private_key(SECP256R1())
    serial = x509.random_serial_number()
    # A name of its own, so that clients which trust several CAs find the right one.
    common_name = f"Bedplate CA {serial & 0xFFFFFFFF:08x}"
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Bedplate"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key(), serial, now - CLOCK_SKEW, now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(authority=True), critical=True)
        .add_extension(name_constraints(asked), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return Pair(builder.sign(key, SHA256()), key)


def key_usage(*, authority: bool) -> x509.KeyUsage:
    """Return what a key may do: sign certificates, or sign handshakes."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def general_names(names: Names) -> list[x509.GeneralName]:
    """Return names and addresses as they stand in a certificate."""
    return [*map(x509.DNSName, names.dns), *map(x509.IPAddress, names.addresses)]


def new_leaf(authority: Pair, host: str, names: Names, now: datetime) -> Pair:
    """Generate the certificate of a host."""
    key = generate_private_key(SECP256R1())
    # Without DNS names, OpenSSL and GnuTLS hold the common name against the CA's name constraints.
    host_attribute = NameOID.COMMON_NAME if names.dns else NameOID.ORGANIZATIONAL_UNIT_NAME
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Bedplate"),
            x509.NameAttribute(host_attribute, host[:64]),
        ]
    )
    start = max(now - CLOCK_SKEW, authority.certificate.not_valid_before_utc)
    issuer_identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    builder = (
        x509.CertificateBuilder(
            authority.certificate.subject,
            subject,
            key.public_key(),
            x509.random_serial_number(),
            start,
            min(start + LEAF_LIFE, authority.ends),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(general_names(names)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier.value),
            critical=False,
        )
    )
    return Pair(builder.sign(authority.key, SHA256()), key)


def issued(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether the CA issued the certificate."""
    try:
        leaf.verify_directly_issued_by(authority)
    except DAMAGED:
        return False
    return True


def read(path: Path, *, private: bool = False) -> bytes | None:
    """Read a file, None if there is none; raises CertificatesError if others can read a private one."""
    try:
        mode = path.stat().st_mode & 0o777
        if private and mode & 0o077:
            raise CertificatesError(
                f"{path} has mode {mode:04o}, so other users can read the private key; run: chmod 0600 {path}"
            )
        if mode & 0o022:
            raise CertificatesError(
                f"{path} has mode {mode:04o}, so other users can write it; run: chmod 0644 {path}"
            )
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CertificatesError(
            f"{path} cannot be read ({error.strerror}); make it readable for the user of the playbook."
        ) from None


def parse_key(data: bytes) -> EllipticCurvePrivateKey | None:
    """Return a private key from PEM, None if it is none of ours."""
    with suppress(*DAMAGED):
        key = load_pem_private_key(data, None)
        if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1):
            return key
    return None


def parse_certificates(data: bytes) -> list[x509.Certificate]:
    """Return the certificates of PEM; empty if it is damaged."""
    with suppress(*DAMAGED):
        found = x509.load_pem_x509_certificates(data)
        for certificate in found:
            # Certificates are parsed lazily, so a damaged one only shows here.
            _ = certificate.subject, certificate.extensions, certificate.public_key()
        return found
    return []


def read_authority(files: Files) -> Pair | None:
    """Return the CA, None if there was never one; raises CertificatesError for one that is damaged."""
    data, key_data = read(files.ca), read(files.ca_key, private=True)
    if data is None and key_data is None:
        left = [path for path in (files.trust, files.old, files.leaf) if path.exists()]
        if left:
            raise CertificatesError(f"{files.ca} is missing although {left[0]} is there; {REMEDY}.")
        return None
    for path, found, other in ((files.ca, data, files.ca_key), (files.ca_key, key_data, files.ca)):
        if found is None:
            raise CertificatesError(f"{path} is missing although {other} is there; {REMEDY}.")
    certificates = parse_certificates(data or b"")
    if len(certificates) != 1 or not issued(certificates[0], certificates[0]):
        raise CertificatesError(f"{files.ca} does not contain one whole certificate in PEM; {REMEDY}.")
    key = parse_key(key_data or b"")
    if key is None:
        raise CertificatesError(f"{files.ca_key} does not contain a P-256 key in PEM; {REMEDY}.")
    if key.public_key() != certificates[0].public_key():
        raise CertificatesError(f"{files.ca_key} is not the key of {files.ca}; {REMEDY}.")
    try:
        for needed in (x509.NameConstraints, x509.SubjectKeyIdentifier):
            certificates[0].extensions.get_extension_for_class(needed)
    except x509.ExtensionNotFound:
        raise CertificatesError(
            f"{files.ca} lacks name constraints or a key identifier, so Bedplate did not make it; {REMEDY}."
        ) from None
    return Pair(certificates[0], key)


def read_old(files: Files, now: datetime) -> list[x509.Certificate]:
    """Return the replaced CAs that have not expired."""
    data = read(files.old)
    if data is None:
        return []
    certificates = parse_certificates(data)
    if not certificates:
        raise CertificatesError(
            f"{files.old} does not contain certificates in PEM; restore it from a backup, or delete it if no "
            "client or host uses a replaced CA any longer."
        )
    return [certificate for certificate in certificates if certificate.not_valid_after_utc > now]


def leaf_problem(data: bytes | None, authority: Pair, names: Names, now: datetime) -> str:
    """Return why the host's certificate has to be made anew; empty if it can stay."""
    if data is None:
        return "there was none"
    certificates, key = parse_certificates(data), parse_key(data)
    if len(certificates) != 1 or key is None or key.public_key() != certificates[0].public_key():
        return "it was damaged"
    leaf = certificates[0]
    if not issued(leaf, authority.certificate):
        return "another CA had issued it"
    if not names_exactly(leaf, names):
        return "it was for other names"
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    # One that ends with its CA would only be made again with the same end.
    if start > now or (end - now < (end - start) / 3 and end < authority.ends):
        return f"it was valid from {start:%Y-%m-%d} to {end:%Y-%m-%d}"
    return ""


def names_exactly(leaf: x509.Certificate, names: Names) -> bool:
    """Return whether a certificate is for these names and addresses and no others."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return set(found) == set(general_names(names))


def certificates_pem(certificates: list[x509.Certificate]) -> bytes:
    """Return certificates in PEM."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def key_pem(key: EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PEM (PKCS 8)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write(contents: dict[Path, bytes], private: set[Path]) -> None:
    """Replace the files, each atomically; raises CertificatesError and keeps all if one cannot be written."""
    temporaries: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            temporaries[path] = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o600 if path in private else 0o644)
                os.fsync(file.fileno())
        # Nothing is replaced before all are on the disk, so that a CA's certificate and key stay a pair.
        for path, temporary in temporaries.items():
            temporary.replace(path)
        for folder in {path.parent for path in contents}:
            sync_folder(folder)
    except OSError as error:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        raise CertificatesError(
            f"{path} cannot be written ({error.strerror}); free space or correct its folder, then run again."
        ) from None


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that concurrent plays make one CA; creates the folder."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_mode & 0o022:
            raise CertificatesError(f"{folder} is writable for other users; run: chmod 0700 {folder}")
        handle = os.open(folder / ".edge-certificates.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CertificatesError(
            f"{folder} cannot be used ({error.strerror}); make it writable for the user of the playbook."
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def current_authority(files: Files, now: datetime) -> Pair | None:
    """Return the CA, None if there was never one; raises CertificatesError for one that cannot be used."""
    authority = read_authority(files)
    if authority is None:
        return None
    if authority.ends <= now:
        raise CertificatesError(
            f"{files.ca} expired on {authority.ends:%Y-%m-%d}; replace the CA with {NEW_CA}."
        )
    start = authority.certificate.not_valid_before_utc
    if start > now:
        raise CertificatesError(
            f"{files.ca} is valid only from {format_utc(start)}; set the clock of the control machine."
        )
    return authority


def run(module: AnsibleModule, files: Files, names: Names, asked: list[str]) -> dict[str, Any]:
    """Return the module's result; raises CertificatesError for a refusal."""
    now = utc_now()
    old = read_old(files, now)
    contents: dict[Path, bytes] = {}
    authority = None if module.params["replace_ca"] else current_authority(files, now)
    if authority is None:
        authority = new_authority(asked, now)
        replaced = [
            certificate
            for certificate in parse_certificates(read(files.ca) or b"")
            if certificate.not_valid_after_utc > now and certificate not in old
        ]
        if replaced:
            old = [*replaced, *old]
            contents[files.old] = certificates_pem(old)
        contents[files.ca_key] = key_pem(authority.key)
        contents[files.ca] = certificates_pem([authority.certificate])
    elif name := not_permitted(authority.certificate, names):
        raise CertificatesError(
            f"{files.ca} does not permit {name}, which is new for {module.params['host']}; "
            f"replace the CA with {NEW_CA}."
        )
    if authority.ends - now < CA_WARNING:
        module.warn(
            f"{files.ca} ends on {authority.ends:%Y-%m-%d}, and so do the certificates that it issues; "
            f"replace the CA with {NEW_CA}."
        )
    trust = certificates_pem([authority.certificate, *old])
    if read(files.trust) != trust:
        contents[files.trust] = trust
    data = read(files.leaf, private=True)
    reason = leaf_problem(data, authority, names, now)
    if reason:
        leaf = new_leaf(authority, module.params["host"], names, now)
        data = certificates_pem([leaf.certificate]) + key_pem(leaf.key)
        contents[files.leaf] = data
    if contents and not module.check_mode:
        write(contents, {files.ca_key, files.leaf})
    return {
        "changed": bool(contents),
        "certificate": str(files.leaf),
        "trust": str(files.trust),
        "expires": format_utc(parse_certificates(data or b"")[0].not_valid_after_utc),
        "reason": reason,
    }


def main() -> None:
    """Run the module."""
    names_option = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "host": {"type": "str", "required": True},
            "dns_names": names_option,
            "addresses": names_option,
            "ca_dns_names": names_option,
            "replace_ca": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(
            msg=f"edge_certificates cannot import cryptography ({MISSING}); run it with the Python of "
            "ansible-playbook: ansible_python_interpreter: '{{ ansible_playbook_python }}'"
        )
    params = module.params
    try:
        if not HOST.fullmatch(params["host"]):
            raise CertificatesError(
                f"edge_certificates: the host {params['host']!r} cannot be part of a file's name; "
                "use letters, digits, dots, dashes, underscores and colons."
            )
        names = parse_names(params["dns_names"], params["addresses"], MAX_NAMES, f"those of {params['host']}")
        if not names.dns and not names.addresses:
            raise CertificatesError(
                f"edge_certificates: {params['host']} has neither DNS names nor addresses; "
                "set dns_names or addresses."
            )
        everyone = parse_names(
            [*params["ca_dns_names"], *params["dns_names"]], [], MAX_CA_NAMES, "those of the CA"
        )
        files = Files(params["directory"], params["host"])
        # Check mode must not create the directory of the lock.
        with nullcontext() if module.check_mode else locked(files.folder):
            result = run(module, files, names, everyone.dns)
    except CertificatesError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
