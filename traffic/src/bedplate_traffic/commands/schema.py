"""`traffic schema`: prints the JSON Schema of the report of `traffic run`."""

import json
import sys
from collections.abc import Sequence

from pydantic import TypeAdapter

from bedplate_traffic.arguments import EXIT_OK, Parser
from bedplate_traffic.report.model import Report


def parse(arguments: Sequence[str]) -> None:
    """Exit with a message where there are arguments: the command has no options."""
    parser = Parser(prog="traffic schema", description="Print the JSON Schema of the reports of traffic run.")
    parser.parse_args(arguments)


def run(_: None) -> int:
    """Print, and return the exit status."""
    schema = TypeAdapter(Report).json_schema(mode="serialization")
    sys.stdout.write(json.dumps(schema, indent=2) + "\n")
    return EXIT_OK
