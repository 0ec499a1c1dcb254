# SPDX-License-Identifier: Apache-2.0
"""Counts the module runs of a play on its hosts: what a run that changes nothing spends its time on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ansible.executor.task_result import CallbackTaskResult
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: host_tasks
type: aggregate
short_description: Count the module runs on each host
description:
  - Each task that ran on a host counts, each item of a loop for itself. What Ansible decides on the control
    machine, and what is delegated there, does not.
  - Says at the end how many there were and how long all of it took.
  - Writes a JSON object, the number by host, to the file that BEDPLATE_HOST_TASKS names.
"""

CONTROL_SIDE = {
    "add_host",
    "assert",
    "debug",
    "fail",
    "group_by",
    "include_role",
    "include_tasks",
    "include_vars",
    "meta",
    "pause",
    "set_fact",
    "validate_argument_spec",
}


class CallbackModule(CallbackBase):
    """Counts while the play runs and writes the numbers at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "host_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()
        self.counts: dict[str, int] = {}
        self.started = time.monotonic()

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Count a task that went well."""
        self._count(result)

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """Count a task that failed, whatever becomes of it."""
        del ignore_errors
        self._count(result)

    def v2_playbook_on_stats(self, stats: object) -> None:
        """Say and write the numbers."""
        del stats
        numbers = ", ".join(f"{host} {count}" for host, count in sorted(self.counts.items())) or "none"
        self._display.display(f"Module runs: {numbers}; {time.monotonic() - self.started:.0f} s")
        if target := os.environ.get("BEDPLATE_HOST_TASKS"):
            Path(target).write_text(json.dumps(self.counts) + "\n")

    def _count(self, result: CallbackTaskResult) -> None:
        action = str(result.task.action).rpartition(".")[2]
        if (
            action in CONTROL_SIDE
            or result.task.delegate_to == "localhost"
            or result.host.name == "localhost"
        ):
            return
        items = result.result.get("results")
        runs = 1 if not result.task.loop else sum(not item.get("skipped", False) for item in items or [])
        self.counts[result.host.name] = self.counts.get(result.host.name, 0) + runs
