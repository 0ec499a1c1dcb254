"""The pre-commit hooks are exactly the linters of `make lint`."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]


def test_hooks_run_what_make_lint_runs() -> None:
    linters = re.search(r"\|\| set -- (.+)$", (ROOT / "scripts/lint").read_text(), re.MULTILINE)
    assert linters, "scripts/lint has no list of linters"
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert entries == [f"scripts/lint {name}" for name in linters[1].split()]
