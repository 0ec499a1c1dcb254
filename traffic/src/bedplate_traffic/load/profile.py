"""Profiles: the load and the thresholds of a run, as YAML that is checked before anything is sent."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.report.model import metric_names

Seconds = Annotated[float, Field(gt=0, le=604_800)]
Rate = Annotated[float, Field(gt=0, le=100_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Tokens = Annotated[int, Field(ge=1, le=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
MAX_FILE_BYTES = 1_000_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Constant(_Strict):
    """Requests at even intervals."""

    shape: Literal["constant"]
    rate: Rate
    seconds: Seconds


class Poisson(_Strict):
    """Requests at random moments, as from many independent people."""

    shape: Literal["poisson"]
    rate: Rate
    seconds: Seconds


class Ramp(_Strict):
    """A rate that changes evenly."""

    shape: Literal["ramp"]
    from_rate: Annotated[float, Field(ge=0, le=100_000)]
    to_rate: Annotated[float, Field(ge=0, le=100_000)]
    seconds: Seconds


class Step(_Strict):
    """One rate after the other, each for `seconds_each`."""

    shape: Literal["step"]
    rates: Annotated[list[Annotated[float, Field(ge=0, le=100_000)]], Field(min_length=1, max_length=1000)]
    seconds_each: Seconds


class Burst(_Strict):
    """`size` requests at once, `times` times."""

    shape: Literal["burst"]
    size: Count
    times: Count = 1
    every_seconds: Seconds = 1.0


class Closed(_Strict):
    """`concurrency` clients, each of which sends its next request when the last is answered."""

    shape: Literal["closed"]
    concurrency: Annotated[int, Field(ge=1, le=10_000)]
    seconds: Seconds | None = None
    requests: Count | None = None

    @model_validator(mode="after")
    def _ends(self) -> "Closed":
        if self.seconds is None and self.requests is None:
            raise ValueError("set seconds or requests, so that it ends")
        return self


Load = Annotated[Constant | Poisson | Ramp | Step | Burst | Closed, Field(discriminator="shape")]


class Uniform(_Strict):
    """Every length from `min` to `max` is equally likely."""

    distribution: Literal["uniform"]
    min: Tokens
    max: Tokens

    @model_validator(mode="after")
    def _ordered(self) -> "Uniform":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Lognormal(_Strict):
    """Most lengths are small and a few are large, as those of people's prompts; never above `max`."""

    distribution: Literal["lognormal"]
    median: Tokens
    sigma: Annotated[float, Field(gt=0, le=5)]
    max: Tokens


Length = Tokens | Annotated[Uniform | Lognormal, Field(discriminator="distribution")]


class Slo(_Strict):
    """The upper bounds of a good answer, in seconds; an absent bound is not checked."""

    first_token_seconds: Seconds | None = None
    inter_token_seconds: Seconds | None = None
    """The mean time between an answer's tokens."""
    seconds: Seconds | None = None


class Cancel(_Strict):
    """A share of the clients disconnects, `after_seconds` after the first token or after the start."""

    share: Share
    after_seconds: Annotated[float, Field(ge=0, le=3600)]
    after: Literal["start", "first_token"] = "start"


class TrafficClass(_Strict):
    """Requests of one kind: one key, one load, one line of the report."""

    name: Name
    key: Name | None = None
    """The alias of a key; by default the key of OPENAI_API_KEY."""
    model: str | None = None
    load: Load
    start_after_seconds: Annotated[float, Field(ge=0, le=604_800)] = 0.0
    prompt_words: Length = 12
    answer_tokens: Length = 16
    stream: bool = True
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """A slot that is due while so many requests are unanswered is missed, and counted."""
    retries: Annotated[int, Field(ge=0, le=20)] = 0
    """How often a refused request is sent again after the time in its Retry-After."""
    stop_at_refusal: bool = False
    """Stop sending after the first request that was refused with 429."""
    cancel: Cancel | None = None
    slo: Slo = Slo()


class Relative(_Strict):
    """`times` the value of another class."""

    of_class: Name = Field(alias="class")
    times: Annotated[float, Field(gt=0, le=1_000_000)]


class Threshold(_Strict):
    """The limits of one metric of the report."""

    of_class: Name = Field(alias="class")
    metric: str
    min: float | Relative | None = None
    max: float | Relative | None = None
    equals: float | None = None

    @model_validator(mode="after")
    def _bounds(self) -> "Threshold":
        if self.min is None and self.max is None and self.equals is None:
            raise ValueError("set min, max or equals")
        if self.metric not in metric_names():
            similar = difflib.get_close_matches(self.metric, metric_names(), 1)
            hint = f"did you mean {similar[0]}?" if similar else f"use {', '.join(metric_names())}"
            raise ValueError(f"there is no metric {self.metric!r}: {hint}")
        return self


