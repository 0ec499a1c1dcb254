"""gateway_keys: the secrets file on the control machine, generated, kept and refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bedplate_gateway.keys import KeysFile

GIVEN = "sk-0123456789abcdefghij"
OTHER = "sk-jihgfedcba9876543210"
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/gateway/library/gateway_keys.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bedplate/lab/keys.json"


@pytest.fixture
def keys(plugin: ModuleType, run_module: Run, path: Path) -> Run:
    """Run the module with these keys (aliases or whole entries)."""

    def run(*entries: str | dict[str, Any], check: bool = False, **params: Any) -> dict[str, Any]:
        listed = [{"alias": entry} if isinstance(entry, str) else entry for entry in entries]
        params = {"path": str(path), "keys": listed, "_ansible_no_log": True, **params}
        return run_module(plugin, params, check=check)

    return run


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def entry(alias: str, *secrets: str, **terms: Any) -> dict[str, Any]:
    """Return a declared key without limits in the format of the gateway's keys file."""
    return {
        "alias": alias,
        "secrets": [{"sha256": sha256(secret)} for secret in secrets],
        **dict.fromkeys(("rpm", "tpm", "max_parallel", "expires")),
        "class": "normal",
        "models": [],
        "revoked": False,
        **terms,
    }


def test_keys_are_generated_once(keys: Run, path: Path) -> None:
    first = keys("default", {"alias": "verify", "rpm": 100})
    stored = json.loads(path.read_text())
    made = stored.pop("keys")
    assert (first["changed"], stored) == (True, {"schema": 2, "given": {}, "replaced": {}})
    assert made.keys() == {"default", "verify"}
    assert all(re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", secret) for secret in made.values())
    assert first["entries"] == [entry("default", made["default"]), entry("verify", made["verify"], rpm=100)]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    second = keys("default", {"alias": "verify", "rpm": 100}, host_has_hashes=True)
    assert (second["changed"], second["entries"]) == (False, first["entries"])


def test_all_terms_reach_the_gateway(keys: Run) -> None:
    declared: dict[str, Any] = {
        "alias": "team",
        "class": "high",
        "rpm": "100",
        "tpm": 2000,
        "max_parallel": 4,
        "models": ["b", "a"],
        "expires": "2027-01-31T01:00:00+01:00",
        "revoked": True,
    }
    result = keys(declared)
    terms = {**declared, "rpm": 100, "expires": "2027-01-31T00:00:00Z"}
    assert result["entries"] == [entry(**terms, secrets=result["entries"][0]["secrets"])]
    parsed = KeysFile.model_validate_json(json.dumps({"schema": 2, "keys": result["entries"]})).keys[0]
    assert (parsed.priority_class, sorted(parsed.models), parsed.revoked) == ("high", ["a", "b"], True)


@pytest.mark.parametrize("expires", ["2027-01-31", "2027-01-31T00:00:00", "soon", 20270131])
def test_an_expiry_without_a_zone_is_refused(keys: Run, path: Path, expires: object) -> None:
    assert keys({"alias": "team", "expires": expires})["msg"] == (
        f"gateway_keys: the key team expires at '{expires}'; "
        "use a time with its zone, such as 2027-01-31T00:00:00Z."
    )
    assert not path.exists()


def test_a_file_of_the_first_schema_is_read_and_kept(keys: Run, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"schema": 1, "keys": {"default": GIVEN}}))
    before = path.read_bytes()
    result = keys("default", host_has_hashes=True)
    assert (result["changed"], result["entries"]) == (False, [entry("default", GIVEN)])
    assert path.read_bytes() == before
    keys("default", "verify", host_has_hashes=True)
    assert json.loads(path.read_text())["keys"]["default"] == GIVEN


def test_a_new_key_does_not_change_the_others(keys: Run, path: Path) -> None:
    keys("default")
    before = json.loads(path.read_text())["keys"]
    keys("default", "canary", host_has_hashes=True)
    after = json.loads(path.read_text())["keys"]
    assert after == {**before, "canary": after["canary"]}


def test_check_mode_writes_nothing(keys: Run, path: Path) -> None:
    assert keys("default", check=True)["changed"] is True
    assert not path.parent.parent.exists()
    keys("default")
    before = path.read_bytes()
    assert keys("default", check=True)["changed"] is False
    assert keys("default", rotate="default", check=True)["changed"] is True
    assert path.read_bytes() == before


def test_given_secrets_are_stored_as_hashes(keys: Run, path: Path) -> None:
    keys("default")
    result = keys("default", {"alias": "batch", "secret": GIVEN})
    assert result["entries"][1] == entry("batch", GIVEN)
    assert json.loads(path.read_text())["given"] == {"batch": sha256(GIVEN)}
    assert GIVEN not in path.read_text()
    assert keys("default", {"alias": "batch", "secret": GIVEN})["changed"] is False


