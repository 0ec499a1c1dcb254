# SPDX-License-Identifier: Apache-2.0
"""Decides on a host's GPU driver, from gpu_survey's result and the role's tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

VENDORS = {"10de": "nvidia", "1002": "amd"}
NAMES = {"nvidia": "NVIDIA", "amd": "AMD"}
BACKENDS = {"rocm": "ROCm 7", "vulkan": "Vulkan"}
CPU = "or set gpu_driver_enabled: false to run on the CPU"
# Files that the role writes: blacklisted modules, and modules loaded at boot.
MODPROBE = "/etc/modprobe.d/bedplate-gpu.conf"
MODULES = "/etc/modules-load.d/bedplate-gpu.conf"
# Packages that are part of a driver; others with nvidia in their name (container tools, settings) are not.
NVIDIA_DRIVER = re.compile(
    r"nvidia-(driver|headless|kernel|open-kernel|open|dkms|compute-utils|tesla)(-.+)?"
    r"|libcuda1|libnvidia-compute-.+|cuda-drivers.*|linux-modules-nvidia-.+"
)
NVIDIA_MODULE = re.compile(
    r"nvidia(-tesla(-\d+)?)?-(open-)?(kernel-)?(open-)?dkms(-.+)?|linux-modules-nvidia-.+"
)
NVIDIA_LIBRARY = re.compile(r"libcuda1|libnvidia-compute-.+")
NOTHING: Row = {
    "action": "none",
    "reason": "",
    "remedy": "",
    "vendor": "",
    "count": 0,
    "cards": [],
    "driver": {},
    "packages": [],
    "hold": [],
    "headers": [],
    "components": [],
    "repository": {},
    "blacklist": [],
    "modules": [],
    "groups": [],
    "kernels": [],
    "reboot": False,
    "backend": "cpu",
    "parts": [],
    "changes": [],
    "notes": [],
}


class RefusedError(Exception):
    """The host is refused: one sentence with the reason, one with the remedy.

    `remedy` lacks its full stop; running on the CPU is always added as an alternative.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = f"{remedy}, {CPU}."


