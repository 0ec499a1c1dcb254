# SPDX-License-Identifier: Apache-2.0
"""Reads from a host what drift.py compares; writes nothing and uses only the standard library."""

from __future__ import annotations

import contextlib
import functools
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .disks import in_time
from .drift import SCHEMA, Difference, Expectation
from .host_record import (
    UNIT_DIRECTORY,
    Record,
    RecordError,
    State,
    group_name,
    has_marker,
    is_inside,
    look_at,
    write_json,
)
from .listeners import SS, listeners
from .models import ModelError, Name, Wanted, missing_reason

EXPECTED = Path("/var/lib/bedplate/expected.json")
STATUS = Path("/var/lib/node-exporter/drift/drift.prom")
"""What the node exporter reads of the last comparison."""
CONFIGURATION = Path("/etc/bedplate")
PROGRAMS = Path("/opt/bedplate")
GPU_RECORDS = "/etc/bedplate/gpu_driver"
"""The role gpu_driver keeps its own records there."""
LIBEXEC = Path("/usr/local/libexec")
PROC = Path("/proc")
# The mounts of the host, where a service's sandbox has its own.
MOUNTS = Path("/proc/1/mountinfo")
SHADOW = Path("/etc/shadow")
USERS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMAND_SECONDS = 10
# The programs have some ten thousand files.
ROOT_SECONDS = 25.0
DISK_SECONDS = 8.0
MAX_NAMED = 10
"""How many changed files of one release, or strays of one folder, are named."""
UNIT_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,UnitFileState,DropInPaths,NeedDaemonReload,MainPID,"
    "ExecMainStartTimestamp,StateChangeTimestamp"
)
LOCKED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.MULTILINE)
OWN_WHEEL = re.compile(r"^\./([A-Za-z0-9._]+)-([^-]+)-[^/ ]*\.whl", re.MULTILINE)
DIST_INFO = re.compile(r"(.+)-([^-]+)\.dist-info")


class Mount(NamedTuple):
    """A mounted file system."""

    point: str
    source: str
    read_only: bool


def load_expectation(path: Path) -> Expectation:
    """Return what a host's file says; raises RecordError."""
    try:
        content = json.loads(path.read_bytes())
        schema = content.pop("schema")
        if schema == SCHEMA:
            return Expectation(**content)
    except FileNotFoundError:
        raise RecordError(f"{path} is missing: run ansible-playbook site.yml, which writes it.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        name = type(error).__name__
        message = f"{path} cannot be read ({name}): run ansible-playbook site.yml, which writes it again."
        raise RecordError(message) from None
    message = f"{path} has schema {schema}, but this release knows {SCHEMA}: run ansible-playbook site.yml."
    raise RecordError(message)


def save_expectation(path: Path, expected: Expectation) -> None:
    """Write what is expected, if it changed."""
    content = expected.as_json()
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_bytes()) == content:
            return
    write_json(path, content)


def run(*command: str) -> str:
    """Return what a command prints; raises OSError or subprocess.SubprocessError if it hangs."""
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, timeout=COMMAND_SECONDS
    )
    return done.stdout


def look_at_host(
    expected: Expectation, records: Mapping[str, Record], paths: Iterable[str]
) -> dict[str, Any]:
    """Return what the host is like; `paths` are those of which something is expected."""
    mounts = list(read_mounts(MOUNTS.read_text()))
    data = expected.data_folders
    wanted = [path for path in paths if not is_inside(path, data)]
    reads: dict[str, Callable[[], Any]] = {
        "/": functools.partial(read_root, wanted, expected, sorted(records)),
    }
    for folder in dict.fromkeys([*data, *expected.all_of("models")]):
        below = [path for path in paths if is_inside(path, [folder])]
        reads[folder] = functools.partial(read_folder, folder, below, expected)
    seen: dict[str, Any] = {
        "now": int(time.time()),
        "silent": [],
        "paths": {},
        "times": {},
        "strays": [],
        "releases": {},
        "programs": {},
        "held": [],
        "models": {"reasons": {}, "undeclared": [], "owners": {}},
    }
    for folder, read in reads.items():
        try:
            seconds = ROOT_SECONDS if folder == "/" else DISK_SECONDS
            found = in_time(functools.partial(answered, read), seconds)
        except (TimeoutError, BlockingIOError):
            seen["silent"].append(folder)
            continue
        if "error" in found:
            raise OSError(found["error"])
        for name, value in found.items():
            if name == "models":
                seen["models"]["reasons"].update(value["reasons"])
                seen["models"]["undeclared"] += value["undeclared"]
                seen["models"]["owners"].update(value["owners"])
            elif isinstance(value, dict):
                seen[name].update(value)
            else:
                seen[name] += value
    own = [path for role in expected.roles.values() for path in role["declaration"].get("paths", [])]
    seen["units"], seen["processes"] = read_units(unit_names(expected, records))
    users = [user for record in records.values() for user in record.users]
    seen["users"] = read_users(dict.fromkeys([*users, *expected.declared("users")]))
    seen["packages"] = read_packages([*expected.list_of("packages"), *seen["held"]])
    seen["listeners"] = [listener._asdict() for listener in listeners(run(*SS))]
    seen["tables"] = {table: read_table(table) for table in expected.list_of("tables")}
    seen["mounts"] = list(watched_mounts(mounts, own, data))
    return seen


