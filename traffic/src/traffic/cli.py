"""The command line: settings in, requests out, progress on the screen, a report in a file."""

import argparse
import ipaddress
import json
import os
import socket
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from traffic import fake_server
from traffic.client import CannotStartError, Endpoint, Result
from traffic.options import EXIT_CANNOT_START, Parser, positive

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130
SCHEMA = 1
PROMPTS = (
    "Name three colours.",
    "What is the capital of France?",
    "Count from one to five.",
    "Write one sentence about the sea.",
    "Say hello in Italian.",
)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="traffic",
        description="Send chat requests to an OpenAI-compatible endpoint, one after the other, and report.",
        epilog="Exit status: 0 all answered with usage; 1 some failed; 2 could not start. "
        "`traffic fake-server --help`: an engine without a model, for tests.",
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
    parser.add_argument("--model", metavar="M", help="model to ask (default: the first that is offered)")
    parser.add_argument("--url", metavar="U", help="endpoint, ends with /v1 (default: OPENAI_BASE_URL)")
    parser.add_argument(
        "--key", metavar="K", help="API key; shows in the process list, so prefer OPENAI_API_KEY"
    )
    parser.add_argument(
        "--max-tokens",
        type=positive(int),
        default=16,
        metavar="N",
        help="longest answer (default: 16 tokens)",
    )
    parser.add_argument(
        "--timeout",
        type=positive(float),
        default=120.0,
        metavar="S",
        help="seconds a request may take (default: 120)",
    )
    parser.add_argument(
        "--allow-public",
        action="store_true",
        help="send to a public address too, where strangers may pay for it",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["fake-server"]:
        fake_server.main(given[1:])
    options = _parser().parse_args(given)
    try:
        sys.exit(_run(options))
    except CannotStartError as error:
        sys.stderr.write(f"traffic: {error}\n")
        sys.exit(EXIT_CANNOT_START)
    except KeyboardInterrupt:
        sys.stderr.write("traffic: stopped by you before the report was written.\n")
        sys.exit(EXIT_INTERRUPTED)


def _run(options: argparse.Namespace) -> int:
    url = _checked_url(options.url or os.environ.get("OPENAI_BASE_URL"), options.allow_public)
    key = _checked_key(options.key or os.environ.get("OPENAI_API_KEY"))
    report_to_stdout = options.json == Path("-")
    progress = sys.stderr if report_to_stdout else sys.stdout
    if options.json and not report_to_stdout:
        # Emptied first, so that an older report is never taken for this run's.
        _write(options.json, "")
    at = datetime.now(UTC)
    with Endpoint(url, key, options.timeout) as endpoint:
        model = _chosen_model(endpoint, options.model)
        progress.write(f"{url}, model {model}\n")
        results: list[Result] = []
        for number in range(options.max):
            results.append(endpoint.ask(model, PROMPTS[number % len(PROMPTS)], options.max_tokens))
            progress.write(f"{number + 1}/{options.max} {_line(results[-1])}\n")
            progress.flush()
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
        _write(options.json, text)
    return EXIT_OK if report["ok"] else EXIT_FAILED


def _checked_url(url: str | None, allow_public: bool) -> str:
    if not url:
        raise CannotStartError(
            "No endpoint is named: set OPENAI_BASE_URL (`make env` prints it) or give --url."
        )
    url = url.rstrip("/")
    unusable = CannotStartError(f"The endpoint {url!r} cannot be used: give http://HOST:PORT/v1.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise unusable from None
    if parts.scheme not in {"http", "https"} or not host or parts.username is not None:
        raise unusable
    if not parts.path.endswith("/v1") or parts.query or not url.isascii() or not url.isprintable():
        raise unusable
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise CannotStartError(f"The host {host!r} has no address: check the endpoint {url!r}.") from None
    public = sorted(address for entry in found if _is_public(address := str(entry[4][0])))
    if public and not allow_public:
        raise CannotStartError(
            f"{url} is the public address {public[0]}: give --allow-public if you mean it."
        )
    return url


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped.is_global
    return ip.is_global


def _checked_key(key: str | None) -> str:
    if not key:
        raise CannotStartError("No key is given: set OPENAI_API_KEY (`make env` prints it).")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise CannotStartError("The key holds characters that no key has: check OPENAI_API_KEY.")
    return key


def _chosen_model(endpoint: Endpoint, wanted: str | None) -> str:
    offered = endpoint.models()
    if not offered:
        raise CannotStartError(f"{endpoint.url} offers no model: look at `make health`.")
    if wanted is None:
        return offered[0]
    if wanted not in offered:
        raise CannotStartError(f"The model {wanted!r} is not offered: there is {', '.join(offered)}.")
    return wanted


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CannotStartError(
            f"The report {path} cannot be written ({error.strerror}): name another."
        ) from None


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
