# SPDX-License-Identifier: Apache-2.0
"""Checks the values of a host's settings: their types by the argument_specs, the rest by settings.yml."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
module: settings_check
short_description: Check the values of a host's settings before anything uses them
description:
  - Evaluates each setting that a user may change and that is defined for the host. Checks its type by the
    roles' argument_specs, and its range or its characters by playbooks/settings.yml.
  - Of one role, checks also that what the wiring has to set is there and has its type. It replaces Ansible's
    own check of the argument_specs, which runs again at each import of a role.
  - Runs on the control machine, needs no connection and changes nothing.
  - Fails with one line for each wrong value, which has the setting's name, the value and the remedy.
options:
  role:
    description: The role whose variables are checked; the settings of all, and the host's name, where absent.
    type: str
author: Bedplate
"""

EXAMPLES = r"""
- name: Check the settings
  settings_check:
    role: ollama
"""

RETURN = r"""
msg:
  description: The wrong values, one line each.
  returned: failure
  type: str
"""

ROOT = Path(__file__).resolve().parents[2]
Spec = Mapping[str, Any]
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "y", "n", "t", "f", "1", "0", "1.0", "0.0")
"""What Ansible takes for a boolean, as text in lower case."""
MAX_SHOWN = 80
"""Characters of a value that a message shows."""
PASSWORD = re.compile(r"//[^/]*@")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
HOST_NAME = "inventory_hostname"


def load(path: Path) -> dict[str, Any]:
    """Return a YAML file of this repository."""
    with path.open(encoding="utf-8") as file:
        # As safe as safe_load, and 10 times faster.
        document: dict[str, Any] = yaml.load(file, LOADER)  # noqa: S506
    return document


class Table:
    """The rows of settings.yml."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.kinds = {
            name: (re.compile(kind["pattern"]), str(kind["remedy"]))
            for name, kind in document["setting_kinds"].items()
        }
        self.rows: dict[str, str | list[float]] = document["settings"]

    def problem(self, rule: str, value: Any) -> str | None:
        """Return the remedy if the row does not accept the value; a value without a row is accepted."""
        row = self.rows.get(rule)
        if isinstance(row, list):
            number = as_number(value)
            least, most = row
            return None if number is not None and least <= number <= most else f"use {least} to {most}"
        if row is None:
            return None
        pattern, remedy = self.kinds[row]
        return None if pattern.fullmatch(str(value)) else remedy


def as_number(value: Any) -> float | None:
    """Return the number that a value is, or is written as; None for others, and for what is not finite."""
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,18}(\.\d{1,18})?", str(value)):
        # YAML reads 1e3 as text and 1.0e+3 as a number.
        return value if isinstance(value, float) and math.isfinite(value) else None
    text = str(value)
    return float(text) if "." in text else int(text)


def has_secret(spec: Spec) -> bool:
    """Return whether a setting is a secret or contains one."""
    return bool(spec.get("no_log")) or any(map(has_secret, spec.get("options", {}).values()))


def shown(value: Any, secret: bool = False) -> str:
    """Return a value for a message: in one line, without control characters and not too long."""
    if secret or PASSWORD.search(str(value)):
        return "not shown here"
    text = repr(value) if not isinstance(value, int | float) or isinstance(value, bool) else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def type_problem(value: Any, spec: Spec) -> str | None:
    """Return the remedy if a value has not its declared type."""
    kind = spec.get("type", "str")
    if kind == "bool":
        return None if str(value).lower() in BOOLEANS else "use true or false"
    if kind == "int":
        return None if isinstance(as_number(value), int) else "use a whole number"
    if kind == "float":
        return None if as_number(value) is not None else "use a number"
    if kind == "list":
        return None if isinstance(value, list) else "write a list, such as [FIRST, SECOND]"
    if kind == "dict":
        return None if isinstance(value, dict) else "write a dictionary, such as {NAME: VALUE}"
    # YAML reads some texts as numbers, times or booleans.
    return None if isinstance(value, str | int | float | date) else "write a text"


class Checker:
    """Finds what is wrong with values."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def problems(self, path: str, rule: str, value: Any, spec: Spec) -> Iterator[str]:
        """Iterate over what is wrong with a value; `path` names it for people, `rule` in the table."""
        if value is None:
            if "default" not in spec or spec["default"] is not None:
                yield f"{path} is empty: set a value, or remove the line for the default."
            return
        choices = spec.get("choices")
        # Its role checks what is raw.
        remedy = None if spec.get("type") == "raw" else type_problem(value, spec)
        if not remedy and choices and str(value) not in map(str, choices):
            remedy = f"use {', '.join(str(choice) or 'an empty text' for choice in choices)}"
        if not remedy and spec.get("type", "str") not in ("list", "dict", "raw"):
            remedy = self.table.problem(rule, value)
        if remedy:
            yield f"{path} is {shown(value, has_secret(spec))}: {remedy}."
        elif spec.get("type") == "raw":
            return
        elif isinstance(value, list):
            inner = {**spec, "type": spec.get("elements", "str"), "choices": None}
            for number, element in enumerate(value):
                yield from self.problems(f"{path}[{number}]", f"{rule}[]", element, inner)
        elif isinstance(value, dict) and "options" in spec:
            yield from self.options(path, rule, value, spec["options"])
        elif isinstance(value, dict):
            yield from self.entries(path, rule, value, has_secret(spec))

    def options(self, path: str, rule: str, value: Mapping[Any, Any], options: Spec) -> Iterator[str]:
        """Iterate over what is wrong with a dictionary that has declared options."""
        for name in [str(name) for name in value if name not in options]:
            yield f"{path} has {shown(name)}: use only {', '.join(options)}."
        for name, option in options.items():
            if name in value:
                yield from self.problems(f"{path}.{name}", f"{rule}.{name}", value[name], option)
            # An empty dictionary switches off what it describes.
            elif option.get("required") and (value or "[" in rule):
                yield f"{path} has no {name}: add it. {option['description']}"

    def entries(self, path: str, rule: str, value: Mapping[Any, Any], secret: bool) -> Iterator[str]:
        """Iterate over what is wrong with a dictionary of any names."""
        for name, entry in value.items():
            if remedy := self.table.problem(f"{rule}.KEY", name):
                yield f"{path} has the name {shown(name)}: {remedy}."
                continue
            inner = f"{rule}.{name}" if f"{rule}.{name}" in self.table.rows else f"{rule}.VALUE"
            for part in entry if isinstance(entry, list) and f"{inner}[]" in self.table.rows else [entry]:
                if not isinstance(part, str | int | float):
                    yield f"{path}.{name} is {shown(part, secret)}: write a text or a number."
                elif remedy := self.table.problem(inner, part):
                    yield f"{path}.{name} is {shown(part, secret)}: {remedy}."


