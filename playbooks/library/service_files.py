#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Brings a service's users, directories, files and units up to date; the action plugin renders the texts."""

from __future__ import annotations

import base64
import contextlib
import grp
import hashlib
import json
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.host_record import (
    UNIT_DIRECTORY,
    RecordError,
    RoleRecord,
    declaration_from,
    digest,
)

DOCUMENTATION = r"""
module: service_files
short_description: Bring a service's users, directories, files and units up to date in one run
description:
  - Creates the system users first, then the entries of C(files) in their order, then the units.
  - Checks every changed file before it writes the first one; a failed check leaves all as they were.
  - Checks the units after that, because they name the files.
  - A file is replaced at once (rename), so that no process reads half of it.
  - With C(--diff), a secret's content is not shown.
  - Refuses a path, a user or a unit that the role's C(meta/host.yml) does not declare.
  - Records on the host what the role left there, and before that what was there, in
    /var/lib/bedplate/record/ROLE.json.
options:
  role:
    description:
      - Role whose C(meta/host.yml) declares the entries. The task's own role by default.
      - It may be another's that the task works for. Outside of a role it is needed.
    type: str
  user:
    description: System users to create, without login, with the home directory /var/lib/USER.
    type: list
    elements: str
    default: []
  owner:
    description: Owner of the entries that name none.
    type: str
    default: root
  group:
    description: Group of the entries that name none.
    type: str
    default: root
  mode:
    description: Mode of the files that name none, in octal digits.
    type: str
    default: "0644"
  files:
    description: Files, directories and links.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path on the host.
        type: str
        required: true
      state:
        description: What the path is. An absent directory is removed with all that is in it.
        type: str
        choices: [file, directory, link, absent]
        default: file
      content:
        description: The file's text.
        type: str
      template:
        description: Template of the role, from which the control machine renders the text.
        type: str
      variable_start_string:
        description: What marks a variable in the template, if not two braces.
        type: str
      variable_end_string:
        description: What ends a variable in the template, if not two braces.
        type: str
      src:
        description: File of the role, or an absolute path on the control machine, with the text.
        type: str
      remote_src:
        description: File on the host with the text. In check mode it need not exist yet.
        type: str
      target:
        description: Where a link points.
        type: str
      owner:
        description: Owner.
        type: str
      group:
        description: Group.
        type: str
      mode:
        description: Mode, in octal digits; a directory that names none has 0755.
        type: str
      validate:
        description: Command that checks a new text; %s stands for the file that has it.
        type: str
      force:
        description: Whether an existing file with another text, or what is in a link's place, is replaced.
        type: bool
        default: true
      secret:
        description: Whether the text must not be shown.
        type: bool
        default: false
  units:
    description:
      - Units in /etc/systemd/system, such as C(prometheus.service), each rendered from its template.
      - systemd-analyze verify checks changed units.
    type: list
    elements: str
    default: []
  contents:
    description: Set by the action plugin. The files' texts by their paths, as base64 of compressed JSON.
    type: str
    default: ""
  declaration:
    description: Set by the action plugin. The role's name, the file's name, and its content.
    type: dict
    required: true
author: Bedplate
"""

EXAMPLES = r"""
- name: Write Prometheus' configuration and unit
  service_files:
    group: prometheus
    mode: "0640"
    files:
      - {path: /etc/bedplate/prometheus, state: directory, mode: "0750"}
      - {path: /etc/bedplate/prometheus/prometheus.yml, template: prometheus.yml.j2, validate: check %s}
    units: [prometheus.service]
  notify: Restart prometheus
"""

RETURN = r"""
changed_paths:
  description: The paths that changed, in the order of the entries, and the user as C(user NAME).
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each change.
  returned: with --diff
  type: list
  elements: dict
"""

TIMEOUT_SECONDS = 120
MAX_REMOTE_BYTES = 16 * 1024 * 1024
MAX_SHOWN_BYTES = 100 * 1024
MAX_MESSAGE = 4000


class FileError(Exception):
    """What cannot be brought up to date, in one sentence."""


class Entry(NamedTuple):
    """What a path has to be; `content` is the text of a file, None where check mode cannot know it."""

    path: Path
    state: str
    owner: str
    group: str
    mode: int
    content: bytes | None = None
    target: str = ""
    validate: str = ""
    force: bool = True
    secret: bool = False


