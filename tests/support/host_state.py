"""What a host has, so that two looks at it can be compared: before an installation and after."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.declarations import DECLARING, declared, host_record

# Prints each part below a line with its name.
LOOK = r"""
echo '# files'
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp \
  -o -path /var/tmp \) -prune \
  -o -printf '%p\t%y %m %u:%g %l\n'
echo '# owned'
sort -u /var/lib/dpkg/info/*.list
echo '# packages'
dpkg-query --show --showformat='${db:Status-Abbrev}${Package}\t${Version}\n' | sed -n 's/^ii *//p'
echo '# automatic'
apt-mark showauto
echo '# contents'
find /etc -xdev -type f -exec sha256sum {} + | sed 's/^\([0-9a-f]*\) *\(.*\)/\2\t\1/'
echo '# users'
cut -d: -f1 /etc/passwd
echo '# groups'
cut -d: -f1 /etc/group
echo '# units'
systemctl list-unit-files --no-legend --no-pager | awk '{print $1 "\t" $2}'
echo '# tables'
nft list tables 2>/dev/null | sed 's/^table //'
echo '# holds'
apt-mark showhold
echo '# diversions'
dpkg-divert --list
"""
# What an installation leaves without being Bedplate's own, and why.
OTHERS = {
    "/*/.ansible*": "the folder of Ansible in the home of its user",
    "/var/cache/*": "caches of Debian's packages and of apt",
    "/*/.cache*": "the cache of uv and pip in that home",
    "/var/lib/apt/*": "apt's lists",
    "/var/lib/dpkg/*": "dpkg's database",
    "/var/log/*": "logs and the journal",
    "/var/lib/systemd/*": "systemd's own state: timers, linger, random seed",
    "/var/lib/prometheus*": "of Debian's packages: the home of their user",
    "/etc/machine-id": "a lab host that starts from a layer has its own",
    "/etc/ssh/ssh_host_*": "so are its keys",
    "/etc/.updated": "systemd's mark of the boot that last updated /etc",
    "/etc/*-": "the copies of passwd and group that useradd keeps",
    "/etc/lighttpd*": "a link of Debian's javascript-common, which prometheus needs",
    "/usr/lib/python3*/__pycache__*": "compiled files of Debian's Python",
    "/etc/alternatives/*": "alternatives of Debian's packages",
    "/etc/rc?.d/*": "links of Debian's packages for another init",
    "/etc/systemd/system/*.wants/*": "links to units, which are compared as units",
    "/etc/systemd/system/*.wants": "their folders",
}


class HostState(NamedTuple):
    """One look at a host; `owned` are the files of Debian's packages, `contents` the checksums in /etc."""

    files: dict[str, str]
    owned: list[str]
    packages: dict[str, str]
    automatic: list[str]
    contents: dict[str, str]
    users: list[str]
    groups: list[str]
    units: dict[str, str]
    tables: list[str]
    holds: list[str]
    diversions: list[str]

    def save(self, path: Path) -> None:
        """Write it into a file."""
        path.write_text(json.dumps(self._asdict()))


def load_state(path: Path) -> HostState:
    """Read a look that was saved."""
    return HostState(**json.loads(path.read_text()))


def look(run: Callable[[str], str]) -> HostState:
    """Look at a host; `run` runs a script there and returns its output."""
    parts: dict[str, list[str]] = {}
    for line in run(LOOK).splitlines():
        if line.startswith("# ") and line[2:] in HostState._fields:
            rows = parts[line[2:]] = []
        else:
            rows.append(line)
    pairs: dict[str, Any] = {
        name: dict(row.partition("\t")[::2] for row in parts[name])
        for name in ("files", "packages", "contents", "units")
    }
    return HostState(**{**parts, **pairs})


def is_anothers(path: str) -> bool:
    """Return whether an installation leaves a path that is not Bedplate's own."""
    return any(fnmatch.fnmatch(path, pattern) for pattern in OTHERS)


