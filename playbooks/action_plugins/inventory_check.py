# SPDX-License-Identifier: Apache-2.0
"""Checks the names that an inventory and `-e` set: finds old, wired, internal and misspelt ones."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ansible.inventory.group import Group
from ansible.inventory.host import Host
from ansible.inventory.manager import InventoryManager
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

DOCUMENTATION = r"""
module: inventory_check
short_description: Find names in the inventory that Bedplate does not know or sets itself
description:
  - Reads the inventory sources of this run again, without the group_vars next to the playbooks, and the extra
    variables. It therefore also finds names that the playbooks' own group_vars override.
  - Reads names only; values are neither templated nor decrypted. Files that are encrypted as a whole are
    decrypted with the run's own vault secrets.
  - Runs on the control machine, needs no connection and changes nothing.
options:
  known:
    description: Names that a user may set.
    type: list
    elements: str
    required: true
  wired:
    description:
      - Names that only Bedplate's own group_vars set. The value is the variable to use instead, or a remedy
        in words, or empty.
    type: dict
    default: {}
  renamed:
    description: Names of earlier releases.
    type: list
    elements: dict
    default: []
    suboptions:
      old:
        description: The name of an earlier release.
        type: str
        required: true
      new:
        description: Its current name; absent for a removed variable.
        type: str
      why:
        description: For a removed variable, what to do instead.
        type: str
      since:
        description: The day of the change.
        type: str
        required: true
  changed:
    description: Names that have another meaning or default than in an earlier release.
    type: list
    elements: dict
    default: []
    suboptions:
      changed:
        description: The name.
        type: str
        required: true
      affects:
        description: Whether the change affects inventories that set it, those that leave it unset, or all.
        type: str
        choices: [set, unset, all]
        required: true
      what:
        description: What changed, and the remedy.
        type: str
        required: true
      since:
        description: The day of the change.
        type: str
        required: true
  validated:
    description: The day of the last change that the inventory takes into account; empty for none.
    type: str
    default: ""
author: Bedplate
"""

EXAMPLES = r"""
- name: Find names that the inventory should not set
  inventory_check:
    known: [ollama_models, gateway_extra_backends]
    wired: {gateway_engines: gateway_extra_backends}
    renamed: [{old: litellm_port, new: gateway_port, since: "2026-11-27"}]
  delegate_to: localhost
  run_once: true
  register: preflight_names
