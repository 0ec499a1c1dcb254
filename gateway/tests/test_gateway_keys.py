import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from bedplate_gateway.keys import Key, KeysFileError, KeyStore, keys_file_from_environment, parse_keys


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def entry(alias: str, secret: str, **fields: Any) -> dict[str, Any]:
    return {
        "alias": alias,
        "sha256": digest(secret),
        "rpm": None,
        "tpm": None,
        "max_parallel": None,
        **fields,
    }


def write(path: Path, *entries: dict[str, Any]) -> None:
    """Replace the file as a deployment does: written beside it, then renamed."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"schema": 1, "keys": list(entries)}))
    beside.replace(path)


def test_finds_a_key_with_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, entry("default", "s1", rpm=100, tpm=1000, max_parallel=2, models=[]), entry("verify", "s2"))
    store = KeyStore(path)
    assert store.find("s1") == Key("default", digest("s1"), 100, 1000, 2)
    assert store.find("s2") == Key("verify", digest("s2"))


def test_a_hash_is_not_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, entry("default", "s1"))
    assert KeyStore(path).find(digest("s1")) is None


def test_a_changed_file_takes_effect(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write(path, entry("default", "old"))
    store = KeyStore(path)
    write(path, entry("default", "new"))
    assert store.find("old") is None
    assert store.find("new") is not None


@pytest.mark.parametrize("broken", ["{", "[]", '{"schema": 2, "keys": []}'])
def test_a_broken_change_keeps_the_old_keys_and_is_logged_once(
    broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    write(path, entry("default", "s1"))
    store = KeyStore(path)
    path.write_text(broken)
    assert store.find("s1") is not None
    assert store.find("s1") is not None
    assert len(caplog.records) == 1
    assert str(path) in caplog.text


def test_a_removed_file_keeps_the_old_keys_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    write(path, entry("default", "s1"))
    store = KeyStore(path)
    path.unlink()
    assert store.find("s1") is not None
    assert store.find("s1") is not None
    assert len(caplog.records) == 1
    write(path, entry("default", "s2"))
    assert store.find("s1") is None


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    write(path, entry("default", "s1"))
    store = KeyStore(path)
    monkeypatch.setattr(Path, "read_text", None)
    assert store.find("s1") is not None


def test_a_missing_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(KeysFileError, match="No such file"):
        KeyStore(tmp_path / "keys.json")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([{"sha256": digest("s")}], 'needs an "alias"'),
        (["s"], "must be an object"),
        ([{"alias": "a", "sha256": "sk-plain"}], "64 lower-case hexadecimal"),
        ([entry("a", "s", rpm=0)], '"rpm" as a whole number above 0 or null, it has 0'),
        ([entry("a", "s", tpm=True)], '"tpm"'),
        ([entry("a", "s", max_parallel="2")], '"max_parallel"'),
        ([entry("a", "s", models=["m"])], "not enforced yet"),
        ([entry("a", "s", rmp=1)], "unknown field 'rmp'"),
        ([entry("a", "s"), entry("a", "t")], "names the key 'a' twice"),
        ([entry("a", "s"), entry("b", "s")], "one secret"),
        (None, 'list "keys"'),
    ],
)
def test_bad_entries_are_named(keys: Any, message: str) -> None:
    with pytest.raises(KeysFileError, match=message) as raised:
        parse_keys(json.dumps({"schema": 1, "keys": keys}), "keys.json")
    assert "keys.json" in str(raised.value)


def test_a_secret_in_place_of_its_hash_is_not_shown() -> None:
    with pytest.raises(KeysFileError) as raised:
        parse_keys(json.dumps({"schema": 1, "keys": [{"alias": "a", "sha256": "sk-plain"}]}), "keys.json")
    assert "sk-plain" not in str(raised.value)


def test_the_variable_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEDPLATE_KEYS_FILE", raising=False)
    with pytest.raises(KeysFileError, match="BEDPLATE_KEYS_FILE is not set"):
        keys_file_from_environment()


def test_unreadable_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(os.fsencode("\udcff"))
    with pytest.raises(KeysFileError, match="cannot be read"):
        KeyStore(path)
