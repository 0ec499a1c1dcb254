"""`traffic run`: runs a profile or a load given by options, writes the reports, sets the exit status."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import orjson
import uvloop
from rich.console import Console

from bedplate_traffic.arguments import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EndpointOptions,
    Parser,
    add_endpoint_options,
    positive,
)
from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.load.client import Client, choose_model
from bedplate_traffic.load.endpoint import MAX_KEYS_FILE, check_key, check_url, find_key, read_secret_file
from bedplate_traffic.load.options import SHAPES, RunOptions, build_profile
from bedplate_traffic.load.profile import Profile
from bedplate_traffic.load.progress import show_progress
from bedplate_traffic.load.runner import Run
from bedplate_traffic.load.stats import build_class_report
from bedplate_traffic.load.thresholds import judge
from bedplate_traffic.report.files import write_text
from bedplate_traffic.report.html import render_html
from bedplate_traffic.report.junit import render_junit
from bedplate_traffic.report.model import Report
from bedplate_traffic.report.table import print_report

PLAIN_COLUMNS = 160


def parse(arguments: Sequence[str]) -> RunOptions:
    """Return the command's options; exits with a message where they are wrong."""
    parser = Parser(
        prog="traffic run",
        description="Send load to an OpenAI-compatible endpoint and report the results.",
        epilog="Keys that a profile names come from --keys or TRAFFIC_KEY_<ALIAS>. Exit status: 0 all "
        "thresholds were met; 1 some were not; 2 could not start; 130 stopped by Ctrl-C (with its report).",
    )
    parser.add_argument(
        "profile",
        nargs="?",
        metavar="PROFILE",
        help="name (`traffic profiles` lists them) or FILE.yml; without it, --rate or --concurrency",
    )
    add_endpoint_options(parser)
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help='keys by alias as JSON, such as {"batch": "sk-…"} or Bedplate\'s keys.json; - is standard input',
    )
    load = parser.add_argument_group("a load without a profile")
    load.add_argument(
        "--rate", metavar="R", help="requests per second; more than one for ramp (1,10) and step (1,5,10)"
    )
    load.add_argument("--shape", choices=SHAPES, help="how requests are spread (default: constant)")
    load.add_argument("--concurrency", type=positive(int), metavar="N", help="closed loop: N clients")
    load.add_argument(
        "--seconds", type=positive(float), metavar="S", help="how long (default: 10); for step, each rate"
    )
    load.add_argument(
        "--requests", type=positive(int), metavar="N", help="most requests, or the size of the burst"
    )
    load.add_argument("--prompt-words", type=positive(int), metavar="N", help="words a prompt (default: 12)")
    load.add_argument("--max-tokens", type=positive(int), metavar="N", help="longest answer (default: 16)")
    changes = parser.add_argument_group("changes to the profile")
    changes.add_argument("--seed", type=int, metavar="N", help="another seed, so other prompts and moments")
    changes.add_argument("--max-seconds", type=positive(float), metavar="S", help="end after S seconds")
    changes.add_argument("--max-requests", type=positive(int), metavar="N", help="end after N requests")
    changes.add_argument("--slo-first-token", type=positive(float), metavar="S", help="goodput: first token")
    changes.add_argument(
        "--slo-inter-token", type=positive(float), metavar="S", help="goodput: between tokens"
    )
    changes.add_argument("--slo-total", type=positive(float), metavar="S", help="goodput: the whole answer")
    reports = parser.add_argument_group("reports")
    reports.add_argument("--json", type=Path, metavar="FILE", help="every number; - is standard output")
    reports.add_argument("--junit", type=Path, metavar="FILE", help="the thresholds, for CI")
    reports.add_argument("--html", type=Path, metavar="FILE", help="one page with plots")
    values = parser.parse_args(arguments)
    return RunOptions(
        profile=values.profile,
        endpoint=EndpointOptions.from_arguments(values),
        keys=values.keys,
        rate=values.rate,
        shape=values.shape,
        concurrency=values.concurrency,
        seconds=values.seconds,
        requests=values.requests,
        prompt_words=values.prompt_words,
        max_tokens=values.max_tokens,
        seed=values.seed,
        max_seconds=values.max_seconds,
        max_requests=values.max_requests,
        slo_first_token=values.slo_first_token,
        slo_inter_token=values.slo_inter_token,
        slo_total=values.slo_total,
        json=values.json,
        junit=values.junit,
        html=values.html,
    )