class Before(_Strict):
    """The conditions that must hold before the first request."""

    whole_limit: Literal["requests", "tokens"] | None = None
    """The limit of which each key must have its whole minute available."""
    idle_seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """How long to wait, so that the engine unloads an idle model."""


class Profile(_Strict):
    """A whole run. It ends after `max_requests` or `max_seconds`, even if its classes have more to send."""

    description: str = ""
    seed: Annotated[int, Field(ge=0, le=2**63)] = 1
    max_requests: Count = 10_000
    max_seconds: Annotated[float, Field(gt=0, le=604_800)]
    before: Before = Before()
    classes: Annotated[list[TrafficClass], Field(min_length=1, max_length=50)]
    thresholds: list[Threshold] = []

    @model_validator(mode="after")
    def _names(self) -> "Profile":
        names = [traffic_class.name for traffic_class in self.classes]
        if len(set(names)) < len(names):
            raise ValueError(f"two classes have the same name ({', '.join(names)})")
        for threshold in self.thresholds:
            bounds = [
                bound.of_class for bound in (threshold.min, threshold.max) if isinstance(bound, Relative)
            ]
            for name in (threshold.of_class, *bounds):
                if name not in names:
                    raise ValueError(
                        f"thresholds name the class {name!r}, but the classes are {', '.join(names)}"
                    )
        return self


def read_builtin_profiles() -> dict[str, str]:
    """Return the profiles in the package, as YAML by name."""
    folder = files("bedplate_traffic.load") / "profiles"
    return {
        entry.name.removesuffix(".yml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yml")
    }


def load_profile(name: str) -> tuple[str, Profile]:
    """Return a profile and its name; raises CannotStartError with one sentence when it cannot be used."""
    builtin = read_builtin_profiles()
    if name in builtin:
        return name, parse_profile(f"profile {name}", builtin[name])
    path = Path(name)
    if path.suffix not in {".yml", ".yaml"}:
        similar = difflib.get_close_matches(name, builtin, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"use {', '.join(builtin)} or a FILE.yml."
        raise CannotStartError(f"There is no profile {name!r}: {hint}")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CannotStartError(f"The profile {path} is larger than {MAX_FILE_BYTES} bytes: name another.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CannotStartError(f"The profile {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise CannotStartError(f"The profile {path} is not UTF-8 text.") from None
    return path.stem, parse_profile(f"profile {path}", text)


def parse_profile(what: str, text: str) -> Profile:
    """Return the profile in a YAML text; raises CannotStartError, in whose message `what` names the text."""
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise CannotStartError(
            f"The {what} is not valid YAML: {getattr(error, 'problem', error)}{place}."
        ) from None
    except RecursionError:
        raise CannotStartError(f"The {what} is not valid YAML: it is nested too deeply.") from None
    if not isinstance(settings, dict):
        raise CannotStartError(
            f"The {what} contains no settings: `traffic profiles smoke` prints an example."
        )
    try:
        return Profile.model_validate(settings)
    except ValidationError as error:
        raise CannotStartError(f"The {what}: {_describe(error, settings)}") from None


def _describe(error: ValidationError, settings: Any) -> str:
    """Return a sentence about the most telling error: the setting, its value, and what it must be."""
    # Each alternative of a union reports its own error: the one deepest in the file is about the alternative
    # that was meant. A misspelt setting is also a missing one: the misspelt one helps more.
    first = max(
        error.errors(include_url=False),
        key=lambda detail: (len(detail["loc"]), detail["type"] == "extra_forbidden"),
    )
    path, here = [], settings
    for step in first["loc"]:
        # pydantic's location also names the alternatives of unions, which are not in the file.
        if isinstance(here, list) and isinstance(step, int) and step < len(here):
            path.append(str(here[step].get("name", step)) if isinstance(here[step], dict) else str(step))
            here = here[step]
        elif isinstance(here, dict) and (
            step in here or (step == first["loc"][-1] and first["type"] == "missing")
        ):
            path.append(str(step))
            here = here.get(step)
    setting = ".".join(path)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        similar = difflib.get_close_matches(str(first["loc"][-1]), _setting_names(first["loc"]), 1)
        return f"there is no setting {setting}" + (f", did you mean {similar[0]}?" if similar else ".")
    if first["type"] == "missing":
        return f"{setting} is missing."
    if first["type"] == "value_error":
        sentence = f"{setting}: {message}" if setting else message
        return sentence + ("" if message.endswith("?") else ".")
    return f"{setting or 'it'} is {first['input']!r}: {message[0].lower()}{message[1:]}."


def _setting_names(location: tuple[int | str, ...]) -> list[str]:
    """Return the settings that a misspelt one may stand for: a profile's own, else those of all its parts."""
    models: list[type[BaseModel]] = [Profile] if len(location) == 1 else [*_Strict.__subclasses__()]
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})
