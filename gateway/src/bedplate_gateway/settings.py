"""The gateway's settings: one JSON file, checked as a whole before anything starts."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PriorityClass = Literal["high", "normal", "low"]
PRIORITY_CLASSES: tuple[PriorityClass, ...] = ("high", "normal", "low")

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
File = TypeVar("File", bound=BaseModel)
Port = Annotated[int, Field(ge=0, le=65535)]


class SettingsError(Exception):
    """The settings are unusable; the message is one sentence with the file, the field and the remedy."""


class Strict(BaseModel):
    """A part of a file; an unknown field makes the whole file unusable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Listener(Strict):
    """An address to listen on; `allowed_clients` are the peer addresses that may use it, all where empty."""

    address: str
    port: Port
    allowed_clients: frozenset[str] = frozenset()


class UnixListener(Strict):
    """A Unix socket to listen on, for the users in its group."""

    path: Path


class EngineModel(Strict):
    """A model on an engine: its concurrent requests and its context in tokens (None: not known)."""

    name: str = Field(min_length=1)
    slots: Positive
    context: Positive | None = None


class Engine(Strict):
    """An inference engine. `url` is its base URL without /v1, `models_at_once` how many models it loads.

    The kind `litellm` stands for the models that LiteLLM has of other providers; `url` is LiteLLM's.
    """

    name: str = Field(min_length=1)
    kind: Literal["ollama", "openai", "litellm"]
    url: str
    api_key: str | None = None
    models_at_once: Positive | None = None
    models: tuple[EngineModel, ...]


class LiteLLMSettings(Strict):
    """The LiteLLM proxy: its base URL without /v1, the file with its master key, and what goes without it.

    `direct` names inference hosts and models.
    """

    url: str
    key_file: Path
    direct: frozenset[str] = frozenset()


class TracesSettings(Strict):
    """The receiver of OpenTelemetry's traces, its base URL without /v1/traces; how many have one."""

    endpoint: str
    percent: Annotated[int, Field(ge=1, le=100)] = 100


class ModelLimits(Strict):
    """Limits of a model for all keys together: requests and tokens per minute, and tokens per answer."""

    rpm: Positive | None = None
    tpm: Positive | None = None
    max_output_tokens: Positive | None = None


class Queue(Strict):
    """Limits of a class's queue: requests, requests of one key, and the longest wait in seconds."""

    size: Positive = 1000
    size_per_key: Positive = 100
    seconds: Seconds = 120.0


DEFAULT_QUEUE = Queue()


class Settings(Strict):
    """The file gateway.json. Times are in seconds, sizes in bytes."""

    api: UnixListener | Listener
    metrics: Listener
    engines: tuple[Engine, ...]
    litellm: LiteLLMSettings | None = None
    traces: TracesSettings | None = None
    models: dict[str, ModelLimits] = {}
    fallbacks: dict[str, tuple[str, ...]] = {}
    """The providers' models that answer, in this order, where no engine of a model does."""
    queues: dict[PriorityClass, Queue] = {}
    share: Positive = 8
    """Every Nth free slot goes to the oldest queued request of a lower class."""
    first_byte_seconds: Seconds = 120.0
    """Bounds the first byte of an answer, each gap in it, and a whole answer that is not streamed."""
    load_seconds: Seconds = 300.0
    """Bounds the first byte while the engine still loads the model."""
    retries: Annotated[int, Field(ge=0, le=10)] = 1
    drain_seconds: Seconds = 30.0
    max_output_tokens: Positive | None = None
    refuse_truncation: bool = False
    max_body_bytes: Positive = 16 * 1024 * 1024
    keys_file: Path
    state_dir: Path

    @model_validator(mode="after")
    def _check_providers(self) -> "Settings":
        if self.provider_models and self.litellm is None:
            raise ValueError("an engine of the kind litellm needs the settings of LiteLLM")
        if unknown := {name for names in self.fallbacks.values() for name in names} - self.provider_models:
            raise ValueError(f"fallbacks names {', '.join(sorted(unknown))}, which no provider serves")
        return self

    @property
    def provider_models(self) -> frozenset[str]:
        """Return the models that other providers serve through LiteLLM."""
        engines = [engine for engine in self.engines if engine.kind == "litellm"]
        return frozenset(model.name for engine in engines for model in engine.models)

    def queue(self, priority_class: PriorityClass) -> Queue:
        """Return the limits of a class's queue."""
        return self.queues.get(priority_class, DEFAULT_QUEUE)


def read_settings(path: Path) -> Settings:
    """Return the settings in a file; raises SettingsError."""
    return parse_file(path, Settings)


def read_secret(path: Path) -> str:
    """Return the one line of a secret's file; raises SettingsError."""
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read ({error}): deploy it again.") from None
    if not secret:
        raise SettingsError(f"{path} is empty: remove it and deploy it again.")
    return secret


def parse_file(path: Path, model: type[File]) -> File:
    """Return a JSON file's content as `model`; raises SettingsError in one sentence without its values."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}): deploy it again.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} cannot be read (no UTF-8 text): deploy it again.") from None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SettingsError(f"{path}, {where}: {first['msg']}: deploy it again.") from None
