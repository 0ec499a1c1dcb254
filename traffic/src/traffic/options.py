"""What the command lines share: one-line errors and checked numbers."""

import argparse
from typing import Any, NoReturn

EXIT_CANNOT_START = 2


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
