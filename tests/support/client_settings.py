"""What `make client` prints for each client, made by its playbook without any host, and its parts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.local_play import run_local_play

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = sorted(path.stem for path in (ROOT / "playbooks/templates/clients").glob("[a-z]*.j2"))


class Settings(NamedTuple):
    """The variables for the user's shell, and the text of each file by its path below the home folder."""

    environment: dict[str, str]
    files: dict[str, str]

    def write(self, home: Path) -> None:
        """Write the files into a home folder."""
        for name, text in self.files.items():
            file = home / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def parse(text: str) -> Settings:
    """Return the parts of what `make client` printed."""
    shell, *rest = re.split(r"^# ~/(\S+):\n", text, flags=re.MULTILINE)
    lines = [shlex.split(line) for line in shell.splitlines() if line.startswith("export ")]
    exported = dict(word.split("=", 1) for line in lines for word in line[1:])
    return Settings(exported, dict(zip(rest[::2], rest[1::2], strict=True)))


def printed(
    folder: Path,
    settings: dict[str, Any],
    keys: dict[str, str],
    programs: Iterable[str] = CLIENTS,
    *,
    forms: Iterable[str] = (),
    authority: str = "",
) -> dict[str, str]:
    """Return what `make client` prints, by client, for an installation on one host.

    `settings` are those of an inventory; what a run leaves on the control machine, such as the installation's
    own CA `authority` in PEM, is made in `folder`. `forms` are others that are printed: env and ca.
    """
    home = folder / "config/bedplate/bedplate"
    home.mkdir(parents=True)
    (home / "keys.json").write_text(json.dumps({"keys": keys}))
    if authority:
        (home / "trust.crt").write_text(authority)
    groups: dict[str, Any] = {name: {"hosts": {"one": {}}} for name in ("inference", "gateway", "monitoring")}
    (folder / "inventory.json").write_text(json.dumps({"all": {"vars": settings, "children": groups}}))
    wanted = {form: {"client_form": form} for form in forms}
    wanted |= {program: {"client_form": "program", "client_program": program} for program in programs}
    plays = [
        {
            "import_playbook": str(ROOT / "playbooks/client.yml"),
            "vars": {"client_file": str(folder / name), **form},
        }
        for name, form in wanted.items()
    ]
    (folder / "all.yml").write_text(json.dumps(plays))
    inventory = str(folder / "inventory.json")
    run_local_play(["--inventory", inventory, str(folder / "all.yml")], folder)
    return {name: (folder / name).read_text() for name in wanted}
