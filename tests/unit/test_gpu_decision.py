"""The decision on a GPU's driver: real cards x distributions x Secure Boot x machines, and each refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TABLES = yaml.safe_load((ROOT / "roles/gpu_driver/vars/main.yml").read_text())["__gpu_driver_tables"]
CARDS = yaml.safe_load((ROOT / "tests/unit/gpu/cards.yml").read_text())
PCI_IDS = yaml.safe_load((ROOT / "tests/unit/gpu/pci_ids.yml").read_text())
# As the mirrors had them on 2026-11-25.
KERNELS = {
    "Debian 12": "6.1.0-56-amd64",
    "Debian 13": "6.12.118+deb13-amd64",
    "Ubuntu 22.04": "5.15.0-204-generic",
    "Ubuntu 24.04": "6.8.0-151-generic",
    "Ubuntu 26.04": "7.0.0-44-generic",
}
# Chips of which no driver was known when the table was made.
NEWER = {"GB10B", "GB112", "GB120"}
SETTINGS = {
    "vendor": "",
    "source": "auto",
    "kernels": [],
    "expected_cards": 0,
    "extra_cards": {},
    "signing_certificate": "/var/lib/dkms/mok.pub",
}
CPU = "or set gpu_driver_enabled: false to run on the CPU."
CASES = [
    pytest.param(kind, group, card, (release, expected), id=f"{card}-{release.replace(' ', '')}")
    for kind, groups in CARDS.items()
    for group in groups
    for card in group["cards"]
    for release, expected in zip(KERNELS, group["expected"], strict=True)
]
Decide = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/gpu_driver/filter_plugins/gpu_decision.py")


@pytest.fixture(scope="module")
def decide(module: ModuleType) -> Decide:
    """The decision on a host with these cards; keywords replace what it has, `user` what the user sets."""

    def run(release: str, *cards: str, user: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
        settings = {**SETTINGS, **(user or {})}
        decision: dict[str, Any] = module.gpu_decision({**host(release, *cards), **changed}, TABLES, settings)
        assert decision.keys() == module.NOTHING.keys()
        return decision

    return run


def host(release: str, *cards: str) -> dict[str, Any]:
    """A bare machine with its release kernel and nothing else, as gpu_survey sees it."""
    kernel = KERNELS[release]
    ubuntu = release.startswith("Ubuntu")
    kind = "generic" if ubuntu else "amd64"
    return {
        "release": release,
        "machine": "x86_64",
        "container": False,
        "virtualization": "none",
        "secure_boot": False,
        "certificate_enrolled": False,
        "cards": [card(number, one) for number, one in enumerate(cards, 1)],
        "kernels": [running(kernel)],
        "kernel_kinds": [kind],
        "package_lists": True,
        "signed_modules": [
            f"linux-modules-nvidia-580-server{flavour}-{end}"
            for flavour in ("", "-open")
            for end in (kernel, kind)
            if ubuntu
        ],
        "modules": {},
        "packages": {},
        "broken": {},
        "held": [],
        "requested": [],
        "runfile": "",
        "written": [],
    }


def card(number: int, key: str, **changed: Any) -> dict[str, Any]:
    """One card in a slot of its own."""
    vendor, device = key.split(":")
    slot = {"slot": f"0000:{number:02x}:00.0", "vendor": vendor, "device": device, "class": "030000"}
    rest = {"subsystem": "", "driver": "", "physical_function": "", "virtual_functions": 0, "name": ""}
    return {**slot, **rest, **changed}


def running(release: str, **changed: Any) -> dict[str, Any]:
    """The running kernel, its headers in the package sources."""
    kernel = {"release": release, "running": True, "installed": True, "headers": "available", "amdgpu": True}
    return {**kernel, **changed}


def test_there_are_cards_enough_each_with_its_source() -> None:
    groups = [group for groups in CARDS.values() for group in groups]
    assert len({card for group in groups for card in group["cards"]}) > 120
    assert all(source.startswith("https://") for group in groups for source in group["sources"])
    assert all(group["sources"] for group in groups)


# --- The matrix


@pytest.mark.parametrize(("kind", "group", "key", "wanted"), CASES)
def test_a_card(decide: Decide, kind: str, group: dict[str, Any], key: str, wanted: tuple[str, str]) -> None:
    release, expected = wanted
    plain = decide(release, key)
    virtual = decide(release, key, virtualization="kvm")
    container = decide(release, key, container=True)
    locked = decide(release, key, secure_boot=True)
    enrolled = decide(release, key, secure_boot=True, certificate_enrolled=True)
    # A container never has a driver of its own, and a virtual machine is a machine.
    assert container["action"] == "none"
    assert "container" in container["reason"]
    assert {**virtual, "notes": []} == {**plain, "notes": []}
    assert ("virtual (kvm)" in " ".join(virtual["notes"])) == (plain["action"] == "install")
    # An enrolled key changes nothing but what Secure Boot would forbid.
    assert enrolled == plain
    built_here = plain["driver"].get("build") == "dkms"
    assert locked["action"] == ("refused" if built_here else plain["action"])
    if expected in ("refused", "none"):
        assert plain["action"] == expected, plain["reason"]
        assert (plain["packages"], plain["backend"], plain["changes"]) == ([], "cpu", [])
        assert plain["remedy"].endswith(CPU) == (expected == "refused")
        return
    assert (plain["action"], plain["count"], plain["remedy"]) == ("install", 1, ""), plain["reason"]
    assert plain["vendor"] == kind
    assert plain["kernels"] == [KERNELS[release]]
    if kind == "nvidia":
        check_nvidia(plain, group, release, expected)
    else:
        assert (plain["backend"], plain["parts"]) == (expected, [expected])
        assert ("mesa-vulkan-drivers" in plain["packages"]) == (expected == "vulkan")
        assert plain["groups"] == ["render", "video"]
        assert plain["modules"] == ["amdgpu"]


def check_nvidia(decision: dict[str, Any], group: dict[str, Any], release: str, expected: str) -> None:
    """Check what is told of an NVIDIA card's driver."""
    driver = decision["driver"]
    assert (driver["source"], driver["flavour"]) == (expected, group["modules"])
    assert driver["minimum"] == group["minimum"]
    assert (decision["backend"], decision["modules"]) == ("cuda", ["nvidia", "nvidia_uvm"])
    assert decision["blacklist"] == ["nouveau"]
    new = driver["branch"] == "580"
    part = {"cuda": "cuda_v13" if new else "cuda_v12"}.get(group["part"], group["part"])
    assert decision["parts"] == [part]
    ubuntu = release.startswith("Ubuntu")
    assert driver["build"] == ("signed" if ubuntu else "dkms")
    assert (decision["repository"] == {}) == (expected == "archive")
    flavour = [name for name in decision["packages"] if "open" in name]
    assert bool(flavour) == (group["modules"] == "open")
    if ubuntu:
        assert decision["headers"] == decision["components"] == []
        assert [name for name in decision["packages"] if name.endswith(f"-{KERNELS[release]}")]
        # Were these held, a new kernel would come without its module.
        assert not [name for name in decision["hold"] if name.startswith("linux-")]
    else:
        assert decision["headers"] == ["linux-headers-amd64", f"linux-headers-{KERNELS[release]}"]
        assert set(decision["headers"]) <= set(decision["packages"])
    assert set(decision["hold"]) <= set(decision["packages"])


