"""The paths and names of one lab. Every name derives from the checkout's path and the lab's name.

Two checkouts, or two labs of one checkout, therefore never share a bridge, a namespace, a cgroup or a file.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bedplate_lab.errors import LabError
from bedplate_lab.tools import read_json, write_json

CHECKOUT = Path(__file__).resolve().parents[3]
NAME = re.compile(r"[a-z]([a-z0-9-]{0,29}[a-z0-9])?")


def check_name(what: str, name: str) -> str:
    """Return `name` if it can be a host, lab or layer name; raise LabError otherwise."""
    if not NAME.fullmatch(name):
        raise LabError(
            f"{what} {name!r} is not usable; take a letter and up to 30 lower-case letters, digits, hyphens"
        )
    return name


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    # The XDG specification requires that a relative path is ignored.
    return (Path(value) if value.startswith("/") else Path.home() / default) / "bedplate"


def cache_folder() -> Path:
    """Return the folder of everything that can be built or downloaded again: images, engines, models."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """Return the folder that holds one folder of state per lab."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "lab"


@dataclass(frozen=True)
class Lab:
    """One set of hosts with its own network."""

    name: str
    checkout: Path = CHECKOUT

    @property
    def id(self) -> str:
        """Six hexadecimal digits that identify the checkout and the lab's name on this machine."""
        return hashlib.sha256(f"{self.checkout}\0{self.name}".encode()).hexdigest()[:6]

    @property
    def state(self) -> Path:
        """The lab's own folder of state."""
        return state_folder() / self.id

    def artifact_record(self, kind: str) -> Path:
        """Return the record of the `engine` or `model` that this checkout's labs used last."""
        checkout = hashlib.sha256(str(self.checkout).encode()).hexdigest()[:6]
        return state_folder() / f"{checkout}-{kind}.json"

    @property
    def bridge(self) -> str:
        """Name of the lab's bridge, within the kernel's limit of 15 characters."""
        return f"bp-{self.id}"

    @property
    def table(self) -> str:
        """Name of the lab's nft table."""
        return f"bedplate_{self.id}"

    @property
    def lock(self) -> Path:
        """Lock of the lab's network and of its list of hosts."""
        return self.state / "lab.lock"

    @property
    def key(self) -> Path:
        """Private SSH key that opens every host of this lab."""
        return self.state / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The hosts' public keys, in ssh's known_hosts format."""
        return self.state / "ssh" / "known_hosts"

    @property
    def hosts(self) -> Path:
        """Folder with one folder per host."""
        return self.state / "hosts"

    @property
    def layers(self) -> Path:
        """Folder with one folder per saved layer."""
        return self.state / "layers"

    def write_record(self) -> None:
        """Record the checkout and the name of this lab, so that `known_labs` finds it."""
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(self.state / "lab.json", {"name": self.name, "checkout": str(self.checkout)})

    def remove_state(self) -> None:
        """Remove the lab's whole state; its hosts must be down."""
        shutil.rmtree(self.state, ignore_errors=True)


def known_labs() -> list[Lab]:
    """Return every lab of every checkout that has state on this machine."""
    labs = []
    for file in sorted(state_folder().glob("*/lab.json")):
        content = read_json(file)
        if content:
            labs.append(Lab(content["name"], Path(content["checkout"])))
    return labs
