#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Surveys, read-only, what the choice of a GPU driver depends on: cards, kernels, Secure Boot, packages."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: gpu_survey
short_description: Survey a host's GPUs, kernels and driver packages without changing anything
description:
  - Finds cards in the kernel's list of PCI devices, so it needs no driver and no other tool.
  - Reads sysfs, EFI variables, /etc/os-release and /lib/modules, runs dpkg, apt-cache and
    systemd-detect-virt.
options:
  kernels:
    description: Kernel releases to report on in addition to the running and installed ones.
    type: list
    elements: str
    default: []
  certificate:
    description: Certificate (DER) that signs modules on this host; need not exist.
    type: str
    default: /var/lib/dkms/mok.pub
author: Bedplate
"""

EXAMPLES = r"""
- name: Survey the cards
  gpu_survey:
  register: __gpu_driver_host
"""

RETURN = r"""
release:
  description: Distribution and release, such as Debian 13 or Ubuntu 24.04.
  returned: always
  type: str
machine:
  description: The processor's architecture, such as x86_64.
  returned: always
  type: str
container:
  description: Whether this is a container, whose kernel and drivers belong to its host.
  returned: always
  type: bool
virtualization:
  description: The hypervisor as systemd-detect-virt prints it; none on bare metal.
  returned: always
  type: str
secure_boot:
  description: Whether the firmware allows only signed kernel modules.
  returned: always
  type: bool
certificate_enrolled:
  description: Whether the certificate exists and the firmware trusts it.
  returned: always
  type: bool