@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_every_known_id_is_in_the_row_of_its_chip(module: ModuleType, vendor: str) -> None:
    chips = TABLES[f"{vendor}_chips"]
    for chip, ids in PCI_IDS[vendor].items():
        for device in str(ids).split():
            row = module.row_of(device, chips)
            if chip in NEWER:
                assert row == {}, f"{chip} {device} became known: give it a row or take it from NEWER"
            else:
                words = re.findall(r"[A-Za-z]+|\d+", chip)
                told = re.findall(r"[A-Za-z]+|\d+", row["chip"])
                same = set(words) & set(told) or OTHER_NAMES.get(chip) == row["chip"]
                assert same, f"{chip} {device} is {row['chip']}"
                assert vendor == "amd" or chip in row["chip"].split(" or "), (
                    f"{chip} {device} is {row['chip']}"
                )


# What the table calls otherwise than the list of ids.
OTHER_NAMES = {
    "Ellesmere": "Polaris 10",
    "Baffin": "Polaris 11",
    "Picasso": "Raven",
    "HawkPoint1": "Hawk Point",
    "HawkPoint2": "Hawk Point",
    "Phoenix1": "Phoenix",
    "Phoenix2": "Phoenix",
    "VanGogh": "Van Gogh",
    "Krackan2": "Krackan 2",
    "Polaris12": "Polaris 12",
    "Aqua Vanjaram": "MI350 series",
}


