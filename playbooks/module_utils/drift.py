# SPDX-License-Identifier: Apache-2.0
"""Compares what a host has (drift_host.py) with what is expected of it; changes and reads nothing.

An expectation is what the inventory says of a host: for each role its declaration, services, ports, models
and packages. What its files, units and users have to be comes from the host's records, or, where the control
machine has just rendered the inventory, from the arguments of the roles' tasks.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .host_record import UNIT_DIRECTORY, Record, State, declaration_from, is_inside

SCHEMA = 1
KINDS = (
    "host",
    "file",
    "unit",
    "drop-in",
    "service",
    "process",
    "user",
    "package",
    "release",
    "program",
    "model",
    "listener",
    "firewall",
    "mount",
    "disk",
)
RUNNING = ("active", "reloading", "activating")
ENABLED = ("enabled", "enabled-runtime", "static", "alias", "indirect", "generated")
NO_LOGIN = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false")
# These sockets get the answers of DHCP servers.
DHCP_CLIENT_PORTS = (68, 546)
# Above it a socket of UDP without a peer is a client's, as those that ask name servers.
EPHEMERAL_PORT = 32768
READ_AT_EACH_USE = (".nft", "/acme-hook")
"""Files that no running service has read at its start."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not as expected; `known` means that the inventory lists it."""

    kind: str
    what: str
    expected: str
    seen: str
    remedy: str
    known: bool = False

    @property
    def sentence(self) -> str:
        """What a person reads."""
        return f"{self.kind} {self.what}: expected {self.expected}, seen {self.seen}. Next: {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is expected of a path, and which role's."""

    role: str
    state: State


@dataclass
class Expectation:
    """What is expected of a host; `noted` is what the host was like when the roles last ran."""

    host: str
    roles: dict[str, dict[str, Any]]
    known: list[str] = field(default_factory=list)
    noted: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the host's file."""
        return {"schema": SCHEMA, **asdict(self)}

    def all_of(self, name: str) -> dict[str, Any]:
        """Return one mapping of all roles."""
        return {key: value for role in self.roles.values() for key, value in role.get(name, {}).items()}

    def list_of(self, name: str) -> list[Any]:
        """Return one list of all roles, each entry once."""
        entries = [entry for role in self.roles.values() for entry in role.get(name, [])]
        return [entry for place, entry in enumerate(entries) if entry not in entries[:place]]

    def declared(self, name: str) -> list[str]:
        """Return one list of all declarations."""
        return [entry for role in self.roles.values() for entry in role["declaration"].get(name, [])]

    @property
    def data_folders(self) -> list[str]:
        """The folders with models, samples and usage, and what they are on."""
        declarations = [
            declaration_from({"role": name, "file": "", **role["declaration"]})
            for name, role in self.roles.items()
        ]
        return list(dict.fromkeys(folder for each in declarations for folder in each.data_folders))


def merged(old: Expectation | None, new: Expectation, roles: Iterable[str]) -> Expectation:
    """Return the expectation after a run of some roles; what the host was like before it stays noted."""
    if old is None:
        return new
    ran = set(roles)
    kept = {name: role for name, role in old.roles.items() if name in new.roles and name not in ran}
    fresh = {name: role for name, role in new.roles.items() if name in ran}
    noted = {**new.noted, "listeners": old.noted.get("listeners", new.noted.get("listeners", []))}
    return Expectation(new.host, dict(sorted({**kept, **fresh}.items())), new.known, noted)


def rendered_paths(arguments: Mapping[str, Any]) -> dict[str, State]:
    """Return what one task of service_files makes of its paths, given the arguments that it got.

    `hashes` has the SHA-256 of each text that the control machine rendered.
    """
    declaration = declaration_from(arguments["declaration"])
    hashes = arguments["hashes"]
    default = {
        "owner": arguments.get("owner", "root"),
        "group": arguments.get("group", "root"),
        "mode": arguments.get("mode", "0644"),
    }
    paths: dict[str, State] = {}
    for entry in arguments.get("files", []):
        path, state = str(entry["path"]), entry.get("state", "file")
        if state == "absent":
            paths[path] = {"state": "absent"}
        elif state == "link":
            paths[path] = {"state": "link", "target": entry["target"]}
        else:
            fallback = {**default, "mode": "0755"} if state == "directory" else default
            owned = {name: str(entry.get(name) or fallback[name]) for name in default}
            paths[path] = {"state": state, **owned, "mode": f"{int(owned['mode'], 8):04o}"}
            # What is written only once has another text later.
            if state == "file" and path in hashes and entry.get("force", True):
                paths[path]["sha256"] = hashes[path]
    for unit in arguments.get("units", []):
        path = str(UNIT_DIRECTORY / unit)
        root = {"owner": "root", "group": "root", "mode": "0644"}
        paths[path] = {"state": "file", **root, "sha256": hashes[path]}
    return {path: state for path, state in paths.items() if declaration.records(path)}