cards:
  description: Display controllers and accelerators, by slot.
  returned: always
  type: list
  elements: dict
  contains:
    slot: {description: 'Address, such as 0000:01:00.0.', type: str}
    vendor: {description: Vendor id in four hexadecimal digits., type: str}
    device: {description: Device id in four hexadecimal digits., type: str}
    subsystem: {description: 'Vendor and device of the board, such as 10de:1467.', type: str}
    class: {description: 'Class in six digits, such as 030000.', type: str}
    driver: {description: Kernel driver bound to it; empty for none., type: str}
    physical_function: {description: Slot of the card that it is a virtual function of; or empty., type: str}
    virtual_functions: {description: Number of enabled virtual functions., type: int}
    name: {description: Its name in the host's pci.ids; empty if unknown., type: str}
    memory_bytes: {description: 'Its memory, which only a running driver knows; 0 if unknown.', type: int}
kernels:
  description: The running kernel, the installed and the requested ones.
  returned: always
  type: list
  elements: dict
  contains:
    release: {description: 'Its release, such as 6.12.74+deb13-amd64.', type: str}
    running: {description: Whether it runs., type: bool}
    installed: {description: Whether its modules are installed., type: bool}
    headers: {description: 'One of installed, available (in the package sources) and missing.', type: str}
    amdgpu: {description: Whether it has the module amdgpu., type: bool}
kernel_kinds:
  description: Kinds of kernels whose meta package is installed, such as amd64 for linux-image-amd64 or
    generic for linux-image-virtual.
  returned: always
  type: list
  elements: str
package_lists:
  description: Whether apt has package lists; without them no package is available.
  returned: always
  type: bool
signed_modules:
  description: Packages of prebuilt signed NVIDIA modules in the sources, for these kernels and kinds.
  returned: always
  type: list
  elements: str
modules:
  description: Version of each loaded GPU module; empty if it has none.
  returned: always
  type: dict
packages:
  description: Version of each installed package that belongs to a driver.
  returned: always
  type: dict
broken:
  description: Packages among these whose installation is incomplete, each with dpkg's status letters.
  returned: always
  type: dict
held:
  description: Packages among these that are on hold, except those that Bedplate holds itself.
  returned: always
  type: list
  elements: str
requested:
  description: The packages that the role gpu_driver installed in an earlier run.
  returned: always
  type: list
  elements: str
runfile:
  description: The uninstaller of NVIDIA's .run file; empty if there is none.
  returned: always
  type: str
written:
  description: Configuration files of the role gpu_driver that exist.
  returned: always
  type: list
  elements: str
"""

ROOT = Path("/")
CLASSES = ("03", "12")
"""Display controllers, and processing accelerators (AMD Instinct)."""
PATTERNS = (
    "nvidia-*",
    "libnvidia-*",
    "libcuda1",
    "cuda-drivers*",
    "firmware-nvidia-*",
    "linux-modules-nvidia-*",
    "linux-modules-extra-*",
    "linux-headers-*",
    "linux-image-*",
    "linux-firmware",
    "dkms",
    "amdgpu-dkms*",
    "firmware-amd-graphics",
    "mesa-vulkan-drivers",
    "libvulkan1",
)
GPU_MODULES = ("nouveau", "nvidia", "nvidia_uvm", "amdgpu", "radeon", "vfio_pci")
EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
IMAGE_SECURITY = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
WRITTEN = ("etc/modprobe.d/bedplate-gpu.conf", "etc/modules-load.d/bedplate-gpu.conf")
REQUESTED = "etc/bedplate/gpu_driver/requested"
"""The packages that the role installed and that were missing before, one per line."""
OWN_HOLDS = "etc/bedplate/gpu_driver/held"
"""The packages that the role put on hold, one per line."""
NVIDIA_SECONDS = 10
"""How long nvidia-smi may take; on a card that fell off the bus it never ends."""


def read_text(path: Path) -> str:
    """Return a file's text without surrounding white space; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def output_of(*command: str, seconds: float = 60) -> str:
    """Return a command's standard output; empty if the command does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds).stdout
    except FileNotFoundError:
        return ""


def link_name(path: Path) -> str:
    """Return the last component of a symlink's target; empty if the path is no symlink."""
    return path.readlink().name if path.is_symlink() else ""


def cards(root: Path = ROOT) -> list[dict[str, Any]]:
    """Return the display controllers and accelerators of the PCI buses, by slot."""
    result: list[dict[str, Any]] = []
    devices = root / "sys/bus/pci/devices"
    for device in sorted(devices.iterdir()) if devices.is_dir() else ():
        kind = read_text(device / "class").removeprefix("0x")
        if not kind.startswith(CLASSES):
            continue

        def read(name: str, device: Path = device) -> str:
            return read_text(device / name).removeprefix("0x").lower()

        result.append(
            {
                "slot": device.name,
                "vendor": read("vendor"),
                "device": read("device"),
                "subsystem": f"{read('subsystem_vendor')}:{read('subsystem_device')}",
                "class": kind,
                "driver": link_name(device / "driver"),
                "physical_function": link_name(device / "physfn"),
                "virtual_functions": int(read("sriov_numvfs") or 0),
                "name": "",
                "memory_bytes": amd_memory(device),
            }
        )
    names = card_names(root, {(card["vendor"], card["device"]) for card in result})
    for card in result:
        card["name"] = names.get((card["vendor"], card["device"]), "")
    return result


def amd_memory(device: Path) -> int:
    """Return the memory of an AMD card in bytes; 0 without amdgpu."""
    text = read_text(device / "mem_info_vram_total")
    return int(text) if text.isdigit() else 0


def nvidia_memory() -> dict[str, int]:
    """Return the memory in bytes of each card with NVIDIA's driver, by slot; empty if it gives no answer."""
    command = ("nvidia-smi", "--query-gpu=pci.bus_id,memory.total", "--format=csv,noheader,nounits")
    try:
        listing = output_of(*command, seconds=NVIDIA_SECONDS)
    except subprocess.TimeoutExpired:
        return {}
    # The domain has eight digits, and four in sysfs. MiB, or [N/A] for a card that uses the host's memory.
    rows = re.findall(r"^0000([0-9a-f]{4}:[0-9a-f:.]+), (\d+)$", listing.lower(), re.MULTILINE)
    return {slot: int(mebibytes) << 20 for slot, mebibytes in rows}


def card_names(root: Path, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the names of the wanted (vendor, device) pairs in the host's pci.ids."""
    names = {}
    for path in ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"):
        vendor = ""
        for line in read_text(root / path).splitlines() if wanted else ():
            if device := re.match(r"\t([0-9a-f]{4})  (.+)", line):
                if (vendor, device[1]) in wanted:
                    names[vendor, device[1]] = device[2].strip()
            elif re.match(r"[0-9a-f]{4} ", line):
                vendor = line[:4]
        if names:
            break
    return names


def release(root: Path = ROOT) -> str:
    """Return distribution and release, such as Debian 13."""
    os_release = dict(
        re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', read_text(root / "etc/os-release"), re.MULTILINE)
    )
    name = os_release.get("NAME", "").split(" ")[0] or os_release.get("ID", "")
    return f"{name} {os_release.get('VERSION_ID', '')}".strip()


def efi_variable(root: Path, name: str) -> bytes:
    """Return an EFI variable's value; empty without the variable or without EFI."""
    try:
        return (root / "sys/firmware/efi/efivars" / name).read_bytes()[4:]
    except OSError:
        return b""


def secure_boot(root: Path = ROOT) -> bool:
    """Return whether the firmware enforces signatures."""
    return efi_variable(root, f"SecureBoot-{EFI_GLOBAL}")[:1] == b"\x01"


def certificate_enrolled(certificate: Path, root: Path = ROOT) -> bool:
    """Return whether firmware or shim trust the certificate (DER)."""
    try:
        wanted = certificate.read_bytes()
    except OSError:
        return False
    trusted = [
        efi_variable(root, f"db-{IMAGE_SECURITY}"),
        *(path.read_bytes() for path in (root / "sys/firmware/efi/mok-variables").glob("MokListRT*")),
        *(
            efi_variable(root, path.name)
            for path in (root / "sys/firmware/efi/efivars").glob(f"MokListRT*-{SHIM}")
        ),
    ]
    return bool(wanted) and any(wanted in value for value in trusted)


def parse_packages(
    listing: str, own_holds: Iterable[str]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Parse `dpkg-query` lines "letters|name|version"; return installed, broken and held packages."""
    installed, broken, held = {}, {}, []
    for line in listing.splitlines():
        letters, name, version = line.split("|")
        want, state = letters[0], letters[1]
        if state == "i":
            installed[name] = version
        # n and c: not installed, or only its configuration files.
        elif state not in "nc" or letters[2:].strip():
            broken[name] = letters.strip()
        if want == "h" and name not in own_holds:
            held.append(name)
    return installed, broken, sorted(held)


def kernel_kinds(installed: Iterable[str]) -> list[str]:
    """Return the kinds of kernels whose meta package is installed; a virtual one is a generic one."""
    matches = (
        re.fullmatch(r"linux-image-(?!unsigned|extra|uc-)([a-z].*?)(?<!-dbg)", name) for name in installed
    )
    return sorted({match[1].replace("virtual", "generic") for match in matches if match})


def offered(names: Iterable[str]) -> set[str]:
    """Return the packages that the sources contain; apt also lists names that others only mention."""
    names = list(names)
    lines = output_of("apt-cache", "madison", *names).splitlines() if names else []
    return {line.split("|")[0].strip() for line in lines}


def kernels(
    requested: Iterable[str], installed: Iterable[str], root: Path = ROOT, running: str | None = None
) -> list[dict[str, Any]]:
    """Return the running, installed and requested kernels; `installed` are names of installed packages."""
    modules = root / "lib/modules"
    with_modules = {path.parent.name for path in modules.glob("*/kernel")}
    running = running or os.uname().release
    wanted = sorted(with_modules | {running} | set(requested))
    lacking = [
        name
        for name in wanted
        if not (modules / name / "build").exists() and f"linux-headers-{name}" not in set(installed)
    ]
    available = offered(f"linux-headers-{name}" for name in lacking)
    return [
        {
            "release": name,
            "running": name == running,
            "installed": name in with_modules,
            "headers": (
                "installed"
                if name not in lacking
                else "available"
                if f"linux-headers-{name}" in available
                else "missing"
            ),
            "amdgpu": any((modules / name).glob("**/amdgpu.ko*")),
        }
        for name in wanted
    ]


def signed_modules(releases: Iterable[str], kinds: Iterable[str]) -> list[str]:
    """Return the packages of signed NVIDIA modules in the sources for these kernels and kinds of kernels."""
    ends = "|".join(re.escape(end) for end in (*releases, *kinds))
    fitting = re.compile(rf"linux-modules-nvidia-\d+(-server)?(-open)?-({ends})")
    known = output_of("apt-cache", "pkgnames", "linux-modules-nvidia-").split()
    return sorted(offered(name for name in known if fitting.fullmatch(name)))


def loaded_modules(root: Path = ROOT) -> dict[str, str]:
    """Return the loaded GPU modules, each with its version or ""."""
    return {
        name: read_text(root / "sys/module" / name / "version")
        for name in GPU_MODULES
        if (root / "sys/module" / name).is_dir()
    }


def runfile(root: Path = ROOT) -> str:
    """Return the path of the uninstaller that NVIDIA's .run file leaves; empty if there is none."""
    path = "usr/bin/nvidia-uninstall"
    return f"/{path}" if (root / path).exists() else ""


def virtualization() -> str:
    """Return the machine's hypervisor; none on bare metal and if it is unknown."""
    return output_of("systemd-detect-virt", "--vm").strip() or "none"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "kernels": {"type": "list", "elements": "str", "default": []},
            "certificate": {"type": "str", "default": "/var/lib/dkms/mok.pub"},
        },
        supports_check_mode=True,
    )
    listing = output_of(
        "dpkg-query", "--show", "--showformat=${db:Status-Abbrev}|${Package}|${Version}\\n", *PATTERNS
    )
    installed, broken, held = parse_packages(listing, read_text(ROOT / OWN_HOLDS).split())
    kinds = kernel_kinds(installed)
    host_kernels = kernels(module.params["kernels"], installed)
    modules, found = loaded_modules(), cards()
    memory = nvidia_memory() if "nvidia" in modules else {}
    for card in found:
        card["memory_bytes"] = memory.get(card["slot"], card["memory_bytes"])
    module.exit_json(
        changed=False,
        release=release(),
        machine=platform.machine(),
        container=Path("/run/systemd/container").exists(),
        virtualization=virtualization(),
        secure_boot=secure_boot(),
        certificate_enrolled=certificate_enrolled(Path(module.params["certificate"])),
        cards=found,
        kernels=host_kernels,
        kernel_kinds=kinds,
        package_lists=any((ROOT / "var/lib/apt/lists").glob("*_Packages*")),
        signed_modules=signed_modules([kernel["release"] for kernel in host_kernels], kinds),
        modules=modules,
        packages=installed,
        broken=broken,
        held=held,
        requested=read_text(ROOT / REQUESTED).split(),
        runfile=runfile(),
        written=[f"/{path}" for path in WRITTEN if (ROOT / path).exists()],
    )


if __name__ == "__main__":
    main()
