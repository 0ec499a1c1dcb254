"""The settings, read once at startup: the configuration file and the secrets."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

VERSION = version("bedplate-dashboard")
CONFIG_VARIABLE = "BEDPLATE_DASHBOARD_CONFIG"
KEY_FILE = "gateway-key"
REDEPLOY = "deploy the dashboard again"
MODEL_NAME_LENGTH = 200


class SettingsError(Exception):
    """A setting is invalid; the message is one sentence: the setting, its value, the remedy."""


def _base_url(value: str) -> str:
    """Validate the address of a service and remove its trailing slash, so that paths can be appended."""
    try:
        parts = urlsplit(value)
        port_is_valid = parts.port != 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address like http://127.0.0.1:8000")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must have no user, query or fragment, since the page shows it")
    return value.rstrip("/")


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must have printable characters only")
    return value


BaseUrl = Annotated[str, AfterValidator(_base_url)]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=253)]
ShortText = Annotated[str, Field(min_length=1, max_length=80), AfterValidator(_printable)]
ModelName = Annotated[str, Field(min_length=1, max_length=MODEL_NAME_LENGTH), AfterValidator(_printable)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelFit(_Settings):
    """How a declared model, or one of the catalogue, fits a host: `text` says it, sizes are texts."""

    # The filter model_fits returns more, for other users.
    model_config = ConfigDict(extra="ignore", frozen=True)

    name: ModelName
    declared: bool
    kind: Literal["whole", "less", "partly", "no", "unknown"]
    text: ShortText
    size: str
    needs: str
    abilities: tuple[ShortText, ...]
    licence: str


class HostFits(_Settings):
    """What fits a host: its memory in words, context in tokens, slots; declared models come first."""

    host: HostName
    memory: str
    context: int
    slots: int
    models: tuple[ModelFit, ...]


_HOST_FITS = TypeAdapter(tuple[HostFits, ...])


class InferenceHost(_Settings):
    """One inference host: its name in the inventory, its exporter and its declared models."""

    name: HostName
    exporter_url: BaseUrl
    models: tuple[ModelName, ...]


class NodeExporter(_Settings):
    """One host's node exporter, by the host's name in the inventory."""

    name: HostName
    url: BaseUrl


class PinnedVersion(_Settings):
    """The version of a component that the playbooks install on a host."""

    component: Literal["Ollama", "Gateway", "LiteLLM"]
    host: HostName
    version: ShortText


class Settings(_Settings):
    """The configuration file. `gateway` is the gateway's host, `monitoring` is this host.

    `gateway_ca` has the CAs that verify the gateway's certificate, in PEM; None for the operating system's.

    `other_models` are the models of engines that have no exporter of ours.
    """

    name: ShortText
    monitoring: HostName
    gateway: HostName
    gateway_url: BaseUrl
    gateway_ca: str | None = None
    gateway_metrics_url: BaseUrl
    public_gateway_url: BaseUrl
    prometheus_url: BaseUrl
    scrape_seconds: Annotated[float, Field(gt=0)]
    inference_hosts: Annotated[tuple[InferenceHost, ...], Field(min_length=1)]
    model_fits: Path
    other_models: tuple[ModelName, ...]
    node_exporters: tuple[NodeExporter, ...]
    pinned_versions: tuple[PinnedVersion, ...]
    verify_report: Path
    smoke_report: Path

    @property
    def declared_models(self) -> tuple[str, ...]:
        """All declared models without duplicates, in the order of the configuration."""
        ours = (model for host in self.inference_hosts for model in host.models)
        return tuple(dict.fromkeys([*ours, *self.other_models]))


@dataclass(frozen=True)
class Secrets:
    """The unit's credential: the gateway key."""

    gateway_key: str


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and check the configuration file; raises SettingsError."""
    name = environ.get(CONFIG_VARIABLE)
    if not name:
        raise SettingsError(f"{CONFIG_VARIABLE} is not set; set it to the path of the configuration file.")
    try:
        text = Path(name).read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{CONFIG_VARIABLE} names {name}, which cannot be read ({error.strerror}); {REDEPLOY}."
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
        raise SettingsError(f"{name}: inference_hosts: {twice} is listed twice; list each host once.")
    return settings


def load_model_fits(path: Path) -> dict[str, HostFits]:
    """Return which models fit each inference host; raises SettingsError for a file that is not the role's."""
    try:
        hosts = _HOST_FITS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise SettingsError(f"{path} cannot be read as a list of models that fit; {REDEPLOY}.") from error
    return {fits.host: fits for fits in hosts}


def load_secrets(environ: Mapping[str, str] = os.environ) -> Secrets:
    """Read the unit's credential; raises SettingsError, which never shows a secret."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise SettingsError(
            "CREDENTIALS_DIRECTORY is not set; "
            f"start the dashboard with LoadCredential={KEY_FILE}:FILE in its unit."
        )
    key = _read_secret(Path(folder, KEY_FILE))
    if not key.isascii() or " " in key:
        raise SettingsError(f"{Path(folder, KEY_FILE)} must hold one key on one line; {REDEPLOY}.")
    return Secrets(key)


def _read_secret(path: Path) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"The secret {path} cannot be read ({error.strerror}); {REDEPLOY}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"The secret {path} is not UTF-8 text; {REDEPLOY}.") from error
    if not secret or not secret.isprintable():
        raise SettingsError(f"The secret {path} must be one line of text; {REDEPLOY}.")
    return secret


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
