"""gpu_survey: its functions on fake /sys, /etc and /lib trees, and the whole module on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
ATTRIBUTES = b"\x06\0\0\0"


@pytest.fixture(scope="module")
def survey(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/gpu_driver/library/gpu_survey.py")


def device(root: Path, slot: str, vendor: str, name: str, kind: str, **files: str) -> Path:
    """Create a PCI device in a fake sysfs."""
    folder = root / "sys/bus/pci/devices" / slot
    folder.mkdir(parents=True)
    made = {"vendor": f"0x{vendor}", "device": f"0x{name}", "class": f"0x{kind}", **files}
    for file, value in made.items():
        (folder / file).write_text(f"{value}\n")
    return folder


def efi(root: Path, name: str, value: bytes) -> None:
    """Write an EFI variable with its attributes."""
    folder = root / "sys/firmware/efi/efivars"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(ATTRIBUTES + value)


def test_cards_by_class(survey: ModuleType, tmp_path: Path) -> None:
    card = device(
        tmp_path,
        "0000:01:00.0",
        "10de",
        "20b0",
        "030200",
        subsystem_vendor="0x10de",
        subsystem_device="0x1450",
    )
    (card / "sriov_numvfs").write_text("2\n")
    (card / "driver").symlink_to("../../../../bus/pci/drivers/nouveau")
    function = device(tmp_path, "0000:01:00.4", "10de", "20b0", "030200")
    (function / "physfn").symlink_to("../0000:01:00.0")
    (function / "driver").symlink_to("../../../../bus/pci/drivers/vfio-pci")
    device(tmp_path, "0000:02:00.0", "1002", "74a1", "120000")
    device(tmp_path, "0000:01:00.1", "10de", "22ba", "040300")
    device(tmp_path, "0000:00:00.0", "1022", "1480", "060000")
    cards = survey.cards(tmp_path)
    assert [card["slot"] for card in cards] == ["0000:01:00.0", "0000:01:00.4", "0000:02:00.0"]
    assert cards[0] == {
        "slot": "0000:01:00.0",
        "vendor": "10de",
        "device": "20b0",
        "subsystem": "10de:1450",
        "class": "030200",
        "driver": "nouveau",
        "physical_function": "",
        "virtual_functions": 2,
        "name": "",
        "memory_bytes": 0,
    }
    assert (cards[1]["physical_function"], cards[1]["driver"]) == ("0000:01:00.0", "vfio-pci")
    assert (cards[2]["class"], cards[2]["driver"]) == ("120000", "")


def test_names_come_from_the_hosts_list(survey: ModuleType, tmp_path: Path) -> None:
    device(tmp_path, "0000:01:00.0", "10de", "2684", "030000")
    device(tmp_path, "0000:02:00.0", "10de", "2685", "030000")
    file = tmp_path / "usr/share/misc/pci.ids"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# names\n1002  AMD\n\t2684  Another\n10de  NVIDIA Corporation\n"
        "\t2684  AD102 [GeForce RTX 4090]\n\t\t1043 889a  A board\n"
    )
    assert [card["name"] for card in survey.cards(tmp_path)] == ["AD102 [GeForce RTX 4090]", ""]


def test_the_memory_of_an_amd_card(survey: ModuleType, tmp_path: Path) -> None:
    card = device(tmp_path, "0000:02:00.0", "1002", "74a1", "120000")
    (card / "mem_info_vram_total").write_text("206141652992\n")
    assert survey.cards(tmp_path)[0]["memory_bytes"] == 206141652992


def test_the_memory_of_nvidias_cards(survey: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # The second shares the host's memory, as GB10 does.
    listing = "00000000:01:00.0, 24564\n00000000:0F:01.0, [N/A]\n"
    monkeypatch.setattr(survey, "output_of", lambda *_, **__: listing)
    assert survey.nvidia_memory() == {"0000:01:00.0": 24564 << 20}


def test_a_hanging_nvidia_smi(survey: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexec sleep 30\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(survey, "NVIDIA_SECONDS", 0.1)
    assert survey.nvidia_memory() == {}


def test_a_machine_without_pci(survey: ModuleType, tmp_path: Path) -> None:
    assert survey.cards(tmp_path) == []


@pytest.mark.parametrize(
    ("os_release", "expected"),
    [
        ('NAME="Debian GNU/Linux"\nVERSION_ID="13"\n', "Debian 13"),
        ('NAME="Ubuntu"\nVERSION_ID="24.04"\n', "Ubuntu 24.04"),
        ("ID=arch\n", "arch"),
    ],
)
def test_release(survey: ModuleType, tmp_path: Path, os_release: str, expected: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(os_release)
    assert survey.release(tmp_path) == expected


def test_secure_boot(survey: ModuleType, tmp_path: Path) -> None:
    assert survey.secure_boot(tmp_path) is False
    for value in (False, True):
        efi(tmp_path, f"SecureBoot-{GLOBAL}", bytes([value]))
        assert survey.secure_boot(tmp_path) is value


def test_an_enrolled_certificate(survey: ModuleType, tmp_path: Path) -> None:
    certificate = tmp_path / "mok.pub"
    assert survey.certificate_enrolled(certificate, tmp_path) is False
    certificate.write_bytes(b"\x30\x82our certificate")
    efi(tmp_path, f"MokListRT-{SHIM}", b"another certificate")
    assert survey.certificate_enrolled(certificate, tmp_path) is False
    efi(tmp_path, f"MokListRT1-{SHIM}", b"\0" * 44 + b"\x30\x82our certificate")
    assert survey.certificate_enrolled(certificate, tmp_path) is True
    certificate.write_bytes(b"")
    assert survey.certificate_enrolled(certificate, tmp_path) is False


def test_packages(survey: ModuleType) -> None:
    listing = (
        "ii |nvidia-smi|550.163.01-2\nhi |libcuda1|550.163.01-2\nrc |nvidia-settings|535.171.04-1\n"
        "iF |nvidia-kernel-dkms|550.163.01-2\niHR|dkms|3.2\nun |nvidia-driver|\nhn |nvidia-open|\n"
        "hi |nvidia-persistenced|550.163.01-1\n"
    )
    installed, broken, held = survey.parse_packages(listing, ["nvidia-persistenced"])
    assert installed == {
        "nvidia-smi": "550.163.01-2",
        "libcuda1": "550.163.01-2",
        "nvidia-persistenced": "550.163.01-1",
    }
    assert broken == {"nvidia-kernel-dkms": "iF", "dkms": "iHR"}
    assert held == ["libcuda1", "nvidia-open"]


def test_kinds_of_kernels(survey: ModuleType) -> None:
    names = [
        "linux-image-amd64",
        "linux-image-6.12.117+deb13-amd64",
        "linux-image-virtual-hwe-24.04",
        "linux-image-cloud-amd64-dbg",
        "linux-image-unsigned-6.8.0-151-generic",
        "linux-image-extra-virtual",
        "linux-headers-amd64",
    ]
    assert survey.kernel_kinds(names) == ["amd64", "generic-hwe-24.04"]


def test_kernels(survey: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = tmp_path / "lib/modules"
    (modules / "6.12.74/kernel/drivers/gpu/drm/amd/amdgpu").mkdir(parents=True)
    (modules / "6.12.74/kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko.xz").touch()
    (modules / "6.12.74/build").mkdir()
    (modules / "6.1.0/kernel").mkdir(parents=True)
    # An uninstalled kernel leaves a directory with the modules that were built for it.
    (modules / "6.0.0/updates/dkms").mkdir(parents=True)
    monkeypatch.setattr(survey, "offered", lambda names: set(names) & {"linux-headers-6.1.0"})
    kernels = survey.kernels(["7.0.0"], ["linux-headers-7.0.0"], tmp_path, "6.18.0")
    assert [(kernel["release"], kernel["headers"]) for kernel in kernels] == [
        ("6.1.0", "available"),
        ("6.12.74", "installed"),
        ("6.18.0", "missing"),
        ("7.0.0", "installed"),
    ]
    assert [kernel["release"] for kernel in kernels if kernel["running"]] == ["6.18.0"]
    assert [kernel["release"] for kernel in kernels if kernel["installed"]] == ["6.1.0", "6.12.74"]
    assert [kernel["release"] for kernel in kernels if kernel["amdgpu"]] == ["6.12.74"]


MADISON = (
    "linux-modules-nvidia-580-server-open-generic | 6.8.0-151.151 | http://mirror noble-updates/restricted\n"
    "linux-modules-nvidia-580-server-open-generic | 6.8.0-31.31 | http://mirror noble/restricted\n"
    "linux-modules-nvidia-580-6.8.0-151-generic | 6.8.0-151.151 | http://mirror noble-updates/restricted\n"
)


def test_signed_modules(survey: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []
    known = [
        "linux-modules-nvidia-580-server-open-generic",
        "linux-modules-nvidia-580-6.8.0-151-generic",
        "linux-modules-nvidia-580-6.8.0-31-generic",
        "linux-modules-nvidia-580-server-open-generic-hwe-24.04",
        "linux-modules-nvidia-fs-generic",
    ]

    def output_of(*command: str) -> str:
        commands.append(command)
        return "\n".join(known) if command[1] == "pkgnames" else MADISON

    monkeypatch.setattr(survey, "output_of", output_of)
    assert survey.signed_modules(["6.8.0-151-generic"], ["generic"]) == [
        "linux-modules-nvidia-580-6.8.0-151-generic",
        "linux-modules-nvidia-580-server-open-generic",
    ]
    assert commands[1][2:] == (known[0], known[1])


def test_loaded_modules_and_a_run_file(survey: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("550.163.01\n")
    (tmp_path / "sys/module/nouveau").mkdir()
    (tmp_path / "sys/module/ext4").mkdir()
    assert survey.loaded_modules(tmp_path) == {"nouveau": "", "nvidia": "550.163.01"}
    assert survey.runfile(tmp_path) == ""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/nvidia-uninstall").touch()
    assert survey.runfile(tmp_path) == "/usr/bin/nvidia-uninstall"


def test_the_whole_module_here(survey: ModuleType, run_module: Callable[..., dict[str, Any]]) -> None:
    result = run_module(survey, {"kernels": ["1.2.3-requested"], "certificate": "/nowhere"}, check=True)
    assert result["changed"] is False
    assert result["certificate_enrolled"] is False
    assert {"release": "1.2.3-requested", "headers": "missing"}.items() <= result["kernels"][0].items()
    assert [kernel["release"] for kernel in result["kernels"] if kernel["running"]]
    documented = {name for name in survey.RETURN.splitlines() if name[:1].isalpha()}
    assert {f"{key}:" for key in result} - {"invocation:", "changed:"} == documented
