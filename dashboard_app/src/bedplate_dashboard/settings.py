"""What the dashboard is told at its start: the configuration file and the gateway key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

CONFIG_VARIABLE = "BEDPLATE_DASHBOARD_CONFIG"
KEY_FILE = "gateway-key"
MODEL_NAME_LENGTH = 200


class SettingsError(Exception):
    """A setting that cannot be used; its text is one sentence: the setting, what it got, the remedy."""


def _base_url(value: str) -> str:
    """Check an address of a service and cut its last slash, so that paths can be appended."""
    try:
        parts = urlsplit(value)
        port_is_valid = parts.port != 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address like http://127.0.0.1:8000")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must have neither a user, a query nor a fragment, since the page shows it")
    return value.rstrip("/")


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must have printable characters only")
    return value


BaseUrl = Annotated[str, AfterValidator(_base_url)]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=253)]
ModelName = Annotated[str, Field(min_length=1, max_length=MODEL_NAME_LENGTH), AfterValidator(_printable)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InferenceHost(_Settings):
    """One inference host: its name in the inventory, its exporter, the models declared for it."""

    name: HostName
    exporter_url: BaseUrl
    models: tuple[ModelName, ...]


class Settings(_Settings):
    """The whole configuration file."""

    name: Annotated[str, Field(min_length=1, max_length=80), AfterValidator(_printable)]
    gateway_url: BaseUrl
    public_gateway_url: BaseUrl
    prometheus_url: BaseUrl
    inference_hosts: Annotated[tuple[InferenceHost, ...], Field(min_length=1)]
    verify_report: Path

    @property
    def declared_models(self) -> tuple[str, ...]:
        """Every declared model once, in the order of the configuration."""
        return tuple(dict.fromkeys(model for host in self.inference_hosts for model in host.models))


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and check the configuration file; raises SettingsError."""
    name = environ.get(CONFIG_VARIABLE)
    if not name:
        raise SettingsError(f"{CONFIG_VARIABLE} is not set; set it to the path of the configuration file.")
    try:
        text = Path(name).read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{CONFIG_VARIABLE} names {name}, which cannot be read ({error.strerror}); "
            "deploy the dashboard again."
        ) from error
    try:
        settings = Settings.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
        got = "" if first["type"] in ("missing", "json_invalid") else f", got {_short(first['input'])}"
        problem = first["msg"].removeprefix("Value error, ")
        raise SettingsError(
            f"{name}: {place}: {problem}{got}; correct it and restart the dashboard."
        ) from error
    names = [host.name for host in settings.inference_hosts]
    if len(set(names)) < len(names):
        twice = next(host for host in names if names.count(host) > 1)
        raise SettingsError(f"{name}: inference_hosts: {twice} stands there twice; name each host once.")
    return settings


def load_key(environ: Mapping[str, str] = os.environ) -> str:
    """Read the gateway key from the unit's credentials; raises SettingsError, which never shows the key."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise SettingsError(
            "CREDENTIALS_DIRECTORY is not set; "
            f"start the dashboard with LoadCredential={KEY_FILE}:FILE in its unit."
        )
    path = Path(folder, KEY_FILE)
    try:
        key = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise SettingsError(
            f"The gateway key {path} cannot be read ({error.strerror}); deploy the dashboard again."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"The gateway key {path} is not plain ASCII; deploy the dashboard again."
        ) from error
    if not key or not key.isprintable() or " " in key:
        raise SettingsError(
            f"The gateway key {path} must hold one key on one line; deploy the dashboard again."
        )
    return key


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
