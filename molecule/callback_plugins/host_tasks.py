# SPDX-License-Identifier: Apache-2.0
"""Counts what makes a run without changes long: tasks, module runs and the control machine's CPU time."""

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
short_description: Count tasks, module runs on each host, and CPU time
description:
  - Counts each task that ran on a host, and each item of a loop separately. Tasks that run on the control
    machine or are delegated to it do not count.
  - Counts every task that began, also where it was skipped.
  - Takes the CPU time of this process and its children, without other processes of the control machine.
  - Prints the numbers and the duration at the end.
  - Writes them as a JSON object to the file that BEDPLATE_HOST_TASKS names, except after a play that ran no
    module on a host.
"""

CONTROL_SIDE = {
    "add_host",
    "assert",
    "control_file",
    "debug",
    "fail",
    "group_by",
    "include_role",
    "include_tasks",
    "include_vars",
    "meta",
    "pause",
    "set_fact",
    "settings_check",
    "validate_argument_spec",
    "wheel",
}


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible ships no types
    """Counts during the play and writes the numbers at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "host_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.tasks = 0
        self.started = time.monotonic()

    def v2_playbook_on_task_start(self, task: object, is_conditional: bool) -> None:
        """Count a task that begins."""
        del task, is_conditional
        self.tasks += 1

    def v2_playbook_on_handler_task_start(self, task: object) -> None:
        """Count a handler that begins."""
        del task
        self.tasks += 1

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Count a successful task."""
        self._count(result)

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """Count a failed task, also if its failure is ignored."""
        del ignore_errors
        self._count(result)

    def v2_playbook_on_stats(self, stats: object) -> None:
        """Print and write the numbers."""
        del stats
        numbers = ", ".join(f"{host} {count}" for host, count in sorted(self.counts.items())) or "none"
        times = os.times()
        cpu = sum(times[:4])
        duration = time.monotonic() - self.started
        self._display.display(
            f"Module runs: {numbers}; {self.tasks} tasks, {cpu:.1f} s of CPU time, {duration:.0f} s"
        )
        # molecule runs verify after idempotence, the run that counts.
        if self.counts and (target := os.environ.get("BEDPLATE_HOST_TASKS")):
            document = {"module_runs": self.counts, "tasks": self.tasks, "cpu_seconds": round(cpu, 1)}
            Path(target).write_text(json.dumps(document) + "\n")

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
