# SPDX-License-Identifier: Apache-2.0
"""Times the tasks of a run and writes two tables, by action and by play."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ansible.executor.task_result import CallbackTaskResult
from ansible.playbook.play import Play
from ansible.playbook.task import Task
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: task_times
type: aggregate
short_description: Time the tasks of a run
description:
  - A task lasts until the next one begins.
  - At the end it writes two tables in Markdown to the file that BEDPLATE_TASK_TIMES names.
"""


@dataclass
class Timed:
    """One task: its action, its play, its duration in seconds and whether any host ran it."""

    action: str
    play: str
    started: float
    seconds: float = 0.0
    ran: bool = False


def table(title: str, rows: Iterable[tuple[str, list[Timed]]]) -> list[str]:
    """Return a Markdown table, the longest row first."""
    lines = [f"| {title} | seconds | tasks | each |", "|---|---|---|---|"]
    for name, tasks in sorted(rows, key=lambda row: -sum(task.seconds for task in row[1])):
        seconds = sum(task.seconds for task in tasks)
        lines.append(f"| {name} | {seconds:.1f} | {len(tasks)} | {seconds / len(tasks):.2f} |")
    return lines


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible ships no types
    """Times the tasks and writes the tables at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_times"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Timed] = []
        self.play = ""

    def v2_playbook_on_play_start(self, play: Play) -> None:
        """Remember the play."""
        self._end_task()
        self.play = play.get_name()

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        """Begin a task, which ends the one before."""
        del is_conditional
        self._end_task()
        self.tasks.append(Timed(str(task.action).rpartition(".")[2], self.play, time.monotonic()))

    def v2_playbook_on_handler_task_start(self, task: Task) -> None:
        """Begin a handler."""
        self.v2_playbook_on_task_start(task, is_conditional=False)

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Remember that a host ran the task."""
        del result
        self.tasks[-1].ran = True

    def v2_playbook_on_stats(self, stats: object) -> None:
        """Write the tables."""
        del stats
        self._end_task()
        actions: dict[str, list[Timed]] = {}
        plays: dict[str, list[Timed]] = {}
        for task in self.tasks:
            actions.setdefault(task.action if task.ran else "(skipped)", []).append(task)
            plays.setdefault(task.play, []).append(task)
        lines = [*table("action", actions.items()), "", *table("play", plays.items())]
        Path(os.environ["BEDPLATE_TASK_TIMES"]).write_text("\n".join(lines) + "\n")

    def _end_task(self) -> None:
        if self.tasks and not self.tasks[-1].seconds:
            self.tasks[-1].seconds = time.monotonic() - self.tasks[-1].started