def test_the_table_is_whole() -> None:
    families = {row["family"] for row in TABLES["nvidia_chips"]}
    assert families == set(TABLES["nvidia_families"])
    amd = {row["family"] for row in TABLES["amd_chips"]}
    assert set(TABLES["amd_vulkan"]) | set(TABLES["amd_rocm_only"]) == amd - {"GCN 1 to 3"}
    assert list(TABLES["nvidia_sources"]) == list(TABLES["amd_sources"]) == list(TABLES["newer_kernel"])
    assert list(TABLES["nvidia_sources"]) == list(KERNELS)
    for row in TABLES["nvidia_chips"] + TABLES["amd_chips"]:
        low, high = row["ids"]
        assert re.fullmatch(r"[0-9a-f]{4}", low), row
        assert re.fullmatch(r"[0-9a-f]{4}", high), row
        assert low <= high, row
    for offers in TABLES["nvidia_sources"].values():
        for offer in offers:
            assert ("repository" in offer) == (offer["source"] == "vendor")
            fingerprint = offer.get("repository", {}).get("key_fingerprint", "0" * 40)
            assert re.fullmatch(r"[0-9A-F]{40}", fingerprint)


# --- Several cards


def test_no_card_is_said_plainly(decide: Decide) -> None:
    decision = decide("Debian 13")
    assert (decision["action"], decision["reason"]) == ("none", "No GPU.")
    assert decide("Debian 13", container=True)["reason"] == "No GPU."
    expecting = decide("Debian 13", "10de:2684", container=True, user={"expected_cards": 1})
    assert expecting["action"] == "refused"
    told = decide("Debian 13", "8086:4680")["reason"]
    assert told == "No GPU: only Intel device 4680 (for the screen only)."


def test_the_oldest_of_several_cards_decides(decide: Decide) -> None:
    decision = decide("Ubuntu 24.04", "10de:2684", "10de:1b80")
    assert decision["count"] == 2
    assert decision["driver"]["flavour"] == "proprietary"
    assert decision["driver"]["minimum"] == "570"
    assert decision["parts"] == ["cuda_v12"]


def test_cards_that_no_driver_drives_together(decide: Decide) -> None:
    decision = decide("Ubuntu 24.04", "10de:2b85", "10de:1b80")
    assert decision["action"] == "refused"
    assert decision["reason"] == (
        "No driver drives Blackwell and Pascal together: Blackwell needs the open kernel modules, "
        "cards before Turing the proprietary ones."
    )


@pytest.mark.parametrize("other", ["8086:a780", "1002:164e", "1002:1586", "1a03:2000"])
def test_a_processors_own_graphics_beside_a_card(decide: Decide, other: str) -> None:
    decision = decide("Debian 13", other, "10de:2684")
    assert (decision["action"], decision["vendor"], decision["count"]) == ("install", "nvidia", 1)
    assert decision["cards"][0]["role"] in ("integrated", "other")


