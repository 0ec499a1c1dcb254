"""`traffic run`: a profile or a load given by options, its reports, its exit status."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import uvloop
from rich.console import Console

from traffic import __version__, progress, table
from traffic.client import Client, chosen_model
from traffic.html import html
from traffic.junit import junit
from traffic.measure import class_report
from traffic.options import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Parser,
    add_endpoint,
    positive,
)
from traffic.output import write_text
from traffic.profile import Profile, load_profile, parse_profile
from traffic.report import Report
from traffic.runner import Run
from traffic.target import CannotStartError, checked_key, checked_url
from traffic.thresholds import judge

SHAPES = ("constant", "poisson", "ramp", "step", "burst")
DRAIN_SECONDS = 120.0
PLAIN_COLUMNS = 160


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="traffic run",
        description="Load an OpenAI-compatible endpoint and report what came back.",
        epilog="Keys that a profile names come from --keys or TRAFFIC_KEY_<ALIAS>. Exit status: 0 all "
        "thresholds were kept; 1 some were not; 2 could not start; 130 stopped by Ctrl-C (with its report).",
    )
    parser.add_argument(
        "profile",
        nargs="?",
        metavar="PROFILE",
        help="name (`traffic profiles` lists them) or FILE.yml; without it, --rate or --concurrency",
    )
    add_endpoint(parser)
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help='keys by alias as JSON, such as {"batch": "sk-…"}; Bedplate\'s keys.json is one',
    )
    load = parser.add_argument_group("a load without a profile")
    load.add_argument(
        "--rate", metavar="R", help="requests a second; more than one for ramp (1,10) and step (1,5,10)"
    )
    load.add_argument("--shape", choices=SHAPES, help="how they are spread (default: constant)")
    load.add_argument("--concurrency", type=positive(int), metavar="N", help="closed loop: N clients")
    load.add_argument(
        "--seconds", type=positive(float), metavar="S", help="how long (default: 10); for step, each rate"
    )
    load.add_argument(
        "--requests", type=positive(int), metavar="N", help="most requests, or the size of the burst"
    )
    load.add_argument("--prompt-words", type=positive(int), metavar="N", help="words a prompt (default: 12)")
    load.add_argument("--max-tokens", type=positive(int), metavar="N", help="longest answer (default: 16)")
    both = parser.add_argument_group("changes to the profile")
    both.add_argument("--seed", type=int, metavar="N", help="another seed, so other prompts and moments")
    both.add_argument("--max-seconds", type=positive(float), metavar="S", help="end it then at the latest")
    both.add_argument("--max-requests", type=positive(int), metavar="N", help="end it after so many")
    both.add_argument("--slo-first-token", type=positive(float), metavar="S", help="goodput: first token")
    both.add_argument("--slo-inter-token", type=positive(float), metavar="S", help="goodput: between tokens")
    both.add_argument("--slo-total", type=positive(float), metavar="S", help="goodput: the whole answer")
    out = parser.add_argument_group("reports")
    out.add_argument("--json", type=Path, metavar="FILE", help="every number; - is standard output")
    out.add_argument("--junit", type=Path, metavar="FILE", help="the thresholds, for CI")
    out.add_argument("--html", type=Path, metavar="FILE", help="one page with plots")
    return parser


def run(options: argparse.Namespace) -> int:
    """Run, report, and return the exit status."""
    name, profile = _profile(options)
    url = checked_url(options.url or os.environ.get("OPENAI_BASE_URL"), options.allow_public)
    keys = {one.key: _key(one.key, options) for one in profile.classes}
    to_stdout = options.json == Path("-")
    files = [path for path in (options.json, options.junit, options.html) if path and path != Path("-")]
    for path in files:
        # Emptied first, so that an older report is never taken for this run's.
        write_text(path, "")
    console = Console(stderr=to_stdout)
    if not console.is_terminal:
        console = Console(stderr=to_stdout, width=PLAIN_COLUMNS)
    at = datetime.now(UTC)
    ran, interrupted = uvloop.run(_run(profile, url, keys, options, console))
    classes = [class_report(one, ran.seconds) for one in ran.classes]
    thresholds = judge(profile, classes)
    report = Report(
        schema=2,
        ok=not interrupted and all(judgement.ok for judgement in thresholds),
        interrupted=interrupted,
        at=at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        seconds=round(ran.seconds, 6),
        traffic_version=__version__,
        url=url,
        profile=name,
        description=profile.description,
        seed=profile.seed,
        classes=classes,
        thresholds=thresholds,
        requests=sorted(
            (request for one in ran.classes for request in one.requests), key=lambda request: request.intended
        ),
    )
    table.show(report, console)
    _write(report, options)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OK if report.ok else EXIT_FAILED


def _write(report: Report, options: argparse.Namespace) -> None:
    """Write the reports that were asked for; one that cannot be written does not keep the others from it."""
    text = orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n"
    wrong: list[CannotStartError] = []
    for path, made in ((options.json, text), (options.junit, None), (options.html, None)):
        if path is None:
            continue
        if path == Path("-"):
            sys.stdout.write(text)
            continue
        try:
            write_text(path, made or (junit(report) if path == options.junit else html(report)))
        except CannotStartError as error:
            wrong.append(error)
    if wrong:
        raise wrong[0]


async def _run(
    profile: Profile,
    url: str,
    keys: Mapping[str | None, str],
    options: argparse.Namespace,
    console: Console,
) -> tuple[Run, bool]:
    async with AsyncExitStack() as opened:
        clients = {
            alias: await opened.enter_async_context(Client(url, key, options.timeout))
            for alias, key in keys.items()
        }
        models = {}
        for one in profile.classes:
            offered = (await clients[one.key].models()).ids
            models[one.name] = chosen_model(url, offered, options.model or one.model)
        ran = Run(profile, clients, models)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, ran.stop)
        console.print(
            f"{url}, {profile.description or 'a load given by options'}", markup=False, soft_wrap=True
        )
        if profile.before.idle_seconds:
            console.print(f"waiting {profile.before.idle_seconds:g} s, so that an idle model is unloaded")
        if profile.before.whole_limit:
            console.print(f"waiting until the whole limit of {profile.before.whole_limit} may be used")
        await ran.prepare()
        shown = asyncio.create_task(progress.follow(ran, console))
        try:
            await ran.go()
        finally:
            shown.cancel()
            with suppress(asyncio.CancelledError):
                await shown
    return ran, ran.interrupted


def _profile(options: argparse.Namespace) -> tuple[str, Profile]:
    """Return the profile with what the options change, and its name."""
    given = [
        name for name in ("rate", "concurrency", "shape", "seconds", "requests") if getattr(options, name)
    ]
    if options.profile:
        if given:
            raise CannotStartError(
                f"--{given[0]} is for a load without a profile: change a copy of the profile "
                f"(`traffic profiles {options.profile}`)."
            )
        name, profile = load_profile(options.profile)
        settings = profile.model_dump(by_alias=True)
    else:
        name, settings = "options", _settings(options)
    for setting in ("seed", "max_seconds", "max_requests"):
        if (value := getattr(options, setting)) is not None:
            settings[setting] = value
    slo = {
        "first_token_seconds": options.slo_first_token,
        "inter_token_seconds": options.slo_inter_token,
        "seconds": options.slo_total,
    }
    for one in settings["classes"]:
        one["slo"] = one.get("slo", {}) | {key: value for key, value in slo.items() if value is not None}
        for length, value in (("prompt_words", options.prompt_words), ("answer_tokens", options.max_tokens)):
            if value is not None:
                one[length] = value
    return name, parse_profile("load that the options give", json.dumps(settings))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a profile's file would hold for the load that the options name."""
    seconds = options.seconds or 10.0
    if options.concurrency:
        load: dict[str, Any] = {"shape": "closed", "concurrency": options.concurrency}
        load |= {"requests": options.requests} if options.requests else {}
        load |= {"seconds": seconds} if options.seconds or not options.requests else {}
        longest = seconds if "seconds" in load else 86_400.0
    elif options.shape == "burst":
        load = {"shape": "burst", "size": options.requests or 10}
        longest = seconds
    elif options.rate:
        rates = _rates(options.rate)
        load, longest = _open_load(options.shape or "constant", rates, seconds)
    else:
        raise CannotStartError("Nothing says what to send: name a profile, or give --rate or --concurrency.")
    return {
        "max_seconds": min(604_800.0, longest + DRAIN_SECONDS),
        "max_requests": options.requests or 1_000_000,
        "classes": [{"name": "options", "load": load}],
    }