class Change(NamedTuple):
    """A path that is not as it has to be; `before` is the old text, None if it must not be shown."""

    entry: Entry
    content: bool
    before: str | None


def load_entries(parameters: Mapping[str, Any], *, check_mode: bool) -> list[Entry]:
    """Return the entries of the parameters, units last; raises FileError."""
    packed = parameters["contents"]
    contents: dict[str, str] = json.loads(zlib.decompress(base64.b64decode(packed))) if packed else {}
    entries = []
    for given in parameters["files"]:
        path, state = Path(given["path"]), given["state"]
        content = contents[given["path"]].encode() if given["path"] in contents else None
        if given["remote_src"]:
            content = read_remote(Path(given["remote_src"]), check_mode=check_mode)
        default_mode = "0755" if state == "directory" else parameters["mode"]
        entries.append(
            Entry(
                path=path,
                state=state,
                owner=given["owner"] or parameters["owner"],
                group=given["group"] or parameters["group"],
                mode=octal(given["mode"] or default_mode),
                content=content,
                target=given["target"] or "",
                validate=given["validate"] or "",
                force=given["force"],
                secret=given["secret"],
            )
        )
    for unit in parameters["units"]:
        path = UNIT_DIRECTORY / unit
        entries.append(Entry(path, "file", "root", "root", 0o644, content=contents[str(path)].encode()))
    return entries


def octal(mode: str) -> int:
    """Return a mode as a number; raises FileError."""
    try:
        return int(mode, 8)
    except ValueError:
        raise FileError(f"the mode {mode!r} is not in octal digits, such as 0640.") from None


def read_remote(path: Path, *, check_mode: bool) -> bytes | None:
    """Return the bytes of a file of this host; None if check mode cannot know them yet."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_REMOTE_BYTES + 1)
    except FileNotFoundError:
        if check_mode:
            return None
        raise FileError(f"{path} does not exist on this host, so it cannot be copied.") from None
    if len(content) > MAX_REMOTE_BYTES:
        raise FileError(f"{path} has more than {MAX_REMOTE_BYTES} bytes, so it is not copied.")
    return content


def find_ids(entry: Entry) -> tuple[int, int]:
    """Return the numbers of owner and group; raises FileError."""
    try:
        return pwd.getpwnam(entry.owner).pw_uid, grp.getgrnam(entry.group).gr_gid
    except KeyError:
        message = f"{entry.path}: this host has no user {entry.owner} or no group {entry.group}."
        raise FileError(message) from None


def has_ids(entry: Entry, found: os.stat_result) -> bool:
    """Return whether owner and group are right; in check mode they need not exist yet."""
    try:
        return find_ids(entry) == (found.st_uid, found.st_gid)
    except FileError:
        return False


def look(path: Path) -> os.stat_result | None:
    """Return what is at the path, links not followed; None for nothing."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def find_change(entry: Entry) -> Change | None:
    """Return the change that an entry needs, or None; raises FileError."""
    found = look(entry.path)
    if entry.state == "absent":
        return Change(entry, content=True, before=None) if found else None
    if found and stat.S_ISDIR(found.st_mode) and entry.state != "directory":
        raise FileError(f"{entry.path} is a directory: move it away, a {entry.state} has to be there.")
    if entry.state == "link":
        right = (
            found is not None and stat.S_ISLNK(found.st_mode) and str(entry.path.readlink()) == entry.target
        )
        if right or (found and not entry.force):
            return None
        return Change(entry, content=True, before=None)
    kind = stat.S_ISDIR if entry.state == "directory" else stat.S_ISREG
    if found and entry.state == "directory" and stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid():
        # The directory may be on another disk. A link that another user made is not followed.
        with contextlib.suppress(FileNotFoundError):
            found = entry.path.stat()
    if found and entry.state == "directory" and not kind(found.st_mode):
        raise FileError(f"{entry.path} is no directory: move it away, a directory has to be there.")
    if not found or not kind(found.st_mode):
        return Change(entry, content=True, before="")
    old = entry.path.read_bytes() if entry.state == "file" else b""
    other = entry.state == "file" and entry.force and entry.content != old
    same = has_ids(entry, found) and stat.S_IMODE(found.st_mode) == entry.mode
    if not other and same:
        return None
    return Change(entry, content=other, before=None if entry.secret else old.decode(errors="replace"))


