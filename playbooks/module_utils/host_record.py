# SPDX-License-Identifier: Apache-2.0
"""What a role may leave on a host (its declaration), and what it left there (the host's record of it).

Uses only the standard library, because programs on the host read the records, too.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RECORDS = Path("/var/lib/bedplate/record")
FORMER_FILES = Path("/var/lib/bedplate/before")
"""Copies of the files that were there before, each below its own path."""
UNIT_DIRECTORY = Path("/etc/systemd/system")
OUR_FOLDERS = ("/etc/bedplate/", "/opt/bedplate/")
"""Nobody else writes below them."""
MARKER = b"# Managed by Bedplate."
SCHEMA = 1
PACKAGES = "packages"
"""The record of the Debian packages belongs to no role."""

State = dict[str, Any]
"""What is at a path: `state`, and what it has of owner, group, mode, target, sha256, secret, copy, empty."""


class RecordError(Exception):
    """What is wrong with a declaration or a record, in one sentence."""


@dataclass(frozen=True)
class Declaration:
    """A role's meta/host.yml; `file` is its name in messages."""

    role: str
    file: str
    users: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    runtime: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    data: dict[str, list[str]] = field(default_factory=dict)

    @property
    def data_folders(self) -> list[str]:
        """The folders of all kinds of data."""
        return [folder for folders in self.data.values() for folder in folders]

    @property
    def own_units(self) -> list[str]:
        """The units whose files the role writes, masks included."""
        return list(dict.fromkeys([*self.units, *self.masks]))

    def own_paths(self) -> list[str]:
        """Return the paths that are the role's whole, its units' included."""
        return [*self.paths, *(str(UNIT_DIRECTORY / unit) for unit in self.own_units)]

    def covers(self, path: str) -> bool:
        """Return whether the role may write there."""
        inside = [*self.own_paths(), *self.runtime, *self.data_folders]
        return path in self.shared or is_inside(path, inside) or self._is_link_of_a_unit(Path(path))

    def _is_link_of_a_unit(self, path: Path) -> bool:
        """Return whether systemctl makes this link when it enables one of the units, or the folder for it."""
        folder = path if path.suffix == ".wants" else path.parent
        unit = re.sub(r"@[^.]*\.", "@.", folder.stem if folder == path else path.name)
        return folder.parent == UNIT_DIRECTORY and folder.suffix == ".wants" and unit in self.units

    def records(self, path: str) -> bool:
        """Return whether the record names a path: it lasts, and only the role changes it."""
        return not is_inside(path, self.runtime) and (
            path in self.data_folders or not is_inside(path, self.data_folders)
        )


def is_inside(path: str, folders: Iterable[str]) -> bool:
    """Return whether a path is one of the folders or below one."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def declaration_from(given: Mapping[str, Any]) -> Declaration:
    """Return the declaration that a file has; raises RecordError."""
    unknown = given.keys() - Declaration.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(name for name in Declaration.__dataclass_fields__ if name not in ("role", "file"))
        raise RecordError(f"{given['file']} has {', '.join(sorted(unknown))}: use only {known}.")
    return Declaration(**given)


@dataclass
class Record:
    """What one role left on this host, and what was there when it first came."""

    role: str
    paths: dict[str, State] = field(default_factory=dict)
    units: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    before: dict[str, State] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the role is left."""
        return not (self.paths or self.units or self.users)

    def forget(self, path: str) -> None:
        """Take out a path and what is below it."""
        self.paths = {known: state for known, state in self.paths.items() if not is_inside(known, [path])}
        unit = Path(path)
        if unit.parent == UNIT_DIRECTORY and unit.name in self.units:
            self.units.remove(unit.name)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the record's file."""
        content = asdict(self)
        content["units"], content["users"] = sorted(self.units), sorted(self.users)
        return {"schema": SCHEMA, **content}


def read_json(
    path: Path, types: Mapping[str, type], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a record's file says under these names; raises RecordError."""
    try:
        content = {**(defaults or {}), **json.loads(path.read_bytes())}
        schema = content["schema"]
        found = {name: content[name] for name in types} if schema == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_record(path, f"{type(error).__name__}: {error}") from None
    if schema != SCHEMA:
        raise RecordError(f"{path} has schema {schema}, but this release knows {SCHEMA}: use a newer one.")
    for name, value in found.items():
        if not isinstance(value, types[name]):
            raise no_record(path, f"{name} is no {types[name].__name__}")
    return found


def no_record(path: Path, why: str) -> RecordError:
    """Return the error for a file that cannot be read."""
    remedy = "restore it from a backup, or remove it and run site.yml, which writes it again"
    return RecordError(f"{path} is no record ({why}): {remedy}.")


def load_record(directory: Path) -> dict[str, Record]:
    """Return the records of a host by their roles; raises RecordError."""
    types = {"role": str, "paths": dict, "units": list, "users": list, "before": dict}
    records = {}
    for path in sorted(directory.glob("*.json")):
        if path.stem == PACKAGES:
            continue
        record = Record(**read_json(path, types))
        states = [*record.paths.values(), *record.before.values()]
        if not all(isinstance(state, dict) and "state" in state for state in states):
            raise no_record(path, "a path has no state")
        records[path.stem] = record
    return records


@dataclass
class Packages:
    """The Debian packages that Bedplate added, with their versions, and what it asked apt for.

    `requested` are those of them that it named, `automatic` the named ones that were there before as
    dependencies, which apt has marked as manually installed since.
    """

    installed: dict[str, str] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)
    automatic: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the record's file."""
        return {"schema": SCHEMA, **asdict(self)}