def test_a_rotated_secret_stays_valid_for_the_grace_period(keys: Run, path: Path) -> None:
    keys("default", "team")
    old = json.loads(path.read_text())["keys"]
    began = datetime.now(UTC)
    result = keys("default", "team", rotate="team", grace_hours=24)
    new = json.loads(path.read_text())["keys"]
    assert (result["changed"], new["default"]) == (True, old["default"])
    assert new["team"] != old["team"]
    (now, before) = result["entries"][1]["secrets"]
    assert (now, before["sha256"]) == ({"sha256": sha256(new["team"])}, sha256(old["team"]))
    until = datetime.fromisoformat(before["until"])
    assert timedelta(hours=24, seconds=-2) < until - began < timedelta(hours=24, seconds=60)
    again = keys("default", "team", grace_hours=24)
    assert (again["changed"], again["entries"]) == (False, result["entries"])


def test_a_rotation_without_grace_expires_all_earlier_secrets(keys: Run) -> None:
    keys("team")
    keys("team", rotate="team", grace_hours=24)
    result = keys("team", rotate="team", grace_hours=0)
    ends = [datetime.fromisoformat(old["until"]) for old in result["entries"][0]["secrets"][1:]]
    assert len(ends) == 2
    assert all(end <= datetime.now(UTC) for end in ends)


def test_the_last_replaced_secrets_are_stored(keys: Run, plugin: ModuleType) -> None:
    keys("team")
    for _ in range(plugin.MAX_REPLACED + 2):
        result = keys("team", rotate="team")
    assert len(result["entries"][0]["secrets"]) == 1 + plugin.MAX_REPLACED


def test_a_given_secret_is_rotated_by_a_new_one(keys: Run) -> None:
    old, new = {"alias": "batch", "secret": GIVEN}, {"alias": "batch", "secret": OTHER}
    keys(old)
    assert keys(old, rotate="batch")["msg"] == (
        "gateway_rotate is batch, but gateway_keys sets the secret of that key and has the old one: "
        "put the new secret there first."
    )
    (now, before) = keys(new, rotate="batch", grace_hours=1)["entries"][0]["secrets"]
    assert (now["sha256"], before["sha256"]) == (sha256(OTHER), sha256(GIVEN))
    assert datetime.fromisoformat(before["until"]) > datetime.now(UTC)
    # Changed back without a rotation: the other secret expires at once, and no hash is listed twice.
    (now, before) = keys(old)["entries"][0]["secrets"]
    assert (now["sha256"], before["sha256"]) == (sha256(GIVEN), sha256(OTHER))
    assert datetime.fromisoformat(before["until"]) <= datetime.now(UTC)


def test_a_key_that_does_not_exist_is_not_rotated(keys: Run) -> None:
    assert keys("default", "team", rotate="taem")["msg"] == (
        "gateway_rotate is taem, but there is no such key: known keys are default, team."
    )


def test_a_key_that_is_no_longer_declared_is_revoked(keys: Run, path: Path) -> None:
    keys("default", "team", {"alias": "batch", "secret": GIVEN})
    keys("default", "team", {"alias": "batch", "secret": GIVEN}, rotate="team", grace_hours=24)
    made = json.loads(path.read_text())["keys"]
    result = keys("default")
    assert result["changed"] is False
    batch, team = result["entries"][1:]
    assert batch == {"alias": "batch", "secrets": [{"sha256": sha256(GIVEN)}], "revoked": True}
    assert (team["revoked"], len(team["secrets"])) == (True, 2)
    assert team["secrets"][0] == {"sha256": sha256(made["team"])}
    # A given secret stays valid under another alias and is not refused as the old alias'.
    renamed = keys("default", {"alias": "low", "secret": GIVEN})["entries"]
    assert [key["alias"] for key in renamed] == ["default", "low", "team"]
    # A key that is declared again gets its old secret.
    assert keys("default", "team")["entries"][1]["secrets"][0] == {"sha256": sha256(made["team"])}


def test_lost_keys_are_not_replaced_without_reset(keys: Run, path: Path) -> None:
    refused = keys("default", host_has_hashes=True)
    assert refused["msg"] == (
        f"{path} is missing while the gateway host already holds keys; restore the file from a backup, "
        "or generate new keys for every client with -e gateway_keys_reset=true."
    )
    assert not path.exists()
    first = keys("default", host_has_hashes=True, reset=True)
    assert first["changed"] is True
    # With the switch still set for a second host, no second set of keys is generated.
    assert keys("default", host_has_hashes=True, reset=True)["entries"] == first["entries"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o777])
def test_a_file_that_others_can_read_is_refused(keys: Run, path: Path, mode: int) -> None:
    keys("default")
    path.chmod(mode)
    refused = keys("default")
    assert refused["failed"] is True
    assert refused["msg"].endswith(
        f"has mode {mode:04o}, so other users can read the keys; run: chmod 0600 {path}"
    )


