"""The pre-commit hooks are exactly the linters of `make lint`."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]


def test_hooks_run_what_make_lint_runs() -> None:
    line = re.search(r"^lint: (.*?) ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line, "the Makefile has no target lint"
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert entries == [f"make {target}" for target in line[1].split()]