def validate_files(changes: Iterable[Change], directory: Path) -> None:
    """Check owners, and the new texts in a private directory, before any is written; raises FileError."""
    for number, change in enumerate(changes):
        entry = change.entry
        if entry.state in ("file", "directory"):
            find_ids(entry)
        if change.content and entry.validate and entry.content is not None:
            copy = write_copy(directory / f"{number}{entry.path.suffix}", entry.content)
            command = [word.replace("%s", str(copy)) for word in shlex.split(entry.validate)]
            run(command, entry.path, secret=entry.secret)


def validate_units(changes: Iterable[Change], directory: Path) -> None:
    """Check changed units together; the programs that they start must exist. Raises FileError."""
    changed = [change.entry for change in changes if change.content and change.entry.content is not None]
    copies = [write_copy(directory / entry.path.name, entry.content or b"") for entry in changed]
    if copies:
        run(["systemd-analyze", "verify", "--man=no", *map(str, copies)], changed[0].path)


def write_copy(path: Path, content: bytes) -> Path:
    """Write a text that only root can read and return its path."""
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


def run(command: Sequence[str], path: Path, *, secret: bool = False) -> None:
    """Run a command that checks a path's new text; raises FileError with its last lines."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FileError(f"failed to validate {path}: {error}") from None
    if done.returncode:
        # A message about a secret file may quote it.
        said = f"{command[0]} refuses it" if secret else done.stdout.strip()[-MAX_MESSAGE:]
        raise FileError(f"failed to validate {path}: {said}")


def apply(change: Change) -> None:
    """Make a path what its entry says."""
    entry = change.entry
    if entry.state == "absent":
        remove(entry.path)
        return
    if entry.state == "link":
        with temporary_name(entry.path) as name:
            name.symlink_to(entry.target)
            name.replace(entry.path)
        return
    owner = find_ids(entry)
    if entry.state == "directory":
        entry.path.mkdir(mode=0o755, parents=True, exist_ok=True)
    elif change.content:
        with temporary_name(entry.path) as name:
            name.touch(mode=0o600, exist_ok=False)
            with name.open("wb") as file:
                file.write(entry.content or b"")
                file.flush()
                os.fchown(file.fileno(), *owner)
                os.fchmod(file.fileno(), entry.mode)
                os.fsync(file.fileno())
            name.replace(entry.path)
        return
    os.chown(entry.path, *owner)
    entry.path.chmod(entry.mode)


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """Give a new name next to the path, which is gone afterwards."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    digest = hashlib.sha256(os.urandom(16)).hexdigest()[:12]
    name = path.with_name(f".{path.name}.{digest}")
    try:
        yield name
    finally:
        name.unlink(missing_ok=True)


def describe(change: Change) -> dict[str, str]:
    """Return the change as Ansible's --diff shows it."""
    entry = change.entry
    name = str(entry.path)
    owner = f"{entry.owner}:{entry.group} {entry.mode:04o}"
    if entry.state == "absent":
        return {"prepared": f"{name} is removed\n"}
    if entry.state == "link":
        return {"prepared": f"{name} points to {entry.target}\n"}
    if entry.state == "directory" or not change.content:
        return {"prepared": f"{name} gets {owner}\n"}
    if entry.secret or change.before is None or entry.content is None:
        return {"prepared": f"{name} changes ({owner}); its content is not shown\n"}
    if max(len(change.before), len(entry.content)) > MAX_SHOWN_BYTES:
        return {"prepared": f"{name} changes ({owner}); it is too long to show\n"}
    after = entry.content.decode(errors="replace")
    return {
        "before_header": name,
        "before": change.before,
        "after_header": f"{name} ({owner})",
        "after": after,
    }


def user_commands(name: str) -> list[list[str]]:
    """Return the commands that create the system user, or mend it; none if it is right."""
    home, shell = f"/var/lib/{name}", "/usr/sbin/nologin"
    settings = ["--home-dir", home, "--shell", shell]
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        try:
            grp.getgrnam(name)
        except KeyError:
            group = ["--user-group"]
        else:
            group = ["--gid", name]
        return [["useradd", "--system", "--no-create-home", *group, *settings, name]]
    if (user.pw_dir, user.pw_shell) != (home, shell):
        return [["usermod", "--home", home, "--shell", shell, name]]
    return []


