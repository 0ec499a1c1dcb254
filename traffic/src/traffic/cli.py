"""The command line: picks the command and ends with its exit status."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from traffic import quick
from traffic.options import EXIT_CANNOT_START, EXIT_INTERRUPTED, EXIT_OK
from traffic.target import CannotStartError


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
    # What only one command needs is loaded by it alone, so that the simple use starts at once.
    match given[:1]:
        case ["fake-server"]:
            from traffic import fake_server  # noqa: PLC0415

            return fake_server.main(given[1:])
        case ["run"]:
            from traffic import load  # noqa: PLC0415

            return load.run(load.parser().parse_args(given[1:]))
        case ["compare"]:
            from traffic import compare  # noqa: PLC0415

            return compare.run(compare.parser().parse_args(given[1:]))
        case ["profiles"]:
            from traffic import profiles_command  # noqa: PLC0415

            return profiles_command.run(profiles_command.parser().parse_args(given[1:]))
        case ["schema"]:
            from traffic import report  # noqa: PLC0415

            sys.stdout.write(report.json_schema())
            return EXIT_OK
        case _:
            return quick.run(quick.parser().parse_args(given))