def test_a_directory_that_others_can_write_is_refused(keys: Run, path: Path) -> None:
    keys("default")
    path.parent.chmod(0o770)
    assert (
        keys("default")["msg"] == f"{path.parent} is writable for other users; run: chmod 0700 {path.parent}"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not valid JSON"),
        ('{"schema": 1, "keys": {"default": "sk-', "is not valid JSON"),
        ("[]", 'lacks "schema": 2 or "keys"'),
        ('{"schema": 3, "keys": {}}', 'lacks "schema": 2 or "keys"'),
        ('{"schema": 2, "keys": {}, "given": []}', 'something other than hashes in "given"'),
        ('{"schema": 2, "keys": {}, "given": {"a": "b"}}', 'something other than hashes in "given"'),
        ('{"schema": 2, "keys": {}, "replaced": {"a": [{}]}}', 'something other than hashes in "given"'),
        ('{"schema": 1, "keys": {"default": 5}}', "the secret of key default is not plain printable ASCII"),
        ('{"schema": 1, "keys": {"default": "short"}}', "the secret of key default is too easy to guess"),
    ],
)
def test_a_corrupt_file_is_refused_and_unchanged(keys: Run, path: Path, text: str, reason: str) -> None:
    path.parent.mkdir(parents=True)
    path.touch(mode=0o600)
    path.write_text(text)
    refused = keys("default", reset=True)
    assert reason in refused["msg"]
    assert "restore it from a backup" in refused["msg"]
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("", "is empty"),
        ("changeme", "is too easy to guess (8 characters, 7 distinct)"),
        ("sk-1234", "is too easy to guess"),
        ("sk-...", "is too easy to guess"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaa", "is too easy to guess (27 characters, 1 distinct)"),
        ("sk-change-me-before-production", "is a placeholder"),
        ("sk-1234567890abcdefghijkl", "is a placeholder"),
        ("<your secret key for this one>", "is not plain printable ASCII without spaces"),
        ("<secret-from-the-vault>", "is a placeholder"),
        ("sk-xxxxxxxxxxxxxxxxxxxxxxx-abcdefg", "is a placeholder"),
        ("{{vault_gateway_default_key}}", "is a placeholder"),
        ("your-api-key-goes-in-here", "is a placeholder"),
        ("sk-ünïcödé-ünïcödé-ünïcödé", "is not plain printable ASCII without spaces"),
        (12345678901234567890, "is not plain printable ASCII without spaces"),
    ],
)
def test_weak_secrets_are_refused_without_printing_them(
    keys: Run, path: Path, secret: object, reason: str
) -> None:
    refused = keys({"alias": "default", "secret": secret})
    assert refused["msg"].startswith(f"gateway_keys: the secret of key default {reason}")
    assert not secret or str(secret) not in refused["msg"]
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            ["default", "default"],
            "gateway_keys: the alias default is used twice; give each key its own.",
        ),
        ([{"rpm": 1}], "gateway_keys: entry 1 has the alias None; use 1 to 63"),
        (["a", "two words"], "gateway_keys: entry 2 has the alias 'two words'; use 1 to 63"),
        (
            [{"alias": "a", "secret": GIVEN}, {"alias": "b", "secret": GIVEN}],
            "gateway_keys: the keys a and b have the same secret; give each its own.",
        ),
    ],
)
def test_bad_declarations_are_refused(keys: Run, entries: list[str | dict[str, Any]], message: str) -> None:
    assert keys(*entries)["msg"].startswith(message)


def test_generated_secrets_are_never_refused_later(plugin: ModuleType) -> None:
    declared = [plugin.Declared(f"key{number}", None, {}) for number in range(2000)]
    made = plugin.updated_store(declared, plugin.Store(), "", datetime.now(UTC), timedelta())
    assert not any(plugin.secret_error(secret) for secret in made.keys.values())


def test_a_full_disk_keeps_the_old_file(keys: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys("default")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused = keys("default", "verify")
    assert refused["msg"] == f"{path} cannot be written (No space left on device); the old file is unchanged."
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_symlink_is_kept(keys: Run, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere/keys.json")
    keys("default")
    assert path.is_symlink()
    assert (tmp_path / "elsewhere/keys.json").is_file()


def test_the_task_must_hide_its_output(keys: Run) -> None:
    refused = keys("default", _ansible_no_log=False)
    assert refused["msg"] == "the parameters of gateway_keys contain secrets; set no_log: true on its task."


PLAY = """
import importlib.util, sys
from ansible.module_utils.testing import patch_module_args
spec = importlib.util.spec_from_file_location("gateway_keys", sys.argv[1])
module = sys.modules["gateway_keys"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
params = {"path": sys.argv[2], "keys": [{"alias": "a"}, {"alias": "b"}], "_ansible_no_log": True}
print("ready", flush=True)
sys.stdin.readline()
with patch_module_args(params):
    module.main()
"""


def test_concurrent_plays_generate_the_same_keys(repo_root: Path, path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        PLAY,
        str(repo_root / "roles/gateway/library/gateway_keys.py"),
        str(path),
    ]
    plays = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for play in plays:
        assert play.stdout is not None
        assert play.stdout.readline() == "ready\n"
    for play in plays:
        assert play.stdin is not None
        play.stdin.write("go\n")
        play.stdin.flush()
    results = [json.loads(play.communicate(timeout=60)[0]) for play in plays]
    assert len({json.dumps(result["entries"], sort_keys=True) for result in results}) == 1
    assert sorted(result["changed"] for result in results) == [False, False, False, True]