def test_two_vendors(decide: Decide) -> None:
    both = ("10de:2684", "1002:744c")
    refused = decide("Debian 13", *both)
    assert refused["reason"] == (
        "There are cards of two vendors (NVIDIA AD102 and AMD Navi 31), and an engine uses those of one."
    )
    assert refused["remedy"] == f"Set gpu_driver_vendor to nvidia or amd for this host, {CPU}"
    for vendor, backend in (("nvidia", "cuda"), ("amd", "rocm")):
        decision = decide("Debian 13", *both, user={"vendor": vendor})
        assert (decision["backend"], decision["count"]) == (backend, 1)
        assert f"left alone, since gpu_driver_vendor is {vendor}" in " ".join(decision["notes"])


def test_amd_cards_of_two_kinds(decide: Decide) -> None:
    decision = decide("Debian 13", "1002:744c", "1002:73df")
    assert (decision["backend"], decision["parts"]) == ("rocm", ["rocm", "vulkan"])
    assert "Ollama's ROCm has no code for gfx1031: Vulkan computes there." in decision["notes"]


@pytest.mark.parametrize(
    ("changed", "role", "words"),
    [
        ({"driver": "vfio-pci"}, "guest", "held by vfio-pci for a virtual machine"),
        ({"physical_function": "0000:03:00.0"}, "function", "a virtual function of 0000:03:00.0"),
    ],
)
def test_a_card_for_a_virtual_machine_is_not_ours(
    decide: Decide, changed: dict[str, str], role: str, words: str
) -> None:
    given = card(1, "10de:20b0", **changed)
    alone = decide("Debian 13", cards=[given])
    assert (alone["action"], alone["cards"][0]["role"]) == ("none", role)
    assert words in alone["reason"]
    beside = decide("Debian 13", cards=[given, card(2, "10de:2684", driver="nouveau")])
    assert (beside["action"], beside["count"]) == ("install", 1)


def test_expected_cards(decide: Decide) -> None:
    assert decide("Debian 13", "10de:2684", user={"expected_cards": 1})["action"] == "install"
    for cards, words in (((), "but no GPUs can"), (("10de:2684",), "but 1 GPU can")):
        decision = decide("Debian 13", *cards, user={"expected_cards": 2})
        assert decision["action"] == "refused"
        assert decision["reason"].startswith(f"gpu_driver_expected_cards is 2, {words}")


def test_the_user_places_an_unknown_card(decide: Decide) -> None:
    refused = decide("Ubuntu 26.04", "10de:3340")
    assert refused["reason"] == "The card 10de:3340 of NVIDIA at 0000:01:00.0 is unknown here."
    assert "set gpu_driver_extra_cards: {'10de:3340': CHIP}" in refused["remedy"]
    placed = decide("Ubuntu 26.04", "10de:3340", user={"extra_cards": {"10de:3340": "GB202"}})
    assert (placed["action"], placed["cards"][0]["family"]) == ("install", "Blackwell")
    wrong = decide("Ubuntu 26.04", "10de:3340", user={"extra_cards": {"10de:3340": "GB999"}})
    assert wrong["action"] == "refused"
    assert "gives 10de:3340 the chip 'GB999', which is not in the table." in wrong["reason"]


def test_an_unknown_card_of_the_other_vendor_can_be_left_alone(decide: Decide) -> None:
    assert (
        "set gpu_driver_vendor: nvidia to leave it alone"
        in decide("Debian 13", "10de:2684", "1002:7bff")["remedy"]
    )
    assert decide("Debian 13", "10de:2684", "1002:7bff", user={"vendor": "nvidia"})["action"] == "install"


# --- What is there already


VOLTA = "10de:1db4"
OWN = {
    "nvidia-kernel-dkms": "550.163.01-2",
    "libcuda1": "550.163.01-2",
    "libnvidia-cfg1": "550.163.01-2",
    "nvidia-smi": "550.163.01-2",
    "nvidia-persistenced": "550.163.01-1",
    "linux-headers-amd64": "6.12.118-1",
    "linux-headers-6.12.118+deb13-amd64": "6.12.118-1",
}
WRITTEN = ["/etc/modprobe.d/bedplate-gpu.conf", "/etc/modules-load.d/bedplate-gpu.conf"]


