# SPDX-License-Identifier: Apache-2.0
"""Decides on a host's GPU driver, from gpu_survey's result and the role's tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

Table = Mapping[str, Any]
"""The role's tables of vars/main.yml, or one row of them."""

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


class RefusedError(Exception):
    """The host is refused: one sentence with the reason, one with the remedy.

    `remedy` lacks its full stop; running on the CPU is always added as an alternative.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = f"{remedy}, {CPU}."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The user's settings, gpu_driver_*; `source` is auto, archive or vendor."""

    vendor: str
    source: str
    kernels: Sequence[str]
    expected_cards: int
    extra_cards: Mapping[str, str]
    signing_certificate: str


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel; `headers` is installed, available or missing, `amdgpu` whether it has that module."""

    release: str
    running: bool
    installed: bool
    headers: str
    amdgpu: bool


@dataclass(frozen=True, kw_only=True)
class Host:
    """The result of the module gpu_survey, whose documentation describes the fields."""

    release: str
    machine: str
    container: bool
    virtualization: str
    secure_boot: bool
    certificate_enrolled: bool
    cards: Sequence[Mapping[str, Any]]
    kernels: Sequence[Kernel]
    kernel_kinds: Sequence[str]
    package_lists: bool
    signed_modules: Sequence[str]
    modules: Mapping[str, str]
    packages: Mapping[str, str]
    broken: Mapping[str, str]
    held: Sequence[str]
    requested: Sequence[str]
    runfile: str
    written: Sequence[str]

    @classmethod
    def from_survey(cls, survey: Mapping[str, Any]) -> Host:
        """Read the module's result, which also has keys of Ansible's."""
        kernels = [
            Kernel(**{item.name: kernel[item.name] for item in fields(Kernel)})
            for kernel in survey["kernels"]
        ]
        return cls(**{**{item.name: survey[item.name] for item in fields(cls)}, "kernels": kernels})


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card; `role` is compute, integrated, guest, function, unknown or other, and `note` the reason for it.

    `since` is the oldest branch of NVIDIA's driver that supports its chip, `kernel` the oldest kernel.
    """

    slot: str
    id: str
    name: str
    vendor: str
    family: str
    chip: str
    target: str
    role: str
    note: str
    since: str = "0"
    kernel: str = "0"

    def __str__(self) -> str:
        return f"{self.name} ({self.id} at {self.slot})"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A driver; `source` is archive, vendor or installed, `build` dkms, signed, kernel or empty."""

    module: str
    source: str
    branch: str
    version: str
    minimum: str
    flavour: str = ""
    build: str = ""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A driver from a package source, completed for one host, or the installed one (no packages).

    `notes` say why no better source is used.
    """

    source: str
    branch: str
    version: str
    flavour: str = ""
    build: str = ""
    packages: list[str] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    components: list[str] = field(default_factory=list)
    repository: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do on a host, and the keys of the filter's result; `action` is none, install or refused."""

    action: str = "none"
    reason: str = ""
    remedy: str = ""
    vendor: str = ""
    count: int = 0
    cards: list[Card] = field(default_factory=list)
    driver: Driver | None = None
    packages: list[str] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    components: list[str] = field(default_factory=list)
    repository: dict[str, str] = field(default_factory=dict)
    blacklist: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    reboot: bool = False
    backend: str = "cpu"
    parts: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_result(self) -> dict[str, Any]:
        """Return the filter's result: plain dicts and lists, without what only the decision needs."""
        result = asdict(self)
        for card in result["cards"]:
            del card["since"], card["kernel"]
        result["driver"] = result["driver"] or {}
        return result


