"""A second run of site.yml, which molecule's step `idempotence` was: it changed nothing and was quick."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support.stack import Stack

# Each costs 0.3 s.
MAX_MODULE_RUNS = 119


def test_it_ran_few_modules_on_the_host(stack: Stack) -> None:
    """The callback host_tasks counted them."""
    runs = json.loads(Path(os.environ["BEDPLATE_HOST_TASKS"]).read_text())[stack.name]
    print(f"\n{runs} module runs on the host; {MAX_MODULE_RUNS} are allowed")
    assert 0 < runs <= MAX_MODULE_RUNS


def test_check_mode_would_change_nothing(stack: Stack) -> None:
    assert stack.play("--check", "--diff") == 0
