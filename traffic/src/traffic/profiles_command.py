"""`traffic profiles`: lists the profiles that come with the package, or prints one to copy and change."""

import argparse
import sys

from traffic.options import EXIT_OK, Parser
from traffic.profile import kept_profiles, load_profile, parse_profile
from traffic.target import CannotStartError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = Parser(prog="traffic profiles", description="List the profiles, or print one as YAML.")
    parser.add_argument("name", nargs="?", metavar="NAME")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print, and return the exit status."""
    kept = kept_profiles()
    if options.name is None:
        for name, text in kept.items():
            sys.stdout.write(f"{name:<10} {parse_profile(name, text).description}\n")
        return EXIT_OK
    if options.name not in kept:
        load_profile(options.name)
        raise CannotStartError(f"{options.name} is a file already: only kept profiles are printed.")
    sys.stdout.write(kept[options.name])
    return EXIT_OK