def wanted_paths(
    records: Mapping[str, Record], rendered: Iterable[Mapping[str, Any]] | None
) -> dict[str, Wanted]:
    """Return what is expected of each path: what is recorded, and over it what the inventory renders now."""
    paths = {
        path: Wanted(role=role, state=state)
        for role, record in records.items()
        for path, state in record.paths.items()
    }
    if rendered is None:
        return paths
    told: dict[str, set[str]] = {}
    for arguments in rendered:
        role = arguments["declaration"]["role"]
        if role not in records:
            continue
        for path, state in rendered_paths(arguments).items():
            told.setdefault(role, set()).add(path)
            before = paths[path].state if path in paths else {}
            # The text of a file that the host itself copies is known only there.
            copied = {"sha256": before["sha256"]} if "sha256" in before and "sha256" not in state else {}
            more = copied if state["state"] == "file" == before.get("state") else {}
            paths[path] = Wanted(role=role, state={**more, **state})
    for path, wanted in paths.items():
        unit = path.rpartition("/")[2]
        record = records[wanted.role]
        # A unit that the inventory no longer wants, such as that of a canary that was switched off.
        if unit in record.units and wanted.role in told and path not in told[wanted.role]:
            paths[path] = Wanted(role=wanted.role, state={"state": "absent"})
    return paths


def deploy(role: str) -> str:
    """Return the command that makes a role's part as declared."""
    return f"ansible-playbook site.yml --tags {role}"


def find_differences(
    expected: Expectation,
    records: Mapping[str, Record],
    seen: Mapping[str, Any],
    rendered: Iterable[Mapping[str, Any]] | None = None,
) -> list[Difference]:
    """Return all differences, those that the inventory lists marked as known."""
    paths = wanted_paths(records, rendered)
    missing = list(_find_missing_roles(expected, records))
    # One difference for each of them, and not one for each of its files.
    installed = {name: role for name, role in expected.roles.items() if name in records}
    expected = replace(expected, roles=installed)
    found = [
        *missing,
        *(
            Difference(
                kind="disk",
                what=path,
                expected="an answer",
                seen="none in time",
                remedy=f"findmnt -T {path}; dmesg | tail",
            )
            for path in seen["silent"]
        ),
        *_compare_paths(paths, seen["paths"]),
        *_find_strays(paths, seen["strays"]),
        *_compare_units(expected, seen["units"]),
        *_compare_processes(paths, seen),
        *_compare_users(expected, records, seen["users"]),
        *_compare_packages(expected, seen),
        *_compare_releases(expected, seen["releases"]),
        *_compare_programs(paths, seen["programs"]),
        *_compare_models(expected.all_of("models"), paths, seen["models"]),
        *_compare_listeners(expected, seen["listeners"]),
        *_compare_tables(expected, seen["tables"]),
        *_compare_mounts(expected, seen["mounts"]),
    ]
    unique = {(each.kind, each.what, each.seen): each for each in found}
    return [
        Difference(**{**asdict(each), "known": is_known(each.what, expected.known)})
        for each in unique.values()
    ]


def is_known(what: str, known: Iterable[str]) -> bool:
    """Return whether the inventory lists this; an entry may have * for any characters."""
    return any(fnmatch.fnmatchcase(what, entry) for entry in known)


def _find_missing_roles(expected: Expectation, records: Mapping[str, Record]) -> Iterator[Difference]:
    # The role of GPU drivers leaves nothing where there is no GPU.
    missing = [role for role in expected.roles if role not in records and role != "gpu_driver"]
    for role in missing:
        yield Difference(
            kind="host",
            what=f"role {role}",
            expected="installed",
            seen="not installed",
            remedy="ansible-playbook site.yml" if len(missing) == len(expected.roles) else deploy(role),
        )


