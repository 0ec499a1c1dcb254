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
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: gateway_keys
short_description: Make, keep and rotate the secrets of the gateway's API keys
description:
  - Runs on the control machine without becoming another user.
  - Makes a secret for each key that has none and keeps it in a file that only its owner reads. Of secrets
    that the inventory gives it keeps the hash.
  - Remembers what an alias had before, so that a replaced secret can stay valid for a while and then be
    refused by name. A key that is no longer declared stays in the file and is handed over as revoked.
  - The task must set no_log, the module refuses to run without. Ansible then hides error messages too, so
    register the result with failed_when false and let the next task fail with its msg.
  - In check mode nothing is written, and secrets to be made are throwaway values.
options:
  path:
    description: The file. Its folder is made with mode 0700.
    type: path
    required: true
  keys:
    description: The declared keys, as in gateway_keys.
    type: list
    elements: dict
    required: true
  rotate:
    description: Alias of a key that gets a new secret now; empty for none.
    type: str
    default: ""
  grace_hours:
    description: How long the secret that C(rotate) replaces stays valid.
    type: int
    default: 0
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
    keys: [{alias: default, rpm: 100}, {alias: batch, class: low, secret: "{{ vault_batch_key }}"}]
    host_has_hashes: true
  delegate_to: localhost
  become: false
  no_log: true
  register: gateway_key_store
  failed_when: false

- name: Refuse keys that cannot be used
  ansible.builtin.fail:
    msg: "{{ gateway_key_store.msg }}"
  when: gateway_key_store.msg is defined
"""

RETURN = r"""
entries:
  description:
    - The gateway's keys, as its keys file holds them. First the declared ones with their hashes, the one in
      use before those that were replaced, then, as revoked, those that are no longer declared.
  returned: success
  type: list
  elements: dict
"""

SCHEMA = 2
# Files of schema 1 hold the made secrets alone.
KNOWN_SCHEMAS = (1, SCHEMA)
# Replaced secrets of a key whose hashes are kept, so that they are refused with the reason.
REMEMBERED = 5
MIN_LENGTH = 20
MIN_DIFFERENT = 8
HASH = re.compile(r"[0-9a-f]{64}")
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
    """A declared key; `secret` is None where one is to be made, `terms` is all but alias and secret."""

    alias: str
    secret: str | None
    terms: dict[str, Any]


@dataclass(frozen=True)
class Replaced:
    """A secret that a key had before, by its hash, and the moment (ISO 8601) at which it ends."""

    sha256: str
    until: str


@dataclass
class Store:
    """The file: made secrets, hashes of the given ones and what was replaced, each by alias."""

    keys: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, list[Replaced]] = field(default_factory=dict)

    def hash_of(self, alias: str) -> str | None:
        """Return the hash of the secret that an alias has, or None."""
        return digest(self.keys[alias]) if alias in self.keys else self.given.get(alias)


def digest(secret: str) -> str:
    """Return the hash by which the gateway knows a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


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
                f"gateway_keys: entry {number} has the alias {alias!r}; "
                "use 1 to 63 letters, digits, dots, dashes or underscores."
            )
        secret = key.get("secret")
        wrong = None if secret is None else malformed(secret)
        if secret and not wrong and PLACEHOLDER.search(secret):
            wrong = "is a placeholder"
        if wrong:
            raise KeysError(
                f"gateway_keys: the secret of key {alias} {wrong}; leave it out to have one made, "
                "or make one of at least 20 characters: openssl rand -hex 32"
            )
        if any(other.alias == alias for other in found):
            raise KeysError(f"gateway_keys: the alias {alias} stands there twice; give each key its own.")
        for other in found:
            if secret is not None and other.secret == secret:
                raise KeysError(
                    f"gateway_keys: the keys {other.alias} and {alias} have the same secret; "
                    "give each its own."
                )
        found.append(Declared(alias, secret, terms(alias, key)))
    return found


def terms(alias: str, key: Mapping[str, Any]) -> dict[str, Any]:
    """Return class, limits and end of a declared key as the gateway reads them; raises KeysError."""
    limits = {name: int(key[name]) if key.get(name) else None for name in ("rpm", "tpm", "max_parallel")}
    return {
        "class": key.get("class") or "normal",
        **limits,
        "models": list(key.get("models") or []),
        "expires": moment(alias, key.get("expires")),
        "revoked": bool(key.get("revoked")),
    }


