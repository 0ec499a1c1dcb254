"""The edge: login, host names, other sites' pages, certificates and reloads of a host with all pages."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stack import Load, Stack, wait_for

PORTS = {"dashboard": 3001, "prometheus": 9090, "alertmanager": 9093}


@pytest.fixture
def client(stack: Stack) -> httpx.Client:
    """A client that trusts the installation's CA."""
    return httpx.Client(verify=stack.trusted(), trust_env=False, timeout=10)


def url(stack: Stack, page: str, path: str = "/") -> str:
    """Return the URL of a page."""
    return f"https://{stack.address}:{PORTS[page]}{path}"


def main_pid(stack: Stack) -> str:
    """Return the process id of HAProxy's master."""
    return stack("systemctl show --property=MainPID --value bedplate-edge").strip()


def served(address: str, port: int, host: str | None = None) -> str:
    """Return the certificate that is served, in PEM."""
    return ssl.get_server_certificate((host or address, port))


@pytest.mark.parametrize("page", PORTS)
def test_only_the_login_gives_access(client: httpx.Client, stack: Stack, page: str) -> None:
    assert client.get(url(stack, page), follow_redirects=True, auth=stack.login).status_code == 200
    for wrong in (None, ("bedplate", "not the password"), ("someone", stack.login[1])):
        answer = client.get(url(stack, page), auth=wrong)
        assert (answer.status_code, "bedplate" in answer.text.lower()) == (401, False)
        assert answer.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("page", PORTS)
def test_a_page_of_a_stranger_reads_and_changes_nothing(
    client: httpx.Client, stack: Stack, page: str
) -> None:
    rebound = client.get(url(stack, page), headers={"host": "evil.example"}, auth=stack.login)
    assert (rebound.status_code, "edge_names" in rebound.text) == (421, True)
    headers = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    read = client.get(url(stack, page), headers=headers, follow_redirects=True, auth=stack.login)
    assert [name for name in read.headers if name.startswith("access-control-")] == []
    sent = client.post(url(stack, page, "/api/v2/silences"), headers=headers, json={}, auth=stack.login)
    assert sent.status_code == 403


def test_prometheus_cannot_be_changed_through_the_edge(client: httpx.Client, stack: Stack) -> None:
    for path in ("/api/v1/admin/tsdb/snapshot", "/-/reload", "/-/quit"):
        assert client.post(url(stack, "prometheus", path), auth=stack.login).status_code == 404


def test_one_port_serves_all_by_path_and_name(client: httpx.Client, stack: Stack) -> None:
    def get(path: str, host: str = "one", **options: Any) -> httpx.Response:
        return client.get(f"https://{stack.address}{path}", headers={"host": host}, **options)

    assert get("/health/liveliness").json() == {"status": "alive"}
    assert get("/v1/models").json()["error"]["code"] == "invalid_api_key"
    key = {"authorization": f"Bearer {stack.key('bench')}"}
    models = client.get(f"https://{stack.address}/v1/models", headers=key)
    assert [model["id"] for model in models.json()["data"]] == [stack.model]
    # The chat page is the gateway's, and its key is the login.
    for path in ("/chat", "/chat/chat.js"):
        assert get(path).status_code == 200
    assert get("/").status_code == 401
    assert "Bedplate" in get("/", auth=stack.login).text
    assert get("/", host="evil.example", auth=stack.login).status_code == 421
    ready = get("/-/ready", host="prometheus.one")
    assert (ready.status_code, "Prometheus" in ready.text) == (200, True)
    # The client's own address is counted, not the edge's.
    since = stack("date +%s").strip()
    assert get("/", auth=("bedplate", "wrong-password")).status_code == 401
    line = stack(f"journalctl -u bedplate-edge --since @{since} --output=cat --grep 'wrong user'")
    local, _ = socket.create_connection((stack.address, 443)).getsockname()
    assert line.startswith(f"{local} dashboard ")


def test_wrong_passwords_are_slowed_down_and_logged(client: httpx.Client, stack: Stack) -> None:
    since = stack("date +%s").strip()
    seconds = []
    for _ in range(14):
        began = time.monotonic()
        answer = client.get(url(stack, "prometheus"), auth=("bedplate", "wrong-password"))
        assert answer.status_code == 401
        seconds.append(time.monotonic() - began)
    assert min(seconds[-2:]) > 0.9 > seconds[0]
    assert client.get(url(stack, "prometheus", "/api/v1/query?query=up"), auth=stack.login).status_code == 200
    lines = stack(
        f"journalctl -u bedplate-edge --since @{since} --output=cat --grep 'wrong user or password'"
    )
    assert 1 <= len(lines.splitlines()) <= 11
    assert "wrong-password" not in lines


