"""Client keys: read from a file of hashes, looked up by secret, with expiry, rotation and revocation."""

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field

from bedplate_gateway.errors import ApiError
from bedplate_gateway.settings import Class, Positive, SettingsError, Strict, parse_file

SCHEMA = 2
Sha256 = Annotated[str, Field(pattern=re.compile(r"^[0-9a-f]{64}$"))]


class Secret(Strict):
    """One secret of a key by its hash; a rotated one is valid `until` a moment."""

    sha256: Sha256
    until: AwareDatetime | None = None


class Key(Strict):
    """One client key: who it is, its class, its limits (requests and tokens a minute, requests at once)."""

    alias: str = Field(min_length=1)
    secrets: tuple[Secret, ...]
    priority_class: Class = Field(default="normal", alias="class")
    rpm: Positive | None = None
    tpm: Positive | None = None
    max_parallel: Positive | None = None
    models: frozenset[str] = frozenset()
    """The models that it may use; empty means all."""
    expires: AwareDatetime | None = None
    revoked: bool = False

    def may_use(self, model: str) -> bool:
        """Say whether the key may use a model."""
        return not self.models or model in self.models


class KeysFile(Strict):
    """The file as it lies on the disk."""

    schema_version: int = Field(alias="schema", ge=SCHEMA, le=SCHEMA)
    keys: tuple[Key, ...]


class Keys:
    """The keys of one file, by the hashes of their secrets."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        """Raise ValueError when an alias or a secret stands there twice."""
        self.by_alias: dict[str, Key] = {}
        self._by_hash: dict[str, tuple[Key, Secret]] = {}
        for key in keys:
            if key.alias in self.by_alias:
                raise ValueError(f"the key {key.alias!r} stands there twice")
            self.by_alias[key.alias] = key
            for secret in key.secrets:
                if secret.sha256 in self._by_hash:
                    other = self._by_hash[secret.sha256][0]
                    raise ValueError(f"{key.alias!r} and {other.alias!r} share a secret")
                self._by_hash[secret.sha256] = key, secret

    def authenticate(self, authorization: str | None, now: datetime | None = None) -> Key:
        """Return whose key an Authorization header carries; raises ApiError 401, which says what is wrong."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unauthorized('No API key was given: send it as "Authorization: Bearer KEY".', "no_key")
        # Looking a hash up needs no constant time: nobody can steer the hash of a guess.
        found = self._by_hash.get(hashlib.sha256(token.strip().encode()).hexdigest())
        if found is None:
            raise _unauthorized("The API key is not valid here: check it, or ask for a new one.", "wrong_key")
        key, secret = found
        now = now or datetime.now(UTC)
        if key.revoked:
            raise _unauthorized("This API key was revoked: ask for a new one.", "revoked_key")
        if key.expires is not None and now >= key.expires:
            raise _unauthorized(
                f"This API key expired at {key.expires.isoformat()}: ask for a new one.", "expired_key"
            )
        if secret.until is not None and now >= secret.until:
            raise _unauthorized(
                f"This API key was replaced at {secret.until.isoformat()}: use the new one.", "replaced_key"
            )
        return key


def read_keys(path: Path) -> Keys:
    """Return the keys of a file; raises SettingsError, whose sentence shows no secret and no hash."""
    try:
        return Keys(parse_file(path, KeysFile).keys)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}: deploy it again.") from None


def _unauthorized(message: str, reason: str) -> ApiError:
    return ApiError(401, "invalid_api_key", message, reason=reason, headers={"www-authenticate": "Bearer"})
