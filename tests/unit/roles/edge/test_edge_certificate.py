"""bedplate-edge-certificate: when a certificate is ordered, what is refused, what stays after a failure."""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

DAY = 86400
ORDER = "https://ca.example/dir llm.example\n"


@pytest.fixture
def program(
    load_source: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The program with its state in tmp_path."""
    module = load_source("roles/edge/files/edge_certificate.py")
    for name, path in (("CERTIFICATE", "server.pem"), ("ORDERED", "ordered"), ("LEGO_DIRECTORY", "lego")):
        monkeypatch.setattr(module, name, tmp_path / path)
    return module


def pair(folder: Path, name: str = "llm.example") -> str:
    """Return a self-signed certificate and its key in PEM; its certificate is folder/crt."""
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "90", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
        *("-keyout", str(folder / "key"), "-out", str(folder / "crt")),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "crt").read_text() + (folder / "key").read_text()


def options(tmp_path: Path, **more: str) -> argparse.Namespace:
    """Return the arguments of the unit."""
    given = {"directory": "https://ca.example/dir", "email": "a@example", "hook": "", "http": "127.0.0.1:1"}
    given |= {"ca": str(tmp_path / "crt"), "address": "127.0.0.1:9"}
    return argparse.Namespace(**{**given, **more}, names=["llm.example"])


def test_a_certificate_is_due_in_its_last_third(program: ModuleType, tmp_path: Path) -> None:
    now = time.time()
    assert program.is_due(ORDER, now)
    program.CERTIFICATE.write_text(pair(tmp_path))
    assert program.is_due(ORDER, now)
    program.ORDERED.write_text(ORDER)
    assert not program.is_due(ORDER, now + 59 * DAY)
    assert program.is_due(ORDER, now + 61 * DAY)
    # The host was off until long after its end.
    assert program.is_due(ORDER, now + 400 * DAY)


def test_other_names_or_another_directory_are_due(program: ModuleType, tmp_path: Path) -> None:
    program.CERTIFICATE.write_text(pair(tmp_path))
    program.ORDERED.write_text(ORDER)
    for other in ("https://ca.example/dir chat.example\n", "https://staging.example/dir llm.example\n"):
        assert program.is_due(other, time.time())


def test_a_damaged_certificate_is_due(program: ModuleType) -> None:
    program.CERTIFICATE.write_text("garbage")
    program.ORDERED.write_text(ORDER)
    assert program.is_due(ORDER, time.time())


def lego(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a script stand in for lego."""
    fake = folder / "bin/lego"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")


def test_the_answer_is_the_last_entry_of_the_log(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lego(
        tmp_path,
        monkeypatch,
        "echo '2026/11/28 13:00:00 [INFO] [llm.example] acme: Obtaining'\n"
        "printf '2026/11/28 13:00:01 Could not obtain:\\n\\terror: 403 ::\\n  no such name.\\n'; exit 1",
    )
    with pytest.raises(program.CertificateError) as failed:
        program.obtain(options(tmp_path))
    assert str(failed.value) == (
        "https://ca.example/dir issued no certificate: Could not obtain: error: 403 :: no such name"
    )


def test_a_directory_that_never_answers_ends_with_its_hook(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "LEGO_SECONDS", 0.5)
    lego(tmp_path, monkeypatch, f"sleep 60 & echo $! >{tmp_path}/hook; wait")
    began = time.monotonic()
    with pytest.raises(program.CertificateError, match=r"issued no certificate within 0\.5 s"):
        program.obtain(options(tmp_path))
    assert time.monotonic() - began < 10
    time.sleep(0.2)
    hook = Path("/proc", (tmp_path / "hook").read_text().strip(), "cmdline")
    # A process that has ended but is not yet reaped has an empty one.
    assert not hook.exists() or hook.read_bytes() == b""


@pytest.mark.parametrize(
    ("hook", "expected"),
    [("", "--http --http.port=127.0.0.1:1"), ("/etc/hook", "--dns=exec --dns.disable-cp")],
)
def test_the_challenge_and_the_text(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, expected: str
) -> None:
    made = tmp_path / "lego/certificates"
    made.mkdir(parents=True)
    (made / "llm.example.crt").write_text("leaf\n\nissuer\n")
    (made / "llm.example.key").write_text("key\n")
    lego(tmp_path, monkeypatch, f'echo "$EXEC_PATH $*" >{tmp_path}/called')
    assert program.obtain(options(tmp_path, hook=hook)) == "leaf\nissuer\nkey\n"
    called = (tmp_path / "called").read_text()
    assert f" {expected} --domains=llm.example run" in called
    assert called.startswith(f"{hook} --server=https://ca.example/dir")


def refused(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Return why a certificate is refused; the old file stays, and HAProxy hears nothing."""
    asked: list[str] = []
    monkeypatch.setattr(program, "ask_haproxy", lambda command, _expected: asked.append(command))
    program.CERTIFICATE.write_text("old")
    with pytest.raises(program.CertificateError) as failed:
        program.put_in_place(text, ORDER, options(tmp_path))
    assert (program.CERTIFICATE.read_text(), program.ORDERED.exists(), asked) == ("old", False, [])
    assert not program.CERTIFICATE.with_suffix(".new").exists()
    return str(failed.value)


def test_a_certificate_that_clients_refuse_is_not_put_in_place(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pair(tmp_path, "chat.example")
    assert "Hostname mismatch" in refused(program, tmp_path, monkeypatch, text)
    # The CA is not the one that is trusted.
    (tmp_path / "other").mkdir()
    other = pair(tmp_path / "other")
    assert "self-signed certificate" in refused(program, tmp_path, monkeypatch, other)
    # The key belongs to another certificate.
    begin = "-----BEGIN PRIVATE"
    mixed = text.partition(begin)[0] + begin + other.partition(begin)[2]
    assert "KEY_VALUES" in refused(program, tmp_path, monkeypatch, mixed)


def test_what_haproxy_refuses_is_not_put_in_place(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pair(tmp_path)
    program.CERTIFICATE.write_text("old")
    monkeypatch.setattr(program, "ADMIN_SOCKET", str(tmp_path / "none.sock"))
    with pytest.raises(program.CertificateError, match="HAProxy does not answer"):
        program.put_in_place(text, ORDER, options(tmp_path))
    assert program.CERTIFICATE.read_text() == "old"


def test_haproxy_reads_before_the_file_is_replaced(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, order = pair(tmp_path), []
    program.CERTIFICATE.write_text("old")

    def ask(command: str, expected: str) -> None:
        order.append((command[:4].strip(), program.CERTIFICATE.read_text() == text))
        assert expected in ("Transaction ", "Success!")

    monkeypatch.setattr(program, "ask_haproxy", ask)
    program.put_in_place(text, ORDER, options(tmp_path))
    assert order == [("set", False), ("comm", True)]
    assert program.ORDERED.read_text() == ORDER
