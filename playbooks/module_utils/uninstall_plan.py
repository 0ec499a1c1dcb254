# SPDX-License-Identifier: Apache-2.0
"""What an uninstallation does on a host: from the declarations, the host's record and what is there.

Uses only the standard library. Each step can be repeated, and the records go last, so that the next run ends
an uninstallation that was interrupted.
"""

from __future__ import annotations

import contextlib
import filecmp
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ansible.module_utils import host_record
from ansible.module_utils.host_record import (
    Declaration,
    Packages,
    Record,
    RoleRecord,
    State,
    is_inside,
    look_at,
)

TIMER_STAMPS = Path("/var/lib/systemd/timers")
LEFTOVER = re.compile(r"\.(.+)\.(?:new|[0-9a-f]{12})")
"""The name of a new file that was not yet moved into place when a run was interrupted."""


UNKNOWN: State = {"state": "directory"}
"""A folder of which no more is known, because its disk does not answer or no record names it."""


@dataclass(frozen=True)
class Step:
    """One change of the host; `kind` is the name of the function that makes it."""

    kind: str
    names: tuple[str, ...]
    state: State = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the step as a line for people."""
        names = ", ".join(self.names)
        return {
            "remove": f"remove {names}",
            "empty": f"remove what is in {names}",
            "remove_empty": f"remove {names} if it is empty",
            "restore": f"restore {names} as it was before",
            "stop": f"stop {names}",
            "delete_table": f"delete the firewall table {names}",
            "purge": f"purge the packages {names}",
            "mark_automatic": f"mark as automatically installed, as before, the packages {names}",
            "reload": "reload systemd",
            "remove_user": f"remove the user {names}",
            "restore_user": f"restore home and shell of the user {names}",
            "write_record": f"write the record of {names}",
        }[self.kind]


@dataclass(frozen=True)
class PackageChoice:
    """The packages to purge and to mark as automatically installed, and why others of ours stay."""

    purged: tuple[str, ...] = ()
    automatic: tuple[str, ...] = ()
    staying: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """What a plan needs to know of a host and cannot read from its files.

    `users` are the declared users that exist, `units` those that systemd has loaded, `data` the folders of
    data that exist. `silent` are folders whose disk does not answer.
    """

    users: Mapping[str, State] = field(default_factory=dict)
    units: Sequence[str] = ()
    tables: Sequence[str] = ()
    packages: PackageChoice = field(default_factory=PackageChoice)
    data: Mapping[str, State] = field(default_factory=dict)
    silent: Sequence[str] = ()


@dataclass
class Plan:
    """The steps in their order, and what stays, with the reason."""

    steps: list[Step] = field(default_factory=list)
    staying: dict[str, str] = field(default_factory=dict)


class Removal:
    """The uninstallation of some roles; `kinds` are the kinds of data that go with them."""

    def __init__(
        self,
        declarations: Iterable[Declaration],
        roles: Iterable[str],
        kinds: Iterable[str] = (),
    ) -> None:
        """Read the host's records; raises RecordError."""
        self.kinds = set(kinds)
        self._records = host_record.load_record(host_record.RECORDS)
        self._earlier: list[Record] = []
        wanted = set(roles)
        here = [
            self._with_former_folders(declaration)
            for declaration in declarations
            if self._is_here(declaration)
        ]
        self.going = [declaration for declaration in here if declaration.role in wanted]
        others = [declaration for declaration in here if declaration.role not in wanted]
        self._data_only = [declaration for declaration in others if self._is_uninstalled(declaration)]
        self.remaining = [declaration for declaration in others if declaration not in self._data_only]
        self._before: dict[str, State] = {}
        self._recorded: dict[str, State] = {}
        for declaration in self.going:
            self._before.update(self._records[declaration.role].before)
            self._recorded.update(self._records[declaration.role].paths)
        self._kept: list[str] = []
        self._plan = Plan()

    def _is_here(self, declaration: Declaration) -> bool:
        """Return whether the role is on the host; one of an earlier release gets a record for this run."""
        if declaration.role in self._records:
            return True
        found = RoleRecord(declaration)
        if not found.is_installed_without_record():
            return False
        found.look_before([])
        paths = [inner for path in declaration.own_paths() for inner in below(path, declaration.whole)]
        found.record.paths = {path: look_at(Path(path)) for path in paths}
        found.record.units = [unit for unit in declaration.units if is_ours(unit)]
        self._records[declaration.role] = found.record
        self._earlier.append(found.record)
        return True

    def _with_former_folders(self, declaration: Declaration) -> Declaration:
        """Return the declaration with the folders that other settings had named for its data."""
        known = [*declaration.own_paths(), *declaration.shared, *declaration.data_folders]
        former = [
            path
            for path, state in self._records[declaration.role].paths.items()
            if state["state"] == "directory" and not is_inside(path, known)
        ]
        # No role has two kinds.
        data = {kind: [*folders, *former] for kind, folders in declaration.data.items()}
        return replace(declaration, data=data)

    def _is_uninstalled(self, declaration: Declaration) -> bool:
        """Return whether only the role's data is left."""
        record = self._records[declaration.role]
        users = {f"user {user}" for user in declaration.users}
        folders = set(declaration.data_folders)
        return not record.units and set(record.paths) <= folders and record.before.keys() <= folders | users

    @property
    def packages(self) -> Packages:
        """What the record says of the packages that may go; raises RecordError."""
        known = host_record.load_packages(host_record.RECORDS)
        if not self.remaining:
            # A record of an earlier release does not say what was asked for.
            declared = {name for declaration in self.going for name in declaration.packages}
            requested = known.requested or sorted(declared & known.installed.keys())
            return Packages(known.installed, requested, known.automatic)
        needed = {name for declaration in self.remaining for name in declaration.packages}
        wanted = {name for declaration in self.going for name in declaration.packages} - needed
        return Packages(
            {name: version for name, version in known.installed.items() if name not in needed},
            sorted(wanted & known.installed.keys()),
            sorted(wanted & set(known.automatic)),
        )

    def data_folders(self) -> list[str]:
        """Return the folders of data of the roles that go, the outer ones before the inner ones."""
        return sorted({folder for declaration in self.going for folder in declaration.data_folders})

    def plan(self, host: Host) -> Plan:
        """Return what to do, in its order."""
        self._plan = Plan()
        for record in self._earlier:
            # The next run could not know any more that the role was there.
            if record.role in {declaration.role for declaration in self.going}:
                self._add("write_record", record.role, state=record.as_json())
        self._keep_data(host)
        for declaration in self.remaining:
            self._kept += declaration.own_paths()
        for declaration in [*self.remaining, *self._data_only]:
            self._kept += declaration.data_folders
        units = [unit for declaration in self.going for unit in self._own_units(declaration)]
        self._disable_and_stop(units, host)
        for declaration in self.going:
            self._remove_files(declaration, host)
        self._choose_packages(host.packages)
        self._remove_units(units, host)
        self._remove_users(host)
        self._remove_shared()
        self._write_records(host)
        return self._plan

    def _add(self, kind: str, *names: str, state: State | None = None) -> None:
        """Add a step, unless there is nothing to do in it."""
        if kind == "remove":
            gone = [name for step in self._plan.steps if step.kind == kind for name in step.names]
            names = tuple(name for name in names if not is_inside(name, gone))
        if names:
            self._plan.steps.append(Step(kind, names, state or {}))

    # Data

    def _keep_data(self, host: Host) -> None:
        """Note the folders of data that stay."""
        for declaration in self.going:
            for kind, folders in declaration.data.items():
                for folder in folders:
                    if folder in host.silent:
                        self._keep(folder, f"{kind}; its disk does not answer")
                    elif folder in host.data and kind not in self.kinds:
                        self._keep(folder, kind)
                    elif folder in host.data and not self._may_empty(folder):
                        self._keep(folder, f"{kind}, some of which were there before Bedplate")

    def _keep(self, folder: str, reason: str) -> None:
        outer = [other for other in self._kept if is_inside(folder, [other])]
        self._kept.append(folder)
        if not outer:
            self._plan.staying[folder] = reason

    def _may_empty(self, folder: str) -> bool:
        """Return whether everything in a folder of data came with Bedplate."""
        former = self._before.get(folder, UNKNOWN)
        return former["state"] == "absent" or former.get("empty") is True

    def _former(self, path: str) -> State:
        """Return what was at a path before; nothing, if a role recorded that it made it."""
        return self._before.get(path, {"state": "absent"})

    # Units

    def _own_units(self, declaration: Declaration) -> list[str]:
        """Return the units of a role that are not another's of the same name."""
        recorded = self._records[declaration.role].units
        return [unit for unit in declaration.units if unit in recorded or is_ours(unit)]

    def _disable_and_stop(self, units: Sequence[str], host: Host) -> None:
        """Remove what starts the units at boot before they are stopped, in case the power is cut."""
        for folder in sorted(host_record.UNIT_DIRECTORY.glob("*.wants")):
            links = sorted(link for link in folder.iterdir() if is_unit_of(link.name, units))
            self._add("remove", *map(str, links))
        self._add("stop", *(unit for unit in host.units if is_unit_of(unit, units)))

    def _remove_units(self, units: Sequence[str], host: Host) -> None:
        """Remove the units' files and the masks of Debian's packages, which are purged by then."""
        first = len(self._plan.steps)
        directory = host_record.UNIT_DIRECTORY
        for declaration in self.going:
            for unit in declaration.own_units:
                self._undo(str(directory / unit))
                drop_ins = directory / f"{unit}.d"
                if unit in units and drop_ins.is_dir():
                    self._plan.staying[str(drop_ins)] = "not Bedplate's"
        for unit in units:
            wants = directory / f"{unit}.wants"
            if wants.is_dir() and all(is_unit_of(link.name, units) for link in wants.iterdir()):
                self._add("remove", str(wants))
            if (TIMER_STAMPS / f"stamp-{unit}").exists():
                self._add("remove", str(TIMER_STAMPS / f"stamp-{unit}"))
        loaded = [unit for unit in host.units if is_unit_of(unit, units)]
        if len(self._plan.steps) > first or loaded:
            self._plan.steps.append(Step("reload", tuple(loaded)))

    # Files

    def _remove_files(self, declaration: Declaration, host: Host) -> None:
        """Remove what a role left outside of the units, and bring back what was there before."""
        if not self._is_uninstalled(declaration):
            for table in declaration.tables:
                if table in host.tables:
                    self._add("delete_table", table)
            for path in declaration.paths:
                if path != str(host_record.RECORDS.parent):
                    self._undo(path)
            self._add("remove", *(path for name in declaration.runtime for path in existing(name)))
        for folder in declaration.data_folders:
            if folder in host.data and folder in self._before and not is_inside(folder, self._kept):
                self._undo_data(folder, host.data[folder])
        # Of other settings or an earlier release.
        for path, state in self._records[declaration.role].paths.items():
            if state["state"] != "directory" and not is_inside(path, declaration.own_paths()):
                self._undo(path)

    def _undo(self, path: str) -> None:
        """Make one path what it was before; what others have in it stays."""
        if path not in self._before and path not in self._made:
            return  # declared since the last run of site.yml
        former, now = self._former(path), look_at(Path(path))
        if former["state"] == "absent":
            goes, stays = self._sort_out(path)
            self._add("remove", *goes)
            for other in stays:
                if not is_inside(other, self._kept):
                    self._plan.staying[other] = "not Bedplate's"
            if stays and now["state"] == "directory":
                self._restore(path, {**now, "owner": "root", "group": "root"})
            return
        if former["state"] == "directory":
            for inner in sorted(self._made):
                if inner != path and is_inside(inner, [path]):
                    self._undo(inner)
        self._restore(path, former)

    def _restore(self, path: str, former: State) -> None:
        """Bring back what was at a path, unless it is there."""
        if not is_same(Path(path), former) and former["state"] != "other":
            self._add("restore", path, state=former)

    def _undo_data(self, folder: str, now: State) -> None:
        """Remove a folder of data; one that was there, empty, gets its owner back."""
        if self._former(folder)["state"] == "absent":
            self._add("remove", folder)
            return
        if now["entries"]:
            self._add("empty", folder)
        self._restore(folder, self._former(folder))

    def _sort_out(self, path: str) -> tuple[list[str], list[str]]:
        """Return what at a path goes and what stays; a folder of which all goes is named alone."""
        now = look_at(Path(path))
        if now["state"] == "absent":
            return [], []
        if is_inside(path, self._kept):
            return [], [path]
        if now["state"] != "directory":
            return ([path], []) if self._is_ours(path) else ([], [path])
        if self._is_whole(path) and not any(is_inside(kept, [path]) for kept in self._kept):
            return [path], []
        goes: list[str] = []
        stays: list[str] = []
        for entry in sorted(Path(path).iterdir()):
            inner_goes, inner_stays = self._sort_out(str(entry))
            goes += inner_goes
            stays += inner_stays
        if not stays and (goes or self._is_ours(path)):
            return [path], []
        return goes, stays or [path]

    @property
    def _made(self) -> set[str]:
        """The paths that the roles made, without what is in whole folders."""
        whole = {folder for declaration in self.going for folder in declaration.whole}
        return self._recorded.keys() | whole

    def _is_whole(self, path: str) -> bool:
        """Return whether everything below a path is a role's."""
        return any(is_inside(path, declaration.whole) for declaration in self.going)

    def _is_ours(self, path: str) -> bool:
        """Return whether a role made what is at a path."""
        if self._is_whole(path):
            return True
        if path in self._recorded:
            # Somebody may have put something else there.
            return bool(self._recorded[path]["state"] == look_at(Path(path))["state"])
        leftover = LEFTOVER.fullmatch(Path(path).name)
        if leftover:
            return str(Path(path).with_name(leftover[1])) in self._recorded
        return any(path in declaration.own_paths() for declaration in self.going)

    # Packages, users, shared folders

    def _choose_packages(self, chosen: PackageChoice) -> None:
        self._add("purge", *chosen.purged)
        self._add("mark_automatic", *chosen.automatic)
        self._plan.staying.update({f"package {name}": why for name, why in chosen.staying.items()})

    def _remove_users(self, host: Host) -> None:
        """Remove the users that the host did not have; those whose data stays, stay."""
        needed = {user for other in self.remaining for user in other.users}
        needed |= {user for other in self._data_only for user in self._records[other.role].users}
        declared = dict.fromkeys(user for one in self.going for user in one.users if user in host.users)
        for user in declared:
            if user in needed or f"user {user}" not in self._before:
                continue
            former, owned = self._former(f"user {user}"), self._kept_of(user, host)
            if former["state"] != "absent":
                if former != host.users[user]:
                    self._add("restore_user", user, state=former)
            elif owned:
                self._plan.staying[f"user {user}"] = f"it owns {owned[0]}"
            else:
                self._add("remove_user", user, state=former)

    def _kept_of(self, user: str, host: Host) -> list[str]:
        """Return the folders of data that stay and that a user owns, or may own."""
        return [
            folder
            for declaration in self.going
            for folder in declaration.data_folders
            if folder in self._kept
            and (
                user == host.data[folder].get("owner")
                if folder in host.data
                else user in declaration.users and folder in host.silent
            )
        ]

    def _remove_shared(self) -> None:
        """Remove the folders that the host did not have, once nothing is in them."""
        needed = {path for other in self.remaining for path in other.shared}
        folders = {path for declaration in self.going for path in declaration.shared} - needed
        for path in sorted(folders, reverse=True):
            former, now = self._before.get(path, UNKNOWN), look_at(Path(path))
            if former["state"] == "absent" and now["state"] == "directory":
                self._add("remove_empty", path)
                others = self._others_in(path)
                self._plan.staying.update(dict.fromkeys(others, "not Bedplate's"))
            elif former["state"] == "directory" and former is not UNKNOWN:
                self._restore(path, former)

    def _others_in(self, path: str) -> list[str]:
        """Return what is in a shared folder and no role's."""
        known = [inner for other in [*self.going, *self.remaining] for inner in other.own_paths()]
        known += [inner for other in self.going for inner in other.shared if inner != path]
        known += [*self._made - {path}, *self._kept]
        return [str(entry) for entry in sorted(Path(path).iterdir()) if not is_inside(str(entry), known)]

    # Records

    def _write_records(self, host: Host) -> None:
        """Forget what is gone; what stays must be known to a later uninstallation."""
        short = {
            declaration.role: self._shortened(declaration, self._records[declaration.role], host)
            for declaration in self.going
        }
        if not (self.remaining or self._data_only) and all(record.is_empty for record in short.values()):
            self._add("remove", *existing(str(host_record.RECORDS.parent)))
            return
        for role, record in short.items():
            if record.is_empty:
                self._add("write_record", role)
            elif not record.is_empty and record.as_json() != self._records[role].as_json():
                self._add("write_record", role, state=record.as_json())
        if self.remaining:
            self._write_packages(host.packages)
        else:
            file = host_record.RECORDS / f"{host_record.PACKAGES}.json"
            self._add("remove", *existing(str(host_record.FORMER_FILES)), *existing(str(file)))

    def _shortened(self, declaration: Declaration, record: Record, host: Host) -> Record:
        """Return the record of the data that stays."""
        kept = [folder for folder in declaration.data_folders if folder in self._kept]
        users = [user for user in declaration.users if f"user {user}" in self._plan.staying]
        names = [*kept, *(f"user {user}" for user in users)]
        return Record(
            declaration.role,
            paths={folder: record.paths.get(folder, host.data.get(folder, UNKNOWN)) for folder in kept},
            users=users,
            before={name: record.before[name] for name in names if name in record.before},
        )

    def _write_packages(self, chosen: PackageChoice) -> None:
        known = host_record.load_packages(host_record.RECORDS)
        gone = {*chosen.purged, *chosen.staying}
        found = Packages(
            {name: version for name, version in known.installed.items() if name not in gone},
            [name for name in known.requested if name not in gone],
            [name for name in known.automatic if name not in chosen.automatic],
        )
        if found != known:
            self._add("write_record", host_record.PACKAGES, state=found.as_json())


