"""Looks at one machine and writes a short inventory for it: make init, or init.py --help.

It reaches the machine as the playbooks do (playbooks/look.yml): what works here works for make deploy.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jinja2 import Environment, FileSystemLoader

ROOT = Path(__file__).resolve().parents[1]
PLAYBOOK = ROOT / ".venv/bin/ansible-playbook"
TEMPLATES = ROOT / "playbooks/templates"
RENAMED = ROOT / "playbooks/renamed.yml"
TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z_][\w.-]*)@)?(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[\w.-]+))(?::(?P<port>\d{1,5}))?"
)
BARE_SIX = re.compile(r"(?:(?P<user>[A-Za-z_][\w.-]*)@)?(?P<six>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)")
HOST_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*:[A-Za-z0-9._-]+")
FITTING = ("whole", "less")
# What a first installation with the upstream Ollama needs under /opt.
PROGRAM_BYTES = 7_200_000_000
LOCAL = "local"
LINES_OF_AN_ERROR = 15


class InitError(Exception):
    """Why no inventory was written: one sentence with the next command."""


@dataclass(frozen=True)
class Target:
    """How a machine is reached; an empty host is this machine."""

    host: str = ""
    user: str = ""
    port: str = ""

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read local or [USER@]ADDRESS[:PORT]; raises InitError."""
        if text == LOCAL:
            return cls()
        match = BARE_SIX.fullmatch(text) or TARGET.fullmatch(text)
        if not match:
            raise InitError(f"'{text}' is no machine: write HOST=local or HOST=root@192.0.2.10.")
        found = match.groupdict()
        return cls(
            found.get("six") or found.get("host") or "", found["user"] or "root", found.get("port") or ""
        )

    @property
    def ssh(self) -> str:
        """Return the command that logs in."""
        return f"ssh {f'-p {self.port} ' if self.port else ''}{self.user}@{self.host} true"

    @property
    def name(self) -> str:
        """Return what to call the machine in a sentence."""
        return f"{self.user}@{self.host}" if self.host else "this machine"

    def variables(self) -> dict[str, str]:
        """Return how Ansible reaches it."""
        if not self.host:
            return {"ansible_connection": "local"}
        port = {"ansible_port": self.port} if self.port else {}
        return {"ansible_host": self.host, **port, "ansible_user": self.user}


@dataclass(frozen=True)
class Choice:
    """What goes into the inventory; an empty address is loopback, context 0 the default."""

    name: str
    target: Target
    address: str
    models: Sequence[Mapping[str, Any]]
    context: int = 0


# Parts of Ansible's, ssh's and sudo's messages, and what to do. `root` is how to connect as root instead.
UNREACHED = (
    (
        "Host key verification failed",
        "SSH does not know the key of {host}: run {ssh} once and accept it, then run make init again.",
    ),
    (
        "Permission denied",
        "{host} refuses the SSH keys of this machine for {user}: run {copy}, then run make init again.",
    ),
    ("Could not resolve", "The name {host} has no address: correct HOST={user}@{host}."),
    (
        "sudo password|password is required|Sorry, try again|not in the sudoers",
        "sudo on {host} asks for a password: use {root}, or permit sudo without one.",
    ),
    ("sudo: (command )?not found|become exe", "{host} has no sudo: use {root}."),
    (
        r"interpreter.* not found|[Nn]o python|python[\d.]*: (command )?not found",
        "{host} has no working Python: run apt-get install python3 there, then run make init again.",
    ),
)


def unreached(target: Target, error: str) -> str:
    """Return the sentence for a machine that Ansible could not reach or become root on."""
    words = {
        "host": target.host or "this machine",
        "user": target.user,
        "ssh": target.ssh,
        "copy": target.ssh.replace("ssh ", "ssh-copy-id ", 1).removesuffix(" true"),
        "root": f"HOST=root@{target.host}" if target.host else "a root shell",
    }
    for pattern, sentence in UNREACHED:
        if re.search(pattern, error):
            return sentence.format(**words)
    lines = error.strip().splitlines() or ["no reason was given"]
    if target.host:
        reason = lines[-1].rpartition("via ssh: ")[2]
        return f"{target.name} cannot be reached ({reason}): try {target.ssh}, then run make init again."
    return f"this machine cannot be read ({lines[0]}): run make init as root."


def unfit(found: Mapping[str, Any], target: Target) -> str:
    """Return the sentence for a machine on which nothing can be installed; empty if it can."""
    if not found["supported"]:
        return (
            f"{target.name} runs {found['system']}, but Bedplate runs on Debian 12 and 13, and, not "
            f"proven, on "
            "Ubuntu 24.04 and 26.04: choose another machine with HOST=."
        )
    if not found["systemd"]:
        return f"{target.name} does not run systemd, which Bedplate needs: choose another machine with HOST=."
    if found["gpu"]["action"] == "refused":
        return f"{target.name}: {found['gpu']['reason']} {found['gpu']['remedy']}"
    if found["program_bytes"] < PROGRAM_BYTES:
        return (
            f"{target.name} has {found['program_bytes'] / 1e9:.1f} GB free at /opt, and a first "
            f"installation needs "
            f"{PROGRAM_BYTES / 1e9:.1f} GB: free some space, or mount a larger disk there, then run make "
            f"init again."
        )
    return ""


