"""Shared parts of the command line: one-line errors, checked numbers, endpoint options, exit statuses."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

EXIT_OK, EXIT_FAILED, EXIT_CANNOT_START, EXIT_INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with the message and a pointer to --help."""
        self.exit(EXIT_CANNOT_START, f"{self.prog}: {message}; see {self.prog} --help\n")


def positive(kind: type[int] | type[float]) -> Any:
    """Return a parser of numbers above 0 and below a million."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < 1_000_000:
            word = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {word} above 0 and below a million")
        return value

    return parse


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Which endpoint is used, and how long a request may take."""

    model: str | None
    url: str | None
    """Ends with /v1; by default OPENAI_BASE_URL."""
    key: str | None
    """By default OPENAI_API_KEY."""
    key_file: Path | None
    """A file with the key, which goes before `key`; `-` is standard input."""
    timeout_seconds: float
    allow_public: bool

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Return the options that `add_endpoint_options` added."""
        return cls(
            model=arguments.model,
            url=arguments.url or os.environ.get("OPENAI_BASE_URL"),
            key=arguments.key or os.environ.get("OPENAI_API_KEY"),
            key_file=arguments.key_file,
            timeout_seconds=arguments.timeout,
            allow_public=arguments.allow_public,
        )


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `EndpointOptions`."""
    parser.add_argument("--model", metavar="M", help="model to use (default: the first that is offered)")
    parser.add_argument("--url", metavar="U", help="endpoint, ends with /v1 (default: OPENAI_BASE_URL)")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--key", metavar="K", help="API key (default: OPENAI_API_KEY); shows in the process list"
    )
    keys.add_argument(
        "--key-file", type=Path, metavar="FILE", help="file with the API key; - is standard input"
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
        help="also send to a public address, where other people may pay for it",
    )