def test_only_the_login_of_services_can_read_the_password(stack: Stack) -> None:
    assert stack.keys_file.with_name("edge-password").stat().st_mode & 0o777 == 0o600
    paths = stack(
        f"grep -rl {stack.login[1]} /etc /run/credentials /var/lib/prometheus /var/log; true"
    ).split()
    for path in paths:
        assert stack(f"runuser -u nobody -- cat {path}", fails=True) == ""


def test_tls_is_at_least_1_2_and_verified(stack: Stack) -> None:
    old = ssl.create_default_context(cafile=stack.ca_file)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    for trusted in (ssl.create_default_context(), old):
        with pytest.raises(httpx.ConnectError), httpx.Client(verify=trusted, trust_env=False) as client:
            client.get(f"{stack.url}/health/liveliness")
    plain = httpx.Client(trust_env=False, timeout=5)
    with pytest.raises(httpx.HTTPError):
        plain.get(f"http://{stack.address}:8000/health/liveliness")


def test_a_wrong_name_and_none_get_the_same_certificate(stack: Stack) -> None:
    """The name in TLS (SNI) chooses nothing: whoever asks verifies the one certificate."""
    seen = set()
    for name in (None, "one", "evil.example"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection((stack.address, 8000), timeout=5)
        with context.wrap_socket(plain, server_hostname=name) as connection:
            seen.add(connection.getpeercert(binary_form=True))
    assert len(seen) == 1
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        socket.create_connection((stack.address, 8000)) as plain,
    ):
        stack.trusted().wrap_socket(plain, server_hostname="evil.example")


def test_300_unfinished_headers_stop_no_page(client: httpx.Client, stack: Stack) -> None:
    halves = []
    for _ in range(300):
        plain = socket.create_connection((stack.address, PORTS["dashboard"]), timeout=5)
        halves.append(stack.trusted().wrap_socket(plain, server_hostname=stack.address))
        halves[-1].send(b"GET / HTTP/1.1\r\nHost: x\r\n")
    began = time.monotonic()
    assert client.get(url(stack, "dashboard"), auth=stack.login).status_code == 200
    assert time.monotonic() - began < 2
    # The time for a header is 10 s.
    for half in halves:
        half.settimeout(max(1.0, began + 15 - time.monotonic()))
        assert half.recv(100).startswith(b"HTTP/1.1 408 ")
        half.close()


def certificate(folder: Path, name: str, *arguments: str) -> tuple[Path, Path]:
    """Generate a certificate and its key with openssl."""
    crt, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "90", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(crt), *arguments),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return crt, key


def test_a_new_certificate_costs_no_request(
    stack: Stack, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA of the user's, then the own one again: both by a reload under load."""
    ca, ca_key = certificate(tmp_path, "authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    crt, key = certificate(
        *(tmp_path, "given", "-CA", str(ca), "-CAkey", str(ca_key)),
        *("-addext", f"subjectAltName=IP:{stack.address}", "-addext", "basicConstraints=critical,CA:FALSE"),
    )
    given = {
        "edge_tls": "given",
        # The certificate names the address only.
        "edge_names": [],
        **{f"edge_{name}": str(path) for name, path in (("certificate", crt), ("key", key), ("ca", ca))},
    }
    process, own = main_pid(stack), served(stack.address, 8000)
    both = tmp_path / "both.crt"
    both.write_text(stack.ca_file.read_text() + ca.read_text())
    load = Load(stack, clients=4)
    with monkeypatch.context() as patched:
        patched.setattr(stack, "ca_file", both)
        with load.running():
            stack.play("--tags=edge", settings={**settings, **given})
            assert served(stack.address, 8000) == ssl.DER_cert_to_PEM_cert(
                ssl.PEM_cert_to_DER_cert(crt.read_text())
            )
            stack.play("--tags=edge", settings=settings)
            assert served(stack.address, 8000) == own
    assert load.failed() == []
    assert main_pid(stack) == process
    wait_for(lambda: bool(stack.status()["state"] == "healthy"), 30)


def test_the_edge_tells_who_is_down(client: httpx.Client, stack: Stack) -> None:
    stack("systemctl stop bedplate-dashboard")
    try:
        answer = client.get(url(stack, "dashboard", "/healthz"))
        assert (answer.status_code, "journalctl -u bedplate-dashboard" in answer.text) == (503, True)
    finally:
        stack("systemctl start bedplate-dashboard")
