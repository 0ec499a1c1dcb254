"""Keys as they are read from their file, and the errors of unusable ones."""

import json
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from bedplate_gateway.errors import ApiError
from bedplate_gateway.keys import Keys, read_keys
from bedplate_gateway.settings import SettingsError

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


def hashed(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def write(path: Path, *keys: dict[str, Any], schema: int = 2) -> Path:
    file = path / "keys.json"
    file.write_text(json.dumps({"schema": schema, "keys": keys}))
    return file


def entry(alias: str = "app", secret: str = "sk-app", **fields: object) -> dict[str, Any]:
    return {"alias": alias, "secrets": [{"sha256": hashed(secret)}], **fields}


def refusal(keys: Keys, authorization: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        keys.authenticate(authorization, NOW)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    return caught.value


def test_a_key_is_found_with_all_that_is_said_of_it(tmp_path: Path) -> None:
    keys = read_keys(
        write(
            tmp_path,
            entry(**{"class": "high"}, rpm=5, tpm=None, max_parallel=2, models=["m"]),
            entry("b", "sk-b"),
        )
    )
    key = keys.authenticate("Bearer sk-app", NOW)
    assert (key.alias, key.priority_class, key.rpm, key.tpm, key.max_parallel) == ("app", "high", 5, None, 2)
    assert key.may_use("m")
    assert not key.may_use("other")
    other = keys.authenticate("bearer  sk-b", NOW)
    assert (other.alias, other.priority_class) == ("b", "normal")
    assert other.may_use("anything")


def test_a_key_in_x_api_key_counts_where_no_bearer_is_sent(tmp_path: Path) -> None:
    keys = read_keys(write(tmp_path, entry(), entry("b", "sk-b")))
    assert keys.authenticate(None, NOW, api_key="sk-b").alias == "b"
    assert keys.authenticate("Bearer sk-app", NOW, api_key="sk-b").alias == "app"
    with pytest.raises(ApiError) as caught:
        keys.authenticate(None, NOW, api_key=" ")
    assert caught.value.reason == "no_key"


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "sk-app", "Basic sk-app", "Bearer sk-wrong", "Bearer sk-app x"],
)
def test_what_is_no_key_of_ours_is_401(tmp_path: Path, authorization: str | None) -> None:
    error = refusal(read_keys(write(tmp_path, entry())), authorization)
    assert error.reason in {"no_key", "wrong_key"}
    assert error.all_headers() == {"www-authenticate": "Bearer"}


def test_expired_replaced_and_revoked_keys_say_so(tmp_path: Path) -> None:
    keys = read_keys(
        write(
            tmp_path,
            entry("expired", "sk-1", expires="2026-06-01T12:00:00Z"),
            entry("not yet", "sk-2", expires="2026-06-01T12:00:01Z"),
            entry("revoked", "sk-3", revoked=True),
            {
                "alias": "rotated",
                "secrets": [
                    {"sha256": hashed("sk-new")},
                    {"sha256": hashed("sk-grace"), "until": "2026-06-01T14:00:01+02:00"},
                    {"sha256": hashed("sk-old"), "until": "2026-06-01T12:00:00Z"},
                ],
            },
        )
    )
    assert refusal(keys, "Bearer sk-1").reason == "expired_key"
    assert keys.authenticate("Bearer sk-2", NOW).alias == "not yet"
    assert refusal(keys, "Bearer sk-3").reason == "revoked_key"
    assert keys.authenticate("Bearer sk-new", NOW) is keys.authenticate("Bearer sk-grace", NOW)
    assert refusal(keys, "Bearer sk-old").reason == "replaced_key"


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ([entry(), entry(secret="sk-other")], "'app' is listed twice"),
        ([entry(), entry("other")], "share a secret"),
        ([entry(rpm=0)], "rpm"),
        ([entry(tpm="many")], "tpm"),
        ([entry(**{"class": "urgent"})], "class"),
        ([entry(expires="2026-06-01T12:00:00")], "expires"),
        ([entry(limit=3)], "limit"),
        ([{"alias": "a", "secrets": [{"sha256": "sk-pasted-in-place-of-its-hash"}]}], "sha256"),
        ([{"alias": "", "secrets": []}], "alias"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_one_sentence(
    tmp_path: Path, keys: list[dict[str, Any]], word: str
) -> None:
    file = write(tmp_path, *keys)
    with pytest.raises(SettingsError) as caught:
        read_keys(file)
    text = str(caught.value)
    assert text.startswith(str(file))
    assert word in text
    assert "deploy it again" in text
    assert "\n" not in text
    assert "sk-pasted" not in text
    assert hashed("sk-app") not in text


def test_another_schema_no_json_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="schema"):
        read_keys(write(tmp_path, schema=1))
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(SettingsError, match="JSON"):
        read_keys(tmp_path / "keys.json")
    (tmp_path / "keys.json").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="UTF-8"):
        read_keys(tmp_path / "keys.json")
    with pytest.raises(SettingsError, match="No such file"):
        read_keys(tmp_path / "none.json")


def test_keys_expire_by_their_own_clock(tmp_path: Path) -> None:
    keys = read_keys(write(tmp_path, entry(expires="2100-01-01T00:00:00Z")))
    assert keys.authenticate("Bearer sk-app").alias == "app"
    keys.now = lambda: datetime(2100, 1, 1, tzinfo=UTC)
    with pytest.raises(ApiError, match="expired at 2100-01-01"):
        keys.authenticate("Bearer sk-app")
