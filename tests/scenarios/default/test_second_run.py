"""A second run of site.yml, which molecule's step `idempotence` was: it changed nothing and was quick."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support.stack import Stack

# 5 % more than measured on 2026-11-28: 33 and 164, of which 13 tasks check the values of the settings.
# A module run costs 0.3 s, a task 0.05 s.
MAX_MODULE_RUNS = 34
MAX_TASKS = 172


def test_it_started_few_tasks_and_ran_few_modules_on_the_host(stack: Stack) -> None:
    """The callback host_tasks counted them."""
    counted = json.loads(Path(os.environ["BEDPLATE_HOST_TASKS"]).read_text())
    runs, tasks = counted["module_runs"][stack.name], counted["tasks"]
    print(
        f"\n{runs} module runs on the host of {MAX_MODULE_RUNS}, {tasks} tasks of {MAX_TASKS}, "
        f"{counted['cpu_seconds']} s of the control machine's CPU time"
    )
    assert 0 < runs <= MAX_MODULE_RUNS
    assert 0 < tasks <= MAX_TASKS


def test_check_mode_would_change_nothing(stack: Stack) -> None:
    assert stack.play("--check", "--diff") == 0
