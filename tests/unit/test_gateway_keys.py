"""gateway_keys: the secrets file on the control machine, made, kept and refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GIVEN = "sk-0123456789abcdefghij"
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def plugin(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/litellm/library/gateway_keys.py")


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


def test_keys_are_made_once(keys: Run, path: Path) -> None:
    first = keys("default", {"alias": "verify", "rpm": 100, "models": ["a"]})
    assert (first["changed"], first["created"]) == (True, ["default", "verify"])
    assert all(re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", secret) for secret in first["secrets"].values())
    assert first["hashes"]["verify"] == hashlib.sha256(first["secrets"]["verify"].encode()).hexdigest()
    assert json.loads(path.read_text()) == {"schema": 1, "keys": first["secrets"]}
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    second = keys("default", "verify", host_has_hashes=True)
    assert (second["changed"], second["created"]) == (False, [])
    assert second["secrets"] == first["secrets"]


def test_a_further_key_leaves_the_others(keys: Run, path: Path) -> None:
    first = keys("default")
    second = keys("canary", host_has_hashes=True)
    assert second["created"] == ["canary"]
    assert json.loads(path.read_text())["keys"] == first["secrets"] | second["secrets"]


def test_check_mode_writes_nothing(keys: Run, path: Path) -> None:
    result = keys("default", check=True)
    assert (result["changed"], result["created"]) == (True, ["default"])
    assert not path.parent.parent.exists()
    keys("default")
    assert keys("default", check=True)["changed"] is False


def test_given_secrets_are_returned_but_not_stored(keys: Run, path: Path) -> None:
    keys("batch")
    result = keys("default", {"alias": "batch", "secret": GIVEN})
    assert result["secrets"]["batch"] == GIVEN
    assert json.loads(path.read_text())["keys"] == {"default": result["secrets"]["default"]}
    only_given = keys({"alias": "batch", "secret": GIVEN})
    assert only_given["changed"] is False


def test_lost_keys_are_not_replaced_by_chance(keys: Run, path: Path) -> None:
    refused = keys("default", host_has_hashes=True)
    assert refused["msg"] == (
        f"{path} is missing while the gateway host already holds keys; restore the file from a backup, "
        "or make new keys for every client with -e litellm_keys_reset=true."
    )
    assert not path.exists()
    first = keys("default", host_has_hashes=True, reset=True)
    assert first["created"] == ["default"]
    # Kept on the command line for a second host, the switch makes no second set of keys.
    assert keys("default", host_has_hashes=True, reset=True)["secrets"] == first["secrets"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o777])
def test_a_file_that_others_read_is_refused(keys: Run, path: Path, mode: int) -> None:
    keys("default")
    path.chmod(mode)
    refused = keys("default")
    assert refused["failed"] is True
    assert refused["msg"].endswith(
        f"has mode {mode:04o}, so others can read the keys; run: chmod 0600 {path}"
    )


def test_a_folder_that_others_write_is_refused(keys: Run, path: Path) -> None:
    keys("default")
    path.parent.chmod(0o770)
    assert keys("default")["msg"] == f"{path.parent} may be written by others; run: chmod 0700 {path.parent}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ('{"schema": 1, "keys": {"default": "sk-', "is not JSON"),
        ("[]", 'lacks "schema": 1 or "keys"'),
        ('{"schema": 2, "keys": {}}', 'lacks "schema": 1 or "keys"'),
        ('{"schema": 1, "keys": {"default": 5}}', "the secret of key default is not plain printable ASCII"),
        ('{"schema": 1, "keys": {"default": "short"}}', "the secret of key default is too easy to guess"),
    ],
)
def test_a_corrupt_file_is_refused_and_left(keys: Run, path: Path, text: str, reason: str) -> None:
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
        ("changeme", "is too easy to guess (8 characters, 7 different ones)"),
        ("sk-1234", "is too easy to guess"),
        ("sk-...", "is too easy to guess"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaa", "is too easy to guess (27 characters, 1 different ones)"),
        ("sk-change-me-before-production", "is a placeholder"),
        ("sk-1234567890abcdefghijkl", "is a placeholder"),
        ("<your secret key for this one>", "is not plain printable ASCII without spaces"),
        ("<secret-from-the-vault>", "is a placeholder"),
        ("sk-xxxxxxxxxxxxxxxxxxxxxxx-abcdefg", "is a placeholder"),
        ("{{vault_litellm_default_key}}", "is a placeholder"),
        ("your-api-key-goes-in-here", "is a placeholder"),
        ("sk-ünïcödé-ünïcödé-ünïcödé", "is not plain printable ASCII without spaces"),
        (12345678901234567890, "is not plain printable ASCII without spaces"),
    ],
)
def test_weak_secrets_are_refused_unshown(keys: Run, path: Path, secret: object, reason: str) -> None:
    refused = keys({"alias": "default", "secret": secret})
    assert refused["msg"].startswith(f"litellm_keys: the secret of key default {reason}")
    assert not secret or str(secret) not in refused["msg"]
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            ["default", "default"],
            "litellm_keys: the alias default stands there twice; give each key its own.",
        ),
        ([{"rpm": 1}], "litellm_keys: entry 1 has the alias None; use 1 to 63"),
        (["a", "two words"], "litellm_keys: entry 2 has the alias 'two words'; use 1 to 63"),
        (
            [{"alias": "a", "secret": GIVEN}, {"alias": "b", "secret": GIVEN}],
            "litellm_keys: the keys a and b have the same secret; give each its own.",
        ),
    ],
)
def test_bad_declarations_are_refused(keys: Run, entries: list[str | dict[str, Any]], message: str) -> None:
    assert keys(*entries)["msg"].startswith(message)


def test_generated_secrets_are_never_refused_later(plugin: ModuleType) -> None:
    made = plugin.settle([plugin.Declared(f"key{number}", None) for number in range(2000)], {})
    assert not any(plugin.malformed(secret) for secret in made.stored.values())


def test_a_full_disk_leaves_the_old_file(keys: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys("default")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused = keys("default", "verify")
    assert (
        refused["msg"] == f"{path} cannot be written (No space left on device); what was there is unchanged."
    )
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_link_stays_a_link(keys: Run, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere/keys.json")
    keys("default")
    assert path.is_symlink()
    assert (tmp_path / "elsewhere/keys.json").is_file()


def test_the_task_must_hide_its_output(keys: Run) -> None:
    refused = keys("default", _ansible_no_log=False)
    assert refused["msg"] == "gateway_keys returns secrets; set no_log: true on its task."


PLAY = """
import importlib.util, sys
from ansible.module_utils.testing import patch_module_args
spec = importlib.util.spec_from_file_location("gateway_keys", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
params = {"path": sys.argv[2], "keys": [{"alias": "a"}, {"alias": "b"}], "_ansible_no_log": True}
print("ready", flush=True)
sys.stdin.readline()
with patch_module_args(params):
    module.main()
"""


def test_plays_at_once_make_the_same_keys(repo_root: Path, path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        PLAY,
        str(repo_root / "roles/litellm/library/gateway_keys.py"),
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
    assert len({json.dumps(result["secrets"], sort_keys=True) for result in results}) == 1
    assert sorted(result["changed"] for result in results) == [False, False, False, True]
