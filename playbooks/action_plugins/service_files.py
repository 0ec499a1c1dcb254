# SPDX-License-Identifier: Apache-2.0
"""Renders the texts of a service's files and units on the control machine and runs the module on the host.

Where `__bedplate_expecting` is true (playbooks/compare.yml), it runs nothing: it adds the arguments, with a
hash in place of each text, to the fact bedplate_rendered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

ROOT = Path(__file__).resolve().parents[2]
UNIT_TEMPLATES = ROOT / "templates/systemd"
UNIT_DIRECTORY = "/etc/systemd/system"
SOURCES = ("content", "template", "src", "remote_src")
BRACKETS = ("variable_start_string", "variable_end_string")
RENDERING = ("content", "template", "src", *BRACKETS)


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Action plugin service_files."""

    _supports_check_mode = True
    _supports_diff = True

    def _render(self, template: str, task_vars: dict[str, Any], **brackets: str) -> str:
        """Return the text of a template."""
        lookup = self._shared_loader_obj.lookup_loader.get(
            "ansible.builtin.template", loader=self._loader, templar=self._templar
        )
        return str(lookup.run([template], variables=task_vars, **brackets)[0])

    def _text(self, entry: Mapping[str, Any], task_vars: dict[str, Any]) -> str | None:
        """Return the text of an entry; None if the host has it, or the entry has none."""
        given = [source for source in SOURCES if entry.get(source) is not None]
        needed = entry.get("state", "file") == "file"
        if len(given) != needed:
            raise AnsibleActionFail(
                f"{entry.get('path')}: a file needs one of {', '.join(SOURCES)}, others none."
            )
        if "content" in given:
            return str(entry["content"])
        if "template" in given:
            brackets = {name: entry[name] for name in BRACKETS if name in entry}
            return self._render(entry["template"], task_vars, **brackets)
        if "src" in given:
            return Path(self._find_needle("files", entry["src"])).read_text()
        return None

    def _declaration(self, role: str) -> dict[str, Any]:
        """Return what a role, or the task's own, may leave on a host; raises AnsibleActionFail."""
        own = self._task._role
        if not role and own is None:
            raise AnsibleActionFail("service_files: a task outside of a role needs `role`.")
        folder = ROOT / "roles" / role if role else Path(own._role_path)
        file = folder / "meta/host.yml"
        if not file.exists():
            raise AnsibleActionFail(f"{file} is missing: declare there what the role leaves on a host.")
        declared = yaml.safe_load(self._templar.template(trust_as_template(file.read_text())))
        name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        return {**declared, "role": folder.name, "file": str(name)}

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        arguments["declaration"] = self._declaration(str(arguments.pop("role", "") or ""))
        contents = {}
        files = []
        for entry in arguments.pop("files", []):
            text = self._text(entry, task_vars)
            if text is not None:
                contents[str(entry["path"])] = text
            files.append({name: value for name, value in entry.items() if name not in RENDERING})
        for unit in arguments.get("units", []):
            contents[f"{UNIT_DIRECTORY}/{unit}"] = self._render(str(UNIT_TEMPLATES / f"{unit}.j2"), task_vars)
        if task_vars.get("__bedplate_expecting"):
            hashes = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in contents.items()}
            before = task_vars["ansible_facts"].get("bedplate_rendered", [])
            facts = {"bedplate_rendered": [*before, {**arguments, "files": files, "hashes": hashes}]}
            result.update(changed=False, ansible_facts=facts)
            return result
        packed = base64.b64encode(zlib.compress(json.dumps(contents).encode())).decode()
        arguments.update(files=files, contents=packed)
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        # It would repeat every text.
        result.pop("invocation", None)
        return result