def _compare_paths(paths: Mapping[str, Wanted], seen: Mapping[str, State]) -> Iterator[Difference]:
    for path, wanted in sorted(paths.items()):
        if path not in seen:
            continue  # its disk does not answer
        want, have = wanted.state, seen[path]
        kind = "unit" if path.startswith(f"{UNIT_DIRECTORY}/") else "file"
        for one, other in _differing(want, have):
            yield Difference(
                kind=kind, what=path, expected=one, seen=other, remedy=_path_remedy(path, wanted, have)
            )


def _differing(want: State, have: State) -> Iterator[tuple[str, str]]:
    """Iterate over what differs at a path: the words for what is expected and for what is there."""
    kinds = {
        "absent": "nothing",
        "directory": "a directory",
        "file": "a file",
        "link": "a link",
        "other": "something else",
    }
    # A folder may be on another disk.
    if want["state"] == "directory" == have.get("to", {}).get("state"):
        have = have["to"]
    if want["state"] != have["state"]:
        masked = have["state"] == "link" and have.get("target") == "/dev/null"
        yield kinds[want["state"]], "a link to /dev/null" if masked else kinds[have["state"]]
    elif want["state"] == "link":
        if want["target"] != have["target"]:
            yield f"a link to {want['target']}", f"a link to {have['target']}"
    else:
        for name in ("owner", "group", "mode"):
            if name in want and want[name] != have[name]:
                yield f"{name} {want[name]}", f"{name} {have[name]}"
        if "sha256" in want and want["sha256"] != have.get("sha256"):
            # A secret's text must not be shown, nor anything to try texts with.
            yield "the declared content", "other content"


def _path_remedy(path: str, wanted: Wanted, have: State) -> str:
    if have["state"] == "directory" and wanted.state["state"] in ("file", "link"):
        return f"move {path} away, then {deploy(wanted.role)}"
    return deploy(wanted.role)


def _find_strays(paths: Mapping[str, Wanted], strays: Iterable[str]) -> Iterator[Difference]:
    for path in strays:
        if path in paths:
            continue
        unit = path.startswith(f"{UNIT_DIRECTORY}/")
        name = path.rpartition("/")[2]
        yield Difference(
            kind="unit" if unit else "file",
            what=path,
            expected="nothing",
            seen="something that no role declares",
            remedy=f"systemctl disable --now {name}; rm -f {path}; systemctl daemon-reload"
            if unit
            else f"rm -r {path}",
        )


def _compare_units(expected: Expectation, seen: Mapping[str, Mapping[str, Any]]) -> Iterator[Difference]:
    services = expected.all_of("services")
    drop_ins: dict[str, list[str]] = {}
    for name, unit in sorted(seen.items()):
        for path in unit["drop_ins"]:
            drop_ins.setdefault(path, []).append(name)
    for path, names in sorted(drop_ins.items()):
        yield Difference(
            kind="drop-in",
            what=path,
            expected="no drop-in that the inventory does not list",
            seen=f"settings for {', '.join(names)}",
            remedy=f"rm {path} && systemctl daemon-reload && systemctl restart {' '.join(names)}, "
            "or list it in bedplate_known_changes",
        )
    for name, unit in sorted(seen.items()):
        if unit["stale"]:
            yield Difference(
                kind="unit",
                what=name,
                expected="loaded as its file is",
                seen="a file that is newer than what systemd has loaded",
                remedy=f"systemctl daemon-reload && systemctl restart {name}",
            )
    for name, state in sorted(services.items()):
        unit = seen.get(name, {"active": "inactive", "sub": "dead", "enabled": "", "load": "not-found"})
        if unit["load"] == "not-found":
            yield Difference(
                kind="service",
                what=name,
                expected="installed",
                seen="no unit",
                remedy=_role_of(expected, name),
            )
            continue
        if unit["load"] == "masked":
            yield Difference(
                kind="service",
                what=name,
                expected="enabled",
                seen="masked",
                remedy=f"systemctl unmask {name} && {_role_of(expected, name)}",
            )
            continue
        if unit["enabled"] not in ENABLED:
            yield Difference(
                kind="service",
                what=name,
                expected="enabled",
                seen=unit["enabled"] or "not enabled",
                remedy=f"systemctl enable {name}",
            )
        if state == "active" and (unit["active"] not in RUNNING or unit["sub"] == "auto-restart"):
            yield Difference(
                kind="service",
                what=name,
                expected="active",
                seen=f"{unit['active']} ({unit['sub']})",
                remedy=f"systemctl start {name}"
                if unit["active"] == "inactive"
                else f"journalctl -u {name} -n 50",
            )


