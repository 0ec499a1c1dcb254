#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Keeps the gateway's API keys in one private file on the control machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: gateway_keys
short_description: Make and read the secrets of the gateway's API keys
description:
  - Runs on the control machine, once a play, without becoming another user.
  - Makes a secret for each key that has none and keeps it in a file that only its owner reads. Secrets that
    the inventory gives are checked and returned, never stored. Keys that are no longer declared stay in the
    file.
  - The task must set no_log, the module refuses to run without. Ansible then hides error messages too, so
    register the result with failed_when false and let the next task fail with its msg.
  - In check mode nothing is written, and secrets to be made are returned as throwaway values.
options:
  path:
    description: The file. Its folder is made with mode 0700.
    type: path
    required: true
  keys:
    description:
      - The declared keys. Of each, C(alias) and the optional C(secret) are read, other fields are left alone.
    type: list
    elements: dict
    required: true
  host_has_hashes:
    description: Whether a gateway host already has hashes of keys, so that a missing file means lost keys.
    type: bool
    default: false
  reset:
    description:
      - Make new keys although the file is missing and a host has hashes. Clients then need their new keys.
    type: bool
    default: false
author: Bedplate
"""

EXAMPLES = r"""
- name: Read the keys
  gateway_keys:
    path: ~/.config/bedplate/lab/keys.json
    keys: [{alias: default, rpm: 100}, {alias: batch, secret: "{{ vault_batch_key }}"}]
    host_has_hashes: true
  delegate_to: localhost
  become: false
  run_once: true
  no_log: true
  register: litellm_key_store
  failed_when: false

- name: Refuse keys that cannot be used
  ansible.builtin.fail:
    msg: "{{ litellm_key_store.msg }}"
  when: litellm_key_store.msg is defined
"""

RETURN = r"""
secrets:
  description: Secret by alias, for each declared key.
  returned: success
  type: dict
hashes:
  description: Hexadecimal SHA-256 of the secret by alias.
  returned: success
  type: dict
created:
  description: Aliases whose secret was made, or would be in check mode.
  returned: success
  type: list
  elements: str
"""

SCHEMA = 1
MIN_LENGTH = 20
MIN_DIFFERENT = 8
ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
SECRET = re.compile(r"[\x21-\x7e]{1,512}")
# Words of at least five letters, so that a random secret meets one less than once in a million.
PLACEHOLDER = re.compile(
    r"change.?(me|this|it)|place.?holder|replace.?(me|this)|example|your.?(api|key|secret|token)"
    r"|dummy|sk-1234|xxxxx|\.\.\.|^<.*>$|{{|}}",
    re.IGNORECASE,
)


class KeysError(Exception):
    """A refusal; its text is one sentence without any secret."""


class Declared(NamedTuple):
    """A declared key; `secret` is None where one is to be made."""

    alias: str
    secret: str | None


def malformed(secret: object) -> str | None:
    """Say why a client could not use a secret or a stranger could guess it, or None."""
    if secret == "":
        return "is empty"
    if not isinstance(secret, str) or not SECRET.fullmatch(secret):
        return "is not plain printable ASCII without spaces"
    if len(secret) < MIN_LENGTH or len(set(secret)) < MIN_DIFFERENT:
        return f"is too easy to guess ({len(secret)} characters, {len(set(secret))} different ones)"
    return None


def declared_keys(keys: list[dict[str, Any]]) -> list[Declared]:
    """Read the declared keys; raises KeysError for bad aliases, weak secrets and duplicates."""
    found: list[Declared] = []
    for number, key in enumerate(keys, 1):
        alias = key.get("alias")
        if not isinstance(alias, str) or not ALIAS.fullmatch(alias):
            raise KeysError(
                f"litellm_keys: entry {number} has the alias {alias!r}; "
                "use 1 to 63 letters, digits, dots, dashes or underscores."
            )
        secret = key.get("secret")
        wrong = None if secret is None else malformed(secret)
        if secret and not wrong and PLACEHOLDER.search(secret):
            wrong = "is a placeholder"
        if wrong:
            raise KeysError(
                f"litellm_keys: the secret of key {alias} {wrong}; leave it out to have one made, "
                "or make one of at least 20 characters: openssl rand -hex 32"
            )
        if any(other.alias == alias for other in found):
            raise KeysError(f"litellm_keys: the alias {alias} stands there twice; give each key its own.")
        for other in found:
            if secret is not None and other.secret == secret:
                raise KeysError(
                    f"litellm_keys: the keys {other.alias} and {alias} have the same secret; "
                    "give each its own."
                )
        found.append(Declared(alias, secret))
    return found


def read_store(path: Path) -> dict[str, str]:
    """Return the stored secrets by alias, empty where there is no file; raises KeysError for a bad file."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise KeysError(
                f"{path} has mode {mode:04o}, so others can read the keys; run: chmod 0600 {path}"
            )
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"{path} cannot be read ({error}); restore it from a backup.") from None
    remedy = "restore it from a backup, or move it away and run with -e litellm_keys_reset=true for new keys"
    try:
        data = json.loads(text)
    except ValueError as error:
        raise KeysError(f"{path} is not JSON ({error}); {remedy}.") from None
    stored = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(stored, dict) or data.get("schema") != SCHEMA:
        raise KeysError(f'{path} lacks "schema": {SCHEMA} or "keys"; {remedy}.')
    for alias, secret in stored.items():
        if wrong := malformed(secret):
            raise KeysError(f"{path}: the secret of key {alias} {wrong}; {remedy}.")
    return stored


