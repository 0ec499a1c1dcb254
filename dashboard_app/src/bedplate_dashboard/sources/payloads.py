"""The JSON bodies of other services, validated field by field. All of it is hostile input.

`clean` makes text printable and short before it is shown. Unknown fields are ignored, so that services can
add fields.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from bedplate_dashboard.settings import MODEL_NAME_LENGTH


def clean(text: object, length: int = 300) -> object:
    """Replace unprintable characters and cut text to `length`; return other values unchanged."""
    if not isinstance(text, str):
        return text
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text[: length + 1])
    return shown if len(shown) <= length else shown[:length] + "…"


def clean_label(text: str) -> str:
    """Clean the value of a label."""
    return str(clean(text, MODEL_NAME_LENGTH))


def _clean_name(text: object) -> object:
    return clean(text, MODEL_NAME_LENGTH)


Text = Annotated[str, BeforeValidator(clean)]
Name = Annotated[str, BeforeValidator(_clean_name)]
Count = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=0)]


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True)


class Engine(_Payload):
    """The engine as its exporter reports it; `fault` is why it is not up."""

    up: bool
    version: Text | None = None
    error: Text | None = None
    fault: Literal["stopped", "hung", "broken"] | None = None
    latency_seconds: Number | None = None


class EngineModel(_Payload):
    """One model on an engine; sizes in bytes, context in tokens."""

    name: Name
    digest: Text | None = None
    size_bytes: Bytes | None = None
    loaded: bool = False
    memory_bytes: Bytes | None = None
    gpu_memory_bytes: Bytes | None = None
    context_length: Count | None = None
    expires_at: AwareDatetime | None = None


class GpuDevice(_Payload):
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


class GpuDriver(_Payload):
    """What one vendor's driver reports about its GPUs, and how many are expected."""

    vendor: Name
    expected: Count = 0
    devices: Count
    failed: bool
    driver_matches: bool | None = None
    version: Text | None = None
    module_version: Text | None = None
    library_version: Text | None = None


class Pull(_Payload):
    """The pull of a model that a deployment runs now, in bytes."""

    model: Name
    done: Bytes
    total: Annotated[int, Field(gt=0, lt=2**63)]
    per_second: Bytes


class EngineState(_Payload):
    """The exporter's /state.json."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    at: AwareDatetime
    engine: Engine
    models: tuple[EngineModel, ...]
    pull: Pull | None = None
    gpus: tuple[GpuDevice, ...] = ()
    drivers: tuple[GpuDriver, ...] = ()


class Check(_Payload):
    """One check of a report; `ok` is None if it could not be carried out."""

    host: Text
    name: Text
    ok: bool | None
    seen: Text = ""
    next: Text | None = None


class Report(_Payload):
    """The report that the playbooks verify.yml and smoke.yml write."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    ok: bool
    at: AwareDatetime
    checks: tuple[Check, ...]


class _Model(_Payload):
    id: Name


class ModelList(_Payload):
    """The gateway's /v1/models."""

    data: tuple[_Model, ...]


class AlertLabels(_Payload):
    """The labels of an alert that are shown."""

    alertname: Name
    severity: Name = ""


class AlertAnnotations(_Payload):
    """The annotations of an alert that are shown."""

    summary: Text = ""
    next: Text | None = None


class ActiveAlert(_Payload):
    """One of Prometheus' alerts, pending or firing."""

    labels: AlertLabels
    annotations: AlertAnnotations
    state: Literal["pending", "firing"]
    active_at: Annotated[AwareDatetime, Field(alias="activeAt")]


class _Alerts(_Payload):
    alerts: tuple[ActiveAlert, ...]


class AlertList(_Payload):
    """Prometheus' /api/v1/alerts."""

    data: _Alerts


class _Build(_Payload):
    version: Text


class BuildInfo(_Payload):
    """Prometheus' /api/v1/status/buildinfo."""

    data: _Build


class Series(_Payload):
    """One series of a query result: Unix seconds and a number as text; `value` for an instant query."""

    metric: dict[str, Name] = {}
    value: tuple[float, str] | None = None
    values: tuple[tuple[float, str], ...] = ()


class _Result(_Payload):
    result: tuple[Series, ...]


class QueryResult(_Payload):
    """Prometheus' answer to an instant query (vector) or a range query (matrix)."""

    data: _Result
