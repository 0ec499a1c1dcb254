#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Stores the gateway's API keys in one private file on the control machine."""

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
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: gateway_keys
short_description: Generate, store and rotate the secrets of the gateway's API keys
description:
  - Runs on the control machine without becoming another user.
  - Generates a secret for each key that has none and stores it in a file that only its owner can read. For
    secrets from the inventory it stores only the hash.
  - Stores the hashes of replaced secrets, so that an old secret can stay valid for a while and is later
    refused with the reason. A key that is no longer declared stays in the file and is returned as revoked.
  - The task must set no_log; otherwise the module refuses to run. Ansible then hides error messages too, so
    register the result with failed_when false and let the next task fail with its msg.
  - In check mode nothing is written, and new secrets are throwaway values.
options:
  path:
    description: The file. Its directory is created with mode 0700.
    type: path
    required: true
  keys:
    description: The declared keys, as in gateway_keys.
    type: list
    elements: dict
    required: true
  rotate:
    description: Alias of a key whose secret is replaced now; empty for none.
    type: str
    default: ""
  grace_hours:
    description: How long the secret that C(rotate) replaces stays valid, in hours.
    type: int
    default: 0
  host_has_hashes:
    description: Whether a gateway host already has hashes of keys; then a missing file means lost keys.
    type: bool
    default: false
  reset:
    description:
      - Generate new keys although the file is missing and a host has hashes. Clients then need the new keys.
    type: bool
    default: false
author: Bedplate
"""

EXAMPLES = r"""
- name: Read the keys
  gateway_keys:
    path: ~/.config/bedplate/lab/keys.json
    keys: [{alias: default, rpm: 100}, {alias: batch, class: low, secret: "{{ vault_batch_key }}"}]
    host_has_hashes: true
  delegate_to: localhost
  become: false
  no_log: true
  register: gateway_key_store
  failed_when: false

- name: Fail if a key is invalid
  ansible.builtin.fail:
    msg: "{{ gateway_key_store.msg }}"
  when: gateway_key_store.msg is defined
"""

RETURN = r"""
entries:
  description:
    - The gateway's keys in the format of its keys file. First the declared keys with their hashes, the
      current one before the replaced ones; then, as revoked, the keys that are no longer declared.
  returned: success
  type: list
  elements: dict
"""

SCHEMA = 2
# Files of schema 1 contain only generated secrets.
KNOWN_SCHEMAS = (1, SCHEMA)
# How many replaced secrets of a key are stored as hashes, so that they are refused with the reason.
MAX_REPLACED = 5
MIN_LENGTH = 20
MIN_DISTINCT = 8
HASH = re.compile(r"[0-9a-f]{64}")
ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
SECRET = re.compile(r"[\x21-\x7e]{1,512}")
# Words of at least five letters, so that a random secret contains one less than once in a million.
PLACEHOLDER = re.compile(
    r"change.?(me|this|it)|place.?holder|replace.?(me|this)|example|your.?(api|key|secret|token)"
    r"|dummy|sk-1234|xxxxx|\.\.\.|^<.*>$|{{|}}",
    re.IGNORECASE,
)


class KeysError(Exception):
    """A refusal; the text is one sentence that contains no secret."""


class Declared(NamedTuple):
    """A declared key; `secret` is None if it is to be generated, `terms` are class, limits and expiry."""

    alias: str
    secret: str | None
    terms: dict[str, Any]


@dataclass(frozen=True)
class Replaced:
    """The hash of a replaced secret, and the time (ISO 8601) until which it is valid."""

    sha256: str
    until: str


@dataclass
class Store:
    """Contents of the file by alias: generated secrets, hashes of given secrets, replaced secrets."""

    keys: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, list[Replaced]] = field(default_factory=dict)

    def hash_of(self, alias: str) -> str | None:
        """Return the hash of the alias' current secret, or None."""
        return digest(self.keys[alias]) if alias in self.keys else self.given.get(alias)


