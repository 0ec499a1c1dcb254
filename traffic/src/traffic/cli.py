"""The command line: picks the command and ends with its exit status."""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from traffic import quick
from traffic.options import EXIT_CANNOT_START, EXIT_INTERRUPTED
from traffic.target import CannotStartError

# Loaded only when it is named, so that the simple use starts at once.
COMMANDS = {
    "run": "load",
    "compare": "compare",
    "profiles": "profiles_command",
    "schema": "schema_command",
    "canary": "canary",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_run(given))
    except CannotStartError as error:
        sys.stderr.write(f"traffic: {error}\n")
        sys.exit(EXIT_CANNOT_START)
    except KeyboardInterrupt:
        sys.stderr.write("traffic: stopped by you before the report was written.\n")
        sys.exit(EXIT_INTERRUPTED)


def _run(given: list[str]) -> int:
    """Run the command that the first argument names; without one, the simple use."""
    name = given[0] if given else ""
    if name == "fake-server":
        importlib.import_module("traffic.fake_server").main(given[1:])
    if name in COMMANDS:
        command = importlib.import_module(f"traffic.{COMMANDS[name]}")
        return int(command.run(command.parser().parse_args(given[1:])))
    if name and not name.startswith("-"):
        raise CannotStartError(
            f"There is no command {name!r}: there is {', '.join(COMMANDS)}, fake-server (--max needs none)."
        )
    return quick.run(quick.parser().parse_args(given))
