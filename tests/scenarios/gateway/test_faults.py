"""The gateway loses what it needs (engine, settings) and gets it back."""

from __future__ import annotations

from tests.support.stack import Stack, wait_for

SETTINGS = "/etc/bedplate/bedplate-gateway/gateway.json"


def ready(stack: Stack) -> int:
    """Return the HTTP status of /health/readiness."""
    with stack.client() as client:
        return client.get("/health/readiness").status_code


def answers(stack: Stack) -> bool:
    """Return whether the gateway itself responds; otherwise the edge does, in OpenAI's shape."""
    with stack.client() as client:
        answer = client.get("/health/readiness")
    assert answer.status_code in (200, 503)
    code: str | None = answer.json().get("error", {}).get("code")
    return code != "service_unavailable"


def test_a_stopped_engine_is_reported_and_restarts_nothing(stack: Stack) -> None:
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
        # The same run gives the dashboard its new secret; otherwise the verify at the end would fail.
        rotation = {"gateway_rotate": "dashboard", "gateway_rotation_grace_hours": 0}
        stack.play("--tags", "keys", settings=rotation)
        assert stack("systemctl is-active bedplate-gateway", fails=True).strip() == "inactive"
        assert not answers(stack)
    finally:
        stack("systemctl start bedplate-gateway")
    assert answers(stack)


def test_the_gateway_starts_again_after_failed_starts(stack: Stack) -> None:
    stack(f'cp --archive {SETTINGS} /root/gateway.json && sed -i \'s/"share"/"shared"/\' {SETTINGS}')
    try:
        # A failed reload does not affect the running process.
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