def number(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers, without Debian's epoch: 1:6.14.14-2 is (6, 14, 14)."""
    match = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def enumeration(words: Iterable[str]) -> str:
    """Join words with commas and "and"."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def gpu_decision(host: Row, tables: Row, settings: Row) -> dict[str, Any]:
    """Return what is to be done on a host (gpu_survey's result); the keys are those of NOTHING."""
    cards: list[dict[str, Any]] = []
    try:
        cards += [card_of(found, tables, settings["extra_cards"]) for found in host["cards"]]
        result = decide(host, tables, settings, cards)
    except RefusedError as refused:
        result = {"action": "refused", "reason": refused.reason, "remedy": refused.remedy}
    shown = [{key: value for key, value in card.items() if key != "row"} for card in cards]
    return {**NOTHING, **result, "cards": shown}


def decide(host: Row, tables: Row, settings: Row, cards: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the keys that differ from NOTHING, or raise RefusedError; sets the roles of the cards."""
    used = [] if host["container"] else computing(cards, tables, settings)
    expected, count = settings["expected_cards"], len(used)
    if count < expected:
        raise RefusedError(
            f"gpu_driver_expected_cards is {expected}, but {count or 'no'} GPU{'s' * (count != 1)} "
            "can be used on this host.",
            "Find the card with lspci -nn and in the machine, correct the number",
        )
    if host["container"] and cards:
        return {"reason": "This is a container: its GPUs and their drivers belong to the host machine."}
    if not used:
        others = [f"{card['name']} ({card['note']})" for card in cards]
        return {"reason": f"No GPU{': only ' + enumeration(others) if others else ''}."}
    vendor = used[0]["vendor"]
    result = {**NOTHING, **(nvidia if vendor == "nvidia" else amd)(host, tables, settings, used)}
    notes = [f"{card['name']} at {card['slot']}: {card['note']}." for card in cards if card["note"]]
    if host["virtualization"] != "none":
        notes.append(f"This is a virtual machine ({host['virtualization']}) with passed-through cards.")
    families = enumeration(sorted({card["family"] for card in used}))
    driver = dict(result["driver"])
    why = driver.pop("why")
    return {
        **result,
        "action": "install",
        "vendor": vendor,
        "count": count,
        "reason": f"{count} {NAMES[vendor]} GPU{'s' * (count != 1)} ({families}): {why}.",
        "driver": driver,
        "changes": changes(host, result),
        "notes": notes + result["notes"],
    }


# --- Cards


def row_of(device: str, chips: Sequence[Row]) -> Row:
    """Return the first row whose range holds the device id; an empty one where none does."""
    return next((row for row in chips if row["ids"][0] <= device <= row["ids"][1]), {})


def placed(key: str, chips: Sequence[Row], extra_cards: Mapping[str, str]) -> Row:
    """Return the row of the chip that the user names for a card's id."""
    row = next((row for row in chips if row["chip"] == extra_cards[key]), None)
    if row is None:
        raise RefusedError(
            f"gpu_driver_extra_cards maps {key} to the chip '{extra_cards[key]}', which is not in the table.",
            f"Use one of {', '.join(row['chip'] for row in chips)}",
        )
    return row


def card_of(found: Row, tables: Row, extra_cards: Mapping[str, str]) -> dict[str, Any]:
    """Say what a card is; its role is compute, integrated, guest, function, unknown or other."""
    key = f"{found['vendor']}:{found['device']}"
    vendor = VENDORS.get(found["vendor"], "")
    chips: Sequence[Row] = tables[f"{vendor}_chips"] if vendor else ()
    known = vendor and key in extra_cards
    row = placed(key, chips, extra_cards) if known else row_of(found["device"], chips)
    maker = NAMES.get(vendor) or tables["vendors"].get(found["vendor"], f"vendor {found['vendor']}")
    role, note = "compute", ""
    if not vendor:
        role, note = "other", "not a GPU for computing"
    elif found["physical_function"]:
        role, note = "function", f"a virtual function of {found['physical_function']}, for a virtual machine"
    elif found["driver"] in ("vfio-pci", "pci-stub"):
        role, note = "guest", f"passed through to a virtual machine ({found['driver']})"
    elif not row:
        role, note = "unknown", "not in the table of chips"
    elif row.get("integrated"):
        role, note = "integrated", "part of the processor"
    return {
        "slot": found["slot"],
        "id": key,
        "name": f"{maker} {found['name'] or row.get('chip', 'device ' + found['device'])}",
        "vendor": vendor,
        "family": row.get("family", ""),
        "chip": row.get("chip", ""),
        "target": row.get("target", ""),
        "role": role,
        "note": note,
        "row": row,
    }


def computing(cards: list[dict[str, Any]], tables: Row, settings: Row) -> list[dict[str, Any]]:
    """Return the cards that the engine is to use, all of one vendor; the roles of the others are set."""
    wanted = settings["vendor"]
    for card in cards:
        mine = card["role"] in ("compute", "integrated", "unknown")
        if wanted and mine and card["vendor"] != wanted:
            card.update(role="other", note=f"not used, because gpu_driver_vendor is {wanted}")
    found = [card for card in cards if card["role"] == "compute"]
    for card in cards:
        if card["role"] == "unknown":
            others = {other["vendor"] for other in found} - {card["vendor"]}
            ignore = f", set gpu_driver_vendor: {others.pop()} to ignore it" if others else ""
            raise RefusedError(
                f"The {NAMES[card['vendor']]} card {card['id']} at {card['slot']} is not in the table.",
                f"If you know its chip, set gpu_driver_extra_cards: {{'{card['id']}': CHIP}} "
                f"(docs/reference/gpu-drivers.md lists them){ignore}",
            )
    if not found:
        # A processor's graphics is used only without another card, and if Ollama's ROCm supports it.
        known = tables["rocm_targets"]
        found = [card for card in cards if card["role"] == "integrated" and card["target"] in known]
        for card in found:
            card.update(role="compute", note="")
    if len({card["vendor"] for card in found}) > 1:
        raise RefusedError(
            f"There are cards of two vendors ({enumeration(card['name'] for card in found)}), "
            "and an engine uses only one vendor's.",
            "Set gpu_driver_vendor to nvidia or amd for this host",
        )
    return found


# --- Kernels and packages


def kernels_of(host: Row, settings: Row) -> list[Row]:
    """Return the kernels that need the module: those of gpu_driver_kernels, else all of the survey."""
    wanted = settings["kernels"] or [kernel["release"] for kernel in host["kernels"]]
    return [kernel for kernel in host["kernels"] if kernel["release"] in wanted]


def headers_for(host: Row, kernels: Sequence[Row]) -> list[str]:
    """Return the header packages for building a module for these kernels and for later ones."""
    for kernel in kernels:
        if kernel["headers"] == "missing":
            raise RefusedError(
                f"The kernel {kernel['release']} has no headers to build a module with, and no package "
                f"source has linux-headers-{kernel['release']}.",
                "Install them, or boot a current kernel and remove this one, or list the kernels that need "
                "the module in gpu_driver_kernels",
            )
    single = [kernel["release"] for kernel in kernels if kernel["headers"] == "available"]
    return [f"linux-headers-{name}" for name in (*host["kernel_kinds"], *single)]


def check_packages(host: Row, packages: Iterable[str]) -> None:
    """Refuse a package state in which the installation of these packages would fail half way."""
    for name, letters in sorted(host["broken"].items()):
        raise RefusedError(
            f"The package {name} is half installed (dpkg status {letters}).",
            "Run dpkg --configure -a and apt-get --fix-broken install",
        )
    if host["held"] and set(packages) - set(host["packages"]):
        raise RefusedError(
            f"On hold: {enumeration(host['held'])}, so the driver cannot be installed completely.",
            f"Run apt-mark unhold {' '.join(host['held'])}",
        )


def check_secure_boot(host: Row, settings: Row) -> None:
    """Refuse to build a module that the kernel would not load."""
    certificate = settings["signing_certificate"]
    if host["secure_boot"] and not host["certificate_enrolled"]:
        raise RefusedError(
            f"Secure Boot is on, and {certificate}, which signs modules built on this host, is not enrolled.",
            f"Run dkms generate_mok and mokutil --import {certificate}, confirm it on the console at the "
            "next boot, or switch Secure Boot off in the firmware",
        )


def changes(host: Row, result: Row) -> list[str]:
    """Describe what the decision would change on the host, one sentence each."""
    missing = [name for name in result["packages"] if name not in host["packages"]]
    sentences = []
    if missing and result["components"]:
        sentences.append(f"Package sources: {enumeration(result['components'])} enabled where they are not.")
    if missing and result["repository"]:
        sentences.append(f"Package source {result['repository']['url']} added, its key checked.")
    if missing:
        sentences.append(f"Packages installed: {', '.join(missing)}.")
    if result["blacklist"] and MODPROBE not in host["written"]:
        sentences.append(f"Blacklisted: {enumeration(result['blacklist'])} ({MODPROBE}).")
    if result["modules"] and MODULES not in host["written"]:
        sentences.append(f"Loaded at boot, before Ollama: {enumeration(result['modules'])} ({MODULES}).")
    if result["reboot"]:
        sentences.append("A restart, if gpu_driver_reboot allows it; until then Ollama has no GPU.")
    return sentences


# --- NVIDIA


def nvidia(host: Row, tables: Row, settings: Row, cards: Sequence[Row]) -> dict[str, Any]:
    """Decide for NVIDIA's cards."""
    flavours = nvidia_flavours(cards, tables)
    minimum = nvidia_minimum(cards, tables)
    if host["runfile"]:
        raise RefusedError(
            "The driver was installed by NVIDIA's .run file, and packages would overwrite parts of it.",
            f"Run {host['runfile']} and restart the machine",
        )
    kernels = kernels_of(host, settings)
    offers = [
        (flavour, offer)
        for flavour in flavours
        for offer in tables["nvidia_sources"].get(host["release"], [])
        if settings["source"] in ("auto", offer["source"])
    ]
    # Keep the decision of an earlier run of the role.
    requested, here = set(host["requested"]), {*host["requested"], *host["packages"]}
    own = [
        (flavour, offer)
        for flavour, offer in offers
        if requested & set(names := offer["packages"].get(flavour, []))
        and here >= set(names)
        and number(offer["version"]) >= number(minimum)
    ]
    installed = nvidia_installed(host)
    result: dict[str, Any] = {"packages": []}
    if installed and not own:
        version = nvidia_adopted(installed, flavours, minimum)
        driver = {"source": "installed", "branch": version.split(".")[0], "version": version}
        why = f"the installed driver {version} is kept (Ollama needs {minimum} or newer)"
    else:
        if not own and not host["package_lists"]:
            raise RefusedError(
                "The package lists are empty, so it is unknown which driver fits the kernels.",
                "Run apt-get update",
            )
        offer = nvidia_offer(host, own or offers, minimum, kernels)
        if offer["build"] == "dkms":
            check_secure_boot(host, settings)
        driver = {key: offer[key] for key in ("source", "branch", "version", "flavour", "build")}
        from_ = "NVIDIA's repository" if offer["source"] == "vendor" else f"the archive of {host['release']}"
        built = "signed" if offer["build"] == "signed" else "built on the host"
        why = f"driver {offer['version']} from {from_}, {offer['flavour']} kernel modules, {built}"
        kept = ("packages", "hold", "headers", "components", "repository", "notes")
        result |= {key: offer[key] for key in kept}
    check_packages(host, result["packages"])
    running = host["modules"].get("nvidia", "")
    stale = bool(running and installed and number(running) != number(installed["version"]))
    return {
        **result,
        "driver": {
            "module": "nvidia",
            "flavour": "",
            "build": "",
            **driver,
            "minimum": minimum,
            "why": why,
        },
        "blacklist": ["nouveau"],
        "modules": ["nvidia", "nvidia_uvm"],
        "kernels": [kernel["release"] for kernel in kernels],
        "reboot": "nouveau" in host["modules"] or stale,
        "backend": "cuda",
        "parts": [nvidia_part(cards, driver["version"], tables)],
    }


def nvidia_flavours(cards: Sequence[Row], tables: Row) -> list[str]:
    """Return which kernel modules (open, proprietary) support every card, the better first."""
    families = tables["nvidia_families"]
    for card in cards:
        if not families[card["family"]]:
            raise RefusedError(
                f"{card['name']} ({card['id']} at {card['slot']}) is older than Maxwell, and no driver "
                "for it works with Ollama.",
                "Remove the card",
            )
    both = ("open", "proprietary")
    fitting = [name for name in both if all(name in families[card["family"]] for card in cards)]
    if not fitting:
        raise RefusedError(
            f"No driver supports {enumeration(sorted({card['family'] for card in cards}))} together: "
            "Blackwell needs the open kernel modules, cards before Turing the proprietary ones.",
            "Remove the cards of one kind",
        )
    return fitting


def nvidia_minimum(cards: Sequence[Row], tables: Row) -> str:
    """Return the oldest version that works with Ollama and supports every card."""
    lowest = min(number(card["target"]) for card in cards)
    ollama = next(rule["driver"] for rule in tables["nvidia_minimum"] if lowest < number(rule["below"]))
    return str(max([ollama, *(card["row"].get("since", "0") for card in cards)], key=number))


def nvidia_installed(host: Row) -> dict[str, Any]:
    """Return version and package names of the installed NVIDIA driver; empty if there is none."""
    names = sorted(name for name in host["packages"] if NVIDIA_DRIVER.fullmatch(name))
    # Packages of prebuilt modules have the kernel's version.
    others = [name for name in names if not name.startswith("linux-")]
    versioned = [name for name in names if NVIDIA_LIBRARY.fullmatch(name)] or others
    versions = [re.sub(r"^\d+:|-[^-]*$", "", host["packages"][name]) for name in versioned]
    return {"version": max(versions, key=number, default=""), "names": names} if names else {}


def nvidia_adopted(installed: Row, flavours: Sequence[str], minimum: str) -> str:
    """Return the version of a driver that somebody else installed; raises RefusedError if it does not fit.

    Such a driver is kept or refused, never replaced.
    """
    version, names = str(installed["version"]), installed["names"]
    remove = f"Remove it (apt-get purge {' '.join(names)}) and restart, or update it yourself"
    if number(version) < number(minimum):
        raise RefusedError(
            f"NVIDIA's driver {version} is installed, and Ollama with this card needs {minimum} or newer.",
            remove,
        )
    modules = [name for name in names if NVIDIA_MODULE.fullmatch(name)]
    has = {"open" if re.search(r"\bopen\b", name) else "proprietary" for name in modules}
    if modules and not has & set(flavours):
        raise RefusedError(
            f"The installed driver has the {enumeration(sorted(has))} kernel modules, and this card needs "
            f"the {enumeration(flavours)} ones.",
            remove,
        )
    return version


def nvidia_offer(
    host: Row, offers: Sequence[tuple[str, Row]], minimum: str, kernels: Sequence[Row]
) -> dict[str, Any]:
    """Return the first offer (kernel modules and source) that fits, completed for this host."""
    unfit: list[str] = []
    for flavour, offer in offers:
        why = nvidia_unfit(host, offer, flavour, minimum)
        if why:
            unfit.append(why)
            continue
        packages = list(offer["packages"][flavour])
        headers: list[str] = []
        if offer["build"] == "signed":
            kinds = [*host["kernel_kinds"], *(kernel["release"] for kernel in kernels)]
            ready = [offer["modules"][flavour].format(kernel=kind) for kind in kinds]
            if not set(ready) <= {*host["signed_modules"], *host["packages"]}:
                continue
            packages += ready
        else:
            headers = headers_for(host, kernels)
        machine = "sbsa" if host["machine"] == "aarch64" else host["machine"]
        repository = offer.get("repository", {})
        return {
            **offer,
            "flavour": flavour,
            "packages": headers + packages,
            "hold": offer["packages"][flavour],
            "headers": headers,
            "notes": [f"The better source is not used, because {enumeration(unfit)}."] if unfit else [],
            "repository": {key: value.format(machine=machine) for key, value in repository.items()},
        }
    raise RefusedError(
        f"Ollama with this card needs NVIDIA's driver {minimum} or newer, and "
        f"{enumeration(dict.fromkeys(unfit)) or 'Bedplate has none for ' + host['release']}.",
        "Set gpu_driver_source: auto, or install such a driver yourself and run the playbook again",
    )


def nvidia_unfit(host: Row, offer: Row, flavour: str, minimum: str) -> str:
    """Return why an offer's driver does not fit; empty if it fits."""
    where = f"the {offer['source']} of {host['release']}"
    if number(offer["version"]) < number(minimum):
        return f"{where} has only {offer['version']}"
    if flavour not in offer["packages"]:
        return f"{where} has no {flavour} kernel modules that build"
    return ""


def nvidia_part(cards: Sequence[Row], version: str, tables: Row) -> str:
    """Return the directory of Ollama's archive for these cards and this driver."""
    lowest = min(number(card["target"]) for card in cards)
    return next(
        str(rule["part"])
        for rule in tables["nvidia_parts"]
        if lowest >= number(rule["from"]) and number(version) >= number(rule["driver"])
    )


# --- AMD


def amd(host: Row, tables: Row, settings: Row, cards: Sequence[Row]) -> dict[str, Any]:
    """Decide for AMD's cards: their driver is the kernel's, and Ollama's ROCm needs a recent one."""
    source = tables["amd_sources"].get(host["release"])
    if source is None:
        raise RefusedError(
            f"Bedplate has no packages for AMD cards on {host['release']}.",
            f"Use {enumeration(tables['amd_sources'])}",
        )
    for card in cards:
        if card["family"] not in (*tables["amd_vulkan"], *tables["amd_rocm_only"]):
            raise RefusedError(
                f"{card['name']} ({card['id']} at {card['slot']}) is {card['family']}, which is too old "
                "for Ollama.",
                "Remove the card",
            )
    newer = tables["newer_kernel"][host["release"]]
    kernels = kernels_of(host, settings)
    newest = max(kernels, key=lambda kernel: number(kernel["release"]))
    release = next((kernel for kernel in kernels if kernel["running"]), newest)["release"]
    dkms = host["packages"].get("amdgpu-dkms", "")
    version, minimum = (dkms, tables["rocm_dkms"]) if dkms else (release, tables["rocm_kernel"])
    driver = f"amdgpu-dkms {dkms}" if dkms else f"the kernel's own driver ({release})"
    recent = number(version) >= number(minimum)
    bare = [kernel["release"] for kernel in kernels if kernel["installed"] and not kernel["amdgpu"]]
    amd_kernel(cards, "" if dkms else release, newer, [] if "modules" in source else bare)
    for card in cards:
        if card["family"] in tables["amd_rocm_only"] and not recent:
            raise RefusedError(
                f"{card['name']} works only with ROCm 7, which needs a driver newer than {driver}.",
                f"For one, {newer}, and restart, or install amdgpu-dkms 30.10 from AMD",
            )
    rest = [card for card in cards if card["target"] not in tables["rocm_targets"] or not recent]
    parts = ["rocm"] * (len(rest) < len(cards)) + ["vulkan"] * bool(rest)
    packages = [
        *source["packages"],
        *(source["modules"].format(kernel=name) for name in bare),
        *(source["vulkan"] if rest else []),
    ]
    check_packages(host, packages)
    notes = []
    unknown = sorted({card["target"] for card in rest} - set(tables["rocm_targets"]))
    if unknown:
        notes.append(f"Ollama's ROCm does not support {enumeration(unknown)}; Vulkan is used instead.")
    elif rest:
        notes.append(
            f"ROCm would be faster but needs the driver of kernel {tables['rocm_kernel']} or newer: "
            f"{newer}, restart and run the playbook again."
        )
    return {
        "driver": {
            "module": "amdgpu",
            "flavour": "kernel",
            "source": "installed" if dkms else "archive",
            "build": "dkms" if dkms else "kernel",
            "branch": "",
            "version": version,
            "minimum": minimum,
            "why": f"{driver}, {enumeration(BACKENDS[part] for part in parts)}",
        },
        "packages": packages,
        "components": source["components"],
        "modules": ["amdgpu"],
        "groups": ["render", "video"],
        "kernels": [kernel["release"] for kernel in kernels],
        "backend": parts[0],
        "parts": parts,
        "notes": notes,
    }


def amd_kernel(cards: Sequence[Row], kernel: str, newer: str, bare: Sequence[str]) -> None:
    """Refuse a kernel (empty for another driver) that does not support the cards, and one without amdgpu."""
    required = str(max((card["row"].get("kernel", "0") for card in cards), key=number))
    if kernel and number(kernel) < number(required):
        raise RefusedError(
            f"The kernel {kernel} does not support {enumeration(sorted({card['chip'] for card in cards}))}, "
            f"which needs {required} or newer.",
            f"For a newer kernel, {newer}, and restart",
        )
    if bare:
        raise RefusedError(
            f"The kernel {bare[0]} has no module amdgpu, like all cloud kernels.",
            "Run apt-get install linux-image-amd64 and restart with that kernel",
        )


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by its name."""
        return {"gpu_decision": gpu_decision}
