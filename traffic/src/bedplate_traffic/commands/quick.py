"""`traffic --max N`: sends N chat requests, one after the other, and writes a small report."""

import asyncio
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bedplate_traffic.arguments import (
    EXIT_FAILED,
    EXIT_OK,
    EndpointOptions,
    Parser,
    add_endpoint_options,
    positive,
)
from bedplate_traffic.load.client import ChatRequest, Client, Exchange, choose_model
from bedplate_traffic.load.endpoint import check_url, find_key
from bedplate_traffic.report.files import write_text

SCHEMA = 1
PROMPTS = (
    "Name three colours.",
    "What is the capital of France?",
    "Count from one to five.",
    "Write one sentence about the sea.",
    "Say hello in Italian.",
)


@dataclass(frozen=True, kw_only=True)
class QuickOptions:
    """The command line."""

    max_requests: int
    json: Path | None
    """Where the report goes; `-` is standard output."""
    endpoint: EndpointOptions
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one request; times are seconds since it was sent, None where no token came."""

    ok: bool
    status: int | None
    seconds: float
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


def parse(arguments: Sequence[str]) -> QuickOptions:
    """Return the command's options; exits with a message where they are wrong."""
    parser = Parser(
        prog="traffic",
        description="Send chat requests to an OpenAI-compatible endpoint, one after the other, and report.",
        epilog="Exit status: 0 all answered with usage; 1 some failed; 2 could not start. Other commands, "
        "each with --help: traffic run (load), compare (two reports), profiles, schema and canary.",
    )
    parser.add_argument(
        "--max", type=positive(int), required=True, metavar="N", help="number of requests to send"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the report to this file; - is standard output, progress then goes to stderr",
    )
    add_endpoint_options(parser)
    parser.add_argument(
        "--max-tokens",
        type=positive(int),
        default=16,
        metavar="N",
        help="longest answer (default: 16 tokens)",
    )
    values = parser.parse_args(arguments)
    return QuickOptions(
        max_requests=values.max,
        json=values.json,
        endpoint=EndpointOptions.from_arguments(values),
        max_tokens=values.max_tokens,
    )


def run(options: QuickOptions) -> int:
    """Send the requests, write the report, and return the exit status."""
    url = check_url(options.endpoint.url, options.endpoint.allow_public)
    key = find_key(options.endpoint)
    report_to_stdout = options.json == Path("-")
    progress = sys.stderr if report_to_stdout else sys.stdout
    if options.json and not report_to_stdout:
        # Emptied first, so that an older report is never taken for this run's.
        write_text(options.json, "")
    at = datetime.now(UTC)

    async def send_all() -> tuple[str, list[Result]]:
        results: list[Result] = []
        async with Client(url, key, options.endpoint.timeout_seconds) as client:
            model = choose_model(url, (await client.list_models()).ids, options.endpoint.model)
            progress.write(f"{url}, model {model}\n")
            for number in range(options.max_requests):
                request = ChatRequest(model, PROMPTS[number % len(PROMPTS)], options.max_tokens)
                results.append(_summarize(await client.send(Exchange(request))))
                progress.write(f"{number + 1}/{options.max_requests} {_format_result(results[-1])}\n")
                progress.flush()
        return model, results

    model, results = asyncio.run(send_all())
    report = build_report(at, url, model, results)
    summary = report["summary"]
    progress.write(
        f"{summary['requests'] - summary['failed']} of {summary['requests']} answered, "
        f"{summary['prompt_tokens']} + {summary['completion_tokens']} tokens\n"
    )
    text = json.dumps(report, indent=2) + "\n"
    if report_to_stdout:
        sys.stdout.write(text)
    elif options.json:
        write_text(options.json, text)
    return EXIT_OK if report["ok"] else EXIT_FAILED


def _summarize(exchange: Exchange) -> Result:
    assert exchange.sent is not None and exchange.ended is not None  # noqa: S101, PT018 - it was sent
    first = exchange.first_token
    return Result(
        ok=exchange.error is None,
        status=exchange.status,
        seconds=round(exchange.ended - exchange.sent, 6),
        first_token_seconds=None if first is None else round(first - exchange.sent, 6),
        prompt_tokens=exchange.completion.prompt_tokens,
        completion_tokens=exchange.completion.completion_tokens,
        error=exchange.error,
    )


def _format_result(result: Result) -> str:
    if not result.ok:
        return f"FAILED after {result.seconds:.2f} s: {result.error}"
    return (
        f"ok {result.seconds:.2f} s, first token {result.first_token_seconds:.2f} s, "
        f"{result.prompt_tokens} + {result.completion_tokens} tokens"
    )


def build_report(at: datetime, url: str, model: str, results: Sequence[Result]) -> dict[str, Any]:
    """Return the report for JSON; `seconds_p50` is over the answered requests, None without any."""
    answered = [result for result in results if result.ok]
    return {
        "schema": SCHEMA,
        "ok": len(answered) == len(results),
        "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "url": url,
        "model": model,
        "requests": [asdict(result) for result in results],
        "summary": {
            "requests": len(results),
            "failed": len(results) - len(answered),
            "prompt_tokens": sum(result.prompt_tokens for result in results),
            "completion_tokens": sum(result.completion_tokens for result in results),
            "seconds_p50": statistics.median(result.seconds for result in answered) if answered else None,
        },
    }
