"""The simple use: a few questions, one after the other, a line for each, and a small report."""

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from traffic.client import Client, Question, Reply, chosen_model
from traffic.options import EXIT_FAILED, EXIT_OK, Parser, add_endpoint, positive
from traffic.output import write_text
from traffic.target import checked_key, checked_url

SCHEMA = 1
PROMPTS = (
    "Name three colours.",
    "What is the capital of France?",
    "Count from one to five.",
    "Write one sentence about the sea.",
    "Say hello in Italian.",
)


@dataclass(frozen=True)
class Result:
    """What one request gave; times are seconds since it was sent, None where there was no token."""

    ok: bool
    status: int | None
    seconds: float
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


def parser() -> argparse.ArgumentParser:
    """Return the parser of the simple use's options."""
    parser = Parser(
        prog="traffic",
        description="Send chat requests to an OpenAI-compatible endpoint, one after the other, and report.",
        epilog="Exit status: 0 all answered with usage; 1 some failed; 2 could not start. Other commands, "
        "each with --help: traffic run (load), compare (two reports), profiles, canary, and fake-server, an "
        "engine without a model.",
    )
    parser.add_argument(
        "--max", type=positive(int), required=True, metavar="N", help="number of requests to send"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the report here; - is standard output, progress then goes to stderr",
    )
    add_endpoint(parser)
    parser.add_argument(
        "--max-tokens",
        type=positive(int),
        default=16,
        metavar="N",
        help="longest answer (default: 16 tokens)",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Ask, report, and return the exit status."""
    url = checked_url(options.url or os.environ.get("OPENAI_BASE_URL"), options.allow_public)
    key = checked_key(options.key or os.environ.get("OPENAI_API_KEY"))
    report_to_stdout = options.json == Path("-")
    progress = sys.stderr if report_to_stdout else sys.stdout
    if options.json and not report_to_stdout:
        # Emptied first, so that an older report is never taken for this run's.
        write_text(options.json, "")
    at = datetime.now(UTC)

    async def ask() -> tuple[str, list[Result]]:
        results: list[Result] = []
        async with Client(url, key, options.timeout) as client:
            model = chosen_model(url, (await client.models()).ids, options.model)
            progress.write(f"{url}, model {model}\n")
            for number in range(options.max):
                prompt = PROMPTS[number % len(PROMPTS)]
                results.append(_result(await client.ask(Reply(Question(model, prompt, options.max_tokens)))))
                progress.write(f"{number + 1}/{options.max} {_line(results[-1])}\n")
                progress.flush()
        return model, results

    model, results = asyncio.run(ask())
    report = document(at, url, model, results)
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


def _result(reply: Reply) -> Result:
    assert reply.sent is not None and reply.ended is not None  # noqa: S101, PT018 - it was asked
    first = reply.first_token
    return Result(
        ok=reply.error is None,
        status=reply.status,
        seconds=round(reply.ended - reply.sent, 6),
        first_token_seconds=None if first is None else round(first - reply.sent, 6),
        prompt_tokens=reply.answer.prompt_tokens,
        completion_tokens=reply.answer.completion_tokens,
        error=reply.error,
    )


def _line(result: Result) -> str:
    if not result.ok:
        return f"FAILED after {result.seconds:.2f} s: {result.error}"
    return (
        f"ok {result.seconds:.2f} s, first token {result.first_token_seconds:.2f} s, "
        f"{result.prompt_tokens} + {result.completion_tokens} tokens"
    )


def document(at: datetime, url: str, model: str, results: Sequence[Result]) -> dict[str, Any]:
    """Return the report, ready for JSON; `seconds_p50` is over the answered ones, None when none was."""
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