def test_what_is_installed_stays_decided_and_changes_nothing(decide: Decide) -> None:
    first = decide("Debian 13", VOLTA)
    loaded = {"nvidia": "550.163.01"}
    seen = {"packages": OWN, "requested": [*OWN], "written": WRITTEN, "modules": loaded}
    second = decide("Debian 13", VOLTA, **seen)
    assert second["changes"] == []
    assert {**second, "changes": []} == {**first, "changes": []}


def test_an_installation_cut_short_goes_on(decide: Decide) -> None:
    wanted = decide("Debian 13", VOLTA)
    some = {"nvidia-kernel-dkms": "550.163.01-2"}
    again = decide("Debian 13", VOLTA, packages=some, requested=wanted["packages"])
    assert (again["driver"], again["packages"]) == (wanted["driver"], wanted["packages"])
    # Somebody else's is left alone.
    assert decide("Debian 13", VOLTA, packages=some)["driver"]["source"] == "installed"


def test_the_archive_where_the_user_prefers_it(decide: Decide) -> None:
    decision = decide("Debian 13", "10de:2684", user={"source": "archive"})
    assert (decision["driver"]["flavour"], decision["driver"]["branch"]) == ("proprietary", "550")
    assert decision["parts"] == ["cuda_v12"]
    assert decide("Debian 13", "10de:2b85", user={"source": "archive"})["action"] == "refused"


def test_the_changes_are_told(decide: Decide) -> None:
    told = decide("Debian 13", VOLTA, modules={"nouveau": ""})
    assert told["reboot"] is True
    assert [line.split(":")[0].split(",")[0] for line in told["changes"]] == [
        "Package sources",
        "Packages installed",
        "Kept from loading",
        "Loaded at each start",
        "A restart",
    ]


def test_another_module_than_the_library_needs_a_restart(decide: Decide) -> None:
    loaded = {"nvidia": "550.144.03"}
    assert decide("Debian 13", VOLTA, packages=OWN, modules=loaded)["reboot"] is True
    assert decide("Debian 13", VOLTA, packages=OWN, modules={"nvidia": "550.163.01"})["reboot"] is False


FULL = {"nvidia-driver-580-open": "580.95.05-0ubuntu1", "libnvidia-compute-580": "580.95.05-0ubuntu1"}


def test_another_driver_new_enough_is_left_as_it_is(decide: Decide) -> None:
    decision = decide("Ubuntu 24.04", "10de:2684", packages=FULL)
    assert (decision["action"], decision["driver"]["source"]) == ("install", "installed")
    assert decision["driver"]["version"] == "580.95.05"
    assert (decision["packages"], decision["hold"], decision["parts"]) == ([], [], ["cuda_v13"])
    # Secure Boot is no matter then, the module is there.
    assert decide("Ubuntu 24.04", "10de:2684", packages=FULL, secure_boot=True)["action"] == "install"


def test_another_driver_too_old_is_not_replaced(decide: Decide) -> None:
    old = {"nvidia-driver": "535.261.03-1", "libcuda1": "535.261.03-1", "nvidia-kernel-dkms": "535.261.03-1"}
    decision = decide("Debian 12", "10de:2684", packages=old)
    assert decision["reason"] == (
        "NVIDIA's driver 535.261.03 is installed, and Ollama with this card needs 550 or newer."
    )
    assert "apt-get purge libcuda1 nvidia-driver nvidia-kernel-dkms" in decision["remedy"]


def test_another_driver_with_the_wrong_modules(decide: Decide) -> None:
    closed = {"nvidia-dkms-580": "580.95.05-0ubuntu1", "libnvidia-compute-580": "580.95.05-0ubuntu1"}
    decision = decide("Ubuntu 24.04", "10de:2b85", packages=closed)
    assert decision["reason"] == (
        "The installed driver has the proprietary kernel modules, and this card needs the open ones."
    )
    assert decide("Ubuntu 24.04", "10de:2684", packages=closed)["action"] == "install"


def test_tools_that_are_no_driver(decide: Decide) -> None:
    tools = {"nvidia-container-toolkit": "1.17.8-1", "nvidia-settings": "510.47.03-0ubuntu1"}
    assert decide("Ubuntu 24.04", "10de:2684", packages=tools)["driver"]["source"] == "archive"


