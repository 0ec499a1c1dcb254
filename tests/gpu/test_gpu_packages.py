"""Debian's own driver, really installed with its kernel module built, and taken away again.

There is no card behind it: the proof has to fail, and to say why.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from gateway_lab import Stack, stack_of
from lab_host import run_script

# Copies that each change of users leaves, such as /etc/passwd-.
NOT_COMPARED = "-path '/etc/*-'"


@pytest.fixture(scope="module")
def stack() -> Stack:
    """The host of Debian 13, with everything on it and its card not used."""
    return stack_of("gpu_packages")


@pytest.fixture(scope="module")
def settings(stack: Stack) -> dict[str, Any]:
    """The kernel that counts is the one that is installed; the running one is the machine's below."""
    return {"gpu_driver_kernels": stack("ls /lib/modules").split(), "gpu_driver_source": "archive"}


def packages(stack: Stack) -> dict[str, str]:
    """Each installed package with its version and what dpkg wants of it."""
    lines = stack(
        "dpkg-query --show --showformat='${Package}:${Architecture} ${db:Status-Abbrev}${Version}\\n'"
    ).splitlines()
    return dict(line.split(" ", 1) for line in lines)


def etc(stack: Stack) -> dict[str, str]:
    """Each file and link below /etc with its checksum or what it points at."""
    found = stack(
        f"find /etc \\( {NOT_COMPARED} \\) -prune -o -type f -exec sha256sum {{}} + ; "
        f"find /etc \\( {NOT_COMPARED} \\) -prune -o -type l -printf '%l  %p\\n'"
    )
    return {path: content for content, path in (line.split("  ", 1) for line in found.splitlines())}


@pytest.fixture(scope="module")
def before(stack: Stack) -> tuple[dict[str, str], dict[str, str]]:
    """What was there before the driver."""
    return packages(stack), etc(stack)


@pytest.fixture(scope="module")
def installed(stack: Stack, settings: dict[str, Any], before: tuple[dict[str, str], dict[str, str]]) -> str:
    """Install the driver with site.yml, which has to fail at its proof; returns what it said."""
    assert before
    started = time.monotonic()
    try:
        # A module takes 4 minutes to build on two cores that have nothing else to do.
        stack.play("--limit", "one", settings=settings, seconds=3600)
    except AssertionError as failed:
        said = " ".join(str(failed).split())
    else:
        pytest.fail("site.yml passed on a host whose card does not work")
    print(f"\nsite.yml with the driver's packages took {time.monotonic() - started:.0f} s")
    return said


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


def test_the_proof_says_what_is_wrong(stack: Stack, installed: str) -> None:
    assert "the card's kernel module is loaded: the kernel module nvidia is not loaded. Next:" in installed
    report = json.loads(stack("cat /var/lib/bedplate-dashboard/verify.json"))
    seen = {check["name"]: check["seen"] for check in report["checks"] if check["ok"] is False}
    assert seen["Ollama found the card"] == "it computes with cpu, not with cuda: it fell back to the CPU"
    assert seen["a model that answers lies wholly on the card"] == "smollm2:135m runs on the CPU"
    # The real tool without a driver below it.
    assert seen["every GPU of nvidia answers its driver"] == "0 of 1; the driver does not answer as it should"


def test_a_second_run_changes_nothing(stack: Stack, installed: str, settings: dict[str, Any]) -> None:
    assert installed
    assert stack.play("--limit", "one", "--skip-tags", "verify", settings=settings) == 0


def test_uninstalled_the_host_is_as_it_was(
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
    """Before anything is changed, with what is to be done."""
    assert installed
    kernels = run_script("old", "ls /lib/modules").split()
    with pytest.raises(AssertionError) as refused:
        stack.play(
            "--limit",
            "old",
            playbook="playbooks/preflight.yml",
            settings=settings | {"gpu_driver_kernels": kernels},
        )
    said = " ".join(str(refused.value).split())
    assert "Ollama with this card needs NVIDIA's driver 550 or newer" in said
    assert "gpu_driver_source: auto" in said
