"""An uninstallation whose power is cut at any of its steps is ended by the next, and site.yml works again."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.scenarios.default.test_bare_host import BARE_HOST
from tests.support.host_state import differences, load_state, look
from tests.support.hosts import ROOT, run_lab
from tests.support.stack import Stack, run_playbook

UNINSTALL = "playbooks/uninstall.yml"
STEP = re.compile(r"step (\d+) of (\d+): (\S+)")
# CUTS=7,20 cuts the power at these steps only.
CUTS = [int(number) for number in os.environ.get("CUTS", "").split(",") if number]
Confirmed = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def installed(stack: Stack) -> Iterator[str]:
    """A layer with the installed host; the host `one` starts from it for each cut."""
    stack.verify()
    layer = "uninstall"
    run_lab("stop", stack.name)
    run_lab("save", stack.name, layer)
    yield layer
    run_lab("up", stack.name)


def fresh(stack: Stack, layer: str) -> None:
    """Start the installed host again from its layer."""
    run_lab("down", stack.name)
    run_lab("up", stack.name, "--from", layer)
    stack("systemctl is-system-running --wait || true")


@contextmanager
def journal(stack: Stack) -> Iterator[subprocess.Popen[str]]:
    """Follow the lines of the uninstallation in the host's journal."""
    follow = ["journalctl", "--follow", "--lines=0", "--output=cat", "--identifier=ansible-uninstall"]
    with subprocess.Popen(
        [ROOT / "lab/lab", "exec", stack.name, *follow], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def uninstall_until(stack: Stack, settings: dict[str, Any], step: int) -> str:
    """Uninstall and cut the power when a step begins; return its line, or '' if there are fewer steps."""
    with journal(stack) as lines, ThreadPoolExecutor() as pool:
        run = pool.submit(run_playbook, UNINSTALL, settings=settings)
        assert lines.stdout is not None
        while not run.done():
            found = STEP.search(lines.stdout.readline())
            if found and int(found[1]) >= step:
                run_lab("fault", "power-cut", stack.name)
                assert not run.result(timeout=120)[0]
                return found[0]
            if found and found[1] == found[2]:
                break
        assert run.result(timeout=300)[0]
        return ""


def test_a_power_cut_at_each_step(stack: Stack, confirmed: Confirmed, installed: str) -> None:
    bare = load_state(BARE_HOST)
    step, failed = 0, []
    while True:
        step = CUTS.pop(0) if CUTS else step + 1
        fresh(stack, installed)
        line = uninstall_until(stack, confirmed(), step)
        if line:
            run_lab("up", stack.name)
            stack.play(playbook=UNINSTALL, settings=confirmed())
        left = differences(bare, look(stack))
        print(line or "no cut", left or "nothing is left", flush=True)
        failed += left
        if not line or (os.environ.get("CUTS") and not CUTS):
            break
    assert failed == []


@pytest.mark.usefixtures("installed")
def test_site_works_again(stack: Stack, confirmed: Confirmed) -> None:
    stack.play()
    stack.verify()
    stack("touch /etc/bedplate/bedplate-gateway/mine")
    # The data stays, and a new installation uses it.
    stack.play(playbook=UNINSTALL, settings=confirmed(state=""))
    left = differences(load_state(BARE_HOST), look(stack))
    folders = r"/var/lib/(ollama|prometheus|bedplate|bedplate-gateway|bedplate-dashboard)(/|:)"
    others = [line for line in left if not re.search(folders, line)]
    print("\nleft with the data:", *others, sep="\n  ")
    kept = r"(users|groups): (ollama|prometheus|bedplate)|contents: /etc/(g?shadow|passwd|group|sub.id)"
    # The user's file and its folders.
    kept += (
        r"|files: /etc/bedplate(/bedplate-gateway(/mine)?)?:|contents: /etc/bedplate/bedplate-gateway/mine:"
    )
    assert [line for line in others if not re.match(kept, line)] == []
    models = stack("find /var/lib/ollama/models -type f").split()
    stack.play()
    stack.verify()
    assert set(models) <= set(stack("find /var/lib/ollama/models -type f").split())
    stack("rm /etc/bedplate/bedplate-gateway/mine")
