#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Removes what roles left on a host, and brings back what was there before."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils import host_record
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.disks import DISK_SECONDS, in_time
from ansible.module_utils.host_record import RecordError, State, declaration_from, is_inside, look_at
from ansible.module_utils.uninstall_plan import Host, PackageChoice, Removal, Step

DOCUMENTATION = r"""
module: uninstall
short_description: Remove what roles left on a host, and bring back what was there before
description:
  - What to do follows from the roles' declarations (C(meta/host.yml)), the host's record, and what is there.
  - A file that nobody recorded stays, and so do data folders of other kinds than C(data), packages that
    another package needs, and the users who own what stays.
  - In check mode it only shows what it would do.
  - Each step is logged to the journal. A run after an interrupted one continues it.
options:
  declarations:
    description: The declarations of all roles, each with C(role) and C(file).
    type: list
    elements: dict
    required: true
  roles:
    description: The roles to remove.
    type: list
    elements: str
    required: true
  data:
    description: Kinds of data to remove as well.
    type: list
    elements: str
    default: []
author: Bedplate
"""

EXAMPLES = r"""
- name: Tell what would be removed
  uninstall:
    declarations: "{{ declarations }}"
    roles: [ollama]
  check_mode: true
"""

RETURN = r"""
steps:
  description: What was done, or in check mode would be, one line for each step.
  returned: always
  type: list
  elements: str
roles:
  description: Those of the roles that are on the host.
  returned: always
  type: list
  elements: str
staying:
  description: The paths, users and packages that stay, with the reason.
  returned: always
  type: dict
"""

STOP_SECONDS = 330
"""How long services may finish their requests; longer than any default of TimeoutStopSec."""
COMMAND_SECONDS = 60
APT_SECONDS = 1800
LOCK_SECONDS = 600
ACTIVE = ("active", "activating", "deactivating", "reloading")
CHANGED_BY_PURGE = re.compile(r"^(?:Purg|Remv) (\S+)", re.MULTILINE)
HARD_DEPENDENCIES = (
    "--option=APT::AutoRemove::RecommendsImportant=false",
    "--option=APT::AutoRemove::SuggestsImportant=false",
)
"""The host was complete before without what its packages only recommend or suggest."""
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


class UninstallError(Exception):
    """What cannot be removed, and what to do, in one sentence."""


