"""Client keys: read from a file of hashes, looked up by secret, reread when the file changes."""

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
KEYS_FILE_VARIABLE = "BEDPLATE_KEYS_FILE"

_log = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIMITS = ("rpm", "tpm", "max_parallel")
_FIELDS = {"alias", "sha256", "models", *_LIMITS}


class KeysFileError(Exception):
    """The keys file cannot be used; the message is one sentence that names the file and the remedy."""


@dataclass(frozen=True)
class Key:
    """One client key: who it is and its limits (requests a minute, tokens a minute, requests at once)."""

    alias: str
    sha256: str
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None


def keys_file_from_environment() -> Path:
    """Return the path in BEDPLATE_KEYS_FILE; raises KeysFileError when it is not set."""
    path = os.environ.get(KEYS_FILE_VARIABLE)
    if not path:
        raise KeysFileError(
            f"{KEYS_FILE_VARIABLE} is not set: give it the path of the file with the key hashes."
        )
    return Path(path)


def parse_keys(text: str, source: str) -> dict[str, Key]:
    """Return the keys of a keys file's text by their sha256; `source` names it in a KeysFileError."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise KeysFileError(f"{source} is not JSON ({error}): deploy it again.") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise KeysFileError(
            f'{source} needs "schema": {SCHEMA} at its top: deploy it again with this release.'
        )
    entries = document.get("keys")
    if not isinstance(entries, list):
        raise KeysFileError(f'{source} needs a list "keys": deploy it again.')
    keys: dict[str, Key] = {}
    aliases: set[str] = set()
    for number, entry in enumerate(entries):
        key = _parse_entry(entry, f"{source}, keys[{number}]")
        if key.alias in aliases:
            raise KeysFileError(f"{source} names the key {key.alias!r} twice: remove one of them.")
        if key.sha256 in keys:
            raise KeysFileError(
                f"{source} gives {key.alias!r} and {keys[key.sha256].alias!r} one secret: renew one."
            )
        keys[key.sha256] = key
        aliases.add(key.alias)
    return keys


def _parse_entry(entry: Any, where: str) -> Key:
    if not isinstance(entry, dict):
        raise KeysFileError(f'{where} must be an object with "alias" and "sha256", it is {entry!r}.')
    if unknown := sorted(set(entry) - _FIELDS):
        raise KeysFileError(
            f"{where} has the unknown field {unknown[0]!r}: known are {', '.join(sorted(_FIELDS))}."
        )
    alias, sha256 = entry.get("alias"), entry.get("sha256")
    if not isinstance(alias, str) or not alias:
        raise KeysFileError(f'{where} needs an "alias", it has {alias!r}.')
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        # The value is not shown: it may be a secret that was pasted in place of its hash.
        raise KeysFileError(f'{where} ({alias}) needs "sha256" as 64 lower-case hexadecimal digits.')
    if entry.get("models"):
        # LiteLLM would only hide the other models from the list and still serve them.
        raise KeysFileError(
            f'{where} ({alias}) limits "models", which is not enforced yet: leave the list empty.'
        )
    for name in _LIMITS:
        value = entry.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise KeysFileError(
                f'{where} ({alias}) needs "{name}" as a whole number above 0 or null, it has {value!r}.'
            )
    return Key(alias, sha256, *(entry.get(name) for name in _LIMITS))


class KeyStore:
    """The keys of one file, reread when the file on disk changes."""

    def __init__(self, path: Path) -> None:
        """Read the file at once; raises KeysFileError when it cannot be used."""
        self._path = path
        self._stamp = self._current_stamp()
        self._keys = self._read()

    def find(self, secret: str) -> Key | None:
        """Return the key that a client's secret belongs to, or None.

        A changed file that cannot be used is logged once; the keys read before stay valid until it is mended.
        """
        # The stamp is taken before the file is read, so a write between the two is seen at the next call.
        if (stamp := self._current_stamp()) != self._stamp:
            self._stamp = stamp
            self._reload()
        # Looking a hash up needs no constant time: nobody can steer the hash of a guess.
        return self._keys.get(hashlib.sha256(secret.encode()).hexdigest())

    def _reload(self) -> None:
        try:
            self._keys = self._read()
        except KeysFileError as error:
            _log.error("The keys read before stay valid: %s", error)
        else:
            # A warning, since nothing configures this logger and lower levels would be lost.
            _log.warning("%s changed: %d keys are valid now.", self._path, len(self._keys))

    def _current_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> dict[str, Key]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError as error:
            raise KeysFileError(f"{self._path} cannot be read ({error.strerror}): deploy it again.") from None
        except UnicodeDecodeError:
            raise KeysFileError(f"{self._path} cannot be read (no UTF-8 text): deploy it again.") from None
        return parse_keys(text, str(self._path))
