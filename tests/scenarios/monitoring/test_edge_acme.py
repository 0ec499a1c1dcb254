"""Certificates from an ACME directory: real orders from pebble, a renewal under load, and faults."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.hosts import run_lab, send_file
from tests.support.stack import ROOT, Load, Stack

SUPPORT = ROOT / "tests/support"
NAMES = ["llm.acme.test", "chat.acme.test"]
PLAYBOOK = "playbooks/gateway.yml"
STATE = "/var/lib/bedplate-edge"
# As if the certificate were for other names.
ORDER = f"rm --force {STATE}/ordered; systemctl start edge-certificate"


@pytest.fixture(scope="module")
def acme(stack: Stack, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The host with a certificate from pebble; afterwards it has its own CA again."""
    authorities = tmp_path_factory.mktemp("acme") / "ca.crt"
    authorities.write_text(stack((SUPPORT / "pebble.sh").read_text()))
    ordered = {
        "edge_tls": "acme",
        "edge_names": NAMES,
        "edge_acme_directory": "https://127.0.0.1:14000/dir",
        "edge_acme_email": "ops@example.net",
        "edge_ca": str(authorities),
    }
    # The tests connect to an address, and the certificate has names only.
    trusted = ssl.create_default_context(cafile=authorities)
    trusted.check_hostname = False
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stack, "trusted", lambda: trusted)
        stack.play("--tags=edge", playbook=PLAYBOOK, settings={**settings, **ordered})
        stack(f"cp --preserve {STATE}/server.pem /root/first.pem")
        yield stack
    stack.play("--tags=edge", playbook=PLAYBOOK, settings=settings)
    assert stack("ss --listening --tcp --numeric 'sport = :80' | tail -n +2") == ""
    assert stack(f"find /etc -name 'edge-certificate*'; ls {STATE} 2>/dev/null || true") == ""


def served(stack: Stack, port: int = 8000) -> str:
    """Return the certificate that is served, in PEM."""
    return ssl.get_server_certificate((stack.address, port))


def test_a_renewal_costs_no_request(acme: Stack) -> None:
    process = acme("systemctl show --property=MainPID --value bedplate-edge")
    before = served(acme)
    load = Load(acme, clients=4)
    with load.running():
        acme(ORDER)
    assert served(acme) == served(acme, 3001) != before
    assert load.failed() == []
    assert acme("systemctl show --property=MainPID --value bedplate-edge") == process
    shown = acme(
        "echo | openssl s_client -connect $(hostname -I | cut -d' ' -f1):9090 2>/dev/null"
        " | openssl x509 -noout -ext subjectAltName"
    )
    assert shown.split()[-2:] == [f"DNS:{NAMES[0]},", f"DNS:{NAMES[1]}"]
    acme("systemctl start host-facts")
    metric = acme("grep ^bedplate_host_served /var/lib/node-exporter/textfile/host.prom")
    end = acme(f'date +%s --date="$(openssl x509 -noout -enddate -in {STATE}/server.pem | cut -d= -f2)"')
    assert f'_expiry_timestamp_seconds{{address="{acme.address}:8000"}} {end}' in metric


def test_a_certificate_in_place_is_not_ordered_again(acme: Stack) -> None:
    before = served(acme)
    acme("systemctl start edge-certificate")
    assert served(acme) == before


def test_a_run_that_was_cut_off_is_completed(acme: Stack) -> None:
    """It had replaced the file, but HAProxy serves another certificate."""
    acme(f"cp --preserve /root/first.pem {STATE}/server.pem; systemctl start edge-certificate")
    begin = acme("openssl x509 -in /root/first.pem")
    assert served(acme).split() == begin.split()


def test_only_the_edge_can_read_account_and_key(acme: Stack) -> None:
    owned = acme(f"find {STATE} ! -user bedplate-edge -o -type f ! -perm 600 -o -type d ! -perm 700")
    assert owned == ""
    for path in (f"{STATE}/server.pem", f"{STATE}/lego"):
        acme(f"runuser -u bedplate-gateway -- ls {path}", fails=True)


def fails(stack: Stack) -> str:
    """Order a certificate, which must fail and leave the old one; returns the one line in the journal."""
    before, digest = served(stack), stack(f"sha256sum {STATE}/server.pem")
    since = stack("date +%s.%N").strip()
    stack(ORDER, fails=True)
    assert served(stack) == before
    assert stack(f"sha256sum {STATE}/server.pem") == digest
    assert "server.new" not in stack(f"ls {STATE}")
    stack("journalctl --sync")
    line = stack(f"journalctl --quiet --output=cat --since=@{since} _SYSTEMD_UNIT=edge-certificate.service")
    assert line.count("\n") == 1
    assert ". HAProxy serves the previous certificate, which ends on 20" in line
    return line


def test_a_full_disk_leaves_the_old_certificate(acme: Stack) -> None:
    acme(f"rm --recursive --force /root/state; cp --archive {STATE} /root/state")
    run_lab("fault", "fill", "one", STATE, "64k")
    try:
        acme(f"rm --recursive {STATE}/*; cp --archive /root/state/. {STATE}")
        # A free block would be enough for the new file.
        acme(f"rm {STATE}/ordered; dd if=/dev/zero of={STATE}/zero bs=1 2>/dev/null || true")
        assert "No space left" in fails(acme)
    finally:
        run_lab("fault", "unfill", "one", STATE)
    acme("systemctl start edge-certificate")


FAKE = "systemd-run --quiet --collect --unit=fake-directory /usr/bin/python3 /root/fake_directory.py"
FAULTS = {
    "down": ("true", "connection refused"),
    "garbage": (f"{FAKE} garbage", "invalid character"),
    "rate-limited": (f"{FAKE} limited", "too many certificates already issued"),
}


# The last tests, because pebble forgets its accounts.
@pytest.mark.parametrize("fault", FAULTS)
def test_without_an_answer_the_old_certificate_stays(acme: Stack, fault: str) -> None:
    command, reason = FAULTS[fault]
    send_file("one", SUPPORT / "fake_directory.py", "/root/fake_directory.py")
    acme(f"systemctl stop pebble fake-directory 2>/dev/null || true; {command}; sleep 1")
    line = fails(acme)
    assert line.startswith("https://127.0.0.1:14000/dir issued no certificate: ")
    assert reason in line
