"""Preflight refuses unsupported GPUs and changes nothing; the printed remedy fixes each case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.scenarios.refusals.refusing import MODEL, Control, Host

CPU = "or set gpu_driver_enabled: false to run on the CPU."
TREE = "/usr/local/lib/fake-pci"
# A kernel that is not installed, but whose headers are in the package sources.
KERNEL = "6.12.117+deb13-amd64"
SETTINGS = {"ollama_models": [MODEL], "gpu_driver_kernels": [KERNEL]}
# A package whose installation fails.
BROKEN = """
mkdir -p /root/broken/DEBIAN
printf '%s\\n' 'Package: nvidia-kernel-dkms' 'Version: 1' 'Architecture: all' 'Maintainer: nobody' \\
  'Description: breaks' >/root/broken/DEBIAN/control
printf '#!/bin/sh\\nexit 1\\n' >/root/broken/DEBIAN/postinst
chmod 755 /root/broken/DEBIAN/postinst
dpkg-deb --build /root/broken /root/broken.deb >/dev/null
dpkg --install /root/broken.deb 2>/dev/null || true
"""


@pytest.fixture(scope="module")
def card(hosts: dict[str, Host]) -> Host:
    """A host with a simulated GeForce RTX 4090."""
    hosts["card"]("apt-get -qq update")
    return hosts["card"]


@pytest.fixture(scope="module")
def inventory(control: Control, card: Host) -> Path:
    """A valid inventory with the whole stack on the host with the card."""
    return control.one_box(card, SETTINGS)


@contextmanager
def cards(host: Host, *devices: str) -> Iterator[None]:
    """Simulate these cards on the host."""
    host(f"cp -a {TREE} /root/tree && rm -r {TREE}/0000:01:00.0")
    for number, device in enumerate(devices, 1):
        vendor, name = device.split(":")
        slot = f"{TREE}/0000:{number:02x}:00.0"
        host(f"cp -a /root/tree/0000:01:00.0 {slot}")
        host(f"echo 0x{vendor} >{slot}/vendor; echo 0x{name} >{slot}/device")
    try:
        yield
    finally:
        host(f"rm -r {TREE}/0000:0[1-9]:00.0; cp -a /root/tree/0000:01:00.0 {TREE}/; rm -r /root/tree")


def test_a_kernel_without_headers(control: Control, card: Host) -> None:
    release = card("uname --kernel-release").strip()
    run = control.run(control.one_box(card, {"ollama_models": [MODEL]}))
    assert run.refused() == (
        f"card: The kernel {release} has no headers to build a module with, and no package source has "
        f"linux-headers-{release}. Install them, or boot a current kernel and remove this one, or list the "
        f"kernels that need the module in gpu_driver_kernels, {CPU}"
    )


def test_an_unknown_card(control: Control, inventory: Path, card: Host) -> None:
    with cards(card, "10de:3340"):
        assert control.run(inventory).refused() == (
            "card: The NVIDIA card 10de:3340 at 0000:01:00.0 is not in the table. If you know its chip, set "
            f"gpu_driver_extra_cards: {{'10de:3340': CHIP}} (docs/reference/gpu-drivers.md lists them), {CPU}"
        )
        control.run(inventory, {"gpu_driver_extra_cards": {"10de:3340": "AD102"}}).accepted()


def test_an_old_card(control: Control, inventory: Path, card: Host) -> None:
    with cards(card, "10de:1180"):
        assert control.run(inventory).refused() == (
            "card: NVIDIA GK210 or older (10de:1180 at 0000:01:00.0) is older than Maxwell, and no driver "
            f"for it works with Ollama. Remove the card, {CPU}"
        )
        control.run(inventory, {"gpu_driver_enabled": False}).accepted()


def test_cards_of_two_vendors(control: Control, inventory: Path, card: Host) -> None:
    with cards(card, "10de:2684", "1002:744c"):
        assert control.run(inventory).refused() == (
            "card: There are cards of two vendors (NVIDIA AD102 and AMD Navi 31), and an engine uses only "
            f"one vendor's. Set gpu_driver_vendor to nvidia or amd for this host, {CPU}"
        )
        control.run(inventory, {"gpu_driver_vendor": "nvidia"}).accepted()


def test_a_card_that_is_missing(control: Control, inventory: Path) -> None:
    assert control.run(inventory, {"gpu_driver_expected_cards": 2}).refused() == (
        "card: gpu_driver_expected_cards is 2, but 1 GPU can be used on this host. Find the card with "
        f"lspci -nn and in the machine, correct the number, {CPU}"
    )


def test_what_another_installation_left(control: Control, inventory: Path, card: Host) -> None:
    """In preflight's order: a refusal of the next shows that the remedy of the one before worked."""
    card("touch /usr/bin/nvidia-uninstall")
    try:
        assert control.run(inventory).refused() == (
            "card: The driver was installed by NVIDIA's .run file, and packages would overwrite parts "
            f"of it. Run /usr/bin/nvidia-uninstall and restart the machine, {CPU}"
        )
    finally:
        card("rm /usr/bin/nvidia-uninstall")
    card(BROKEN)
    try:
        assert control.run(inventory).refused() == (
            "card: The package nvidia-kernel-dkms is half installed (dpkg status iF). Run dpkg --configure "
            f"-a and apt-get --fix-broken install, {CPU}"
        )
    finally:
        card("dpkg --purge nvidia-kernel-dkms; rm -r /root/broken /root/broken.deb")
    card("apt-mark hold dkms")
    assert control.run(inventory).refused() == (
        f"card: On hold: dkms, so the driver cannot be installed completely. Run apt-mark unhold dkms, {CPU}"
    )
    card("apt-mark unhold dkms")
    control.run(inventory).accepted()