def below(path: str, whole: Iterable[str]) -> list[str]:
    """Return a path and all that is in it, without what is in whole folders."""
    if look_at(Path(path))["state"] != "directory" or is_inside(path, whole):
        return existing(path)
    return [path, *(inner for entry in Path(path).iterdir() for inner in below(str(entry), whole))]


def is_ours(unit: str) -> bool:
    """Return whether a unit's file is Bedplate's."""
    return bool(host_record.has_marker(host_record.UNIT_DIRECTORY / unit))


def existing(path: str) -> list[str]:
    """Return the path if something is there."""
    return [path] if look_at(Path(path))["state"] != "absent" else []


def is_unit_of(name: str, units: Iterable[str]) -> bool:
    """Return whether a unit is one of these, an instance of one, or watches one."""
    base, _, rest = name.partition("@")
    instance, _, suffix = rest.rpartition(".")
    watched = base == "bedplate-heal" and f"{instance}.service" in units
    return name in units or (rest != "" and (f"{base}@.{suffix}" in units or watched))


def is_same(path: Path, former: State) -> bool:
    """Return whether the same is at a path as before."""
    now = look_at(path)
    if any(now.get(name) != former.get(name) for name in ("state", "owner", "group", "mode", "target")):
        return False
    if former["state"] == "file" and "copy" in former:
        # A copy that is lost cannot be restored.
        with contextlib.suppress(OSError):
            return filecmp.cmp(path, former["copy"], shallow=False)
    return True
