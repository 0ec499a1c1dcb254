# SPDX-License-Identifier: Apache-2.0
"""Sends a program's own wheel with the module that installs it, which saves a copy's round trips."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Action plugin python_release."""

    _supports_async = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("wheel"):
            content = Path(arguments["wheel"]).read_bytes()
            arguments["wheel_content"] = base64.b64encode(content).decode()
        found = self._execute_module(
            module_args=arguments, task_vars=task_vars, wrap_async=self._task.async_val
        )
        result.update(found)
        # It would repeat the wheel.
        result.pop("invocation", None)
        return result