def number(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers, without Debian's epoch: 1:6.14.14-2 is (6, 14, 14)."""
    match = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def enumeration(words: Iterable[str]) -> str:
    """Join words with commas and "and"."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def gpu_decision(survey: Mapping[str, Any], tables: Table, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Decision on a host as a dict; `survey` is gpu_survey's result."""
    host, options = Host.from_survey(survey), Settings(**settings)
    cards: list[Card] = []
    try:
        cards = [identify(card, tables, options.extra_cards) for card in host.cards]
        if not host.container:
            cards = with_roles(cards, options.vendor, tables["rocm_targets"])
        decision = decide(host, tables, options, cards)
    except RefusedError as refused:
        decision = Decision(action="refused", reason=refused.reason, remedy=refused.remedy)
    return replace(decision, cards=cards).as_result()


def decide(host: Host, tables: Table, settings: Settings, cards: Sequence[Card]) -> Decision:
    """Return the decision without its cards, or raise RefusedError."""
    used = [] if host.container else usable(cards)
    expected, count = settings.expected_cards, len(used)
    if count < expected:
        raise RefusedError(
            f"gpu_driver_expected_cards is {expected}, but {count or 'no'} GPU{'s' * (count != 1)} "
            "can be used on this host.",
            "Find the card with lspci -nn and in the machine, correct the number",
        )
    if host.container and cards:
        return Decision(reason="This is a container: its GPUs and their drivers belong to the host machine.")
    if not used:
        others = [f"{card.name} ({card.note})" for card in cards]
        return Decision(reason=f"No GPU{': only ' + enumeration(others) if others else ''}.")
    vendor = used[0].vendor
    decision = (nvidia if vendor == "nvidia" else amd)(host, tables, settings, used)
    notes = [f"{card.name} at {card.slot}: {card.note}." for card in cards if card.note]
    if host.virtualization != "none":
        notes.append(f"This is a virtual machine ({host.virtualization}) with passed-through cards.")
    families = enumeration(sorted({card.family for card in used}))
    return replace(
        decision,
        action="install",
        vendor=vendor,
        count=count,
        reason=f"{count} {NAMES[vendor]} GPU{'s' * (count != 1)} ({families}): {decision.reason}.",
        changes=changes(host, decision),
        notes=notes + decision.notes,
    )


# --- Cards


def row_of(device: str, chips: Sequence[Table]) -> Table:
    """Return the first row whose range contains the device id; an empty one if none does."""
    return next((row for row in chips if row["ids"][0] <= device <= row["ids"][1]), {})


def row_of_extra_card(key: str, chips: Sequence[Table], extra_cards: Mapping[str, str]) -> Table:
    """Return the row of the chip that the user sets for a card's id, or raise RefusedError."""
    row = next((row for row in chips if row["chip"] == extra_cards[key]), None)
    if row is None:
        raise RefusedError(
            f"gpu_driver_extra_cards maps {key} to the chip '{extra_cards[key]}', which is not in the table.",
            f"Use one of {', '.join(row['chip'] for row in chips)}",
        )
    return row


def identify(device: Mapping[str, Any], tables: Table, extra_cards: Mapping[str, str]) -> Card:
    """Return the card of a PCI device, by the role's table of chips and the user's extra cards."""
    key = f"{device['vendor']}:{device['device']}"
    vendor = VENDORS.get(device["vendor"], "")
    chips: Sequence[Table] = tables[f"{vendor}_chips"] if vendor else ()
    if vendor and key in extra_cards:
        row = row_of_extra_card(key, chips, extra_cards)
    else:
        row = row_of(device["device"], chips)
    maker = NAMES.get(vendor) or tables["vendors"].get(device["vendor"], f"vendor {device['vendor']}")
    role, note = "compute", ""
    if not vendor:
        role, note = "other", "not a GPU for computing"
    elif device["physical_function"]:
        role, note = "function", f"a virtual function of {device['physical_function']}, for a virtual machine"
    elif device["driver"] in ("vfio-pci", "pci-stub"):
        role, note = "guest", f"passed through to a virtual machine ({device['driver']})"
    elif not row:
        role, note = "unknown", "not in the table of chips"
    elif row.get("integrated"):
        role, note = "integrated", "part of the processor"
    return Card(
        slot=device["slot"],
        id=key,
        name=f"{maker} {device['name'] or row.get('chip', 'device ' + device['device'])}",
        vendor=vendor,
        role=role,
        note=note,
        **{name: row.get(name, "") for name in ("family", "chip", "target")},
        **{name: row[name] for name in ("since", "kernel") if name in row},
    )


def with_roles(cards: Sequence[Card], vendor: str, rocm_targets: Sequence[str]) -> list[Card]:
    """Return the cards with their roles on this host; `vendor` is gpu_driver_vendor."""
    result = [
        replace(card, role="other", note=f"not used, because gpu_driver_vendor is {vendor}")
        if vendor and card.vendor != vendor and card.role in ("compute", "integrated", "unknown")
        else card
        for card in cards
    ]
    if {card.role for card in result} & {"compute", "unknown"}:
        return result
    # A processor's graphics is used only without another card, and if Ollama's ROCm supports it.
    return [
        replace(card, role="compute", note="")
        if card.role == "integrated" and card.target in rocm_targets
        else card
        for card in result
    ]


def usable(cards: Sequence[Card]) -> list[Card]:
    """Return the cards that the engine is to use; raises RefusedError for unknown cards and two vendors."""
    used = [card for card in cards if card.role == "compute"]
    for card in cards:
        if card.role == "unknown":
            others = {other.vendor for other in used} - {card.vendor}
            ignore = f", set gpu_driver_vendor: {others.pop()} to ignore it" if others else ""
            raise RefusedError(
                f"The {NAMES[card.vendor]} card {card.id} at {card.slot} is not in the table.",
                f"If you know its chip, set gpu_driver_extra_cards: {{'{card.id}': CHIP}} "
                f"(docs/reference/gpu-drivers.md lists them){ignore}",
            )
    if len({card.vendor for card in used}) > 1:
        raise RefusedError(
            f"There are cards of two vendors ({enumeration(card.name for card in used)}), "
            "and an engine uses only one vendor's.",
            "Set gpu_driver_vendor to nvidia or amd for this host",
        )
    return used


# --- Kernels and packages


def kernels_of(host: Host, settings: Settings) -> list[Kernel]:
    """Return the kernels that need the module: those of gpu_driver_kernels, else all of the survey."""
    wanted = settings.kernels or [kernel.release for kernel in host.kernels]
    return [kernel for kernel in host.kernels if kernel.release in wanted]


def headers_for(host: Host, kernels: Sequence[Kernel]) -> list[str]:
    """Return the header packages for building a module for these kernels and for later ones."""
    for kernel in kernels:
        if kernel.headers == "missing":
            raise RefusedError(
                f"The kernel {kernel.release} has no headers to build a module with, and no package "
                f"source has linux-headers-{kernel.release}.",
                "Install them, or boot a current kernel and remove this one, or list the kernels that need "
                "the module in gpu_driver_kernels",
            )
    single = [kernel.release for kernel in kernels if kernel.headers == "available"]
    return [f"linux-headers-{name}" for name in (*host.kernel_kinds, *single)]


def check_packages(host: Host, packages: Iterable[str]) -> None:
    """Refuse a package state in which the installation of these packages would fail half way."""
    for name, letters in sorted(host.broken.items()):
        raise RefusedError(
            f"The package {name} is half installed (dpkg status {letters}).",
            "Run dpkg --configure -a and apt-get --fix-broken install",
        )
    if host.held and set(packages) - set(host.packages):
        raise RefusedError(
            f"On hold: {enumeration(host.held)}, so the driver cannot be installed completely.",
            f"Run apt-mark unhold {' '.join(host.held)}",
        )


def check_secure_boot(host: Host, settings: Settings) -> None:
    """Refuse to build a module that the kernel would not load."""
    certificate = settings.signing_certificate
    if host.secure_boot and not host.certificate_enrolled:
        raise RefusedError(
            f"Secure Boot is on, and {certificate}, which signs modules built on this host, is not enrolled.",
            f"Run dkms generate_mok and mokutil --import {certificate}, confirm it on the console at the "
            "next boot, or switch Secure Boot off in the firmware",
        )


def changes(host: Host, decision: Decision) -> list[str]:
    """Describe what the decision would change on the host, one sentence each."""
    missing = [name for name in decision.packages if name not in host.packages]
    sentences = []
    if missing and decision.components:
        sentences.append(f"Package sources: {enumeration(decision.components)} enabled where they are not.")
    if missing and decision.repository:
        sentences.append(f"Package source {decision.repository['url']} added, its key checked.")
    if missing:
        sentences.append(f"Packages installed: {', '.join(missing)}.")
    if decision.blacklist and MODPROBE not in host.written:
        sentences.append(f"Blacklisted: {enumeration(decision.blacklist)} ({MODPROBE}).")
    if decision.modules and MODULES not in host.written:
        sentences.append(f"Loaded at boot, before Ollama: {enumeration(decision.modules)} ({MODULES}).")
    if decision.reboot:
        sentences.append("A restart, if gpu_driver_reboot allows it; until then Ollama has no GPU.")
    return sentences


# --- NVIDIA


def nvidia(host: Host, tables: Table, settings: Settings, cards: Sequence[Card]) -> Decision:
    """Decide for NVIDIA's cards; `reason` is the choice of the driver."""
    flavours = nvidia_flavours(cards, tables)
    minimum = nvidia_minimum(cards, tables)
    if host.runfile:
        raise RefusedError(
            "The driver was installed by NVIDIA's .run file, and packages would overwrite parts of it.",
            f"Run {host.runfile} and restart the machine",
        )
    kernels = kernels_of(host, settings)
    offers = [
        (flavour, offer)
        for flavour in flavours
        for offer in tables["nvidia_sources"].get(host.release, [])
        if settings.source in ("auto", offer["source"])
    ]
    own = nvidia_own(host, offers, minimum)
    installed_version, installed_packages = nvidia_installed(host)
    if installed_packages and not own:
        offer = nvidia_adopted(installed_version, installed_packages, flavours, minimum)
    else:
        if not own and not host.package_lists:
            raise RefusedError(
                "The package lists are empty, so it is unknown which driver fits the kernels.",
                "Run apt-get update",
            )
        offer = nvidia_offer(host, own or offers, minimum, kernels)
        if offer.build == "dkms":
            check_secure_boot(host, settings)
    check_packages(host, offer.packages)
    running = host.modules.get("nvidia", "")
    stale = bool(running and installed_packages and number(running) != number(installed_version))
    return Decision(
        reason=nvidia_reason(host, offer, minimum),
        driver=Driver(
            module="nvidia",
            source=offer.source,
            branch=offer.branch,
            version=offer.version,
            minimum=minimum,
            flavour=offer.flavour,
            build=offer.build,
        ),
        packages=offer.packages,
        hold=offer.hold,
        headers=offer.headers,
        components=offer.components,
        repository=offer.repository,
        blacklist=["nouveau"],
        modules=["nvidia", "nvidia_uvm"],
        kernels=[kernel.release for kernel in kernels],
        reboot="nouveau" in host.modules or stale,
        backend="cuda",
        parts=[nvidia_part(cards, offer.version, tables)],
        notes=offer.notes,
    )


def nvidia_flavours(cards: Sequence[Card], tables: Table) -> list[str]:
    """Return which kernel modules (open, proprietary) support every card, the better first."""
    families = tables["nvidia_families"]
    for card in cards:
        if not families[card.family]:
            raise RefusedError(
                f"{card} is older than Maxwell, and no driver for it works with Ollama.",
                "Remove the card",
            )
    both = ("open", "proprietary")
    fitting = [name for name in both if all(name in families[card.family] for card in cards)]
    if not fitting:
        raise RefusedError(
            f"No driver supports {enumeration(sorted({card.family for card in cards}))} together: "
            "Blackwell needs the open kernel modules, cards before Turing the proprietary ones.",
            "Remove the cards of one kind",
        )
    return fitting


def nvidia_minimum(cards: Sequence[Card], tables: Table) -> str:
    """Return the oldest version that works with Ollama and supports every card."""
    lowest = min(number(card.target) for card in cards)
    ollama = next(rule["driver"] for rule in tables["nvidia_minimum"] if lowest < number(rule["below"]))
    return str(max([ollama, *(card.since for card in cards)], key=number))


def nvidia_own(host: Host, offers: Sequence[tuple[str, Table]], minimum: str) -> list[tuple[str, Table]]:
    """Return the offers that an earlier run of the role chose, whose decision is kept."""
    requested, present = set(host.requested), {*host.requested, *host.packages}
    return [
        (flavour, offer)
        for flavour, offer in offers
        if requested & set(names := offer["packages"].get(flavour, []))
        and present >= set(names)
        and number(offer["version"]) >= number(minimum)
    ]


def nvidia_installed(host: Host) -> tuple[str, list[str]]:
    """Return version and package names of the installed NVIDIA driver; empty if there is none."""
    names = sorted(name for name in host.packages if NVIDIA_DRIVER.fullmatch(name))
    # Packages of prebuilt modules have the kernel's version.
    others = [name for name in names if not name.startswith("linux-")]
    versioned = [name for name in names if NVIDIA_LIBRARY.fullmatch(name)] or others
    versions = [re.sub(r"^\d+:|-[^-]*$", "", host.packages[name]) for name in versioned]
    return max(versions, key=number, default=""), names


def nvidia_adopted(version: str, packages: Sequence[str], flavours: Sequence[str], minimum: str) -> Offer:
    """Keep the driver of another installation; raises RefusedError if it does not fit, never replaces it."""
    remove = f"Remove it (apt-get purge {' '.join(packages)}) and restart, or update it yourself"
    if number(version) < number(minimum):
        raise RefusedError(
            f"NVIDIA's driver {version} is installed, and Ollama with this card needs {minimum} or newer.",
            remove,
        )
    modules = [name for name in packages if NVIDIA_MODULE.fullmatch(name)]
    has = {"open" if re.search(r"\bopen\b", name) else "proprietary" for name in modules}
    if modules and not has & set(flavours):
        raise RefusedError(
            f"The installed driver has the {enumeration(sorted(has))} kernel modules, and this card needs "
            f"the {enumeration(flavours)} ones.",
            remove,
        )
    return Offer(source="installed", branch=version.partition(".")[0], version=version)


def nvidia_reason(host: Host, offer: Offer, minimum: str) -> str:
    """Return the choice of the driver, for the decision's reason."""
    if offer.source == "installed":
        return f"the installed driver {offer.version} is kept (Ollama needs {minimum} or newer)"
    origin = "NVIDIA's repository" if offer.source == "vendor" else f"the archive of {host.release}"
    built = "signed" if offer.build == "signed" else "built on the host"
    return f"driver {offer.version} from {origin}, {offer.flavour} kernel modules, {built}"


def nvidia_offer(
    host: Host, offers: Sequence[tuple[str, Table]], minimum: str, kernels: Sequence[Kernel]
) -> Offer:
    """Return the first offer (kernel modules and source) that fits; raises RefusedError if none does."""
    unfit: list[str] = []
    for flavour, offer in offers:
        why = nvidia_unfit(host, offer, flavour, minimum)
        if why:
            unfit.append(why)
            continue
        packages = list(offer["packages"][flavour])
        headers: list[str] = []
        if offer["build"] == "signed":
            kinds = [*host.kernel_kinds, *(kernel.release for kernel in kernels)]
            prebuilt = [offer["modules"][flavour].format(kernel=kind) for kind in kinds]
            if not set(prebuilt) <= {*host.signed_modules, *host.packages}:
                continue
            packages += prebuilt
        else:
            headers = headers_for(host, kernels)
        machine = "sbsa" if host.machine == "aarch64" else host.machine
        repository = offer.get("repository", {})
        return Offer(
            source=offer["source"],
            branch=offer["branch"],
            version=offer["version"],
            flavour=flavour,
            build=offer["build"],
            packages=headers + packages,
            hold=list(offer["packages"][flavour]),
            headers=headers,
            components=list(offer["components"]),
            repository={key: value.format(machine=machine) for key, value in repository.items()},
            notes=[f"The better source is not used, because {enumeration(unfit)}."] if unfit else [],
        )
    raise RefusedError(
        f"Ollama with this card needs NVIDIA's driver {minimum} or newer, and "
        f"{enumeration(dict.fromkeys(unfit)) or 'Bedplate has none for ' + host.release}.",
        "Set gpu_driver_source: auto, or install such a driver yourself and run the playbook again",
    )


def nvidia_unfit(host: Host, offer: Table, flavour: str, minimum: str) -> str:
    """Return why an offer's driver does not fit; empty if it fits."""
    where = f"the {offer['source']} of {host.release}"
    if number(offer["version"]) < number(minimum):
        return f"{where} has only {offer['version']}"
    if flavour not in offer["packages"]:
        return f"{where} has no {flavour} kernel modules that build"
    return ""


def nvidia_part(cards: Sequence[Card], version: str, tables: Table) -> str:
    """Return the directory of Ollama's archive for these cards and this driver."""
    lowest = min(number(card.target) for card in cards)
    return next(
        str(rule["part"])
        for rule in tables["nvidia_parts"]
        if lowest >= number(rule["from"]) and number(version) >= number(rule["driver"])
    )


# --- AMD


def amd(host: Host, tables: Table, settings: Settings, cards: Sequence[Card]) -> Decision:
    """Decide for AMD's cards; `reason` is the choice of the driver.

    Their driver is the kernel's or AMD's own, and Ollama's ROCm needs a recent one.
    """
    source = tables["amd_sources"].get(host.release)
    if source is None:
        raise RefusedError(
            f"Bedplate has no packages for AMD cards on {host.release}.",
            f"Use {enumeration(tables['amd_sources'])}",
        )
    check_amd_families(cards, tables)
    kernels = kernels_of(host, settings)
    driver, why = amd_driver(host, tables, kernels)
    recent = number(driver.version) >= number(driver.minimum)
    bare = [kernel.release for kernel in kernels if kernel.installed and not kernel.amdgpu]
    newer = tables["newer_kernel"][host.release]
    check_amd_kernel(cards, driver, newer, [] if "modules" in source else bare)
    for card in cards:
        if card.family in tables["amd_rocm_only"] and not recent:
            raise RefusedError(
                f"{card.name} works only with ROCm 7, which needs a driver newer than {why}.",
                f"For one, {newer}, and restart, or install amdgpu-dkms 30.10 from AMD",
            )
    rest = [card for card in cards if card.target not in tables["rocm_targets"] or not recent]
    parts = ["rocm"] * (len(rest) < len(cards)) + ["vulkan"] * bool(rest)
    packages = [
        *source["packages"],
        *(source["modules"].format(kernel=name) for name in bare),
        *(source["vulkan"] if rest else []),
    ]
    check_packages(host, packages)
    return Decision(
        reason=f"{why}, {enumeration(BACKENDS[part] for part in parts)}",
        driver=driver,
        packages=packages,
        components=list(source["components"]),
        modules=["amdgpu"],
        groups=["render", "video"],
        kernels=[kernel.release for kernel in kernels],
        backend=parts[0],
        parts=parts,
        notes=amd_notes(tables, rest, newer),
    )


def amd_driver(host: Host, tables: Table, kernels: Sequence[Kernel]) -> tuple[Driver, str]:
    """Return the driver that the host has, and a name for it: AMD's amdgpu-dkms or the kernel's own."""
    if dkms := host.packages.get("amdgpu-dkms", ""):
        version, minimum, source, build = dkms, tables["rocm_dkms"], "installed", "dkms"
        name = f"amdgpu-dkms {dkms}"
    else:
        newest = max(kernels, key=lambda kernel: number(kernel.release))
        version = next((kernel for kernel in kernels if kernel.running), newest).release
        minimum, source, build = tables["rocm_kernel"], "archive", "kernel"
        name = f"the kernel's own driver ({version})"
    driver = Driver(
        module="amdgpu",
        source=source,
        branch="",
        version=version,
        minimum=minimum,
        flavour="kernel",
        build=build,
    )
    return driver, name


def check_amd_families(cards: Sequence[Card], tables: Table) -> None:
    """Refuse cards that are too old for both ROCm and Vulkan."""
    for card in cards:
        if card.family not in (*tables["amd_vulkan"], *tables["amd_rocm_only"]):
            raise RefusedError(f"{card} is {card.family}, which is too old for Ollama.", "Remove the card")


def check_amd_kernel(cards: Sequence[Card], driver: Driver, newer: str, bare: Sequence[str]) -> None:
    """Refuse a kernel's own driver that does not support the cards, and kernels without the module amdgpu."""
    required = str(max((card.kernel for card in cards), key=number))
    if driver.build == "kernel" and number(driver.version) < number(required):
        raise RefusedError(
            f"The kernel {driver.version} does not support "
            f"{enumeration(sorted({card.chip for card in cards}))}, which needs {required} or newer.",
            f"For a newer kernel, {newer}, and restart",
        )
    if bare:
        raise RefusedError(
            f"The kernel {bare[0]} has no module amdgpu, like all cloud kernels.",
            "Run apt-get install linux-image-amd64 and restart with that kernel",
        )


def amd_notes(tables: Table, rest: Sequence[Card], newer: str) -> list[str]:
    """Return why Vulkan and not ROCm is used for the cards `rest`; nothing if there are none."""
    unknown = sorted({card.target for card in rest} - set(tables["rocm_targets"]))
    if unknown:
        return [f"Ollama's ROCm does not support {enumeration(unknown)}; Vulkan is used instead."]
    if rest:
        return [
            f"ROCm would be faster but needs the driver of kernel {tables['rocm_kernel']} or newer: "
            f"{newer}, restart and run the playbook again."
        ]
    return []


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by its name."""
        return {"gpu_decision": gpu_decision}
