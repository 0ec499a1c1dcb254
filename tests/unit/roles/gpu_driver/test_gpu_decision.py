"""gpu_decision: real cards x distributions x Secure Boot x machines, and each refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
TABLES = yaml.safe_load((ROOT / "roles/gpu_driver/vars/main.yml").read_text())["__gpu_driver_tables"]
CARDS = yaml.safe_load((ROOT / "tests/unit/roles/gpu_driver/cards.yml").read_text())
PCI_IDS = yaml.safe_load((ROOT / "tests/unit/roles/gpu_driver/pci_ids.yml").read_text())
# Kernels on the distributions' mirrors on 2026-11-25.
KERNELS = {
    "Debian 12": "6.1.0-56-amd64",
    "Debian 13": "6.12.118+deb13-amd64",
    "Ubuntu 22.04": "5.15.0-204-generic",
    "Ubuntu 24.04": "6.8.0-151-generic",
    "Ubuntu 26.04": "7.0.0-44-generic",
}
# Chips for which no driver was known when the table was written.
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
    """Return the decision for a host with these cards; keywords change the survey, `user` the settings."""

    def run(release: str, *cards: str, user: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
        settings = {**SETTINGS, **(user or {})}
        decision: dict[str, Any] = module.gpu_decision({**host(release, *cards), **changed}, TABLES, settings)
        assert list(decision) == [field.name for field in fields(module.Decision)]
        return decision

    return run


def host(release: str, *cards: str) -> dict[str, Any]:
    """Return gpu_survey's result for a machine with only its release's kernel installed."""
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
    """Return one card in its own slot."""
    vendor, device = key.split(":")
    slot = {"slot": f"0000:{number:02x}:00.0", "vendor": vendor, "device": device, "class": "030000"}
    rest = {"subsystem": "", "driver": "", "physical_function": "", "virtual_functions": 0, "name": ""}
    return {**slot, **rest, **changed}


def running(release: str, **changed: Any) -> dict[str, Any]:
    """Return the running kernel, whose headers are in the package sources."""
    kernel = {"release": release, "running": True, "installed": True, "headers": "available", "amdgpu": True}
    return {**kernel, **changed}


def test_there_are_enough_cards_each_with_its_source() -> None:
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
    # A container gets no driver; a virtual machine is like a physical one.
    assert container["action"] == "none"
    assert "container" in container["reason"]
    assert {**virtual, "notes": []} == {**plain, "notes": []}
    assert ("virtual machine (kvm)" in " ".join(virtual["notes"])) == (plain["action"] == "install")
    # An enrolled key only matters where Secure Boot would refuse.
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
    """Check the decision on an NVIDIA card's driver."""
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
        # If these were held, a new kernel would be installed without its module.
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
                row_words = re.findall(r"[A-Za-z]+|\d+", row["chip"])
                same = set(words) & set(row_words) or OTHER_NAMES.get(chip) == row["chip"]
                assert same, f"{chip} {device} is {row['chip']}"
                assert vendor == "amd" or chip in row["chip"].split(" or "), (
                    f"{chip} {device} is {row['chip']}"
                )


# Chips that have another name in the table than in the list of ids.
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


def test_the_tables_are_consistent() -> None:
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


def test_a_host_without_a_gpu(decide: Decide) -> None:
    decision = decide("Debian 13")
    assert (decision["action"], decision["reason"]) == ("none", "No GPU.")
    assert decide("Debian 13", container=True)["reason"] == "No GPU."
    expecting = decide("Debian 13", "10de:2684", container=True, user={"expected_cards": 1})
    assert expecting["action"] == "refused"
    reason = decide("Debian 13", "8086:4680")["reason"]
    assert reason == "No GPU: only Intel device 4680 (not a GPU for computing)."


def test_the_oldest_of_several_cards_decides(decide: Decide) -> None:
    decision = decide("Ubuntu 24.04", "10de:2684", "10de:1b80")
    assert decision["count"] == 2
    assert decision["driver"]["flavour"] == "proprietary"
    assert decision["driver"]["minimum"] == "570"
    assert decision["parts"] == ["cuda_v12"]