def run(options: RunOptions) -> int:
    """Run, write the reports, and return the exit status."""
    name, profile = build_profile(options)
    url = check_url(options.endpoint.url, options.endpoint.allow_public)
    given = _read_keys(options.keys) if options.keys else {}
    keys = {
        traffic_class.key: _find_key(traffic_class.key, given, options.endpoint)
        for traffic_class in profile.classes
    }
    for path in options.report_files:
        # Emptied first, so that an older report is never taken for this run's.
        write_text(path, "")
    console = Console(stderr=options.json_to_stdout)
    if not console.is_terminal:
        console = Console(stderr=options.json_to_stdout, width=PLAIN_COLUMNS)
    at = datetime.now(UTC)
    finished = uvloop.run(_execute(profile, url, keys, options.endpoint, console))
    classes = [build_class_report(stats, finished.seconds) for stats in finished.classes]
    thresholds = judge(profile, classes)
    report = Report(
        schema=2,
        ok=not finished.interrupted and all(judgement.ok for judgement in thresholds),
        interrupted=finished.interrupted,
        at=at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        seconds=round(finished.seconds, 6),
        traffic_version=version("bedplate-traffic"),
        url=url,
        profile=name,
        description=profile.description,
        seed=profile.seed,
        classes=classes,
        thresholds=thresholds,
        requests=sorted(
            (request for stats in finished.classes for request in stats.requests),
            key=lambda request: request.intended,
        ),
    )
    print_report(report, console)
    _write_reports(report, options)
    if report.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OK if report.ok else EXIT_FAILED


def _write_reports(report: Report, options: RunOptions) -> None:
    """Write every requested report, and only then raise the error of one that cannot be written."""
    text = orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n"
    errors: list[CannotStartError] = []
    for path, content in ((options.json, text), (options.junit, None), (options.html, None)):
        if path is None:
            continue
        if path == Path("-"):
            sys.stdout.write(text)
            continue
        try:
            write_text(
                path, content or (render_junit(report) if path == options.junit else render_html(report))
            )
        except CannotStartError as error:
            errors.append(error)
    if errors:
        raise errors[0]


async def _execute(
    profile: Profile,
    url: str,
    keys: Mapping[str | None, str],
    endpoint: EndpointOptions,
    console: Console,
) -> Run:
    """Run the profile while showing its progress; returns the run with its results."""
    async with AsyncExitStack() as stack:
        clients = {
            alias: await stack.enter_async_context(Client(url, key, endpoint.timeout_seconds))
            for alias, key in keys.items()
        }
        models = {}
        for traffic_class in profile.classes:
            offered = (await clients[traffic_class.key].list_models()).ids
            models[traffic_class.name] = choose_model(url, offered, endpoint.model or traffic_class.model)
        current = Run(profile, clients, models)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, current.stop)
        console.print(
            f"{url}, {profile.description or 'a load given by options'}", markup=False, soft_wrap=True
        )
        if profile.before.idle_seconds:
            console.print(
                f"waiting {profile.before.idle_seconds:g} s, so that the engine unloads an idle model"
            )
        if profile.before.whole_limit:
            console.print(f"waiting until the whole limit of {profile.before.whole_limit} is available")
        await current.prepare()
        progress = asyncio.create_task(show_progress(current, console))
        try:
            await current.execute()
        finally:
            progress.cancel()
            with suppress(asyncio.CancelledError):
                await progress
    return current


def _find_key(alias: str | None, given: Mapping[str, str], endpoint: EndpointOptions) -> str:
    """Return the key of an alias, of those `given` by --keys or else from the environment."""
    if alias is None:
        return find_key(endpoint)
    variable = f"TRAFFIC_KEY_{alias.upper().replace('-', '_')}"
    key = given.get(alias) or os.environ.get(variable)
    if not key:
        raise CannotStartError(
            f"The profile needs the key {alias!r}: set {variable}, or name a file of keys with --keys."
        )
    return check_key(key, variable)


def _read_keys(path: Path) -> dict[str, str]:
    try:
        content = json.loads(read_secret_file(path, "keys file", MAX_KEYS_FILE))
    except (ValueError, RecursionError):
        raise CannotStartError(f"The keys file {path} is not valid JSON.") from None
    keys = content.get("keys", content) if isinstance(content, dict) else None
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise CannotStartError(f"The keys file {path} is not a JSON object with keys by alias.")
    return keys
