# SPDX-License-Identifier: Apache-2.0
"""Writes a file on the control machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
module: control_file
short_description: Write a file on the control machine
description:
  - Replaces the file at once, so that no process reads half of it. Everyone may read it.
  - Needs no connection and starts no interpreter, as C(copy) on localhost does three times.
  - Does nothing in check mode.
options:
  path:
    description: The file's path.
    type: path
    required: true
  content:
    description: Its text.
    type: str
    required: true
author: Bedplate
"""

EXAMPLES = r"""
- name: Write the report
  control_file:
    path: reports/verify.json
    content: "{{ report | to_nice_json }}"
  run_once: true
"""


def write(path: Path, content: str) -> bool:
    """Write a text and return whether the file had another; raises OSError."""
    if path.is_file() and path.read_text() == content:
        return False
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        new = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
    return True


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Action plugin control_file."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return whether the file changed."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {"path": {"type": "path", "required": True}, "content": {"type": "str", "required": True}}
        )
        result["changed"] = False
        if not self._task.check_mode:
            try:
                result["changed"] = write(Path(args["path"]), args["content"])
            except OSError as error:
                raise AnsibleActionFail(f"{args['path']} cannot be written: {error.strerror}.") from None
        return result
