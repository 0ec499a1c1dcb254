"""Profiles: what a run sends and what it must show, as YAML that is checked before anything is sent."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from traffic.report import metric_names
from traffic.target import CannotStartError

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
    """Requests at even distances."""

    shape: Literal["constant"]
    rate: Rate
    seconds: Seconds


class Poisson(_Strict):
    """Requests at random moments, as many independent people send them."""

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
    """`concurrency` clients, each of which asks again when it is answered."""

    shape: Literal["closed"]
    concurrency: Annotated[int, Field(ge=1, le=10_000)]
    seconds: Seconds | None = None
    requests: Count | None = None

    @model_validator(mode="after")
    def _ends(self) -> "Closed":
        if self.seconds is None and self.requests is None:
            raise ValueError("name seconds or requests, so that it ends")
        return self


Load = Annotated[Constant | Poisson | Ramp | Step | Burst | Closed, Field(discriminator="shape")]


class Uniform(_Strict):
    """Every length from `min` to `max` is as likely."""

    distribution: Literal["uniform"]
    min: Tokens
    max: Tokens

    @model_validator(mode="after")
    def _ordered(self) -> "Uniform":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Lognormal(_Strict):
    """Most are short and a few are long, as people's questions are; never longer than `max`."""

    distribution: Literal["lognormal"]
    median: Tokens
    sigma: Annotated[float, Field(gt=0, le=5)]
    max: Tokens


Length = Tokens | Annotated[Uniform | Lognormal, Field(discriminator="distribution")]


class Slo(_Strict):
    """What a good answer keeps to, in seconds; bounds that are absent bind nothing."""

    first_token_seconds: Seconds | None = None
    inter_token_seconds: Seconds | None = None
    """The mean distance of an answer's tokens."""
    seconds: Seconds | None = None


class Cancel(_Strict):
    """A share of the requests is left by its client, `after_seconds` after the first token or the start."""

    share: Share
    after_seconds: Annotated[float, Field(ge=0, le=3600)]
    after: Literal["start", "first_token"] = "start"


class TrafficClass(_Strict):
    """Requests of one kind: one key, one load, one line of the report."""

    name: Name
    key: Name | None = None
    """The alias of a key; absent: the key of OPENAI_API_KEY."""
    model: str | None = None
    load: Load
    start_after_seconds: Annotated[float, Field(ge=0, le=604_800)] = 0.0
    prompt_words: Length = 12
    answer_tokens: Length = 16
    stream: bool = True
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """A slot that comes while so many are unanswered is missed, and counted."""
    retries: Annotated[int, Field(ge=0, le=20)] = 0
    """How often a request that was refused with Retry-After is sent again when that time is over."""
    stop_at_refusal: bool = False
    """No more requests after the first that was refused with 429."""
    cancel: Cancel | None = None
    slo: Slo = Slo()


class Relative(_Strict):
    """`times` what another class has."""

    of_class: Name = Field(alias="class")
    times: Annotated[float, Field(gt=0, le=1_000_000)]


class Threshold(_Strict):
    """What a number of the report must keep to."""

    of_class: Name = Field(alias="class")
    metric: str
    min: float | Relative | None = None
    max: float | Relative | None = None
    equals: float | None = None

    @model_validator(mode="after")
    def _bounds(self) -> "Threshold":
        if self.min is None and self.max is None and self.equals is None:
            raise ValueError("name min, max or equals")
        if self.metric not in metric_names():
            near = difflib.get_close_matches(self.metric, metric_names(), 1)
            hint = f": did you mean {near[0]}?" if near else f": there is {', '.join(metric_names())}"
            raise ValueError(f"no metric is called {self.metric!r}{hint}")
        return self


class Before(_Strict):
    """What is waited for before the first request."""

    whole_limit: Literal["requests", "tokens"] | None = None
    """Until each key has its whole minute's limit again."""
    idle_seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """So long, so that an idle model is unloaded."""


