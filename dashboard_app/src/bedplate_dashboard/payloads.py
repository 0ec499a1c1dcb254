"""What other services send, checked field by field. All of it is hostile input.

`clean` makes text printable and short before anybody sees it; fields that we do not know are ignored, so that
they may grow.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from .settings import MODEL_NAME_LENGTH


def clean(text: object, length: int = 300) -> object:
    """Make text from elsewhere fit to be shown: printable characters only, at most `length` of them."""
    if not isinstance(text, str):
        return text
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text[: length + 1])
    return shown if len(shown) <= length else shown[:length] + "…"


def word(text: str) -> str:
    """Clean a label's value."""
    return str(clean(text, MODEL_NAME_LENGTH))


def _clean_name(text: object) -> object:
    return clean(text, MODEL_NAME_LENGTH)


Text = Annotated[str, BeforeValidator(clean)]
Name = Annotated[str, BeforeValidator(_clean_name)]
Count = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=0)]


class _Foreign(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True)


class Engine(_Foreign):
    """The engine as its exporter saw it; `fault` is why it is not up."""

    up: bool
    version: Text | None = None
    error: Text | None = None
    fault: Literal["stopped", "hung", "broken"] | None = None
    latency_seconds: Number | None = None


class EngineModel(_Foreign):
    """One model on an engine; sizes in bytes, context in tokens."""

    name: Name
    digest: Text | None = None
    size_bytes: Bytes | None = None
    loaded: bool = False
    memory_bytes: Bytes | None = None
    gpu_memory_bytes: Bytes | None = None
    context_length: Count | None = None
    expires_at: AwareDatetime | None = None


class GpuDevice(_Foreign):
    """One GPU, in base units."""

    vendor: Name
    number: Name
    name: Name
    utilization_ratio: Number | None = None
    memory_used_bytes: Number | None = None
    memory_bytes: Number | None = None
    temperature_celsius: float | None = None
    power_watts: Number | None = None
    throttling: Text | None = None


class GpuDriver(_Foreign):
    """What one vendor's driver says of its GPUs, and how many there should be."""

    vendor: Name
    expected: Count = 0
    devices: Count
    failed: bool
    driver_matches: bool | None = None
    version: Text | None = None
    module_version: Text | None = None
    library_version: Text | None = None


class EngineState(_Foreign):
    """The exporter's /state.json."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    at: AwareDatetime
    engine: Engine
    models: tuple[EngineModel, ...]
    gpus: tuple[GpuDevice, ...] = ()
    drivers: tuple[GpuDriver, ...] = ()


class Check(_Foreign):
    """One line of a report; `ok` is None where it could not be asked."""

    host: Text
    name: Text
    ok: bool | None
    seen: Text = ""
    next: Text | None = None


class Report(_Foreign):
    """What the playbooks verify.yml and smoke.yml leave behind."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    ok: bool
    at: AwareDatetime
    checks: tuple[Check, ...]


class _Model(_Foreign):
    id: Name


class ModelList(_Foreign):
    """The gateway's /v1/models."""

    data: tuple[_Model, ...]


class AlertLabels(_Foreign):
    """The labels of an alert that are shown."""

    alertname: Name
    severity: Name = ""


class AlertAnnotations(_Foreign):
    """The annotations of an alert that are shown."""

    summary: Text = ""
    next: Text | None = None


class ActiveAlert(_Foreign):
    """One of Prometheus' alerts, pending or firing."""

    labels: AlertLabels
    annotations: AlertAnnotations
    state: Literal["pending", "firing"]
    active_at: Annotated[AwareDatetime, Field(alias="activeAt")]


class _Alerts(_Foreign):
    alerts: tuple[ActiveAlert, ...]


class AlertList(_Foreign):
    """Prometheus' /api/v1/alerts."""

    data: _Alerts


class _Build(_Foreign):
    version: Text


class BuildInfo(_Foreign):
    """Prometheus' /api/v1/status/buildinfo."""

    data: _Build


class Series(_Foreign):
    """One series of a query: pairs of Unix seconds and a number as text; `value` for one moment."""

    metric: dict[str, Name] = {}
    value: tuple[float, str] | None = None
    values: tuple[tuple[float, str], ...] = ()


class _Result(_Foreign):
    result: tuple[Series, ...]


class QueryResult(_Foreign):
    """Prometheus' answer to a query, of a moment (vector) or of a range (matrix)."""

    data: _Result
