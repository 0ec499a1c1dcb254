"""The command line: runs the command that the first argument names, and exits with its status."""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from traffic.arguments import EXIT_CANNOT_START, EXIT_INTERRUPTED
from traffic.errors import CannotStartError

COMMANDS = ("run", "compare", "profiles", "schema", "canary")
FAKE_SERVER = "fake-server"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_run(words))
    except CannotStartError as error:
        sys.stderr.write(f"traffic: {error}\n")
        sys.exit(EXIT_CANNOT_START)
    except KeyboardInterrupt:
        sys.stderr.write("traffic: interrupted before the report was written.\n")
        sys.exit(EXIT_INTERRUPTED)


def _run(words: list[str]) -> int:
    """Run the command that the first word names; options without a command are those of `quick`."""
    name = words[0] if words else ""
    if name == FAKE_SERVER:
        importlib.import_module("traffic.fake_engine.server").main(words[1:])
    if name and not name.startswith("-") and name not in COMMANDS:
        raise CannotStartError(
            f"There is no command {name!r}: use {', '.join(COMMANDS)} or {FAKE_SERVER} (--max needs none)."
        )
    # Loaded only when it is named, so that a small command starts without the imports of a large one.
    module, options = (name, words[1:]) if name in COMMANDS else ("quick", words)
    command = importlib.import_module(f"traffic.commands.{module}")
    return int(command.run(command.parse(options)))