def test_a_source_that_has_no_such_driver(control: Control, inventory: Path, card: Host) -> None:
    with cards(card, "10de:2b85"):
        assert control.run(inventory, {"gpu_driver_source": "archive"}).refused() == (
            "card: Ollama with this card needs NVIDIA's driver 570 or newer, and the archive of Debian 13 "
            "has only 550.163.01. Set gpu_driver_source: auto, or install such a driver yourself and run "
            f"the playbook again, {CPU}"
        )
        control.run(inventory).accepted()


def test_empty_package_lists(control: Control, inventory: Path, card: Host) -> None:
    card("mv /var/lib/apt/lists /root/lists && mkdir -p /var/lib/apt/lists/partial")
    try:
        assert control.run(inventory).refused() == (
            "card: The package lists are empty, so it is unknown which driver fits the kernels. "
            f"Run apt-get update, {CPU}"
        )
    finally:
        card("rm -r /var/lib/apt/lists && mv /root/lists /var/lib/apt/lists")


def test_a_container_has_no_gpu(control: Control, card: Host) -> None:
    card("echo systemd-nspawn >/run/systemd/container")
    try:
        control.run(control.one_box(card, {"ollama_models": [MODEL]})).accepted()
    finally:
        card("rm /run/systemd/container")


def test_the_probe_reports_a_refusal_and_changes_nothing(control: Control, card: Host) -> None:
    report = control.folder / "report"
    card("touch /root/mark")
    inventory = control.one_box(card, {"ollama_models": [MODEL]})
    run = control.run(
        inventory, {"probe_file": str(report)}, "playbooks/gpu_probe.yml", "--tags", "gpu-probe"
    )
    assert run.code == 0, run.output
    text = report.read_text()
    assert "+ 0000:01:00.0  10de:2684  NVIDIA AD102 (Ada Lovelace, 8.9)" in text
    assert "Decision  refused" in text
    assert "Reason    The kernel" in text
    assert card.changes_since(Path("/root/mark")) == ""


def test_the_probe_reports_a_decision(control: Control, inventory: Path) -> None:
    output = control.run(inventory, {}, "site.yml", "--tags", "gpu-probe").accepted()
    assert "Decision  CUDA on 1 GPU" in output
    assert "driver 580 from NVIDIA's repository, open kernel modules, built on the host." in output
    assert (
        f"Packages installed: linux-headers-{KERNEL}, nvidia-kernel-open-dkms, nvidia-driver-cuda." in output
    )