def digest(secret: str) -> str:
    """Return the hash of a secret as the gateway stores it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_error(secret: object) -> str | None:
    """Return why a secret cannot be used or is easy to guess, or None."""
    if secret == "":
        return "is empty"
    if not isinstance(secret, str) or not SECRET.fullmatch(secret):
        return "is not plain printable ASCII without spaces"
    if len(secret) < MIN_LENGTH or len(set(secret)) < MIN_DISTINCT:
        return f"is too easy to guess ({len(secret)} characters, {len(set(secret))} distinct)"
    return None


def declared_keys(keys: list[dict[str, Any]]) -> list[Declared]:
    """Parse the declared keys; raises KeysError for invalid aliases, weak secrets and duplicates."""
    parsed: list[Declared] = []
    for number, key in enumerate(keys, 1):
        alias = key.get("alias")
        if not isinstance(alias, str) or not ALIAS.fullmatch(alias):
            raise KeysError(
                f"gateway_keys: entry {number} has the alias {alias!r}; "
                "use 1 to 63 letters, digits, dots, dashes or underscores."
            )
        secret = key.get("secret")
        wrong = None if secret is None else secret_error(secret)
        if secret and not wrong and PLACEHOLDER.search(secret):
            wrong = "is a placeholder"
        if wrong:
            raise KeysError(
                f"gateway_keys: the secret of key {alias} {wrong}; leave it out to have one generated, "
                "or use one of at least 20 characters:  openssl rand -hex 32"
            )
        if any(other.alias == alias for other in parsed):
            raise KeysError(f"gateway_keys: the alias {alias} is used twice; give each key its own.")
        for other in parsed:
            if secret is not None and other.secret == secret:
                raise KeysError(
                    f"gateway_keys: the keys {other.alias} and {alias} have the same secret; "
                    "give each its own."
                )
        parsed.append(Declared(alias, secret, key_terms(alias, key)))
    return parsed


def key_terms(alias: str, key: Mapping[str, Any]) -> dict[str, Any]:
    """Return class, limits and expiry of a declared key in the format of the keys file; raises KeysError."""
    limits = {name: int(key[name]) if key.get(name) else None for name in ("rpm", "tpm", "max_parallel")}
    return {
        "class": key.get("class") or "normal",
        **limits,
        "models": list(key.get("models") or []),
        "expires": parse_expires(alias, key.get("expires")),
        "revoked": bool(key.get("revoked")),
    }


def parse_expires(alias: str, text: object) -> str | None:
    """Return `expires` in UTC, None if it is not set; raises KeysError for an invalid time."""
    if not text:
        return None
    try:
        parsed = datetime.fromisoformat(str(text))
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise KeysError(
            f"gateway_keys: the key {alias} expires at {str(text)!r}; "
            "use a time with its zone, such as 2027-01-31T00:00:00Z."
        )
    return format_utc(parsed)


def format_utc(when: datetime) -> str:
    """Format a time in UTC, to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_store(path: Path) -> Store:
    """Read the file; returns an empty store if there is none, raises KeysError for an invalid file."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise KeysError(
                f"{path} has mode {mode:04o}, so other users can read the keys; run: chmod 0600 {path}"
            )
        text = path.read_text()
    except FileNotFoundError:
        return Store()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"{path} cannot be read ({error}); restore it from a backup.") from None
    remedy = "restore it from a backup, or move it away and run with -e gateway_keys_reset=true for new keys"
    try:
        data = json.loads(text)
    except ValueError as error:
        raise KeysError(f"{path} is not valid JSON ({error}); {remedy}.") from None
    stored = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(stored, dict) or data.get("schema") not in KNOWN_SCHEMAS:
        raise KeysError(f'{path} lacks "schema": {SCHEMA} or "keys"; {remedy}.')
    for alias, secret in stored.items():
        if wrong := secret_error(secret):
            raise KeysError(f"{path}: the secret of key {alias} {wrong}; {remedy}.")
    try:
        given = {alias: checked_hash(value) for alias, value in data.get("given", {}).items()}
        replaced = {
            alias: [
                Replaced(checked_hash(old["sha256"]), format_utc(datetime.fromisoformat(old["until"])))
                for old in olds
            ]
            for alias, olds in data.get("replaced", {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise KeysError(
            f'{path} contains something other than hashes in "given" or "replaced"; {remedy}.'
        ) from None
    return Store(stored, given, replaced)


def checked_hash(value: object) -> str:
    """Return `value` if it is a SHA-256 in hexadecimal; raises ValueError for anything else."""
    if not isinstance(value, str) or not HASH.fullmatch(value):
        raise ValueError("not a SHA-256")
    return value


def write_store(path: Path, store: Store) -> None:
    """Replace the file atomically, with mode 0600; raises KeysError and keeps the old file if that fails."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            parts = {name: dict(sorted(part.items())) for name, part in asdict(store).items()}
            json.dump({"schema": SCHEMA, **parts}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise KeysError(f"{path} cannot be written ({error.strerror}); the old file is unchanged.") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock, so that concurrent plays generate the same keys; creates the directory."""
    folder = path.parent
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_mode & 0o022:
            raise KeysError(f"{folder} is writable for other users; run: chmod 0700 {folder}")
        handle = os.open(folder / f".{path.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise KeysError(f"{folder} cannot be used ({error.strerror}); check gateway_secrets_file.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def updated_store(
    declared: list[Declared], before: Store, rotate: str, now: datetime, grace: timedelta
) -> Store:
    """Return the store with a secret for each declared key: a given, a stored or a new one."""
    after = Store(dict(before.keys), dict(before.given), dict(before.replaced))
    for key in declared:
        if key.secret is not None:
            after.keys.pop(key.alias, None)
            after.given[key.alias] = digest(key.secret)
        elif key.alias not in after.keys or key.alias == rotate:
            after.given.pop(key.alias, None)
            after.keys[key.alias] = f"sk-{secrets.token_urlsafe(32)}"
        old = before.hash_of(key.alias)
        if old is not None and old != after.hash_of(key.alias):
            until = format_utc(now + grace if key.alias == rotate else now)
            # A shorter grace period also shortens the validity of earlier replaced secrets.
            olds = [Replaced(old, until)] + [
                Replaced(older.sha256, min(older.until, until))
                for older in before.replaced.get(key.alias, [])
            ]
            after.replaced[key.alias] = olds[:MAX_REPLACED]
    return after


def check_rotation(rotate: str, declared: list[Declared], store: Store) -> None:
    """Raise KeysError if no new secret can be generated for the alias `rotate`."""
    key = next((key for key in declared if key.alias == rotate), None)
    if key is None:
        raise KeysError(
            f"gateway_rotate is {rotate}, but there is no such key: "
            f"known keys are {', '.join(key.alias for key in declared)}."
        )
    if key.secret is not None and store.hash_of(rotate) == digest(key.secret):
        raise KeysError(
            f"gateway_rotate is {rotate}, but gateway_keys sets the secret of that key and has the old one: "
            "put the new secret there first."
        )


def key_entries(declared: list[Declared], store: Store) -> list[dict[str, Any]]:
    """Return the keys in the format of the gateway's keys file, each hash only once."""
    used = {store.hash_of(key.alias) for key in declared}

    def replaced(alias: str) -> list[dict[str, Any]]:
        return [asdict(old) for old in store.replaced.get(alias, []) if old.sha256 not in used]

    result: list[dict[str, Any]] = [
        {
            "alias": key.alias,
            "secrets": [{"sha256": store.hash_of(key.alias)}, *replaced(key.alias)],
            **key.terms,
        }
        for key in declared
    ]
    gone = {*store.keys, *store.given, *store.replaced} - {key.alias for key in declared}
    for alias in sorted(gone):
        last = store.hash_of(alias)
        hashes = [{"sha256": last}] if last is not None and last not in used else []
        hashes += replaced(alias)
        used.update(known["sha256"] for known in hashes)
        if hashes:
            result.append({"alias": alias, "secrets": hashes, "revoked": True})
    return result


def run(module: AnsibleModule, path: Path, declared: list[Declared]) -> dict[str, Any]:
    """Return the module's result; raises KeysError for a refusal."""
    store = read_store(path)
    if not path.exists() and module.params["host_has_hashes"] and not module.params["reset"]:
        raise KeysError(
            f"{path} is missing while the gateway host already holds keys; restore the file from a backup, "
            "or generate new keys for every client with -e gateway_keys_reset=true."
        )
    rotate = module.params["rotate"]
    if rotate:
        check_rotation(rotate, declared, store)
    grace = timedelta(hours=module.params["grace_hours"])
    updated = updated_store(declared, store, rotate, datetime.now(UTC), grace)
    changed = updated != store
    if changed and not module.check_mode:
        write_store(path, updated)
    return {"changed": changed, "entries": key_entries(declared, updated)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            # Not no_log: Ansible would then also mask equal texts, such as aliases, in the result.
            "keys": {"type": "list", "elements": "dict", "required": True, "no_log": False},
            "rotate": {"type": "str", "default": ""},
            "grace_hours": {"type": "int", "default": 0},
            "host_has_hashes": {"type": "bool", "default": False},
            "reset": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if not module.no_log:
        module.fail_json(msg="the parameters of gateway_keys contain secrets; set no_log: true on its task.")
    # Replace the target of a symlink, not the link.
    path = Path(os.path.realpath(module.params["path"]))
    try:
        declared = declared_keys(module.params["keys"])
        # Check mode must not create the directory of the lock.
        with nullcontext() if module.check_mode else locked(path):
            result = run(module, path, declared)
    except KeysError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
