"""bedplate-host-facts: metrics of the host for the node exporter."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[[str], ModuleType]


NO_UPDATES = "Reading package lists...\n0 upgraded, 0 newly installed, 0 to remove and 0 not upgraded.\n"
# What apt-get printed on Debian 12, Debian 13 and Ubuntu 24.04; two of the five are security updates.
UPDATES = """Reading package lists...
Inst libssl3 [3.0.11-1] (3.0.13-1~deb12u1 Debian-Security:12/stable-security [amd64])
Inst base-files [12.4] (12.4+deb12u5 Debian:12.5/stable [amd64])
Inst linux-image-6.8 (6.8.0-31.31 Ubuntu:24.04/noble-security, Ubuntu:24.04/noble-updates [amd64]) []
Inst apt-security [1.0] (1.1 Debian:13.1/stable [all])
Inst curl [8.5.0] (8.5.1 Ubuntu:24.04/noble-updates [amd64])
Conf libssl3 (3.0.13-1~deb12u1 Debian-Security:12/stable-security [amd64])
"""


def fake_apt(folder: Path, output: str, status: int = 0) -> None:
    """Write an apt-get that prints this."""
    folder.mkdir(exist_ok=True)
    (folder / "apt-get").write_text(f"#!/bin/sh\ncat <<'EOF'\n{output}EOF\nexit {status}\n")
    (folder / "apt-get").chmod(0o755)


@pytest.fixture
def facts(load_source: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program with /boot and /run/reboot-required in tmp_path."""
    module = load_source("roles/node_exporter/files/host_facts.py")
    monkeypatch.setattr(module, "BOOT", tmp_path / "boot")
    monkeypatch.setattr(module, "REBOOT_REQUIRED", tmp_path / "reboot-required")
    fake_apt(tmp_path / "bin", NO_UPDATES)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "boot").mkdir()
    return module


def test_a_kernel_installed_since_boot_requires_a_restart(facts: ModuleType, tmp_path: Path) -> None:
    kernel = tmp_path / "boot/vmlinuz-6.12.1"
    kernel.touch()
    # Packages contain files that are older than their installation.
    os.utime(kernel, (1000, 1000))
    later = time.time() + 100
    assert not facts.reboot_required(later, 50)
    assert facts.reboot_required(later, 200)


def test_the_running_kernel_compared_with_the_installed_ones(facts: ModuleType, tmp_path: Path) -> None:
    assert facts.kernel_is_newest("6.12.1-amd64") is None
    for release in ("6.1.0-9-amd64", "6.1.0-25-amd64"):
        (tmp_path / f"boot/vmlinuz-{release}").touch()
    assert facts.kernel_is_newest("6.1.0-25-amd64")
    assert facts.kernel_is_newest("6.1.0-26-amd64")
    assert not facts.kernel_is_newest("6.1.0-9-amd64")


def test_a_package_requires_a_restart(facts: ModuleType, tmp_path: Path) -> None:
    assert not facts.reboot_required(time.time(), 50)
    (tmp_path / "reboot-required").touch()
    assert facts.reboot_required(time.time(), 50)


def served(certificate: Path, key: Path) -> str:
    """Serve a certificate to one client; returns the address and port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True):
            pass

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_the_file_is_complete_and_readable(
    facts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, broken, backups = tmp_path / "a.pem", tmp_path / "b.pem", tmp_path / "backups"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(
        [*request, "-keyout", tmp_path / "key.pem", "-out", certificate, "-days", "10", "-subj", "/CN=box"],
        check=True,
        capture_output=True,
    )
    broken.write_text("no certificate")
    (backups / "deep").mkdir(parents=True)
    os.utime(backups / "deep", (9000, 9000))
    for name, second in (("old", 1000), ("deep/new", 2000)):
        (backups / name).touch()
        os.utime(backups / name, (second, second))
    target = tmp_path / "host.prom"
    server = served(certificate, tmp_path / "key.pem")
    # Nothing listens on port 9, so the metric is absent.
    monkeypatch.setenv("SERVED", f"{server} 127.0.0.1:9")
    monkeypatch.setenv("CERTIFICATES", f"{certificate} {broken}")
    monkeypatch.setenv("BACKUPS", f"{backups} {tmp_path / 'none'}")
    monkeypatch.setattr("sys.argv", ["host-facts", str(target)])
    facts.main()
    metrics = dict(
        line.rsplit(" ", 1) for line in target.read_text().splitlines() if not line.startswith("#")
    )
    ends = float(metrics.pop(f'bedplate_host_certificate_expiry_timestamp_seconds{{path="{certificate}"}}'))
    assert 9.9 < (ends - time.time()) / 86400 < 10.1
    for name, value in (("expiry", ends), ("start", ends - 10 * 86400)):
        served_name = f"bedplate_host_served_certificate_{name}_timestamp_seconds"
        assert float(metrics.pop(f'{served_name}{{address="{server}"}}')) == value
    assert metrics == {
        "bedplate_host_reboot_required": "0",
        "bedplate_host_security_updates": "0",
        f'bedplate_host_certificate_expiry_timestamp_seconds{{path="{broken}"}}': "0",
        f'bedplate_host_backup_timestamp_seconds{{path="{backups}"}}': "2000",
        f'bedplate_host_backup_timestamp_seconds{{path="{tmp_path / "none"}"}}': "0",
    }
    printed = capsys.readouterr().err
    assert "b.pem: " in printed
    assert "127.0.0.1:9 serves no certificate" in printed
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.glob("host.*")] == ["host.prom"]


def test_security_updates_are_counted(facts: ModuleType, tmp_path: Path) -> None:
    assert facts.security_updates() == 0
    fake_apt(tmp_path / "bin", UPDATES)
    assert facts.security_updates() == 2


def test_a_broken_apt_reports_no_number(facts: ModuleType, tmp_path: Path) -> None:
    fake_apt(tmp_path / "bin", UPDATES, status=100)
    assert facts.security_updates() is None
    assert not any("security" in line for line in facts.metric_lines([], [], []))