def refuse_undeclared(role: RoleRecord, users: Iterable[str], entries: Iterable[Entry]) -> None:
    """Raise FileError for a user or a path that the role does not declare."""
    declared = role.declaration
    undeclared = [f"the user {user}" for user in users if user not in declared.users]
    undeclared += [str(entry.path) for entry in entries if not declared.covers(str(entry.path))]
    if undeclared:
        raise FileError(f"{declared.file} does not declare {', '.join(undeclared)}: add it there.")


def recorded(entry: Entry) -> dict[str, Any]:
    """Return what the record says about a path."""
    if entry.state == "link":
        return {"state": "link", "target": entry.target}
    known = {"state": entry.state, "owner": entry.owner, "group": entry.group, "mode": f"{entry.mode:04o}"}
    if entry.state == "directory":
        return known
    # What is written only once has another text later.
    text = {"sha256": digest(entry.content)} if entry.force and entry.content is not None else {}
    return {**known, **text, "secret": entry.secret}


def record_all(role: RoleRecord, users: Iterable[str], entries: Iterable[Entry]) -> None:
    """Record that everything is up to date."""
    record = role.record
    record.users = sorted({*record.users, *users})
    for entry in entries:
        path = str(entry.path)
        if entry.state == "absent":
            record.forget(path)
            continue
        if entry.state == "link" and find_change(entry._replace(force=True)):
            continue  # something else was in its place and stays
        record.paths[path] = recorded(entry)
        if entry.state == "file" and entry.path.parent == UNIT_DIRECTORY:
            record.units = sorted({*record.units, entry.path.name})
    role.end()


def update(module: AnsibleModule) -> tuple[list[str], list[dict[str, str]]]:
    """Bring everything up to date; return what changed and its diff. Raises FileError and RecordError."""
    check_mode: bool = module.check_mode
    changed: list[str] = []
    diff: list[dict[str, str]] = []
    role = RoleRecord(declaration_from(module.params["declaration"]))
    entries = load_entries(module.params, check_mode=check_mode)
    refuse_undeclared(role, module.params["user"], entries)
    lasting = [entry for entry in entries if role.declaration.records(str(entry.path))]
    adds = module.params["user"] or any(entry.state != "absent" for entry in lasting)
    if adds and not check_mode:
        role.begin(str(entry.path) for entry in lasting)
    for user in module.params["user"]:
        for command in user_commands(user):
            changed.append(f"user {user}")
            diff.append({"prepared": f"user {user}: {shlex.join(command)}\n"})
            if not check_mode:
                module.run_command(command, check_rc=True)
    changes = [change for entry in entries if (change := find_change(entry))]
    if changes and not check_mode:
        files = [change for change in changes if change.entry.path.parent != UNIT_DIRECTORY]
        units = [change for change in changes if change.entry.path.parent == UNIT_DIRECTORY]
        with tempfile.TemporaryDirectory(dir=module.tmpdir) as directory:
            validate_files(files, Path(directory))
            for change in files:
                apply(change)
            validate_units(units, Path(directory))
            for change in units:
                apply(change)
    if (adds or lasting) and not check_mode:
        record_all(role, module.params["user"], lasting)
    changed += [str(change.entry.path) for change in changes]
    return changed, diff + [describe(change) for change in changes]


def main() -> None:
    """Run the module."""
    text, flag = {"type": "str"}, {"type": "bool"}
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "list", "elements": "str", "default": []},
            "owner": {**text, "default": "root"},
            "group": {**text, "default": "root"},
            "mode": {**text, "default": "0644"},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {**text, "required": True},
                    "state": {
                        **text,
                        "choices": ["file", "directory", "link", "absent"],
                        "default": "file",
                    },
                    "remote_src": text,
                    "target": text,
                    "owner": text,
                    "group": text,
                    "mode": text,
                    "validate": text,
                    "force": {**flag, "default": True},
                    "secret": {**flag, "default": False},
                },
            },
            "units": {"type": "list", "elements": "str", "default": []},
            # Opaque, and never in the host's journal: it has the secrets' texts.
            "contents": {**text, "default": "", "no_log": True},
            "declaration": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        changed, diff = update(module)
    except (FileError, RecordError, OSError) as error:
        module.fail_json(msg=str(error))
    result: dict[str, Any] = {"changed": bool(changed), "changed_paths": changed}
    if module._diff:
        result["diff"] = diff
    module.exit_json(**result)


if __name__ == "__main__":
    main()