"""

RETURN = r"""
findings:
  description: One entry per name or group, sorted by name; empty if nothing is wrong.
  returned: always
  type: list
  elements: dict
  contains:
    host_or_group:
      description: The first place that sets the name, such as `group inference`, `host gpu1` or `extra vars`.
      type: str
    name:
      description: The name.
      type: str
    kind:
      description: One of renamed, wired, internal, typo (a variable) and group (a group's name).
      type: str
    message:
      description: One sentence for the user.
      type: str
paste:
  description: The shell command that replaces old names in the inventory's files; empty if there are none.
  returned: always
  type: str
changes:
  description: One sentence for each change after C(validated) that affects the inventory, oldest first.
  returned: always
  type: list
  elements: str
newest:
  description: The day of the newest change, for the inventory to name.
  returned: always
  type: str
validated_file:
  description: The inventory's file that names the day, or in which it should.
  returned: always
  type: str
"""

PREFIXES = (
    "alertmanager_",
    "bedplate_",
    "dashboard_",
    "exporter_",
    "gateway_",
    "gpu_driver_",
    "litellm_",
    "node_exporter_",
    "ollama_",
    "prometheus_",
    "traffic_",
    "verify_",
)
GROUPS = ("inference", "gateway", "monitoring")
MIN_LIKENESS = 0.88
"""Minimum difflib ratio of a misspelt name; one wrong letter in a name of six gives 0.83 to 0.92."""
EXTRA_VARS = "extra vars"
VALIDATED = "bedplate_validated"


class Renamed(NamedTuple):
    """A name of an earlier release; `new` is its current name, or None with the remedy in `why`."""

    old: str
    since: str
    new: str | None = None
    why: str | None = None


class Changed(NamedTuple):
    """A name with another meaning or default; `affects` is set, unset or all."""

    changed: str
    affects: str
    what: str
    since: str


class Finding(NamedTuple):
    """One name that is not allowed; `kind` is renamed, wired, internal, typo or group."""

    host_or_group: str
    name: str
    kind: str
    message: str


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that the word probably misspells, or None."""
    near = difflib.get_close_matches(word.lower(), list(candidates), n=1, cutoff=MIN_LIKENESS)
    return near[0] if near else None


def _describe_places(places: list[str]) -> str:
    """Return the phrase that names the first place and the number of the others."""
    first = "on the command line (-e)" if places[0] == EXTRA_VARS else f"for {places[0]}"
    more = len(places) - 1
    return first if not more else f"{first} and {more} more place{'s' if more > 1 else ''}"


def check_names(
    places_by_name: Mapping[str, list[str]],
    known: Iterable[str],
    wired: Mapping[str, str],
    renamed: Iterable[Renamed] = (),
) -> list[Finding]:
    """Check variable names; `places_by_name` maps each to its places (`group x`, `host x`, EXTRA_VARS)."""
    public = set(known) - set(wired)
    old_names = {row.old: row for row in renamed}
    findings = []
    for name, places in sorted(places_by_name.items()):
        where = f"{name} is set {_describe_places(places)}, but"
        if name in public or name.startswith("ansible_"):
            continue
        if row := old_names.get(name):
            kind, message = "renamed", f"{where} {_describe_renaming(row, wired)}"
        elif name in wired:
            remedy = wired[name].strip().rstrip(".") or "remove it"
            remedy = f"set {remedy} instead" if remedy.isidentifier() else remedy
            kind, message = "wired", f"{where} Bedplate sets it itself; {remedy}."
        elif name.startswith("__") and name.lstrip("_").startswith(PREFIXES):
            kind, message = "internal", f"{where} names that begin with __ are Bedplate's own; remove it."
        elif guess := nearest(name, public):
            kind, message = "typo", f"{where} Bedplate has no such variable; did you mean {guess}?"
        elif name.startswith(PREFIXES):
            kind, message = "typo", f"{where} Bedplate has no such variable; remove it or rename it."
        else:
            continue
        findings.append(Finding(places[0], name, kind, message))
    return findings


def _describe_renaming(row: Renamed, wired: Mapping[str, str]) -> str:
    """Return what to write instead of a name of an earlier release."""
    if row.new is None:
        return f"it was removed on {row.since}; {row.why}."
    if row.new in wired:
        return f"it was renamed to {row.new} on {row.since} and Bedplate sets it itself; remove it."
    return f"it was renamed to {row.new} on {row.since}; write {row.new} instead."


def check_changes(
    places_by_name: Mapping[str, list[str]], rows: Iterable[Changed], validated: str
) -> list[str]:
    """Return a sentence for each change after the day `validated` that affects the inventory."""
    found = []
    for row in sorted(rows, key=lambda row: (row.since, row.changed)):
        places = places_by_name.get(row.changed, [])
        affected = {"set": bool(places), "unset": not places, "all": True}[row.affects]
        if affected and row.since > validated:
            where = f"set {_describe_places(places)}" if places else "not set"
            found.append(f"{row.since}: {row.changed} ({where}): {row.what}")
    return found


def validated_file(sources: Sequence[Path]) -> Path | str:
    """Return the inventory's file that names the validated day, or the one in which it should be."""
    for path in inventory_files(sources):
        if re.search(rf"^{VALIDATED}:", path.read_text(errors="replace"), re.MULTILINE):
            return path
    folders = [source if source.is_dir() else source.parent for source in sources if source.exists()]
    if not folders:
        return "group_vars/all.yml of your inventory"
    group_vars = folders[0] / "group_vars"
    return group_vars / "all/main.yml" if (group_vars / "all").is_dir() else group_vars / "all.yml"


def inventory_files(sources: Iterable[Path]) -> Iterator[Path]:
    """Iterate over the files from which Ansible reads an inventory's variables."""
    for source in sources:
        if source.is_dir():
            yield from (path for path in sorted(source.rglob("*")) if path.is_file())
            continue
        # A list of hosts (-i box,) is no file.
        if source.is_file():
            yield source
        for folder in ("group_vars", "host_vars"):
            yield from (path for path in sorted((source.parent / folder).rglob("*")) if path.is_file())


def renaming_command(new_names: Mapping[str, str], files: Iterable[Path]) -> str:
    """Return the sed command that renames variables (old to new) in the files that have them, or ''."""
    pattern = re.compile(rf"\b({'|'.join(new_names)})\b")
    found = {path: set(pattern.findall(path.read_text(errors="replace"))) for path in files if new_names}
    old_names = sorted(set().union(*found.values()))
    if not old_names:
        return ""
    script = "; ".join(rf"s/\b{old}\b/{new_names[old]}/g" for old in old_names)
    return shlex.join(["sed", "-i", script, *(str(path) for path, names in found.items() if names)])


def check_groups(sizes: Mapping[str, int]) -> list[Finding]:
    """Check group names; `sizes` maps each to its number of hosts, including those of sub-groups."""
    findings = []
    absent = [group for group in GROUPS if not sizes.get(group)]
    for name in sorted(sizes):
        guess = nearest(name, absent)
        if guess and name not in GROUPS and name not in ("all", "ungrouped"):
            state = "is empty" if guess in sizes else "is missing"
            message = f"the inventory has a group {name}, but group {guess} {state}; did you mean {guess}?"
            findings.append(Finding(f"group {name}", name, "group", message))
    return findings


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Action plugin inventory_check."""

    _requires_connection = False
    _supports_check_mode = True

    def _names(
        self, sources: list[str], inventory: InventoryManager, playbook_dir: str
    ) -> dict[str, list[str]]:
        """Map each name that the inventory or -e sets to the places that set it."""
        # With an inventory file next to the playbooks, their group_vars would count as the user's.
        wiring = Path(playbook_dir).resolve()
        dirs = {source: Path(source) if Path(source).is_dir() else Path(source).parent for source in sources}
        users = [source for source in sources if dirs[source].resolve() != wiring]
        names: dict[str, list[str]] = {}
        entities: list[Group | Host] = [*inventory.groups.values(), *inventory.hosts.values()]
        for entity in entities:
            place = f"{'host' if isinstance(entity, Host) else 'group'} {entity.name}"
            file_vars = get_vars_from_inventory_sources(self._loader, users, [entity], "task")
            for name in dict.fromkeys([*entity.vars, *file_vars]):
                names.setdefault(str(name), []).append(place)
        for name in load_extra_vars(loader=self._loader):
            names.setdefault(str(name), []).append(EXTRA_VARS)
        return names

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the findings; the task succeeds even if there are some."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "known": {"type": "list", "elements": "str", "required": True},
                "wired": {"type": "dict", "default": {}},
                "renamed": {
                    "type": "list",
                    "elements": "dict",
                    "default": [],
                    "options": {
                        "old": {"type": "str", "required": True},
                        "new": {"type": "str"},
                        "why": {"type": "str"},
                        "since": {"type": "str", "required": True},
                    },
                },
                "changed": {
                    "type": "list",
                    "elements": "dict",
                    "default": [],
                    "options": {
                        "changed": {"type": "str", "required": True},
                        "affects": {"type": "str", "choices": ["set", "unset", "all"], "required": True},
                        "what": {"type": "str", "required": True},
                        "since": {"type": "str", "required": True},
                    },
                },
                "validated": {"type": "str", "default": ""},
            }
        )
        sources = [str(source) for source in task_vars.get("ansible_inventory_sources") or []]
        # Read it again: the run's own inventory also has variables of add_host and the playbooks' group_vars.
        inventory = InventoryManager(loader=self._loader, sources=sources)
        names = self._names(
            sources, inventory, str(task_vars.get("playbook_dir", self._loader.get_basedir()))
        )
        wired = {str(name): str(remedy or "") for name, remedy in args["wired"].items()}
        sizes = {name: len(group.get_hosts()) for name, group in inventory.groups.items()}
        renamed = [Renamed(**row) for row in args["renamed"]]
        findings = check_names(names, args["known"], wired, renamed) + check_groups(sizes)
        new_names = {
            row.old: row.new for row in renamed if row.old in names and row.new and row.new not in wired
        }
        paths = [Path(source) for source in sources]
        rows = [Changed(**row) for row in args["changed"]]
        result.update(
            changed=False,
            findings=[finding._asdict() for finding in findings],
            paste=renaming_command(new_names, inventory_files(paths)),
            changes=check_changes(names, rows, args["validated"]),
            newest=max((row.since for row in rows), default=""),
            validated_file=str(validated_file(paths)),
        )
        return result