def differences(before: HostState, after: HostState) -> list[str]:
    """Return each difference between two looks as a line, without what is not Bedplate's own."""
    lines = []
    for name in ("files", "contents", "packages", "units"):
        old, new = getattr(before, name), getattr(after, name)
        lines += [
            f"{name}: {key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
            and not is_anothers(key)
            and not key.endswith(".scope")
            # What apt upgraded stays, such as a library that a new package needs.
            and not (name == "packages" and key in old and key in new)
        ]
    for name in ("automatic", "users", "groups", "tables", "holds", "diversions"):
        old, new = set(getattr(before, name)), set(getattr(after, name))
        lines += [f"{name}: {key}: gone" for key in sorted(old - new)]
        lines += [f"{name}: {key}: new" for key in sorted(new - old)]
    return lines


def undeclared(before: HostState, after: HostState, roles: Iterable[str] = DECLARING) -> list[str]:
    """Return what is new on a host and that no role declares, each as a line."""
    declarations = [declared(role) for role in roles]
    # Debian's lists name /lib, which is a link to /usr/lib.
    owned = {*after.owned, *(f"/usr{path}" for path in after.owned)}
    users = {user for declaration in declarations for user in declaration.users}
    units = {unit for declaration in declarations for unit in declaration.own_units}
    tables = {table for declaration in declarations for table in declaration.tables}
    # Nearly all of the new files are below these.
    folders = tuple(f"{path}/" for declaration in declarations for path in declaration.own_paths())
    files = [
        path
        for path in sorted(after.files.keys() - before.files.keys() - owned)
        if not path.startswith(folders)
        and not any(declaration.covers(path) for declaration in declarations)
        and not is_anothers(path)
    ]
    new_units = after.units.keys() - before.units.keys()
    others = {
        unit
        for unit in new_units
        # A scope has no file; each login is one.
        if not unit.endswith(".scope")
        and not is_unit_of(unit, units)
        and f"/usr/lib/systemd/system/{unit}" not in owned
    }
    return [
        *(f"file {path}" for path in files),
        *(f"user {name}" for name in sorted(set(after.users) - set(before.users) - users)),
        *(f"group {name}" for name in sorted(set(after.groups) - set(before.groups) - users)),
        *(f"unit {name}" for name in sorted(others)),
        *(f"table {name}" for name in sorted(set(after.tables) - set(before.tables) - tables)),
        *(f"hold {name}" for name in sorted(set(after.holds) - set(before.holds))),
        *(f"diversion {name}" for name in sorted(set(after.diversions) - set(before.diversions))),
    ]


def is_unit_of(unit: str, units: Collection[str]) -> bool:
    """Return whether a unit is one of these, or an instance of one."""
    name, _, rest = unit.partition("@")
    instance_of = f"{name}@.{rest.rpartition('.')[2]}"
    return unit in units or ("@" in unit and instance_of in units)


def missing(after: HostState, roles: Iterable[str], absent: Mapping[str, str]) -> list[str]:
    """Return what these roles declare and the host has not, each as a line; `absent` has what may be."""
    lines = []
    for role in roles:
        declaration = declared(role)
        paths = [*declaration.paths, *declaration.shared, *declaration.data_folders]
        lines += [f"{role}: path {path}" for path in paths if path not in after.files]
        lines += [f"{role}: user {name}" for name in declaration.users if name not in after.users]
        lines += [f"{role}: unit {name}" for name in declaration.units if name not in after.units]
        lines += [f"{role}: package {name}" for name in declaration.packages if name not in after.packages]
        lines += [f"{role}: table {name}" for name in declaration.tables if name not in after.tables]
        lines += [
            f"{role}: mask {name}"
            for name in declaration.masks
            if name not in declaration.units and after.units.get(name) != "masked"
        ]
    return [line for line in lines if line not in absent]


def unrecorded(after: HostState, records: Mapping[str, host_record.Record]) -> list[str]:
    """Return the files of roles that are on the host and that no record names, each as a line."""
    named = {name for record in records.values() for name in [*record.before, *record.paths]}
    declarations = [declared(role) for role in DECLARING]
    paths = [path for declaration in declarations for path in declaration.own_paths()]
    return [path for path in sorted(set(paths)) if path in after.files and path not in named]