def _role_of(expected: Expectation, unit: str) -> str:
    """Return the command that installs a unit again."""
    for name, role in expected.roles.items():
        if unit in role.get("services", {}):
            return deploy(name)
    return "ansible-playbook site.yml"


def _compare_processes(paths: Mapping[str, Wanted], seen: Mapping[str, Any]) -> Iterator[Difference]:
    for name, process in sorted(seen["processes"].items()):
        service = name.removesuffix(".service")
        restart = f"systemctl restart {service}"
        if process["replaced"]:
            yield Difference(
                kind="process",
                what=name,
                expected="the program that is installed",
                seen=f"{process['replaced']}, which was replaced after its start",
                remedy=restart,
            )
        started, changed = process["started"], max(process["started"], process["changed"])
        for path, times in sorted(seen["times"].items()):
            if path not in paths or times > seen["now"]:
                continue  # the clock was wrong when it was written
            unit_file = path == str(UNIT_DIRECTORY / name)
            release = path == f"/opt/bedplate/{service}/current"
            config = path.startswith(f"/etc/bedplate/{service}/") and not path.endswith(READ_AT_EACH_USE)
            if (times > started and (unit_file or release)) or (
                times > changed and config and paths[path].state["state"] == "file"
            ):
                yield Difference(
                    kind="process",
                    what=name,
                    expected=f"started after {path} was written",
                    seen="an older process",
                    remedy=restart,
                )


def _compare_users(
    expected: Expectation, records: Mapping[str, Record], seen: Mapping[str, State]
) -> Iterator[Difference]:
    created = {user: role for role, record in records.items() for user in record.users}
    # Debian's packages create the others that are declared.
    for user in dict.fromkeys([*created, *expected.declared("users")]):
        have = seen.get(user, {"state": "absent"})
        remedy = deploy(created[user]) if user in created else "ansible-playbook site.yml"
        if have["state"] == "absent":
            if user in created:
                yield Difference(kind="user", what=user, expected="a user", seen="none", remedy=remedy)
            continue
        wrongs = []
        if have["shell"] not in NO_LOGIN:
            wrongs.append(
                ("no login", f"the shell {have['shell']}", f"usermod --shell /usr/sbin/nologin {user}")
            )
        if user in created and have["home"] != f"/var/lib/{user}":
            wrongs.append((f"the home /var/lib/{user}", f"the home {have['home']}", remedy))
        if user in created and have["group"] != user:
            wrongs.append((f"the group {user}", f"the group {have['group']}", f"usermod --gid {user} {user}"))
        if have["groups"]:
            groups = ",".join(have["groups"])
            wrongs.append(("no other group", f"the groups {groups}", f"gpasswd --delete {user} {groups}"))
        if have["members"]:
            members = ",".join(have["members"])
            wrongs.append((f"no member in its group {user}", members, f"gpasswd --delete {members} {user}"))
        if have["password"]:
            wrongs.append(("no password", "a password", f"passwd --lock {user}"))
        if have["id"] == 0:
            wrongs.append(("a number of its own", "root's number 0", f"userdel {user}, then {remedy}"))
        for want, found, command in wrongs:
            yield Difference(kind="user", what=user, expected=want, seen=found, remedy=command)


def _compare_packages(expected: Expectation, seen: Mapping[str, Any]) -> Iterator[Difference]:
    for package in dict.fromkeys([*expected.list_of("packages"), *seen["held"]]):
        status = seen["packages"].get(package, "")
        if not status.endswith("installed"):
            yield Difference(
                kind="package",
                what=package,
                expected="installed",
                seen=status or "not installed",
                remedy="ansible-playbook site.yml",
            )
        elif package in seen["held"] and not status.startswith("hold"):
            yield Difference(
                kind="package",
                what=package,
                expected="held",
                seen="not held",
                remedy=f"apt-mark hold {package}",
            )


def _compare_releases(expected: Expectation, seen: Mapping[str, Mapping[str, Any]]) -> Iterator[Difference]:
    for folder, release in sorted(seen.items()):
        roles = [
            name
            for name, role in expected.roles.items()
            if is_inside(folder, role["declaration"].get("paths", []))
        ]
        again = deploy(roles[0]) if roles else "ansible-playbook site.yml"
        if not release["complete"]:
            yield Difference(
                kind="release",
                what=folder,
                expected="a complete release",
                seen="an incomplete one",
                remedy=again,
            )
            continue
        wrongs = [(path, "as installed", "changed after the installation") for path in release["newer"]]
        lock, installed = release["lock"], release["packages"]
        # The lock also has packages of other platforms.
        wrongs += [
            (f"{folder}: {package}", " or ".join(lock.get(package, ["no such package"])), version)
            for package, version in sorted(installed.items())
            if version not in lock.get(package, ())
        ]
        for what, want, have in wrongs:
            yield Difference(
                kind="release",
                what=what,
                expected=want,
                seen=have,
                remedy=f"rm {folder}/.complete && {again}",
            )