def test_cards_that_no_driver_supports_together(decide: Decide) -> None:
    decision = decide("Ubuntu 24.04", "10de:2b85", "10de:1b80")
    assert decision["action"] == "refused"
    assert decision["reason"] == (
        "No driver supports Blackwell and Pascal together: Blackwell needs the open kernel modules, "
        "cards before Turing the proprietary ones."
    )


@pytest.mark.parametrize("other", ["8086:a780", "1002:164e", "1002:1586", "1a03:2000"])
def test_a_processors_graphics_next_to_a_card(decide: Decide, other: str) -> None:
    decision = decide("Debian 13", other, "10de:2684")
    assert (decision["action"], decision["vendor"], decision["count"]) == ("install", "nvidia", 1)
    assert decision["cards"][0]["role"] in ("integrated", "other")


def test_two_vendors(decide: Decide) -> None:
    both = ("10de:2684", "1002:744c")
    refused = decide("Debian 13", *both)
    assert refused["reason"] == (
        "There are cards of two vendors (NVIDIA AD102 and AMD Navi 31), and an engine uses only one vendor's."
    )
    assert refused["remedy"] == f"Set gpu_driver_vendor to nvidia or amd for this host, {CPU}"
    for vendor, backend in (("nvidia", "cuda"), ("amd", "rocm")):
        decision = decide("Debian 13", *both, user={"vendor": vendor})
        assert (decision["backend"], decision["count"]) == (backend, 1)
        assert f"not used, because gpu_driver_vendor is {vendor}" in " ".join(decision["notes"])


def test_amd_cards_of_two_kinds(decide: Decide) -> None:
    decision = decide("Debian 13", "1002:744c", "1002:73df")
    assert (decision["backend"], decision["parts"]) == ("rocm", ["rocm", "vulkan"])
    assert "Ollama's ROCm does not support gfx1031; Vulkan is used instead." in decision["notes"]


@pytest.mark.parametrize(
    ("changed", "role", "words"),
    [
        ({"driver": "vfio-pci"}, "guest", "passed through to a virtual machine (vfio-pci)"),
        ({"physical_function": "0000:03:00.0"}, "function", "a virtual function of 0000:03:00.0"),
    ],
)
def test_a_card_of_a_virtual_machine_is_not_used(
    decide: Decide, changed: dict[str, str], role: str, words: str
) -> None:
    given = card(1, "10de:20b0", **changed)
    alone = decide("Debian 13", cards=[given])
    assert (alone["action"], alone["cards"][0]["role"]) == ("none", role)
    assert words in alone["reason"]
    mixed = decide("Debian 13", cards=[given, card(2, "10de:2684", driver="nouveau")])
    assert (mixed["action"], mixed["count"]) == ("install", 1)


def test_expected_cards(decide: Decide) -> None:
    assert decide("Debian 13", "10de:2684", user={"expected_cards": 1})["action"] == "install"
    for cards, words in (((), "but no GPUs can"), (("10de:2684",), "but 1 GPU can")):
        decision = decide("Debian 13", *cards, user={"expected_cards": 2})
        assert decision["action"] == "refused"
        assert decision["reason"].startswith(f"gpu_driver_expected_cards is 2, {words}")


def test_the_user_sets_the_chip_of_an_unknown_card(decide: Decide) -> None:
    refused = decide("Ubuntu 26.04", "10de:3340")
    assert refused["reason"] == "The NVIDIA card 10de:3340 at 0000:01:00.0 is not in the table."
    assert "set gpu_driver_extra_cards: {'10de:3340': CHIP}" in refused["remedy"]
    placed = decide("Ubuntu 26.04", "10de:3340", user={"extra_cards": {"10de:3340": "GB202"}})
    assert (placed["action"], placed["cards"][0]["family"]) == ("install", "Blackwell")
    wrong = decide("Ubuntu 26.04", "10de:3340", user={"extra_cards": {"10de:3340": "GB999"}})
    assert wrong["action"] == "refused"
    assert "maps 10de:3340 to the chip 'GB999', which is not in the table." in wrong["reason"]


def test_an_unknown_card_of_the_other_vendor_can_be_ignored(decide: Decide) -> None:
    assert (
        "set gpu_driver_vendor: nvidia to ignore it"
        in decide("Debian 13", "10de:2684", "1002:7bff")["remedy"]
    )
    assert decide("Debian 13", "10de:2684", "1002:7bff", user={"vendor": "nvidia"})["action"] == "install"


