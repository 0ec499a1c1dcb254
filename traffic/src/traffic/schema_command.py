"""`traffic schema`: prints the JSON Schema of the report of `traffic run`."""

import argparse
import json
import sys

from pydantic import TypeAdapter

from traffic.options import EXIT_OK, Parser
from traffic.report import Report


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    return Parser(prog="traffic schema", description="Print the JSON Schema of the reports of traffic run.")


def run(_: argparse.Namespace) -> int:
    """Print, and return the exit status."""
    schema = TypeAdapter(Report).json_schema(mode="serialization")
    sys.stdout.write(json.dumps(schema, indent=2) + "\n")
    return EXIT_OK