def _open_load(shape: str, rates: Sequence[float], seconds: float) -> tuple[dict[str, Any], float]:
    if shape == "step":
        return {"shape": shape, "rates": list(rates), "seconds_each": seconds}, seconds * len(rates)
    if shape == "ramp":
        if len(rates) != 2:
            raise CannotStartError("A ramp has two rates: give them as --rate 1,10.")
        return {"shape": shape, "from_rate": rates[0], "to_rate": rates[1], "seconds": seconds}, seconds
    if len(rates) != 1:
        raise CannotStartError(f"The shape {shape} has one rate: give --shape step for more.")
    return {"shape": shape, "rate": rates[0], "seconds": seconds}, seconds


def _rates(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise CannotStartError(f"The rate {text!r} is no number: give --rate 5 or --rate 1,5,10.") from None


def _key(alias: str | None, options: argparse.Namespace) -> str:
    """Return the key of an alias: from --keys, else from the environment."""
    if alias is None:
        return checked_key(options.key or os.environ.get("OPENAI_API_KEY"))
    variable = f"TRAFFIC_KEY_{alias.upper().replace('-', '_')}"
    key = _keys_of(options.keys).get(alias) if options.keys else None
    key = key or os.environ.get(variable)
    if not key:
        raise CannotStartError(
            f"The profile needs the key {alias!r}: set {variable}, or name a file of keys with --keys."
        )
    return checked_key(key, variable)


def _keys_of(path: Path) -> dict[str, str]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotStartError(f"The keys {path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise CannotStartError(f"The keys {path} are no JSON.") from None
    keys = given.get("keys", given) if isinstance(given, dict) else None
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise CannotStartError(f"The keys {path} are no JSON object of keys by alias.")
    return keys
