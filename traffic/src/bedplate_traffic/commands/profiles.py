"""`traffic profiles`: lists the built-in profiles, or prints one to copy and change."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bedplate_traffic.arguments import EXIT_OK, Parser
from bedplate_traffic.errors import CannotStartError
from bedplate_traffic.load.profile import load_profile, parse_profile, read_builtin_profiles


@dataclass(frozen=True)
class ProfilesOptions:
    """The command line; without a name all profiles are listed."""

    name: str | None


def parse(arguments: Sequence[str]) -> ProfilesOptions:
    """Return the command's options; exits with a message where they are wrong."""
    parser = Parser(prog="traffic profiles", description="List the profiles, or print one as YAML.")
    parser.add_argument("name", nargs="?", metavar="NAME")
    return ProfilesOptions(parser.parse_args(arguments).name)


def run(options: ProfilesOptions) -> int:
    """Print, and return the exit status."""
    profiles = read_builtin_profiles()
    if options.name is None:
        for name, text in profiles.items():
            sys.stdout.write(f"{name:<10} {parse_profile(name, text).description}\n")
        return EXIT_OK
    if options.name not in profiles:
        load_profile(options.name)
        raise CannotStartError(f"{options.name} is a file: only built-in profiles can be printed.")
    sys.stdout.write(profiles[options.name])
    return EXIT_OK
