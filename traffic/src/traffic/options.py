"""What the command lines share: one-line errors, checked numbers, the endpoint's options, exit statuses."""

import argparse
from typing import Any, NoReturn

EXIT_OK, EXIT_FAILED, EXIT_CANNOT_START, EXIT_INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """Ends with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read more."""
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
            raise argparse.ArgumentTypeError(f"{text!r} is no {word} above 0 and below a million")
        return value

    return parse


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which endpoint is asked, and how long a request may take."""
    parser.add_argument("--model", metavar="M", help="model to ask (default: the first that is offered)")
    parser.add_argument("--url", metavar="U", help="endpoint, ends with /v1 (default: OPENAI_BASE_URL)")
    parser.add_argument(
        "--key", metavar="K", help="API key; shows in the process list, so prefer OPENAI_API_KEY"
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