def _compare_programs(paths: Mapping[str, Wanted], seen: Mapping[str, str]) -> Iterator[Difference]:
    for path, found in sorted(seen.items()):
        if path in paths and found and found != path:
            yield Difference(
                kind="program",
                what=path.rpartition("/")[2],
                expected=path,
                seen=f"{found}, which comes first on PATH",
                remedy=f"rm {found}",
            )


def _compare_models(
    folders: Iterable[str], paths: Mapping[str, Wanted], seen: Mapping[str, Any]
) -> Iterator[Difference]:
    for name, reason in sorted(seen["reasons"].items()):
        if reason:
            yield Difference(
                kind="model",
                what=name,
                expected="as declared",
                seen=reason,
                remedy=deploy("ollama"),
            )
    for name in seen["undeclared"]:
        yield Difference(
            kind="model",
            what=name,
            expected="no such model",
            seen="a model that the inventory does not declare",
            remedy=f"declare it in ollama_models, or run ollama rm {name}",
        )
    for folder in paths.keys() & set(folders):
        owner = paths[folder].state["owner"]
        for path, found in sorted(seen["owners"].items()):
            if is_inside(path, [folder]) and found != owner:
                yield Difference(
                    kind="file",
                    what=path,
                    expected=f"owner {owner}",
                    seen=f"owner {found}",
                    remedy=f"chown --recursive {owner}: {path}",
                )


def _compare_listeners(expected: Expectation, seen: Iterable[Mapping[str, Any]]) -> Iterator[Difference]:
    openings = expected.list_of("openings")
    meant = {("tcp", opening["address"], opening["port"]) for opening in openings}
    services = {opening["unit"] for opening in openings}
    before = {tuple(entry) for entry in expected.noted.get("listeners", [])}
    for listener in seen:
        unit = str(listener["unit"]).removesuffix(".service").removesuffix(".socket")
        place = (listener["protocol"], listener["address"], listener["port"])
        # By unit, since the port of a user's ssh -R also belongs to a process sshd.
        harmless = unit in ("ssh", "sshd") or (
            listener["protocol"] == "udp"
            and (listener["port"] in DHCP_CLIENT_PORTS or listener["port"] >= EPHEMERAL_PORT)
        )
        if place in meant or (unit not in services and (harmless or (place[0], place[2]) in before)):
            continue
        ours = unit in services
        yield Difference(
            kind="listener",
            what=f"{place[0]} {place[1]}:{place[2]}",
            expected="nothing that listens there",
            seen=", ".join(filter(None, [listener["process"] or "the kernel", listener["unit"]])),
            remedy=f"systemctl cat {unit}; ansible-playbook site.yml"
            if ours
            else f"stop it (ss -ltunp sport = :{place[2]}), or list it in bedplate_known_changes",
        )


def _compare_tables(expected: Expectation, seen: Mapping[str, str]) -> Iterator[Difference]:
    noted = expected.noted.get("tables", {})
    for table in expected.list_of("tables"):
        have = seen.get(table, "")
        if have and have == noted.get(table, have):
            continue
        yield Difference(
            kind="firewall",
            what=f"table {table}",
            expected="the rules of /etc/bedplate/ollama/clients.nft",
            seen="other rules" if have else "no such table",
            remedy="nft -f /etc/bedplate/ollama/clients.nft",
        )


def _compare_mounts(expected: Expectation, seen: Iterable[Mapping[str, Any]]) -> Iterator[Difference]:
    noted = expected.noted.get("mounts", [])
    for mount in seen:
        if mount["read_only"]:
            yield Difference(
                kind="mount",
                what=mount["point"],
                expected="writable",
                seen="mounted read-only",
                remedy=f"findmnt {mount['point']}; dmesg | tail; mount -o remount,rw {mount['point']}",
            )
        elif mount["inside"] and mount["point"] not in noted:
            yield Difference(
                kind="mount",
                what=mount["point"],
                expected="nothing mounted there",
                seen=f"a mount of {mount['source']}",
                remedy=f"umount {mount['point']}",
            )