# --- Existing installations


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


def test_an_installed_driver_keeps_its_decision_and_changes_nothing(decide: Decide) -> None:
    first = decide("Debian 13", VOLTA)
    loaded = {"nvidia": "550.163.01"}
    survey = {"packages": OWN, "requested": [*OWN], "written": WRITTEN, "modules": loaded}
    second = decide("Debian 13", VOLTA, **survey)
    assert second["changes"] == []
    assert {**second, "changes": []} == {**first, "changes": []}


def test_an_interrupted_installation_is_resumed(decide: Decide) -> None:
    wanted = decide("Debian 13", VOLTA)
    some = {"nvidia-kernel-dkms": "550.163.01-2"}
    again = decide("Debian 13", VOLTA, packages=some, requested=wanted["packages"])
    assert (again["driver"], again["packages"]) == (wanted["driver"], wanted["packages"])
    # A driver that the role did not install is kept.
    assert decide("Debian 13", VOLTA, packages=some)["driver"]["source"] == "installed"


def test_the_archive_where_the_user_prefers_it(decide: Decide) -> None:
    decision = decide("Debian 13", "10de:2684", user={"source": "archive"})
    assert (decision["driver"]["flavour"], decision["driver"]["branch"]) == ("proprietary", "550")
    assert decision["parts"] == ["cuda_v12"]
    assert decide("Debian 13", "10de:2b85", user={"source": "archive"})["action"] == "refused"