def write_store(path: Path, stored: Mapping[str, str]) -> None:
    """Replace the file as a whole, mode 0600; raises KeysError and keeps the old one where that fails."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            json.dump({"schema": SCHEMA, "keys": dict(sorted(stored.items()))}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise KeysError(
            f"{path} cannot be written ({error.strerror}); what was there is unchanged."
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock, so that two plays at once make the same keys; makes the folder."""
    folder = path.parent
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_mode & 0o022:
            raise KeysError(f"{folder} may be written by others; run: chmod 0700 {folder}")
        handle = os.open(folder / f".{path.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise KeysError(f"{folder} cannot be used ({error.strerror}); check litellm_keys' folder.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Outcome(NamedTuple):
    """Secrets of the declared keys, what was made, and what the file is to hold."""

    secrets: dict[str, str]
    created: list[str]
    stored: dict[str, str]


def settle(declared: list[Declared], stored: Mapping[str, str]) -> Outcome:
    """Give each declared key its secret: the inventory's, the stored one or a new one."""
    keep = dict(stored)
    result: dict[str, str] = {}
    created = []
    for key in declared:
        if key.secret is not None:
            keep.pop(key.alias, None)  # a stored one would no longer work
            result[key.alias] = key.secret
            continue
        if key.alias not in keep:
            keep[key.alias] = f"sk-{secrets.token_urlsafe(32)}"
            created.append(key.alias)
        result[key.alias] = keep[key.alias]
    return Outcome(result, created, keep)


def run(module: AnsibleModule, path: Path, declared: list[Declared]) -> dict[str, Any]:
    """Return the module's result; raises KeysError for what is refused."""
    stored = read_store(path)
    if not path.exists() and module.params["host_has_hashes"] and not module.params["reset"]:
        raise KeysError(
            f"{path} is missing while the gateway host already holds keys; restore the file from a backup, "
            "or make new keys for every client with -e litellm_keys_reset=true."
        )
    outcome = settle(declared, stored)
    changed = outcome.stored != stored
    if changed and not module.check_mode:
        write_store(path, outcome.stored)
    hashes = {alias: hashlib.sha256(secret.encode()).hexdigest() for alias, secret in outcome.secrets.items()}
    return {"changed": changed, "secrets": outcome.secrets, "hashes": hashes, "created": outcome.created}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            # Not no_log: Ansible would then blank the secrets and aliases in the result as well.
            "keys": {"type": "list", "elements": "dict", "required": True, "no_log": False},
            "host_has_hashes": {"type": "bool", "default": False},
            "reset": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if not module.no_log:
        module.fail_json(msg="gateway_keys returns secrets; set no_log: true on its task.")
    # A link stays a link: the file behind it is replaced.
    path = Path(os.path.realpath(module.params["path"]))
    try:
        declared = declared_keys(module.params["keys"])
        # Check mode must not even make the folder that the lock lies in.
        with nullcontext() if module.check_mode else locked(path):
            result = run(module, path, declared)
    except KeysError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