def run(
    command: Sequence[str], seconds: float = COMMAND_SECONDS, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command; raises UninstallError."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UninstallError(f"{error}: repair that and run this again.") from None
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise UninstallError(f"{' '.join(command[:3])} failed: repair it and run this again. It said: {said}")
    return done


# What is there


def look_at_data(folder: str) -> State:
    """Return what a folder of data is, and whether something is in it."""
    found = look_at(Path(folder))
    if found["state"] != "directory":
        return found
    return {**found, "entries": any(entry.name != "lost+found" for entry in os.scandir(folder))}


def loaded_units(units: Iterable[str]) -> dict[str, str]:
    """Return the units that systemd has loaded, instances and watching units included, with their states."""
    patterns = []
    for unit in units:
        patterns.append(unit.replace("@.", "@*."))
        if unit.endswith(".service") and "@" not in unit:
            patterns.append(f"bedplate-heal@{unit.removesuffix('.service')}.*")
    if not patterns:
        return {}
    options = ["--all", "--plain", "--no-legend", "--no-pager", "--full"]
    lines = run(["systemctl", "list-units", *options, "--", *patterns]).stdout.splitlines()
    # A unit that another one names and that has no file is loaded, too.
    rows = [line.split() for line in lines]
    return {row[0]: row[2] for row in rows if row[1] != "not-found" or row[2] in ACTIVE}


def tables() -> list[str]:
    """Return the firewall tables of the host."""
    if not shutil.which("nft"):
        return []
    return [line.removeprefix("table ") for line in run(["nft", "list", "tables"]).stdout.splitlines()]


def purged_with(names: Collection[str], *options: str) -> set[str]:
    """Return what apt would purge with these packages; raises UninstallError."""
    if not names:
        return set()
    done = run(["apt-get", "purge", "--simulate", *options, *sorted(names)])
    return set(CHANGED_BY_PURGE.findall(done.stdout))


def without_needed(names: set[str]) -> set[str]:
    """Return those of the packages that no other package needs; raises UninstallError."""
    while not purged_with(names) <= names:
        needed = {name for name in names if not purged_with([name]) <= names}
        names = names - (needed or names)
    return names


def installed_packages(names: Iterable[str]) -> dict[str, str]:
    """Return those that are installed or have configuration files, with dpkg's state in letters."""
    listed = run(["dpkg-query", "--show", "--showformat=${db:Status-Abbrev}\t${Package}\n"]).stdout
    found = dict(line.split("\t")[::-1] for line in listed.splitlines())
    return {name: found[name].strip() for name in names if found.get(name, "un")[1] != "n"}


def choose_packages(removal: Removal) -> PackageChoice:
    """Return which packages to purge, and why others of ours stay; raises UninstallError and RecordError."""
    known = removal.packages
    if not (known.installed or known.automatic):
        return PackageChoice()
    there = installed_packages([*known.installed, *known.automatic])
    held = set(run(["apt-mark", "showhold"]).stdout.split())
    manual = set(run(["apt-mark", "showmanual"]).stdout.split())
    requested = {name for name in known.requested if name in there}
    purged = without_needed(requested - held)
    # What was installed with them, unless somebody has asked for it since.
    with_them = purged_with(purged, "--auto-remove", *HARD_DEPENDENCIES) & (there.keys() & known.installed)
    purged = without_needed(purged | (with_them - held))
    if removal.remaining:
        others = requested - purged
    else:
        others = {name for name in known.installed if name in there} - purged
    reasons = {}
    for name in sorted(others):
        chosen = name in manual and name not in requested
        why = "it was marked as manually installed" if chosen else "another package needs it"
        reasons[name] = "it is held" if name in held else why
    automatic = sorted(name for name in known.automatic if name in there and name in manual)
    return PackageChoice(tuple(sorted(purged)), tuple(automatic), reasons)


def look_at_host(removal: Removal) -> Host:
    """Return what is on the host; raises UninstallError and RecordError."""
    data, silent = {}, []
    for folder in removal.data_folders():
        try:
            found = in_time(functools.partial(look_at_data, folder))
        except TimeoutError:
            silent.append(folder)
            continue
        if found["state"] != "absent":
            data[folder] = found
    kinds = {
        folder: kind for one in removal.going for kind, folders in one.data.items() for folder in folders
    }
    named = [folder for folder in silent if kinds[folder] in removal.kinds]
    if named:
        folder = named[0]
        raise UninstallError(
            f"the disk at {folder} gave no answer in {DISK_SECONDS:.0f} s: repair it (findmnt -T {folder}; "
            f"dmesg | tail), or leave out {kinds[folder]} in uninstall_state. Nothing is removed yet."
        )
    users = {user: host_record.look_at_user(user) for one in removal.going for user in one.users}
    return Host(
        users={user: state for user, state in users.items() if state["state"] == "present"},
        units=list(loaded_units(unit for one in removal.going for unit in one.units)),
        tables=tables(),
        packages=choose_packages(removal),
        data=data,
        silent=silent,
    )


# The steps; each can be repeated


def stop(step: Step) -> None:
    """Stop units; raises UninstallError if a process cannot be ended."""
    with contextlib.suppress(UninstallError):
        run(["systemctl", "stop", "--", *step.names], STOP_SECONDS)
    running = [unit for unit, state in loaded_units(step.names).items() if state in ACTIVE]
    if running:
        run(["systemctl", "kill", "--signal=KILL", "--", *running], check=False)
        run(["systemctl", "stop", "--", *running], COMMAND_SECONDS, check=False)
    running = [unit for unit, state in loaded_units(step.names).items() if state in ACTIVE]
    if running:
        raise UninstallError(
            f"{', '.join(running)} cannot be stopped, perhaps because its process waits for a disk: "
            "restart the host and run this again. It no longer starts at boot."
        )


def delete_table(step: Step) -> None:
    """Delete a table of the firewall; it may be gone."""
    run(["nft", f"table {step.names[0]}; delete table {step.names[0]}"])


def remove(step: Step) -> None:
    """Remove files, links and folders with all that is in them."""
    for name in step.names:
        remove_path(Path(name), mount_points())


def empty(step: Step) -> None:
    """Remove what is in a folder."""
    mounts = mount_points()
    for entry in Path(step.names[0]).iterdir():
        if entry.name != "lost+found":
            remove_path(entry, mounts)


def remove_path(path: Path, mounts: Collection[str]) -> None:
    """Remove what is at a path; a disk that is mounted there or below is emptied and stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    elif not any(is_inside(mount, [str(path)]) for mount in mounts):
        shutil.rmtree(path)
    else:
        for entry in path.iterdir():
            if entry.name != "lost+found":
                remove_path(entry, mounts)


def mount_points() -> list[str]:
    """Return where something is mounted."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1].replace("\\040", " ") for line in lines]


def remove_empty(step: Step) -> None:
    """Remove a folder unless something is in it."""
    with contextlib.suppress(OSError):
        Path(step.names[0]).rmdir()


def restore(step: Step) -> None:
    """Bring back what was at a path."""
    path, former = Path(step.names[0]), step.state
    if former["state"] == "directory":
        path.mkdir(parents=True, exist_ok=True)
        give(path, former)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    if former["state"] == "link":
        new.symlink_to(former["target"])
    else:
        new.touch(mode=0o600)
        shutil.copyfile(former["copy"], new)
        give(new, former)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    new.replace(path)


def give(path: Path, former: State) -> None:
    """Give a path its former owner and mode."""
    shutil.chown(path, number_or_name(former["owner"]), number_or_name(former["group"]))
    path.chmod(int(former["mode"], 8))


def number_or_name(owner: str) -> int | str:
    """Return a user or a group as shutil takes it; one without a name was recorded by its number."""
    return int(owner) if owner.isdigit() else owner


def purge(step: Step) -> None:
    """Purge packages; raises UninstallError."""
    if any(Path("/var/lib/dpkg/updates").iterdir()):
        # The power was cut while dpkg ran.
        run(["dpkg", "--configure", "--pending"], APT_SECONDS)
    options = ["--yes", "--quiet", f"--option=DPkg::Lock::Timeout={LOCK_SECONDS}"]
    run(["apt-get", "purge", *options, *step.names], APT_SECONDS)


def mark_automatic(step: Step) -> None:
    """Mark packages as installed for others."""
    run(["apt-mark", "auto", *step.names])


def reload(step: Step) -> None:
    """Let systemd forget units whose files are gone."""
    run(["systemctl", "daemon-reload"])
    for unit in step.names:
        run(["systemctl", "reset-failed", "--", unit], check=False)


def remove_user(step: Step) -> None:
    """Remove a user with its own group, but not a group that was there before."""
    name = step.names[0]
    if host_record.look_at_user(name)["state"] == "absent":
        return  # its package was purged
    if "group" in step.state:
        run(["usermod", "--gid", "nogroup", name])
    run(["userdel", name])


def restore_user(step: Step) -> None:
    """Give a user back its home and shell."""
    state = step.state
    run(["usermod", "--home", state["home"], "--shell", state["shell"], step.names[0]])


def write_record(step: Step) -> None:
    """Write what stays of a record."""
    file = host_record.RECORDS / f"{step.names[0]}.json"
    if step.state:
        host_record.write_json(file, step.state)
    else:
        file.unlink(missing_ok=True)


DO = {
    function.__name__: function
    for function in (
        stop,
        delete_table,
        remove,
        empty,
        remove_empty,
        restore,
        purge,
        mark_automatic,
        reload,
        remove_user,
        restore_user,
        write_record,
    )
}


def write_to_disk() -> None:
    """Write the file systems of the roles' folders to their disks, but not one that may hang."""
    folders = [path for path in ("/etc", "/opt", "/usr", "/var/lib") if Path(path).is_dir()]
    run(["sync", "--file-system", *folders], COMMAND_SECONDS)


def main() -> None:
    """Run the module."""
    texts = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "declarations": {"type": "list", "elements": "dict", "required": True},
            "roles": {**texts, "required": True},
            "data": {**texts, "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        declarations = [declaration_from(given) for given in params["declarations"]]
        removal = Removal(declarations, params["roles"], params["data"])
        plan = removal.plan(look_at_host(removal))
        for number, step in enumerate([] if module.check_mode else plan.steps, 1):
            module.log(f"step {number} of {len(plan.steps)}: {step}")
            if step.kind == "write_record" or is_inside(str(host_record.RECORDS), step.names):
                # The record goes last, also on a disk that loses its power.
                write_to_disk()
            DO[step.kind](step)
    except (UninstallError, RecordError, OSError, LookupError) as error:
        module.fail_json(msg=str(error))
    steps: list[str] = [str(step) for step in plan.steps]
    roles = [declaration.role for declaration in removal.going]
    result: dict[str, Any] = {"steps": steps, "staying": plan.staying, "roles": roles}
    module.exit_json(changed=bool(steps), **result)


if __name__ == "__main__":
    main()
