"""Debian's own driver is installed with its kernel module built, and uninstalled again.

There is no real GPU, so verify must fail with the reason.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.support.hosts import run_script
from tests.support.stack import Stack, stack_of

# Backup copies that each change of users creates, such as /etc/passwd-.
NOT_COMPARED = "-path '/etc/*-'"


@pytest.fixture(scope="module")
def stack() -> Stack:
    """The Debian 13 host with the whole stack, without the GPU driver."""
    return stack_of("gpu_packages")


@pytest.fixture(scope="module")
def settings(stack: Stack) -> dict[str, Any]:
    """Build for the installed kernel only; the running one belongs to the lab's machine."""
    return {"gpu_driver_kernels": stack("ls /lib/modules").split(), "gpu_driver_source": "archive"}


def packages(stack: Stack) -> dict[str, str]:
    """Return each installed package with dpkg's status letters and its version."""
    lines = stack(
        "dpkg-query --show --showformat='${Package}:${Architecture} ${db:Status-Abbrev}${Version}\\n'"
    ).splitlines()
    return dict(line.split(" ", 1) for line in lines)


def etc(stack: Stack) -> dict[str, str]:
    """Return each file and symlink below /etc with its checksum or target."""
    listing = stack(
        f"find /etc \\( {NOT_COMPARED} \\) -prune -o -type f -exec sha256sum {{}} + ; "
        f"find /etc \\( {NOT_COMPARED} \\) -prune -o -type l -printf '%l  %p\\n'"
    )
    return {path: content for content, path in (line.split("  ", 1) for line in listing.splitlines())}


@pytest.fixture(scope="module")
def before(stack: Stack) -> tuple[dict[str, str], dict[str, str]]:
    """Return packages and files before the driver is installed."""
    return packages(stack), etc(stack)


@pytest.fixture(scope="module")
def installed(stack: Stack, settings: dict[str, Any], before: tuple[dict[str, str], dict[str, str]]) -> str:
    """Install the driver with site.yml, which must fail at verify; returns its output."""
    assert before
    started = time.monotonic()
    try:
        # A module takes 4 minutes to build on two cores that have nothing else to do.
        stack.play("--limit", "one", settings=settings, seconds=3600)
    except AssertionError as failed:
        output = " ".join(str(failed).split())
    else:
        pytest.fail("site.yml passed on a host whose GPU does not work")
    print(f"\nsite.yml with the driver's packages took {time.monotonic() - started:.0f} s")
    return output


def test_the_driver_is_installed_and_held(stack: Stack, installed: str, settings: dict[str, Any]) -> None:
    assert "Verify" in installed
    there = packages(stack)
    held = stack("cat /etc/bedplate/gpu_driver/held").split()
    assert {"libcuda1", "nvidia-persistenced", "nvidia-smi"} <= set(held)
    for name in held:
        assert there[f"{name}:amd64"].startswith("hi 550.163.01"), name
    for kernel in settings["gpu_driver_kernels"]:
        assert stack(f"find /lib/modules/{kernel} -name 'nvidia-current.ko*'").strip()
    assert (
        stack("readlink --canonicalize /usr/lib/x86_64-linux-gnu/libcuda.so.1")
        .strip()
        .endswith(".so.550.163.01")
    )


def test_verify_reports_what_is_wrong(stack: Stack, installed: str) -> None:
    assert "the GPU's kernel module is loaded: the kernel module nvidia is not loaded. Next:" in installed
    report = json.loads(stack("cat /var/lib/bedplate-dashboard/verify.json"))
    seen = {check["name"]: check["seen"] for check in report["checks"] if check["ok"] is False}
    assert seen["Ollama detected the GPU"] == "it uses cpu, not cuda: it fell back to the CPU"
    assert seen["a model runs entirely on the GPU"] == "smollm2:135m runs on the CPU"
    # The real nvidia-smi without a driver.
    assert seen["the driver reports every nvidia GPU"] == "0 of 1; the driver does not respond correctly"


def test_a_second_run_changes_nothing(stack: Stack, installed: str, settings: dict[str, Any]) -> None:
    assert installed
    assert stack.play("--limit", "one", "--skip-tags", "verify", settings=settings) == 0


def test_uninstalling_restores_the_host(
    stack: Stack,
    installed: str,
    settings: dict[str, Any],
    before: tuple[dict[str, str], dict[str, str]],
) -> None:
    assert installed
    off = settings | {"gpu_driver_enabled": False}
    stack.play("--limit", "one", playbook="playbooks/gpu_uninstall.yml", settings=off)
    stack.play("--limit", "one", settings=off)
    now = packages(stack), etc(stack)
    for was, there in zip(before, now, strict=True):
        assert {name: there.get(name) for name in was if there.get(name) != was[name]} == {}
        assert sorted(there.keys() - was.keys()) == []


def test_debian_12s_archive_is_refused(installed: str, settings: dict[str, Any], stack: Stack) -> None:
    """Preflight refuses it with a remedy before anything is changed."""
    assert installed
    kernels = run_script("old", "ls /lib/modules").split()
    with pytest.raises(AssertionError) as refused:
        stack.play(
            "--limit",
            "old",
            playbook="playbooks/preflight.yml",
            settings=settings | {"gpu_driver_kernels": kernels},
        )
    message = " ".join(str(refused.value).split())
    assert "Ollama with this card needs NVIDIA's driver 550 or newer" in message
    assert "gpu_driver_source: auto" in message
