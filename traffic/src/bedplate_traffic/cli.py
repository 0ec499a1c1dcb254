"""The command line: runs the command that the first argument names, and exits with its status."""

import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from bedplate_traffic.arguments import EXIT_CANNOT_START, EXIT_INTERRUPTED
from bedplate_traffic.errors import CannotStartError

COMMANDS = ("run", "compare", "profiles", "schema", "canary")
FAKE_SERVER = "fake-server"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        module, words = _choose_module(words)
        # Imported only when it is named, so that a small command starts without the imports of a large one.
        command = importlib.import_module(module)
        sys.exit(command.run(command.parse(words)))
    except CannotStartError as error:
        sys.stderr.write(f"traffic: {error}\n")
        sys.exit(EXIT_CANNOT_START)
    except KeyboardInterrupt:
        sys.stderr.write("traffic: interrupted before the report was written.\n")
        sys.exit(EXIT_INTERRUPTED)


def _choose_module(words: list[str]) -> tuple[str, list[str]]:
    """Return the module of the command that the first word names, and the words after it.

    Options without a command are those of `quick`.
    """
    name = words[0] if words else ""
    if name in COMMANDS:
        return f"bedplate_traffic.commands.{name}", words[1:]
    if name == FAKE_SERVER:
        # The wheel, which hosts get, has no fake engine; a checkout has it.
        if find_spec("bedplate_traffic.fake_engine") is None:
            raise CannotStartError(
                "The fake engine is not part of this installation: run `make install` in a checkout of "
                "Bedplate, then `.venv/bin/traffic fake-server` there."
            )
        return "bedplate_traffic.fake_engine.server", words[1:]
    if name and not name.startswith("-"):
        raise CannotStartError(
            f"There is no command {name!r}: use one of {', '.join(COMMANDS)} (--max needs none)."
        )
    return "bedplate_traffic.commands.quick", words
