"""On a private address Prometheus uses TLS and a password; a new certificate needs no restart."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.alerts import wait_until
from tests.support.stack import Stack


class PrometheusClient:
    """Client of the host's Prometheus with the control machine's password and certificate."""

    def __init__(self, stack: Stack) -> None:
        files = stack.keys_file.parent
        self.address = stack.url.removeprefix("http://").replace(":8000", ":9090")
        self.password = (files / "prometheus-password").read_text()
        self.generated = files / f"prometheus-{stack.name}.crt"

    def status(self, ca: Path, password: str | None = None) -> int:
        """Return the HTTP status of a query; raises httpx.ConnectError if `ca` does not verify the server."""
        with httpx.Client(
            verify=ssl.create_default_context(cafile=ca), trust_env=False, timeout=10
        ) as client:
            auth = ("bedplate", self.password if password is None else password)
            return client.get(f"https://{self.address}/api/v1/query?query=up", auth=auth).status_code


@pytest.fixture
def prometheus(stack: Stack) -> PrometheusClient:
    """A client of the host's Prometheus."""
    return PrometheusClient(stack)


def main_pid(stack: Stack) -> str:
    """Return the process id of Prometheus."""
    return stack("systemctl show --property=MainPID --value prometheus").strip()


def certificate(folder: Path, name: str, *arguments: str) -> tuple[Path, Path]:
    """Generate a certificate and its key with openssl."""
    crt, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "90", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(crt), *arguments),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return crt, key


def test_only_the_password_gives_access(prometheus: PrometheusClient, stack: Stack) -> None:
    assert prometheus.status(prometheus.generated) == 200
    assert prometheus.status(prometheus.generated, "not the password") == 401
    assert httpx.get(f"http://{prometheus.address}/-/ready", trust_env=False).status_code == 400
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        prometheus.status(Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"))
    without = f"curl --silent --insecure --output /dev/null --write-out '%{{http_code}}' https://{prometheus.address}"
    for path in ("/", "/metrics", "/-/ready", "/api/v1/query?query=up", "/federate"):
        assert stack(f"{without}{path}") == "401"


def test_the_password_is_readable_only_for_its_services(prometheus: PrometheusClient, stack: Stack) -> None:
    assert (prometheus.generated.parent / "prometheus-password").stat().st_mode & 0o777 == 0o600
    paths = stack(
        f"grep -rl {prometheus.password} /etc /run/credentials /var/lib/prometheus /var/log; true"
    ).split()
    for path in paths:
        assert stack(f"runuser -u nobody -- cat {path}", fails=True) == ""


def test_a_new_certificate_is_used_at_once(
    prometheus: PrometheusClient, stack: Stack, settings: dict[str, Any], tmp_path: Path
) -> None:
    process, old = main_pid(stack), tmp_path / "old.crt"
    old.write_bytes(prometheus.generated.read_bytes())
    stack("rm /etc/bedplate/prometheus/server.pem")
    assert stack.play("--tags=prometheus", settings=settings) > 0
    assert prometheus.generated.read_bytes() != old.read_bytes()
    assert prometheus.status(prometheus.generated) == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        prometheus.status(old)
    assert main_pid(stack) == process
    assert stack.play("--tags=prometheus", settings=settings) == 0


def test_a_custom_certificate(
    prometheus: PrometheusClient, stack: Stack, settings: dict[str, Any], tmp_path: Path
) -> None:
    process = main_pid(stack)
    ca, ca_key = certificate(tmp_path, "authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    address = prometheus.address.removesuffix(":9090")
    crt, key = certificate(
        *(tmp_path, "own", "-CA", str(ca), "-CAkey", str(ca_key)),
        *("-addext", f"subjectAltName=IP:{address}", "-addext", "basicConstraints=critical,CA:FALSE"),
    )
    own = {
        "prometheus_tls_certificate": str(crt),
        "prometheus_tls_key": str(key),
        "prometheus_tls_ca": str(ca),
    }
    stack.play("--tags=prometheus", settings={**settings, **own})
    assert prometheus.status(ca) == 200
    assert main_pid(stack) == process
    wait_until(lambda: healthy(stack), 30)
    stack.play("--tags=prometheus", settings=settings)
    assert prometheus.status(prometheus.generated) == 200
    wait_until(lambda: healthy(stack), 30)


def healthy(stack: Stack) -> bool:
    """Return whether the dashboard, which queries Prometheus, reports healthy."""
    answer = httpx.get(stack.url.replace(":8000", ":3001") + "/api/status.json", trust_env=False)
    return bool(answer.json()["state"] == "healthy")