def fitting(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the models of the list that fit into memory and disk, the smallest first."""
    return [
        row
        for row in found["models"]
        if row["bytes"] < found["model_bytes"]
        and (row["kind"] in FITTING or (row["kind"] == "unknown" and row["name"] == found["default"]))
    ]


def chosen_models(names: Iterable[str], found: Mapping[str, Any], target: Target) -> list[Mapping[str, Any]]:
    """Return the rows of the named models; one that is not in the list has only a name. Raises InitError."""
    rows = {row["name"]: row for row in found["models"]}
    possible = [row["name"] for row in fitting(found)]
    chosen = []
    for name in names:
        if not MODEL_NAME.fullmatch(name):
            raise InitError(f"'{name}' is no model: write NAME:TAG, such as MODELS=llama3.2:3b.")
        if name in rows and name not in possible and rows[name]["kind"] != "unknown":
            raise InitError(
                f"{name} needs {rows[name]['needs']}, and {target.name} has {found['memory']} and "
                f"{found['model_bytes'] / 1e9:.1f} GB of disk for models: choose "
                f"{f'{possible[-1]} or a smaller one' if possible else 'a smaller one'}."
            )
        chosen.append(rows.get(name, {"name": name, "kind": "unknown"}))
    if not chosen:
        raise InitError(
            f"No model of the list fits {target.name}, which has {found['memory']} and "
            f"{found['model_bytes'] / 1e9:.1f} GB of disk for models: name a smaller one with "
            f"MODELS=NAME:TAG."
        )
    return chosen


def newest_change() -> str:
    """Return the day of the newest change of a setting's meaning."""
    rows = yaml.safe_load(RENAMED.read_text())
    return max(str(row["since"]) for row in rows if "changed" in row)


def texts(choice: Choice) -> dict[str, str]:
    """Return the files of the inventory, by their path in it."""
    templates = Environment(loader=FileSystemLoader(TEMPLATES), trim_blocks=True, keep_trailing_newline=True)  # noqa: S701 - YAML
    values = {
        "name": choice.name,
        "variables": choice.target.variables(),
        "validated": newest_change(),
        "address": choice.address,
        "models": choice.models,
        "context": choice.context,
    }
    files = {"hosts.yml": "init_hosts.yml.j2", "group_vars/all.yml": "init_all.yml.j2"}
    return {path: templates.get_template(template).render(values) for path, template in files.items()}


def write_inventory(folder: Path, choice: Choice) -> None:
    """Write the inventory, whole or not at all; raises InitError if the folder exists."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".init-") as scratch:
            made = Path(scratch) / folder.name
            (made / "group_vars").mkdir(parents=True)
            for path, text in texts(choice).items():
                (made / path).write_text(text)
            check_absent(folder)
            made.rename(folder)
    except OSError as error:
        raise InitError(
            f"{folder} cannot be written ({error.strerror}): choose another with INVENTORY=."
        ) from None


def check_absent(folder: Path) -> None:
    """Raise InitError if the inventory exists."""
    if folder.exists():
        raise InitError(
            f"{folder} exists and stays as it is: install it with make deploy INVENTORY={folder}, or "
            f"choose another "
            "folder with make init INVENTORY=inventory/NAME."
        )


def look(target: Target) -> dict[str, Any]:
    """Return what playbooks/look.yml found on the machine; raises InitError."""
    hosts = {"box1": target.variables()}
    groups: dict[str, Any] = {
        group: {"hosts": {"box1": {}}} for group in ("inference", "gateway", "monitoring")
    }
    with tempfile.TemporaryDirectory() as scratch:
        inventory, output = Path(scratch) / "hosts.json", Path(scratch) / "look.json"
        inventory.write_text(json.dumps({"all": {"hosts": hosts, "children": groups}}))
        command = [
            *(str(PLAYBOOK), f"--inventory={inventory}", "--tags=gpu-probe"),
            *(f"--extra-vars={json.dumps({'look_file': str(output)})}", "playbooks/look.yml"),
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode or not output.exists():
            last = "\n".join(done.stdout.splitlines()[-LINES_OF_AN_ERROR:])
            raise InitError(f"{last}\nThe look at {target.name} failed with the message above.")
        found: dict[str, Any] = json.loads(output.read_text())
    if found["error"] or not found["reached"]:
        raise InitError(unreached(target, str(found["error"])))
    if sentence := unfit(found, target):
        raise InitError(sentence)
    return found


def shown(found: Mapping[str, Any], target: Target) -> str:
    """Return what was found on the machine."""
    gpu = found["gpu"]
    lines = [
        f"Found {target.name} ({found['name']}):",
        f"  system   {found['system']}{'' if found['proven'] else ', which is not proven'}",
        f"  memory   {found['memory']}",
        f"  disk     {found['program_bytes'] / 1e9:.1f} GB free at /opt, {found['model_bytes'] / 1e9:.1f} "
        f"GB for models",
        f"  GPU      {gpu['reason'] or 'none'}",
        f"  address  {found['address'] or 'no IPv4 address: the stack can listen on loopback only'}",
    ]
    return "\n".join(lines)


def model_table(found: Mapping[str, Any]) -> str:
    """Return the models that fit, numbered."""
    lines = ["Models that fit, with a context of 8192 tokens in 2 slots where nothing else is said:"]
    for number, row in enumerate(fitting(found), 1):
        mark = "  <- proposed" if row["name"] == found["default"] else ""
        abilities = ", ".join(row["abilities"])
        lines.append(f"  {number:2}  {row['name']:28} {row['size']:>8}  {row['text']} ({abilities}){mark}")
    return "\n".join(lines)


def ask(question: str, default: str, accept: Callable[[str], object]) -> str:
    """Ask until the answer is accepted; an empty answer is the default."""
    while True:
        try:
            answer = input(f"{question} [{default}]: ").strip() or default
        except EOFError:
            raise InitError("There was no answer: add YES=1 to accept the proposals.") from None
        try:
            accept(answer)
        except InitError as error:
            print(error)
        else:
            return answer


def numbered(answer: str, found: Mapping[str, Any]) -> list[str]:
    """Return the names of models that were given as numbers of the table or as names; raises InitError."""
    rows = fitting(found)
    names = []
    for word in answer.replace(",", " ").split():
        if word.isdigit() and not 0 < int(word) <= len(rows):
            raise InitError(f"There is no model {word}: use 1 to {len(rows)}, or a name such as llama3.2:3b.")
        names.append(str(rows[int(word) - 1]["name"]) if word.isdigit() else word)
    return names


def yes_or_no(answer: str) -> bool:
    """Return whether an answer is yes; raises InitError for another than yes and no."""
    if answer.lower() not in ("y", "yes", "n", "no"):
        raise InitError("Answer yes or no.")
    return answer.lower().startswith("y")


def choose(options: argparse.Namespace) -> Choice:
    """Look at the machine, ask what the options leave open, and return the choice; raises InitError."""
    quiet = bool(options.yes)
    if not quiet and not sys.stdin.isatty():
        raise InitError(
            "make init asks questions, and there is no terminal: add YES=1 to accept the proposals."
        )
    given = options.host or (
        LOCAL if quiet else ask("Which machine? local, or USER@ADDRESS for SSH", LOCAL, Target.parse)
    )
    target = Target.parse(given)
    print(f"Looking at {target.name} …", flush=True)
    found = look(target)
    print(shown(found, target))
    address = str(found["address"])
    opened = bool(options.open)
    if not opened and not quiet and address:
        opened = yes_or_no(
            ask(f"Serve the network at {address}, with TLS? no: only {target.name} itself", "no", yes_or_no)
        )
    if opened and not address:
        raise InitError(f"{target.name} has no IPv4 address to serve a network at: leave out OPEN=1.")
    names = options.model or ([found["default"]] if found["default"] else [])
    if not options.model and not quiet and fitting(found):
        print(model_table(found))
        answer = ask(
            "Which models? numbers or names",
            found["default"] or "1",
            lambda text: chosen_models(numbered(text, found), found, target),
        )
        names = numbered(answer, found)
    models = chosen_models(names, found, target)
    contexts = [int(row["context"]) for row in models if row["kind"] == "less"]
    name = found["name"].lower()
    return Choice(
        name=name if HOST_NAME.fullmatch(name) and name != "localhost" else "box1",
        target=target,
        address=address if opened else "",
        models=models,
        context=min(contexts, default=0),
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description="Look at a machine and write an inventory for it.")
    parser.add_argument("--host", default="", help="local, or [USER@]ADDRESS[:PORT]; asked if missing")
    parser.add_argument("--open", action="store_true", help="serve the machine's network, with TLS")
    parser.add_argument("--model", action="append", default=[], help="a model, NAME:TAG; may be repeated")
    parser.add_argument("--inventory", type=Path, default=Path("inventory/mine"), help="the folder to write")
    parser.add_argument("--yes", action="store_true", help="ask nothing, and accept what is proposed")
    return parser.parse_args(arguments)


def stop(message: str, code: int) -> NoReturn:
    """Print a sentence and end."""
    print(re.sub(r"^this machine", "This machine", message), file=sys.stderr)
    sys.exit(code)


def main(*arguments: str) -> None:
    """Write the inventory and name the next command."""
    options = parse(arguments)
    try:
        check_absent(options.inventory)
        choice = choose(options)
        write_inventory(options.inventory, choice)
    except InitError as error:
        stop(str(error), 1)
    except KeyboardInterrupt:
        stop("\nStopped. Nothing was written.", 130)
    models = ", ".join(str(row["name"]) for row in choice.models)
    print(
        f"\nWrote {options.inventory}: {choice.name}, {models}, "
        f"{f'open at {choice.address} with TLS' if choice.address else 'on loopback'}.\n"
        f"Next: make deploy INVENTORY={options.inventory}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
