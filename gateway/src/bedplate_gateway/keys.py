"""Client keys: read from a file of hashes, looked up by secret, with expiry, rotation and revocation."""

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field

from bedplate_gateway import errors
from bedplate_gateway.settings import Positive, PriorityClass, SettingsError, Strict, parse_file

SCHEMA = 2
Sha256 = Annotated[str, Field(pattern=re.compile(r"^[0-9a-f]{64}$"))]


class Secret(Strict):
    """One secret of a key, as a hash; a rotated secret is valid `until` a time."""

    sha256: Sha256
    until: AwareDatetime | None = None


class Key(Strict):
    """One client key: name, class and limits (requests and tokens per minute, concurrent requests)."""

    alias: str = Field(min_length=1)
    secrets: tuple[Secret, ...]
    priority_class: PriorityClass = Field(default="normal", alias="class")
    rpm: Positive | None = None
    tpm: Positive | None = None
    max_parallel: Positive | None = None
    models: frozenset[str] = frozenset()
    """The models that the key may use; empty means all."""
    expires: AwareDatetime | None = None
    revoked: bool = False

    def may_use(self, model: str) -> bool:
        """Return whether the key may use a model."""
        return not self.models or model in self.models


class KeysFile(Strict):
    """The file keys.json."""

    schema_version: int = Field(alias="schema", ge=SCHEMA, le=SCHEMA)
    keys: tuple[Key, ...]


class Keys:
    """The keys of one file, by the hashes of their secrets; raises ValueError if alias or secret repeats."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self.by_alias: dict[str, Key] = {}
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self._by_hash: dict[str, tuple[Key, Secret]] = {}
        for key in keys:
            if key.alias in self.by_alias:
                raise ValueError(f"the key {key.alias!r} is listed twice")
            self.by_alias[key.alias] = key
            for secret in key.secrets:
                if secret.sha256 in self._by_hash:
                    other = self._by_hash[secret.sha256][0]
                    raise ValueError(f"{key.alias!r} and {other.alias!r} share a secret")
                self._by_hash[secret.sha256] = key, secret

    def authenticate(
        self, authorization: str | None, now: datetime | None = None, *, api_key: str | None = None
    ) -> Key:
        """Return the key in an Authorization header, or else in `api_key`; raises ApiError 401."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            token = api_key or ""
        if not token.strip():
            raise errors.no_api_key()
        # The lookup needs no constant time: nobody can choose the hash of a guess.
        match = self._by_hash.get(hashlib.sha256(token.strip().encode()).hexdigest())
        if match is None:
            raise errors.wrong_api_key()
        key, secret = match
        now = now or self.now()
        if key.revoked:
            raise errors.revoked_api_key()
        if key.expires is not None and now >= key.expires:
            raise errors.expired_api_key(key.expires)
        if secret.until is not None and now >= secret.until:
            raise errors.replaced_api_key(secret.until)
        return key


def read_keys(path: Path) -> Keys:
    """Return the keys of a file; raises SettingsError, whose message contains no secret and no hash."""
    try:
        return Keys(parse_file(path, KeysFile).keys)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}: deploy it again.") from None