def test_the_changes_are_reported(decide: Decide) -> None:
    decision = decide("Debian 13", VOLTA, modules={"nouveau": ""})
    assert decision["reboot"] is True
    assert [line.split(":")[0].split(",")[0] for line in decision["changes"]] == [
        "Package sources",
        "Packages installed",
        "Blacklisted",
        "Loaded at boot",
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
    # Secure Boot does not matter then, because the module is installed.
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


def test_tools_are_no_driver(decide: Decide) -> None:
    tools = {"nvidia-container-toolkit": "1.17.8-1", "nvidia-settings": "510.47.03-0ubuntu1"}
    assert decide("Ubuntu 24.04", "10de:2684", packages=tools)["driver"]["source"] == "archive"


def test_amd_takes_a_driver_of_amds_own(decide: Decide) -> None:
    new = {"amdgpu-dkms": "1:6.14.14.30100100-2212064.24.04"}
    decision = decide("Ubuntu 24.04", "1002:744c", packages=new)
    assert (decision["backend"], decision["driver"]["source"]) == ("rocm", "installed")
    old = {"amdgpu-dkms": "1:6.10.5.60303-2119913.24.04"}
    assert decide("Ubuntu 24.04", "1002:744c", packages=old)["backend"] == "vulkan"
    assert decide("Ubuntu 24.04", "1002:74a1", packages=old)["action"] == "refused"


# --- Refusals: one sentence with the remedy each, and nothing changed

BAD: dict[str, tuple[tuple[str, ...], dict[str, Any], str, str]] = {
    "a .run file": (
        ("Debian 13", "10de:2684"),
        {"runfile": "/usr/bin/nvidia-uninstall"},
        "The driver was installed by NVIDIA's .run file, and packages would overwrite parts of it.",
        "Run /usr/bin/nvidia-uninstall and restart the machine",
    ),
    "a half installed package": (
        ("Debian 13", "10de:2684"),
        {"broken": {"nvidia-kernel-dkms": "iF"}},
        "The package nvidia-kernel-dkms is half installed (dpkg status iF).",
        "Run dpkg --configure -a and apt-get --fix-broken install",
    ),
    "a package on hold": (
        ("Debian 13", "10de:2684"),
        {"held": ["libcuda1"]},
        "On hold: libcuda1, so the driver cannot be installed completely.",
        "Run apt-mark unhold libcuda1",
    ),
    "empty package lists": (
        ("Debian 13", "10de:2684"),
        {"package_lists": False},
        "The package lists are empty, so it is unknown which driver fits the kernels.",
        "Run apt-get update",
    ),
    "a kernel without headers": (
        ("Debian 13", "10de:2684"),
        {"kernels": [running("6.12.9-custom", headers="missing")]},
        "The kernel 6.12.9-custom has no headers to build a module with, and no package source has "
        "linux-headers-6.12.9-custom.",
        "Install them, or boot a current kernel and remove this one, or list the kernels that need the "
        "module in gpu_driver_kernels",
    ),
    "Secure Boot without a key": (
        ("Debian 13", "10de:2684"),
        {"secure_boot": True},
        "Secure Boot is on, and /var/lib/dkms/mok.pub, which signs modules built on this host, is not "
        "enrolled.",
        "Run dkms generate_mok and mokutil --import /var/lib/dkms/mok.pub, confirm it on the console at "
        "the next boot, or switch Secure Boot off in the firmware",
    ),
    "an old card": (
        ("Debian 13", "10de:1180"),
        {},
        "NVIDIA GK210 or older (10de:1180 at 0000:01:00.0) is older than Maxwell, and no driver for it "
        "works with Ollama.",
        "Remove the card",
    ),
    "an archive too old": (
        ("Debian 12", "10de:2684"),
        {"user": {"source": "archive"}},
        "Ollama with this card needs NVIDIA's driver 550 or newer, and the archive of Debian 12 has "
        "only 535.309.01.",
        "Set gpu_driver_source: auto, or install such a driver yourself and run the playbook again",
    ),
    "an archive too old for the card": (
        ("Debian 13", "10de:2b85"),
        {"user": {"source": "archive"}},
        "Ollama with this card needs NVIDIA's driver 570 or newer, and the archive of Debian 13 has "
        "only 550.163.01.",
        "Set gpu_driver_source: auto, or install such a driver yourself and run the playbook again",
    ),
    "no source": (
        ("Ubuntu 24.04", "10de:2684"),
        {"user": {"source": "vendor"}},
        "Ollama with this card needs NVIDIA's driver 550 or newer, and Bedplate has none for Ubuntu 24.04.",
        "Set gpu_driver_source: auto, or install such a driver yourself and run the playbook again",
    ),
    "an old kernel for a new AMD card": (
        ("Debian 12", "1002:7550"),
        {},
        "The kernel 6.1.0-56-amd64 does not support Navi 48, which needs 6.12 or newer.",
        "For a newer kernel, run apt-get install -t bookworm-backports linux-image-amd64 "
        "firmware-amd-graphics, and restart",
    ),
    "a cloud kernel": (
        ("Debian 13", "1002:744c"),
        {"kernels": [running("6.12.118+deb13-cloud-amd64", amdgpu=False)]},
        "The kernel 6.12.118+deb13-cloud-amd64 has no module amdgpu, like all cloud kernels.",
        "Run apt-get install linux-image-amd64 and restart with that kernel",
    ),
    "an old AMD card": (
        ("Debian 13", "1002:6798"),
        {},
        "AMD Tahiti or Hawaii (1002:6798 at 0000:01:00.0) is GCN 1 to 3, which is too old for Ollama.",
        "Remove the card",
    ),
    "an accelerator with an old driver": (
        ("Ubuntu 24.04", "1002:740f"),
        {},
        "AMD Aldebaran works only with ROCm 7, which needs a driver newer than the kernel's own driver "
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
        survey = {**host(release, key), "release": "Debian 14"}
        decision = module.gpu_decision(survey, TABLES, SETTINGS)
        assert decision["action"] == "refused"
        assert "Debian 14" in decision["reason"]


def test_held_packages_that_are_installed_are_accepted(decide: Decide) -> None:
    survey = {"packages": OWN, "requested": [*OWN], "held": ["libcuda1"]}
    assert decide("Debian 13", VOLTA, **survey)["action"] == "install"


def test_why_the_better_source_is_not_used(decide: Decide) -> None:
    decision = decide("Debian 13", "10de:2684")
    assert decision["driver"]["source"] == "vendor"
    assert decision["repository"]["key_fingerprint"] == "02182E60104FCDC26EAE1B8597A5D4CB8793F200"
    assert decision["notes"] == [
        "The better source is not used, because the archive of Debian 13 has no open kernel modules that "
        "build."
    ]


def test_an_ubuntu_kernel_without_signed_modules_gets_a_built_one(decide: Decide) -> None:
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