def test_amd_takes_a_driver_of_amds_own(decide: Decide) -> None:
    new = {"amdgpu-dkms": "1:6.14.14.30100100-2212064.24.04"}
    decision = decide("Ubuntu 24.04", "1002:744c", packages=new)
    assert (decision["backend"], decision["driver"]["source"]) == ("rocm", "installed")
    old = {"amdgpu-dkms": "1:6.10.5.60303-2119913.24.04"}
    assert decide("Ubuntu 24.04", "1002:744c", packages=old)["backend"] == "vulkan"
    assert decide("Ubuntu 24.04", "1002:74a1", packages=old)["action"] == "refused"


# --- Bad input: one sentence with the remedy each, nothing changed

BAD: dict[str, tuple[tuple[str, ...], dict[str, Any], str, str]] = {
    "a .run file": (
        ("Debian 13", "10de:2684"),
        {"runfile": "/usr/bin/nvidia-uninstall"},
        "A driver is here that NVIDIA's .run file installed, and packages would overwrite a part of it.",
        "Run /usr/bin/nvidia-uninstall and restart the machine",
    ),
    "a half installed package": (
        ("Debian 13", "10de:2684"),
        {"broken": {"nvidia-kernel-dkms": "iF"}},
        "The package nvidia-kernel-dkms is half installed (dpkg says iF).",
        "Run dpkg --configure -a and apt-get --fix-broken install",
    ),
    "a package on hold": (
        ("Debian 13", "10de:2684"),
        {"held": ["libcuda1"]},
        "On hold: libcuda1, so that the driver cannot be installed as a whole.",
        "Run apt-mark unhold libcuda1",
    ),
    "empty package lists": (
        ("Debian 13", "10de:2684"),
        {"package_lists": False},
        "The package lists are empty, so there is no telling which driver fits the kernels.",
        "Run apt-get update",
    ),
    "a kernel without headers": (
        ("Debian 13", "10de:2684"),
        {"kernels": [running("6.12.9-custom", headers="missing")]},
        "The kernel 6.12.9-custom has no headers to build a module with, and no package source has "
        "linux-headers-6.12.9-custom.",
        "Install them, or start a current kernel and remove this one, or name the kernels that count in "
        "gpu_driver_kernels",
    ),
    "Secure Boot with no way": (
        ("Debian 13", "10de:2684"),
        {"secure_boot": True},
        "Secure Boot is on, and /var/lib/dkms/mok.pub, which signs modules built here, is not enrolled.",
        "Run dkms generate_mok and mokutil --import /var/lib/dkms/mok.pub, confirm it on the console at "
        "the next start, or switch Secure Boot off in the firmware",
    ),
    "an old card": (
        ("Debian 13", "10de:1180"),
        {},
        "NVIDIA GK210 or older (10de:1180 at 0000:01:00.0) is older than Maxwell, and Ollama works with no "
        "driver for it.",
        "Take the card out",
    ),
    "an archive too old": (
        ("Debian 12", "10de:2684"),
        {"user": {"source": "archive"}},
        "Ollama with this card needs NVIDIA's driver 550 or newer, and the archive of Debian 12 has "
        "535.309.01 only.",
        "Set gpu_driver_source: auto, or install such a driver yourself and run again",
    ),
    "an archive too old for the card": (
        ("Debian 13", "10de:2b85"),
        {"user": {"source": "archive"}},
        "Ollama with this card needs NVIDIA's driver 570 or newer, and the archive of Debian 13 has "
        "550.163.01 only.",
        "Set gpu_driver_source: auto, or install such a driver yourself and run again",
    ),
    "no source": (
        ("Ubuntu 24.04", "10de:2684"),
        {"user": {"source": "vendor"}},
        "Ollama with this card needs NVIDIA's driver 550 or newer, and Bedplate knows none for Ubuntu 24.04.",
        "Set gpu_driver_source: auto, or install such a driver yourself and run again",
    ),
    "an old kernel for a new AMD card": (
        ("Debian 12", "1002:7550"),
        {},
        "The kernel 6.1.0-56-amd64 does not drive Navi 48, which needs 6.12 or newer.",
        "For a newer kernel, run apt-get install -t bookworm-backports linux-image-amd64 "
        "firmware-amd-graphics, and restart",
    ),
    "a kernel for clouds": (
        ("Debian 13", "1002:744c"),
        {"kernels": [running("6.12.118+deb13-cloud-amd64", amdgpu=False)]},
        "The kernel 6.12.118+deb13-cloud-amd64 has no module amdgpu, as kernels for clouds have not.",
        "Run apt-get install linux-image-amd64 and restart with that kernel",
    ),
    "an old AMD card": (
        ("Debian 13", "1002:6798"),
        {},
        "AMD Tahiti or Hawaii (1002:6798 at 0000:01:00.0) is of GCN 1 to 3, and Ollama computes on none so "
        "old.",
        "Take the card out",
    ),
    "an accelerator with an old driver": (
        ("Ubuntu 24.04", "1002:740f"),
        {},
        "AMD Aldebaran computes by ROCm 7 only, which needs a driver newer than the kernel's own driver "
        "(6.8.0-151-generic).",
        "For one, run apt-get install linux-generic-hwe-24.04, and restart, or install amdgpu-dkms 30.10 "
        "from AMD",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(decide: Decide, name: str) -> None:
    (release, key), changed, reason, remedy = BAD[name]
    decision = decide(release, key, **changed)
    assert (decision["action"], decision["reason"]) == ("refused", reason)
    assert decision["remedy"] == f"{remedy}, {CPU}"
    assert (decision["packages"], decision["changes"]) == ([], [])


@pytest.mark.parametrize("release", KERNELS)
def test_an_unknown_release(module: ModuleType, release: str) -> None:
    for key in ("10de:2684", "1002:744c"):
        seen = {**host(release, key), "release": "Debian 14"}
        decision = module.gpu_decision(seen, TABLES, SETTINGS)
        assert decision["action"] == "refused"
        assert "Debian 14" in decision["reason"]


def test_our_own_holds_and_finished_packages_are_no_hindrance(decide: Decide) -> None:
    seen = {"packages": OWN, "requested": [*OWN], "held": ["libcuda1"]}
    assert decide("Debian 13", VOLTA, **seen)["action"] == "install"


def test_why_the_better_source_is_not_taken(decide: Decide) -> None:
    decision = decide("Debian 13", "10de:2684")
    assert decision["driver"]["source"] == "vendor"
    assert decision["repository"]["key_fingerprint"] == "02182E60104FCDC26EAE1B8597A5D4CB8793F200"
    assert decision["notes"] == [
        "Not the better source, since the archive of Debian 13 has no open kernel modules that build."
    ]


def test_an_ubuntu_kernel_without_signed_modules_builds_its_own(decide: Decide) -> None:
    kernel = running("6.8.0-9999-custom", headers="installed")
    decision = decide("Ubuntu 24.04", "10de:2684", kernels=[kernel], kernel_kinds=[])
    assert decision["driver"]["build"] == "dkms"
    assert decision["packages"] == ["nvidia-headless-580-server-open", "nvidia-utils-580-server"]


def test_kernels_that_the_user_names(decide: Decide) -> None:
    kernels = [running("6.18.44-guest", headers="missing"), running("6.12.118+deb13-amd64", running=False)]
    assert decide("Debian 13", "10de:2684", kernels=kernels)["action"] == "refused"
    named = ["6.12.118+deb13-amd64"]
    decision = decide("Debian 13", "10de:2684", kernels=kernels, user={"kernels": named})
    assert (decision["action"], decision["kernels"]) == ("install", named)


def test_nvidias_repository_for_arm(decide: Decide) -> None:
    decision = decide("Debian 13", "10de:2b85", machine="aarch64")
    assert decision["repository"]["url"].endswith("/debian13/sbsa/")
