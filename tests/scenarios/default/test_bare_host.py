"""site.yml in check mode, before anything is installed. Molecule's step `prepare` runs these tests."""

from __future__ import annotations

import os
import re

from tests.support.host_state import look
from tests.support.stack import ROOT, Stack, run_playbook

# What test_declaration.py compares the installed host with. The scenario debian12 runs at the same time.
BARE_HOST = ROOT / f"reports/bare-host-{os.environ.get('BEDPLATE_LAB', 'lab')}.json"
INSTALLED = (
    "/etc/bedplate",
    "/opt/bedplate",
    "/etc/systemd/system/bedplate.target",
    "/var/lib/ollama",
    "/usr/bin/prometheus",
)


def test_the_bare_host_is_looked_at(stack: Stack) -> None:
    look(stack).save(BARE_HOST)


def test_check_mode_shows_the_changes_and_skips_verify(stack: Stack) -> None:
    passed, output = run_playbook("site.yml", "--check", "--diff")
    assert passed, output
    assert "verify: not run" in output
    assert re.search(rf"{stack.name} +: ok=\d+ +changed=[1-9]\d* +unreachable=0 +failed=0", output), output


def test_check_mode_changed_nothing(stack: Stack) -> None:
    assert stack(f"ls -d {' '.join(INSTALLED)} 2>/dev/null || true") == ""
