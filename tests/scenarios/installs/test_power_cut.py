"""A power cut interrupts an upgrade of the gateway: the old version runs on, the next run completes it."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.hosts import ROOT, run_lab
from tests.support.stack import Stack

PARTS = (
    *("site.yml", "ansible.cfg", "playbooks", "roles", "templates", "requirements"),
    *("gateway", "exporter", "dashboard_app", "traffic"),
)
FOLDER = "/opt/bedplate/bedplate-gateway"
CURRENT = f"readlink --canonicalize {FOLDER}/current"


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of this repository with a later version of the gateway."""
    checkout = tmp_path_factory.mktemp("upgrade")
    subprocess.run(["cp", "--archive", *PARTS, checkout], cwd=ROOT, check=True)
    project = checkout / "gateway/pyproject.toml"
    text, replaced = re.subn(r"^version = .*$", 'version = "0.1.99"', project.read_text(), flags=re.MULTILINE)
    assert replaced == 1
    project.write_text(text)
    return checkout


def wait_until_packages_are_installed(stack: Stack, current: str) -> None:
    """Wait until a release other than the current one has aiohttp, one of the larger packages."""
    release = Path(current).parent.name
    find = f"find releases -maxdepth 6 -path '*/site-packages/aiohttp' -not -path '*/{release}/*'"
    stack(
        f"""cd {FOLDER}
        while (( SECONDS < 200 )); do
          # Files vanish meanwhile.
          [[ -z $({find} 2>/dev/null || true) ]] || exit 0
          sleep 0.1
        done
        exit 1"""
    )


def test_a_power_cut_during_an_upgrade(stack: Stack, next_version: Path) -> None:
    old = stack(CURRENT).strip()
    with ThreadPoolExecutor() as pool:
        upgrade = pool.submit(stack.play_fails, "--tags", "gateway", checkout=next_version)
        wait_until_packages_are_installed(stack, old)
        run_lab("fault", "power-cut", stack.name)
        run_lab("up", stack.name)
        upgrade.result(timeout=60)
    stack("systemctl is-system-running --wait")
    assert stack(CURRENT).strip() == old
    stack.verify()


def test_the_next_run_completes_the_upgrade(stack: Stack, next_version: Path) -> None:
    old = stack(CURRENT).strip()
    stack.play("--tags", "gateway", checkout=next_version)
    new = stack(CURRENT).strip()
    assert new != old
    stack(f"grep --quiet --fixed-strings {new}/ /proc/{stack.main_pid()}/maps")
    stack.verify()
