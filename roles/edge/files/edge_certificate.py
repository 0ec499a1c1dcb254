#!/usr/bin/python3
"""Orders the edge's certificate from an ACME directory with lego for HAProxy (edge-certificate.timer)."""

import argparse
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

STATE = Path("/var/lib/bedplate-edge")
CERTIFICATE = STATE / "server.pem"
# The directory and the names of the certificate in place.
ORDERED = STATE / "ordered"
LEGO_DIRECTORY = STATE / "lego"
ADMIN_SOCKET = "/run/bedplate-edge/admin.sock"
# A directory that answers slowly, or never, ends the run.
LEGO_SECONDS = 240
LEGO_ENTRY = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ", re.MULTILINE)
ANSWER_LENGTH = 600


class CertificateError(Exception):
    """Why there is no new certificate, as the begin of a sentence."""


def validity(certificate: Path) -> tuple[int, int]:
    """Return begin and end of a PEM certificate as Unix times; raises CertificateError."""
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-startdate", "-enddate", "-in", certificate],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CertificateError(f"{certificate} is missing or damaged")
    begin, end = (ssl.cert_time_to_seconds(line.partition("=")[2]) for line in done.stdout.splitlines())
    return begin, end


def is_due(order: str, now: float) -> bool:
    """Return whether the certificate is missing, was ordered for others, or is in its last third."""
    try:
        begin, end = validity(CERTIFICATE)
        return ORDERED.read_text() != order or end - now < (end - begin) / 3
    except (CertificateError, OSError):
        return True


def last_answer(output: str) -> str:
    """Return the last entry of lego's log in one line."""
    return " ".join(LEGO_ENTRY.split(output)[-1].split())[:ANSWER_LENGTH].rstrip(".")


def obtain(options: argparse.Namespace) -> str:
    """Order a certificate; returns it with its intermediate certificates and its key, in PEM."""
    challenge = (
        ["--dns=exec", "--dns.disable-cp"] if options.hook else ["--http", f"--http.port={options.http}"]
    )
    command = [
        *("lego", f"--server={options.directory}", f"--email={options.email}", "--accept-tos"),
        *(f"--path={LEGO_DIRECTORY}", *challenge, *(f"--domains={name}" for name in options.names), "run"),
    ]
    # Go adds this file to the CAs of the operating system.
    trusted = {"SSL_CERT_FILE": options.ca} if options.ca else {}
    with subprocess.Popen(
        command,
        env={**os.environ, "EXEC_PATH": options.hook, **trusted},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as lego:
        try:
            output, _ = lego.communicate(timeout=LEGO_SECONDS)
        except subprocess.TimeoutExpired:
            # The hook, too.
            os.killpg(lego.pid, signal.SIGKILL)
            raise CertificateError(
                f"{options.directory} issued no certificate within {LEGO_SECONDS} s"
            ) from None
    if lego.returncode:
        raise CertificateError(f"{options.directory} issued no certificate: {last_answer(output)}")
    made = LEGO_DIRECTORY / "certificates" / options.names[0]
    text = f"{made}.crt", f"{made}.key"
    # HAProxy's socket ends a text at the first empty line.
    return "".join(f"{line}\n" for name in text for line in Path(name).read_text().split("\n") if line)


def check(pem: Path, names: list[str], authority: str) -> None:
    """Make a TLS connection in memory for each name, as a client does; raises CertificateError."""
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(pem)
        client = ssl.create_default_context()
        if authority:
            client.load_verify_locations(authority)
        for name in names:
            to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
            ends = (
                client.wrap_bio(to_client, to_server, server_hostname=name),
                server.wrap_bio(to_server, to_client, server_side=True),
            )
            # In the second turn the client sees the certificate.
            for end in ends * 2:
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise CertificateError(f"the new certificate is refused by OpenSSL: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise CertificateError(f"the new certificate cannot be used by OpenSSL: {error.reason}") from None


def ask_haproxy(command: str, expected: str) -> None:
    """Send a command to HAProxy; raises CertificateError if the answer lacks the expected word."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(ADMIN_SOCKET)
            connection.sendall(command.encode())
            answer = b""
            while received := connection.recv(4096):
                answer += received
    except OSError as error:
        raise CertificateError(f"HAProxy does not answer at {ADMIN_SOCKET}: {error}") from None
    text = " ".join(answer.decode(errors="replace").split())
    if expected not in text:
        raise CertificateError(f"HAProxy refuses the certificate: {text}")


def give_to_haproxy(text: str) -> None:
    """Let HAProxy read a certificate, which it serves after the commit; raises CertificateError."""
    ask_haproxy(f"set ssl cert {CERTIFICATE} <<\n{text}\n", "Transaction ")


def first_certificate(text: str) -> bytes:
    """Return the first certificate of a text in PEM, without PEM's encoding."""
    begin = text.index("-----BEGIN CERTIFICATE-----")
    return ssl.PEM_cert_to_DER_cert(text[begin : text.index("-----END CERTIFICATE-----") + 25])


def is_served(address: str, text: str) -> bool:
    """Return whether the edge serves this certificate; raises CertificateError if it serves none."""
    host, _, port = address.rpartition(":")
    try:
        return first_certificate(
            ssl.get_server_certificate((host, int(port)), timeout=10)
        ) == first_certificate(text)
    except OSError as error:
        raise CertificateError(f"{address} serves no certificate: {error}") from None


def put_in_place(text: str, order: str, options: argparse.Namespace) -> None:
    """Check a new certificate, give it to HAProxy and replace the file; a failure leaves the old one."""
    new = CERTIFICATE.with_suffix(".new")
    try:
        with new.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        check(new, options.names, options.ca)
        give_to_haproxy(text)
        new.replace(CERTIFICATE)
        ORDERED.write_text(order)
    finally:
        new.unlink(missing_ok=True)
    ask_haproxy(f"commit ssl cert {CERTIFICATE}\n", "Success!")


def run(options: argparse.Namespace) -> None:
    """Order a certificate if one is due, and see that HAProxy serves the one in place."""
    order = f"{options.directory} {' '.join(options.names)}\n"
    if is_due(order, time.time()):
        put_in_place(obtain(options), order, options)
        print(f"New certificate from {options.directory}, valid until {day(validity(CERTIFICATE)[1])}.")
    text = CERTIFICATE.read_text()
    if not is_served(options.address, text):
        # A run that was cut off had replaced the file only.
        give_to_haproxy(text)
        ask_haproxy(f"commit ssl cert {CERTIFICATE}\n", "Success!")
        if not is_served(options.address, text):
            raise CertificateError(f"{options.address} serves another certificate than {CERTIFICATE}")


def day(seconds: float) -> str:
    """Return a Unix time as a date."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def main() -> None:
    """Run, and print one sentence if it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", required=True, help="URL of the ACME directory")
    parser.add_argument("--email", required=True, help="contact of the account")
    parser.add_argument("--hook", default="", help="program that sets DNS records; without it, HTTP-01")
    parser.add_argument("--http", default="", help="address at which lego answers HTTP-01")
    parser.add_argument("--ca", default="", help="file with CAs besides those of the operating system")
    parser.add_argument("--address", required=True, help="address and port at which HAProxy serves")
    parser.add_argument("names", nargs="+", help="DNS names")
    options = parser.parse_args()
    try:
        run(options)
    except (CertificateError, OSError) as error:
        until = ""
        with suppress(CertificateError):
            until = f", which ends on {day(validity(CERTIFICATE)[1])}"
        sys.exit(
            f"{error}. HAProxy serves the previous certificate{until}. Next: systemctl start edge-certificate"
        )


if __name__ == "__main__":
    main()