def moment(alias: str, text: object) -> str | None:
    """Return the moment of `expires` in one form, None where there is none; raises KeysError."""
    if not text:
        return None
    try:
        parsed = datetime.fromisoformat(str(text))
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise KeysError(
            f"gateway_keys: the key {alias} expires at {str(text)!r}; "
            "give a time with its zone, such as 2027-01-31T00:00:00Z."
        )
    return iso(parsed)


def iso(when: datetime) -> str:
    """Write a moment in UTC, to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_store(path: Path) -> Store:
    """Return what the file holds, an empty store where there is no file; raises KeysError for a bad file."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise KeysError(
                f"{path} has mode {mode:04o}, so others can read the keys; run: chmod 0600 {path}"
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
        raise KeysError(f"{path} is not JSON ({error}); {remedy}.") from None
    stored = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(stored, dict) or data.get("schema") not in KNOWN_SCHEMAS:
        raise KeysError(f'{path} lacks "schema": {SCHEMA} or "keys"; {remedy}.')
    for alias, secret in stored.items():
        if wrong := malformed(secret):
            raise KeysError(f"{path}: the secret of key {alias} {wrong}; {remedy}.")
    try:
        given = {alias: hexadecimal(value) for alias, value in data.get("given", {}).items()}
        replaced = {
            alias: [
                Replaced(hexadecimal(old["sha256"]), iso(datetime.fromisoformat(old["until"])))
                for old in olds
            ]
            for alias, olds in data.get("replaced", {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise KeysError(
            f'{path} has something else than hashes under "given" or "replaced"; {remedy}.'
        ) from None
    return Store(stored, given, replaced)


def hexadecimal(value: object) -> str:
    """Return a SHA-256 in hexadecimal; raises ValueError for anything else."""
    if not isinstance(value, str) or not HASH.fullmatch(value):
        raise ValueError("no SHA-256")
    return value


def write_store(path: Path, store: Store) -> None:
    """Replace the file as a whole, mode 0600; raises KeysError and keeps the old one where that fails."""
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
        raise KeysError(f"{folder} cannot be used ({error.strerror}); check gateway_keys' folder.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def settle(declared: list[Declared], before: Store, rotate: str, now: datetime, grace: timedelta) -> Store:
    """Return the store in which each declared key has its secret: a given, a kept or a new one."""
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
            until = iso(now + grace if key.alias == rotate else now)
            # A shorter grace shortens what earlier rotations left as well.
            olds = [Replaced(old, until)] + [
                Replaced(older.sha256, min(older.until, until))
                for older in before.replaced.get(key.alias, [])
            ]
            after.replaced[key.alias] = olds[:REMEMBERED]
    return after


def refuse_rotation(rotate: str, declared: list[Declared], store: Store) -> None:
    """Raise KeysError where no new secret can be made for the alias `rotate`."""
    key = next((key for key in declared if key.alias == rotate), None)
    if key is None:
        raise KeysError(
            f"gateway_rotate is {rotate}, but there is no such key: "
            f"known are {', '.join(key.alias for key in declared)}."
        )
    if key.secret is not None and store.hash_of(rotate) == digest(key.secret):
        raise KeysError(
            f"gateway_rotate is {rotate}, but gateway_keys gives that key its secret and it is the old one: "
            "put the new one there first."
        )


def entries(declared: list[Declared], store: Store) -> list[dict[str, Any]]:
    """Return the keys as the gateway's file holds them, each hash once."""
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
    """Return the module's result; raises KeysError for what is refused."""
    store = read_store(path)
    if not path.exists() and module.params["host_has_hashes"] and not module.params["reset"]:
        raise KeysError(
            f"{path} is missing while the gateway host already holds keys; restore the file from a backup, "
            "or make new keys for every client with -e gateway_keys_reset=true."
        )
    rotate = module.params["rotate"]
    if rotate:
        refuse_rotation(rotate, declared, store)
    grace = timedelta(hours=module.params["grace_hours"])
    settled = settle(declared, store, rotate, datetime.now(UTC), grace)
    changed = settled != store
    if changed and not module.check_mode:
        write_store(path, settled)
    return {"changed": changed, "entries": entries(declared, settled)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            # Not no_log: Ansible would then blank what is the same text in the result as well.
            "keys": {"type": "list", "elements": "dict", "required": True, "no_log": False},
            "rotate": {"type": "str", "default": ""},
            "grace_hours": {"type": "int", "default": 0},
            "host_has_hashes": {"type": "bool", "default": False},
            "reset": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if not module.no_log:
        module.fail_json(msg="gateway_keys is given secrets; set no_log: true on its task.")
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
