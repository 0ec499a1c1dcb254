"""Keys are added, rotated, revoked and expired by one play and a reload, without affecting other clients."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from tests.support.stack import ROOT, Load, Stack

LAB_KEYS: list[dict[str, Any]] = yaml.safe_load((ROOT / "inventory/lab/group_vars/all.yml").read_text())[
    "gateway_keys"
]
REVOKED = "This API key was revoked: ask for a new one."


def declare(stack: Stack, *keys: dict[str, Any], **settings: Any) -> int:
    """Deploy the lab's keys and these; returns the number of changed tasks."""
    return stack.play("--tags", "keys", settings={"gateway_keys": [*LAB_KEYS, *keys], **settings})


def test_keys_are_added_during_streams(stack: Stack) -> None:
    before = stack.main_pid()
    expires = datetime.now(UTC) + timedelta(seconds=90)
    moment = expires.isoformat(timespec="seconds")
    streams = Load(stack, clients=3, tokens=200, stream=True)
    with streams.running():
        assert declare(stack, {"alias": "team"}, {"alias": "guest", "expires": moment}) > 0
        assert [stack.key_status(stack.key(alias)) for alias in ("team", "guest")] == ["ok", "ok"]
    assert streams.failed() == []
    after = stack.main_pid()
    assert after != before
    # A second run changes nothing; the key expires meanwhile.
    assert declare(stack, {"alias": "team"}, {"alias": "guest", "expires": moment}) == 0
    assert stack.main_pid() == after
    time.sleep(max(0.0, (expires - datetime.now(UTC)).total_seconds() + 1))
    assert stack.key_status(stack.key("guest")) == f"This API key expired at {moment}: ask for a new one."


def test_a_rotated_key_has_two_secrets_until_its_grace_ends(stack: Stack) -> None:
    first = stack.key("team")
    declare(stack, {"alias": "team"}, gateway_rotate="team")
    second = stack.key("team")
    assert first != second
    assert [stack.key_status(secret) for secret in (first, second)] == ["ok", "ok"]
    declare(stack, {"alias": "team"}, gateway_rotate="team", gateway_rotation_grace_hours=0)
    third = stack.key("team")
    assert stack.key_status(third) == "ok"
    for secret in (first, second):
        message = stack.key_status(secret)
        assert message.startswith("This API key was replaced at ")
        assert message.endswith(": use the new one.")


def test_a_key_is_revoked(stack: Stack) -> None:
    secret = stack.key("team")
    declare(stack, {"alias": "team", "revoked": True})
    assert stack.key_status(secret) == REVOKED
    declare(stack, {"alias": "team"})
    assert stack.key_status(secret) == "ok"
    # The last one leaves the keys of the inventory.
    declare(stack)
    assert stack.key_status(secret) == REVOKED
    assert (
        stack.key_status("sk-nobody-ever-had-this-one")
        == "The API key is not valid here: check it, or ask for a new one."
    )


def test_a_key_sees_its_models_alone(stack: Stack) -> None:
    with stack.client(stack.key("bench")) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [stack.model]
        answer = stack.chat(client, model="none:1b")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
