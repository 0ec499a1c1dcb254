"""The options of `traffic run`, and the profile that they name, change or describe."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate_traffic.arguments import EndpointOptions
from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.load.profile import Profile, load_profile, parse_profile

SHAPES = ("constant", "poisson", "ramp", "step", "burst")
DEFAULT_SECONDS = 10.0
DRAIN_SECONDS = 120.0
"""How long requests may take after the last one was sent."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The command line of `traffic run`; None is what was not given."""

    profile: str | None
    """A built-in profile's name, or a file's path."""
    endpoint: EndpointOptions
    keys: Path | None
    """A file with keys by alias."""

    # A load without a profile.
    rate: str | None
    """Requests per second, one or more separated by commas."""
    shape: str | None
    concurrency: int | None
    seconds: float | None
    requests: int | None

    # Changes to the profile or to that load; lengths are tokens.
    prompt_words: int | None
    max_tokens: int | None
    seed: int | None
    max_seconds: float | None
    max_requests: int | None
    slo_first_token: float | None
    slo_inter_token: float | None
    slo_total: float | None

    # Reports; `-` is standard output.
    json: Path | None
    junit: Path | None
    html: Path | None

    @property
    def json_to_stdout(self) -> bool:
        """Whether the JSON report goes to standard output, so that nothing else may."""
        return self.json == Path("-")

    @property
    def report_files(self) -> list[Path]:
        """The files that the run writes."""
        return [path for path in (self.json, self.junit, self.html) if path and path != Path("-")]


def build_profile(options: RunOptions) -> tuple[str, Profile]:
    """Return the profile's name, and the profile with the options' changes.

    Raises CannotStartError when the options contradict each other or are out of range.
    """
    if options.profile:
        load_options = ("rate", "concurrency", "shape", "seconds", "requests")
        conflicts = [name for name in load_options if getattr(options, name)]
        if conflicts:
            raise CannotStartError(
                f"--{conflicts[0]} is for a load without a profile: change a copy of the profile "
                f"(`traffic profiles {options.profile}`)."
            )
        name, profile = load_profile(options.profile)
        settings = profile.model_dump(by_alias=True)
    else:
        name, settings = "options", _describe_load(options)
    for setting in ("seed", "max_seconds", "max_requests"):
        if (value := getattr(options, setting)) is not None:
            settings[setting] = value
    slo = {
        "first_token_seconds": options.slo_first_token,
        "inter_token_seconds": options.slo_inter_token,
        "seconds": options.slo_total,
    }
    slo_changes = {name: value for name, value in slo.items() if value is not None}
    for traffic_class in settings["classes"]:
        traffic_class["slo"] = traffic_class.get("slo", {}) | slo_changes
        for length, value in (("prompt_words", options.prompt_words), ("answer_tokens", options.max_tokens)):
            if value is not None:
                traffic_class[length] = value
    return name, parse_profile("load from the options", json.dumps(settings))


def _describe_load(options: RunOptions) -> dict[str, Any]:
    """Return the options' load as the settings of a profile file."""
    seconds = options.seconds or DEFAULT_SECONDS
    if options.concurrency:
        load: dict[str, Any] = {"shape": "closed", "concurrency": options.concurrency}
        load |= {"requests": options.requests} if options.requests else {}
        load |= {"seconds": seconds} if options.seconds or not options.requests else {}
        send_seconds = seconds if "seconds" in load else 86_400.0
    elif options.shape == "burst":
        load = {"shape": "burst", "size": options.requests or 10}
        send_seconds = seconds
    elif options.rate:
        rates = _parse_rates(options.rate)
        load, send_seconds = _describe_open_load(options.shape or "constant", rates, seconds)
    else:
        raise CannotStartError("No load is given: name a profile, or pass --rate or --concurrency.")
    return {
        "max_seconds": min(604_800.0, send_seconds + DRAIN_SECONDS),
        "max_requests": options.requests or 1_000_000,
        "classes": [{"name": "options", "load": load}],
    }


def _describe_open_load(shape: str, rates: Sequence[float], seconds: float) -> tuple[dict[str, Any], float]:
    """Return the settings of a load with rates, and for how many seconds it sends."""
    if shape == "step":
        return {"shape": shape, "rates": list(rates), "seconds_each": seconds}, seconds * len(rates)
    if shape == "ramp":
        if len(rates) != 2:
            raise CannotStartError("A ramp has two rates: pass them as --rate 1,10.")
        return {"shape": shape, "from_rate": rates[0], "to_rate": rates[1], "seconds": seconds}, seconds
    if len(rates) != 1:
        raise CannotStartError(f"The shape {shape} has one rate: pass --shape step for more.")
    return {"shape": shape, "rate": rates[0], "seconds": seconds}, seconds


def _parse_rates(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise CannotStartError(
            f"The rate {text!r} is not a number: pass --rate 5 or --rate 1,5,10."
        ) from None
