"""Fake graphics cards: a tree that looks like /sys/bus/pci/devices, for a host to detect a card in.

Nothing answers behind it: a driver finds no device, and says so.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

from .errors import LabError
from .tools import write_whole

TREE = "usr/local/lib/fake-pci"
"""Where a host keeps the tree that its init puts over /sys/bus/pci/devices."""

NO_CONTAINER = "etc/tmpfiles.d/lab-fake-pci.conf"
"""A container's drivers are those of the machine below, so in what says it is one nobody looks for a card."""

CARD = re.compile(r"(?P<vendor>[0-9a-f]{4}):(?P<device>[0-9a-f]{4})(:(?P<kind>[0-9a-f]{4}))?")
DISPLAY = "0300"
BRIDGE = ("1022", "1480", "0600")
"""What every machine has, and no card."""


def check(cards: str) -> list[str]:
    """Return the cards of a list such as `10de:2684,1002:744c:0302`; raise LabError for what is none."""
    found = [card for card in cards.split(",") if card]
    for card in found:
        if not CARD.fullmatch(card):
            raise LabError(
                f"--fake-gpu {card!r} is no PCI id; give VENDOR:DEVICE or VENDOR:DEVICE:CLASS in four "
                "hexadecimal digits each, such as 10de:2684 for a GeForce RTX 4090"
            )
    return found


def write(root: Path, cards: Sequence[str]) -> None:
    """Write the tree of `cards` into the file tree `root` of a host; without cards there is none."""
    tree, no_container = root / TREE, root / NO_CONTAINER
    shutil.rmtree(tree, ignore_errors=True)
    no_container.unlink(missing_ok=True)
    if not cards:
        return
    write_whole(no_container, "r! /run/systemd/container\n")
    _device(tree / "0000:00:00.0", *BRIDGE)
    for number, card in enumerate(cards, 1):
        found = CARD.fullmatch(card)
        if found is None:
            raise LabError(f"{card!r} is no PCI id")
        _device(tree / f"0000:{number:02x}:00.0", found["vendor"], found["device"], found["kind"] or DISPLAY)


def _device(folder: Path, vendor: str, device: str, kind: str) -> None:
    """Write one device as the kernel shows it, its configuration space included."""
    folder.mkdir(parents=True)
    config = bytearray(256)
    struct.pack_into("<HH", config, 0, int(vendor, 16), int(device, 16))
    struct.pack_into("<H", config, 10, int(kind, 16))
    struct.pack_into("<HH", config, 0x2C, int(vendor, 16), 1)
    (folder / "config").write_bytes(config)
    own, maker, model = f"bc{kind[:2]}sc{kind[2:]}i00", vendor.upper(), device.upper()
    texts = {
        "vendor": f"0x{vendor}",
        "device": f"0x{device}",
        "class": f"0x{kind}00",
        "subsystem_vendor": f"0x{vendor}",
        "subsystem_device": "0x0001",
        "revision": "0xa1",
        "irq": "0",
        "enable": "0",
        "numa_node": "-1",
        "modalias": f"pci:v0000{maker}d0000{model}sv0000{maker}sd00000001{own}",
        "resource": "\n".join(["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * 13),
        "uevent": f"PCI_CLASS={kind}00\nPCI_ID={maker}:{model}\nPCI_SLOT_NAME={folder.name}",
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n")
