"""What the gateway needs is taken away, and given back."""

from __future__ import annotations

import httpx
from gateway_lab import Stack, wait_for

SETTINGS = "/etc/bedplate/bedplate-gateway/gateway.json"


def ready(stack: Stack) -> int:
    """The status of readiness."""
    with stack.client() as client:
        return client.get("/health/readiness").status_code


def answers(stack: Stack) -> bool:
    """Whether anybody answers on the port."""
    try:
        return ready(stack) in (200, 503)
    except httpx.ConnectError:
        return False


def test_a_stopped_engine_is_said_and_restarts_nothing(stack: Stack) -> None:
    before = stack.main_pid()
    with stack.client(stack.key("bench")) as client:
        stack("systemctl stop ollama")
        try:
            print(f"\nnot ready after {wait_for(lambda: ready(stack) == 503):.1f} s")
            assert client.get("/v1/models").json()["data"] == []
            answer = stack.chat(client)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        finally:
            stack("systemctl start ollama")
        print(f"ready again after {wait_for(lambda: ready(stack) == 200):.1f} s")
        assert stack.chat(client).status_code == 200
    assert stack.main_pid() == before


def test_a_stopped_gateway_stays_stopped(stack: Stack) -> None:
    stack("systemctl stop bedplate-gateway")
    try:
        assert not answers(stack)
        # The dashboard gets its new secret by the same run, or the verify that follows would tell.
        rotation = {"gateway_rotate": "dashboard", "gateway_rotation_grace_hours": 0}
        stack.play("--tags", "keys", settings=rotation)
        assert stack("systemctl is-active bedplate-gateway", fails=True).strip() == "inactive"
        assert not answers(stack)
    finally:
        stack("systemctl start bedplate-gateway")
    assert answers(stack)


def test_failed_starts_leave_no_closed_port_behind(stack: Stack) -> None:
    stack(f'cp --archive {SETTINGS} /root/gateway.json && sed -i \'s/"share"/"shared"/\' {SETTINGS}')
    try:
        # What runs is not harmed by a reload that cannot succeed.
        stack("systemctl reload bedplate-gateway", fails=True)
        assert answers(stack)
        stack("systemctl restart bedplate-gateway", fails=True)
        for _ in range(5):
            stack("systemctl start bedplate-gateway", fails=True)
        assert "shared: Extra inputs are not permitted: deploy it again." in stack(
            "journalctl --unit bedplate-gateway --lines 50"
        )
    finally:
        stack(f"cp --archive /root/gateway.json {SETTINGS} && rm /root/gateway.json")
    stack("systemctl reset-failed bedplate-gateway && systemctl start bedplate-gateway")
    assert answers(stack)
