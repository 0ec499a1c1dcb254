# SPDX-License-Identifier: Apache-2.0
"""Runs the module ollama_model; a pull runs in the background, with its progress on the screen."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

POLL_SECONDS = 5
LONGEST_SECONDS = 48 * 3600
"""After which a pull is given up; the next run resumes it."""

JOB_FIELDS = frozenset({"ansible_job_id", "started", "finished", "results_file", "stdout", "stderr"})
"""What async_status adds to the module's result."""


def describe(text: str) -> str:
    """Return one line for the text of a progress file; empty where it has nothing to tell."""
    try:
        progress = json.loads(text)
        done, total, speed = (int(progress[field]) for field in ("done", "total", "per_second"))
        words = [f"{progress['model']}: {100 * done // total} % of {size(total)}"]
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        return ""
    if speed > 0:
        words += [f"{size(speed)}/s", f"{duration((total - done) / speed)} left"]
    return ", ".join(words)


def size(count: float) -> str:
    """Return bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Return seconds in words."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible ships no types
    """Action plugin ollama_model."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        progress = self._task.args.get("progress")
        if self._task.check_mode or not progress:
            done: dict[str, Any] = self._execute_module(task_vars=task_vars)
            return result | done
        # The executor would wait for a task with a limit itself, without a word.
        self._task.async_val = LONGEST_SECONDS
        try:
            started: dict[str, Any] = self._execute_module(task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = 0
        if "ansible_job_id" not in started:
            return result | started
        return result | self._wait(started["ansible_job_id"], str(progress), task_vars)

    def _wait(self, job: str, file: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        folder = self._remote_expand_user(self.get_shell_option("async_dir", default="~/.ansible_async"))
        display = Display()
        host = (task_vars or {}).get("inventory_hostname", "")

        def ask(mode: str) -> dict[str, Any]:
            status: dict[str, Any] = self._execute_module(
                module_name="ansible.legacy.async_status",
                module_args={"jid": job, "mode": mode, "_async_dir": folder},
                task_vars=task_vars,
            )
            return status

        while True:
            time.sleep(POLL_SECONDS)
            status = ask("status")
            if status.get("finished") or status.get("failed"):
                ask("cleanup")
                return {name: value for name, value in status.items() if name not in JOB_FIELDS}
            shown = self._low_level_execute_command(f"cat {shlex.quote(file)} 2>/dev/null || true")
            if line := describe(shown["stdout"]):
                display.display(f"{host}: {line}")