def load_packages(directory: Path) -> Packages:
    """Return the record of the Debian packages; raises RecordError."""
    path = directory / f"{PACKAGES}.json"
    if not path.exists():
        return Packages()
    types = {"installed": dict, "requested": list, "automatic": list}
    # Until 2026-11-28 the record had only the installed ones.
    return Packages(**read_json(path, types, {"requested": [], "automatic": []}))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record at once, to the disk, readable only for root."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.touch(mode=0o600)
    with new.open("w") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def look_at(path: Path) -> State:
    """Return what is at a path, links not followed."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return {"state": "absent"}
    if stat.S_ISLNK(found.st_mode):
        return {"state": "link", "target": str(path.readlink())}
    kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file"}
    return {
        "state": kinds.get(stat.S_IFMT(found.st_mode), "other"),
        "owner": user_name(found.st_uid),
        "group": group_name(found.st_gid),
        "mode": f"{stat.S_IMODE(found.st_mode):04o}",
    }


def user_name(number: int) -> str:
    """Return a user's name, or the number if nobody has it."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group_name(number: int) -> str:
    """Return a group's name, or the number if no group has it."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def look_at_user(name: str) -> State:
    """Return what a system user is."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        # A group of this name may be another's.
        return {"state": "absent", **({"group": name} if has_group(name) else {})}
    return {"state": "present", "home": user.pw_dir, "shell": user.pw_shell}


def has_group(name: str) -> bool:
    """Return whether there is a group of this name."""
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def copy_former(path: Path) -> str:
    """Keep a copy of a file, with its owner and mode; return where."""
    copy = FORMER_FILES / path.relative_to("/")
    copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = copy.with_name(f".{copy.name}.new")
    found = path.stat()
    new.touch(mode=0o600)
    with path.open("rb") as source, new.open("wb") as file:
        shutil.copyfileobj(source, file)
        os.fchown(file.fileno(), found.st_uid, found.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
        os.fsync(file.fileno())
    new.replace(copy)
    sync_folder(copy.parent)
    return str(copy)


def has_marker(path: Path) -> bool:
    """Return whether a file has Bedplate's line."""
    with contextlib.suppress(OSError):
        return MARKER in path.read_bytes().splitlines()
    return False


class RoleRecord:
    """The record of the role that runs: `begin` before its first change, `end` after its last."""

    def __init__(self, declaration: Declaration) -> None:
        """Read the host's records; raises RecordError."""
        self.declaration = declaration
        self._records = load_record(RECORDS)
        self._file = RECORDS / f"{declaration.role}.json"
        self._is_new = declaration.role not in self._records
        self.record = self._records.setdefault(declaration.role, Record(declaration.role))
        self._saved = self.record.as_json()

    def is_installed_without_record(self) -> bool:
        """Return whether the role is installed, but by an earlier release, or its record is lost."""
        if not self._is_new:
            return False
        # A folder alone may have been left for a file of the user's.
        ours = [path for path in self.declaration.whole if path.startswith(OUR_FOLDERS)]
        return any(os.path.lexists(path) for path in ours) or any(
            has_marker(UNIT_DIRECTORY / unit) for unit in self.declaration.units
        )

    def _known(self, name: str) -> State | None:
        """Return what another role's record, or this one's, says was there before."""
        found = (record.before[name] for record in self._records.values() if name in record.before)
        return next(found, None)

    def begin(self, paths: Iterable[str]) -> None:
        """Write down what is there before the role changes it; what is known is not looked at again."""
        self.look_before(paths)
        self._save()

    def look_before(self, paths: Iterable[str]) -> None:
        """Note what is there before the role changes it, without writing it down."""
        declaration, before = self.declaration, self.record.before
        earlier = self.is_installed_without_record()
        for user in declaration.users:
            name = f"user {user}"
            if name not in before:
                before[name] = self._known(name) or ({"state": "absent"} if earlier else look_at_user(user))
        for path in [*declaration.own_paths(), *declaration.data_folders]:
            # Another role's record may have made the folder of the records.
            ours = earlier or path == str(RECORDS.parent)
            if path not in before:
                before[path] = self._known(path) or ({"state": "absent"} if ours else self._former(path))
        for path in declaration.shared:
            ours = earlier and f"{path}/" in OUR_FOLDERS
            if path not in before:
                before[path] = self._known(path) or ({"state": "absent"} if ours else look_at(Path(path)))
        for path in paths:
            # In a folder that was there before, a file may be another's.
            if not self._was_absent(path) and path not in before and declaration.records(path):
                before[path] = self._former(path)

    def _was_absent(self, path: str) -> bool:
        """Return whether the path, or a folder that it is in, was not there before."""
        folders = [path, *(str(folder) for folder in Path(path).parents)]
        return any(self.record.before.get(folder, {}).get("state") == "absent" for folder in folders)

    def _former(self, path: str) -> State:
        """Return what is at a path, a file with a copy of it, a folder of data with whether it is empty."""
        found = look_at(Path(path))
        if found["state"] == "file":
            return {**found, "copy": copy_former(Path(path))}
        if found["state"] == "directory" and path in self.declaration.data_folders:
            # A new file system has lost+found.
            return {**found, "empty": {entry.name for entry in os.scandir(path)} <= {"lost+found"}}
        return found

    def end(self) -> None:
        """Write the record if it changed; that of a role of which nothing is left is removed."""
        if self.record.is_empty:
            self._file.unlink(missing_ok=True)
        else:
            self._save()

    def _save(self) -> None:
        content = self.record.as_json()
        if content != self._saved:
            write_json(self._file, content)
            self._saved = content


def digest(content: bytes) -> str:
    """Return the SHA-256 of a text, as the record has it."""
    return hashlib.sha256(content).hexdigest()