class Profile(_Strict):
    """A whole run. It ends after `max_requests` or `max_seconds`, whatever its classes say."""

    description: str = ""
    seed: Annotated[int, Field(ge=0, le=2**63)] = 1
    max_requests: Count = 10_000
    max_seconds: Annotated[float, Field(gt=0, le=604_800)]
    before: Before = Before()
    classes: Annotated[list[TrafficClass], Field(min_length=1, max_length=50)]
    thresholds: list[Threshold] = []

    @model_validator(mode="after")
    def _names(self) -> "Profile":
        names = [one.name for one in self.classes]
        if len(set(names)) < len(names):
            raise ValueError(f"two classes have the same name ({', '.join(names)})")
        for threshold in self.thresholds:
            bounds = [
                bound.of_class for bound in (threshold.min, threshold.max) if isinstance(bound, Relative)
            ]
            for name in (threshold.of_class, *bounds):
                if name not in names:
                    raise ValueError(
                        f"thresholds name the class {name!r}, but there is only {', '.join(names)}"
                    )
        return self


def kept_profiles() -> dict[str, str]:
    """Return the profiles that come with the package, as YAML by name."""
    folder = files("traffic") / "profiles"
    return {
        entry.name.removesuffix(".yml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yml")
    }


def load_profile(name: str) -> tuple[str, Profile]:
    """Return a profile and its name; raises CannotStartError with one sentence when it cannot be used."""
    kept = kept_profiles()
    if name in kept:
        return name, parse_profile(f"profile {name}", kept[name])
    path = Path(name)
    if path.suffix not in {".yml", ".yaml"}:
        near = difflib.get_close_matches(name, kept, 1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(kept)}, or give a FILE.yml."
        raise CannotStartError(f"No profile is called {name!r}: {hint}")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CannotStartError(f"The profile {path} is larger than {MAX_FILE_BYTES} bytes: name another.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CannotStartError(f"The profile {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise CannotStartError(f"The profile {path} is no UTF-8 text.") from None
    return path.stem, parse_profile(f"profile {path}", text)


def parse_profile(what: str, text: str) -> Profile:
    """Return the profile that `text` is; `what` names it in the sentence of a CannotStartError."""
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise CannotStartError(f"The {what} is no YAML: {getattr(error, 'problem', error)}{place}.") from None
    except RecursionError:
        raise CannotStartError(f"The {what} is no YAML: it is nested too deeply.") from None
    if not isinstance(given, dict):
        raise CannotStartError(f"The {what} holds no settings: see `traffic profiles smoke` for one.")
    try:
        return Profile.model_validate(given)
    except ValidationError as error:
        raise CannotStartError(f"The {what}: {_sentence(error, given)}") from None


def _sentence(error: ValidationError, given: Any) -> str:
    """Return one thing that is wrong with a profile: where, what it is, what it should be."""
    # Of alternatives each says why it is not meant: the one that went deepest knows most. A typo is also a
    # setting that is missing; what was written tells more.
    first = max(
        error.errors(include_url=False), key=lambda one: (len(one["loc"]), one["type"] == "extra_forbidden")
    )
    path, here = [], given
    for step in first["loc"]:
        # The names of alternatives stand in pydantic's path, but not in the file.
        if isinstance(here, list) and isinstance(step, int) and step < len(here):
            path.append(str(here[step].get("name", step)) if isinstance(here[step], dict) else str(step))
            here = here[step]
        elif isinstance(here, dict) and (
            step in here or (step == first["loc"][-1] and first["type"] == "missing")
        ):
            path.append(str(step))
            here = here.get(step)
    place = ".".join(path) or "it"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _known_names(first["loc"])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        return f"{place} is no setting" + (f", did you mean {near[0]}?" if near else ".")
    if first["type"] == "missing":
        return f"{place} is missing."
    if first["type"] == "value_error":
        return f"{place}: {message}" + ("" if message.endswith("?") else ".")
    return f"{place} is {first['input']!r}: {message[0].lower()}{message[1:]}."


def _known_names(location: tuple[int | str, ...]) -> list[str]:
    """Return every setting's name that may have been meant; a typo is near to one of them."""
    models: list[type[BaseModel]] = [Profile] if len(location) == 1 else [*_Strict.__subclasses__()]
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})