def answered(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a function reads, or why it cannot."""
    try:
        return read()
    except OSError as error:
        return {"error": str(error)}


def noted(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is remembered of a host at a deployment, because no role declares it."""
    return {
        "listeners": sorted([each["protocol"], each["port"]] for each in seen["listeners"]),
        "tables": dict(seen["tables"]),
        "mounts": [mount["point"] for mount in seen["mounts"] if mount["inside"]],
    }


def unit_names(expected: Expectation, records: Mapping[str, Record]) -> list[str]:
    """Return the units to show; a template's instances are among the services."""
    recorded = [unit for record in records.values() for unit in record.units]
    return [unit for unit in dict.fromkeys([*recorded, *expected.all_of("services")]) if "@." not in unit]


def metric_lines(wrong: Sequence[Difference]) -> Iterator[str]:
    """Yield the metrics' lines of a comparison with these differences."""
    metrics = [
        ("bedplate_host_drift_differences", "Things that are not as the inventory declares.", "", len(wrong)),
        ("bedplate_host_drift_timestamp_seconds", "Unix time of the last comparison.", "", int(time.time())),
    ]
    if wrong:
        labels = f'{{kind="{wrong[0].kind}",what="{escaped(wrong[0].what)}"}}'
        metrics.append(("bedplate_host_drift", "The first difference.", labels, 1))
    for name, about, labels, value in metrics:
        yield f"# HELP {name} {about}"
        yield f"# TYPE {name} gauge"
        yield f"{name}{labels} {value}"


def write_status(path: Path, differences: Iterable[Difference]) -> None:
    """Write the metrics of a comparison for the node exporter, at once."""
    wrong = [each for each in differences if not each.known]
    new = path.with_suffix(".tmp")
    new.write_text("".join(f"{line}\n" for line in metric_lines(wrong)))
    new.chmod(0o644)
    new.replace(path)


def escaped(text: str) -> str:
    """Return a text as a label's value in Prometheus' format."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# --- Files


def read_root(paths: Iterable[str], expected: Expectation, roles: Iterable[str]) -> dict[str, Any]:
    """Return everything that is read from the system's disk."""
    declarations = [role["declaration"] for role in expected.roles.values()]
    programs = [
        path for each in declarations for path in each.get("paths", []) if path.startswith("/usr/local/bin/")
    ]
    return {
        **read_paths(paths),
        "strays": find_strays(declarations, set(roles)),
        "releases": dict(read_releases(PROGRAMS)),
        "programs": {path: shutil.which(path.rpartition("/")[2], path=USERS_PATH) or "" for path in programs},
        "held": read_held(Path(GPU_RECORDS, "held")),
    }


def read_folder(folder: str, paths: Iterable[str], expected: Expectation) -> dict[str, Any]:
    """Return what is read from the disk of a folder with data."""
    models = expected.all_of("models").get(folder)
    return {
        **read_paths(paths),
        **({"models": read_models(Path(folder), models)} if models is not None else {}),
    }


def read_paths(paths: Iterable[str]) -> dict[str, Any]:
    """Return the state of each path, and when it was last written."""
    states: dict[str, State] = {}
    times: dict[str, int] = {}
    for path in paths:
        state = look_at(Path(path))
        # It may vanish meanwhile.
        with contextlib.suppress(OSError):
            if state["state"] != "absent":
                times[path] = int(Path(path).lstat().st_mtime)
            if state["state"] == "file":
                state["sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            if state["state"] == "link":
                state["to"] = look_at(Path(path).resolve())
        states[path] = state
    return {"paths": states, "times": times}


def find_strays(declarations: Iterable[Mapping[str, Any]], roles: set[str]) -> list[str]:
    """Return files in Bedplate's folders, and units of its kind; drift.py takes out what is expected."""
    # Others may write into the shared folders.
    declared = [path for each in declarations for path in each.get("paths", [])]
    found = [path for path in files_below(CONFIGURATION) if not is_inside(path, [GPU_RECORDS])]
    found += [str(path) for path in children(PROGRAMS) if not is_inside(str(path), declared)]
    found += [
        str(path)
        for path in children(LIBEXEC)
        if path.name.startswith("bedplate-") and not is_inside(str(path), declared)
    ]
    units = {unit for each in declarations for unit in [*each.get("units", []), *each.get("masks", [])]}
    for path in children(UNIT_DIRECTORY):
        if path.suffix in (".wants", ".requires", ".upholds"):
            if path.name.rpartition(".")[0] in units:
                found += [str(link) for link in children(path) if template_of(link.name) not in units]
        elif (
            path.name not in units
            and path.is_file()
            and (path.name.startswith("bedplate-") or has_marker(path))
        ):
            found.append(str(path))
    return sorted(found) if roles else []


def template_of(unit: str) -> str:
    """Return the name of the template of an instance, or the unit itself."""
    return re.sub(r"@[^.]*\.", "@.", unit)


def children(folder: Path) -> list[Path]:
    """Return what is in a folder, nothing if there is none."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def files_below(folder: Path) -> Iterator[str]:
    """Iterate over all files and links below a folder."""
    for parent, _, names in os.walk(folder):
        yield from (f"{parent}/{name}" for name in names)


def read_releases(programs: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the present release of each program, and what changed in it."""
    for program in children(programs):
        current = program / "current"
        target = str(current.readlink()) if current.is_symlink() else ""
        match = re.match(r"releases/[^/]+", target)
        if not match:
            continue
        folder = program / match[0]
        marker = folder / ".complete"
        complete = marker.exists()
        newer = list(newer_files(folder, marker.stat().st_mtime)) if complete else []
        lock_file = folder / "requirements.txt"
        lock = read_lock(lock_file.read_text()) if complete and lock_file.exists() else {}
        installed = installed_packages(folder) if lock else {}
        yield (
            str(folder),
            {"complete": complete, "newer": newer[:MAX_NAMED], "lock": lock, "packages": installed},
        )


def newer_files(folder: Path, since: float) -> Iterator[str]:
    """Iterate over the files that were written after a time; caches of Python do not count."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(f"{parent}/{name}")
                # A lock file is opened for writing by each later installation.
                if found.st_mtime > since and name not in (".complete", ".lock"):
                    yield f"{parent}/{name}"


def normalized(package: str) -> str:
    """Return a Python package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def read_lock(text: str) -> dict[str, list[str]]:
    """Return the versions of each package of a lock file, which may have one for each version of Python."""
    lock: dict[str, list[str]] = {}
    for name, version in [*LOCKED.findall(text), *OWN_WHEEL.findall(text)]:
        lock.setdefault(normalized(name), []).append(version)
    return lock


def installed_packages(folder: Path) -> dict[str, str]:
    """Return the Python packages of a release."""
    matches = [
        DIST_INFO.fullmatch(path.name) for path in folder.glob("venv/lib/python*/site-packages/*.dist-info")
    ]
    # A virtual environment of Python's own has pip without a lock.
    found = {normalized(match[1]): match[2] for match in matches if match}
    return {name: version for name, version in found.items() if name not in ("pip", "setuptools")}


def read_held(path: Path) -> list[str]:
    """Return the packages that the role gpu_driver holds."""
    try:
        return path.read_text().split()
    except OSError:
        return []


def read_models(folder: Path, declared: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return why each declared model is not as declared, and which others there are."""
    reasons = {}
    names = set()
    for model in declared:
        empty = dict.fromkeys(("pull", "digest", "gguf", "checksum", "parameters", "template"))
        try:
            wanted = Wanted.declared({**empty, **model})
            names.add(wanted.name)
            reasons[model["name"]] = missing_reason(folder, wanted)
        except ModelError as error:
            reasons[model["name"]] = str(error)
    manifests = folder / "manifests"
    present = [
        Name(*path.relative_to(manifests).parts) for path in manifests.glob("*/*/*/*") if path.is_file()
    ]
    return {
        "reasons": reasons,
        "undeclared": sorted(map(shown, set(present) - names)),
        "owners": owners_below(folder),
    }


def owners_below(folder: Path) -> dict[str, str]:
    """Return the owner of each folder below."""
    states = {
        str(path): look_at(path)
        for parent, names, _ in os.walk(folder)
        for path in (Path(parent, name) for name in names)
    }
    # One may vanish meanwhile.
    return {path: state["owner"] for path, state in states.items() if state["state"] == "directory"}


def shown(name: Name) -> str:
    """Return a model's name as Ollama lists it."""
    parts = list(name[:3])
    if parts[0] == "registry.ollama.ai":
        del parts[0]
        if parts[0] == "library":
            del parts[0]
    return f"{'/'.join(parts)}:{name.tag}"


# --- Units and processes


def read_units(names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the units that exist, and the main processes of those that run."""
    if not names:
        return {}, {}
    text = run("systemctl", "show", "--timestamp=unix", f"--property={UNIT_PROPERTIES}", "--", *names)
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")
    ]
    units, processes = {}, {}
    for block in blocks:
        name = block.get("Id", "")
        if not name:
            continue
        units[name] = {
            "load": block["LoadState"],
            "active": block["ActiveState"],
            "sub": block["SubState"],
            "enabled": block["UnitFileState"],
            "drop_ins": own_drop_ins(name, block["DropInPaths"].split()),
            "stale": block["NeedDaemonReload"] == "yes",
        }
        pid = int(block.get("MainPID") or 0)
        if pid and block["ActiveState"] == "active":
            started, changed = (
                int(block[field].removeprefix("@") or 0)
                for field in ("ExecMainStartTimestamp", "StateChangeTimestamp")
            )
            processes[name] = {"started": started, "changed": changed, "replaced": replaced_program(pid)}
    return units, processes


def own_drop_ins(unit: str, paths: Iterable[str]) -> list[str]:
    """Return the drop-ins that somebody made on this host; a container's host makes some for all services."""
    return [
        path
        for path in paths
        if path.startswith("/etc/") or (path.startswith("/run/") and f"/{unit}.d/" in path)
    ]


def replaced_program(pid: int, proc: Path = PROC) -> str:
    """Return the program of a process if its file was replaced since, or ''."""
    try:
        program = str((proc / str(pid) / "exe").readlink())
    except OSError:
        return ""
    return program.removesuffix(" (deleted)") if program.endswith(" (deleted)") else ""


# --- Users, packages, firewall, mounts


def read_users(names: Iterable[str]) -> dict[str, State]:
    """Return shell, home, groups and whether there is a password, of each user that exists."""
    passwords = dict(line.split(":")[:2] for line in SHADOW.read_text().splitlines())
    groups = grp.getgrall()
    users: dict[str, State] = {}
    for name in names:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        group = group_name(user.pw_gid)
        users[name] = {
            "state": "present",
            "id": user.pw_uid,
            "shell": user.pw_shell,
            "home": user.pw_dir,
            "group": group,
            "groups": sorted(each.gr_name for each in groups if name in each.gr_mem),
            "members": sorted(
                member for each in groups if each.gr_name == name for member in each.gr_mem if member != name
            ),
            "password": not passwords.get(name, "!").startswith(("!", "*")),
        }
    return users


def read_packages(names: Iterable[str]) -> dict[str, str]:
    """Return the state of each Debian package that is known, such as `install ok installed`."""
    wanted = list(dict.fromkeys(names))
    text = (
        run("dpkg-query", "--show", "--showformat=${Package}\t${Status}\n", "--", *wanted) if wanted else ""
    )
    return dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)


def read_table(table: str) -> str:
    """Return a hash of the rules of a table in the kernel, '' if there is none."""
    text = run("nft", "--stateless", "list", "table", *table.split())
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def read_mounts(text: str) -> Iterator[Mount]:
    """Iterate over the mounts in the text of /proc/PID/mountinfo."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(), right.split()
        if len(fields) > 5 and len(rest) > 1:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            options = {*fields[5].split(","), *(rest[2].split(",") if len(rest) > 2 else [])}
            yield Mount(point, rest[1], "ro" in options)


def watched_mounts(
    mounts: Iterable[Mount], own: Iterable[str], data: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Iterate over mounts in Bedplate's paths, and over read-only ones that hold its data."""
    points = {mount.point: mount for mount in mounts}  # the last one covers the others
    folders = [*own, *data]
    for point, mount in points.items():
        inside = is_inside(point, folders)
        if inside:
            yield {**mount._asdict(), "inside": True}
    holders = {holder for folder in data if (holder := holder_of(folder, points))}
    for holder in sorted(holders):
        if points[holder].read_only and not is_inside(holder, folders):
            yield {**points[holder]._asdict(), "inside": False}


def holder_of(folder: str, points: Mapping[str, Mount]) -> str:
    """Return the mount point that a folder is on."""
    parents = [folder, *(str(parent) for parent in Path(folder).parents)]
    return next((parent for parent in parents if parent in points), "")