def settings_of(role: str | None) -> dict[str, Spec]:
    """Return the settings that a user may change, of all roles, or of one with what the wiring sets."""
    files = sorted((ROOT / "roles").glob(f"{role or '*'}/meta/argument_specs.yml"))
    specs = [load(file)["argument_specs"] for file in files]
    options = [spec["main"]["options"].items() for spec in specs if "validate" in spec]
    # The wiring sets what is required.
    return {name: option for group in options for name, option in group if role or not option.get("required")}


def plain(value: Any) -> Any:
    """Return a value without Ansible's own types, which are evaluated when they are read."""
    if isinstance(value, Mapping):
        return {plain(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Action plugin settings_check."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return success, or a failure with one line for each wrong value."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec({"role": {"type": "str"}})
        checker = Checker(Table(load(ROOT / "playbooks/settings.yml")))
        settings = settings_of(args["role"])
        if not args["role"]:
            settings[HOST_NAME] = {"type": "str"}
        found: list[str] = []
        wired: dict[str, Any] = {}
        for name, spec in settings.items():
            if name not in task_vars:
                continue
            try:
                value = plain(self._templar.template(task_vars[name]))
            except AnsibleError as error:
                reason = str(error).splitlines()[0].rstrip(".")
                given = shown(task_vars[name], has_secret(spec))
                found.append(f"{name} is {given}, which Ansible cannot evaluate ({reason}): correct it.")
                continue
            if spec.get("required"):
                wired[name] = value
            else:
                found += checker.problems(name, name, value, spec)
        required = {name: spec for name, spec in settings.items() if spec.get("required")}
        found += ArgumentSpecValidator(required).validate(wired).error_messages
        result.update(changed=False, failed=bool(found))
        if found:
            result["msg"] = "\n".join(found)
        return result
