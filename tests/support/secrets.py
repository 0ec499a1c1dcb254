"""The secrets of an installation, and searches for them while playbooks run: in processes, in the journal."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.stack import Stack

WATCHER = Path(__file__).with_name("watch_processes.py")
USER = "deploy"
DECOY = "decoy"
# Prints how many lines of the journal contain a line of standard input; grep exits with 1 if none does.
SEARCH_JOURNAL = r"""
secrets=$(mktemp) && trap 'rm -f "$secrets"' EXIT && cat >"$secrets" && test -s "$secrets"
search="grep --text --fixed-strings --count --file=$secrets"
journalctl --no-pager --output=export --all | $search || [[ $? == 1 ]]
"""


def basic(user: str, password: str) -> str:
    """Return what a header of HTTP's basic authentication contains."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def installed_secrets(stack: Stack) -> dict[str, str]:
    """Return the secrets of the installation by their names: keys, passwords and private keys."""
    found = {f"key {alias}": key for alias, key in json.loads(stack.keys_file.read_text())["keys"].items()}
    for file in stack.keys_file.parent.glob("*password*"):
        password = file.read_text().strip()
        found |= {file.name: password, f"header with {file.name}": basic("bedplate", password)}
    found["LiteLLM's master key"] = stack("cat /etc/bedplate/litellm/master-key").strip()
    for path in stack("grep --recursive --files-with-matches 'PRIVATE KEY' /etc/bedplate").split():
        # The line after the first one of a key in PEM.
        found[path] = stack(f"grep --after-context=1 'PRIVATE KEY' {path} | sed --quiet 2p").strip()
    assert all(len(secret) >= 16 for secret in found.values())
    return found


@dataclass
class Login:
    """A user who logs in over SSH and becomes root by sudo, which asks for a password."""

    password: str
    file: Path
    """The variables for Ansible, which no command line may show."""

    @property
    def option(self) -> str:
        """The option of ansible-playbook that logs in so."""
        return f"--extra-vars=@{self.file}"


def log_in_with_sudo(stack: Stack, folder: Path) -> Login:
    """Make the user on the host, with a new password."""
    password = secrets.token_urlsafe(18)
    script = f"""
id {USER} >/dev/null 2>&1 || useradd --create-home --shell /bin/bash --groups sudo {USER}
{{ printf '{USER}:'; cat; }} | chpasswd
install -d -m 0700 -o {USER} /home/{USER}/.ssh
install -m 0600 -o {USER} ~/.ssh/authorized_keys /home/{USER}/.ssh
"""
    stack(script, stdin=f"{password}\n")
    file = folder / "login.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"ansible_user": USER, "ansible_become_password": password}))
    return Login(password, file)


@dataclass
class Watch:
    """What `watching` has found; complete after its block."""

    found: list[dict[str, Any]] = field(default_factory=list)
    rounds: int = 0
    longest_seconds: float = 0.0


@contextmanager
def watching(stack: Stack, wanted: Mapping[str, str]) -> Iterator[Watch]:
    """Search all processes of this machine and the host for secrets during the block.

    A decoy in a process of the host, for as long as a module takes, proves that it would find them.
    """
    decoy = secrets.token_urlsafe(18)
    process = subprocess.Popen(
        [sys.executable, WATCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    watch = Watch()
    try:
        process.stdin.write(json.dumps({**wanted, DECOY: decoy}) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"started": True}
        # The shell reads the decoy from its standard input; only `sleep` has it.
        stack("read -r decoy; DECOY=$decoy bash -c 'sleep 0.1; :' \"$decoy\"", stdin=f"{decoy}\n")
        yield watch
    finally:
        output, _ = process.communicate(timeout=60)
    *found, summary = map(json.loads, output.splitlines())
    watch.rounds, watch.longest_seconds = summary["rounds"], summary["longest_seconds"]
    print(f"\n{watch.rounds} rounds over all processes, the longest took {watch.longest_seconds} s")
    assert {entry["where"] for entry in found if entry["secret"] == DECOY} == {"argv", "environ"}
    watch.found = [entry for entry in found if entry["secret"] != DECOY]


def lines_of_sudo(stack: Stack) -> int:
    """Return how many commands of the user sudo has written to the journal."""
    return int(stack(f"journalctl --no-pager --identifier=sudo --grep '{USER} : .*COMMAND=' | wc --lines"))


def lines_with_secrets(stack: Stack, wanted: Mapping[str, str]) -> int:
    """Return how many lines of the journal have a secret."""
    return int(stack(SEARCH_JOURNAL, stdin="\n".join(wanted.values()) + "\n"))
