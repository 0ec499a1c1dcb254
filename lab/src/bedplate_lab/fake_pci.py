"""Fake graphics cards: a tree like /sys/bus/pci/devices, in which a host detects a card.

There is no device behind it: a driver finds none, and reports that.
"""

import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

from bedplate_lab.errors import LabError
from bedplate_lab.tools import write_file

TREE = "usr/local/lib/fake-pci"
"""The host's folder with the tree that its init mounts over /sys/bus/pci/devices."""

NO_CONTAINER = "etc/tmpfiles.d/lab-fake-pci.conf"
"""Hides that the host is a container: in a container the stack does not look for a card."""

CARD = re.compile(r"(?P<vendor>[0-9a-f]{4}):(?P<device>[0-9a-f]{4})(:(?P<kind>[0-9a-f]{4}))?")
DISPLAY = "0300"
BRIDGE = ("1022", "1480", "0600")
"""A PCI device that every machine has, and that is not a card."""


def check(cards: str) -> list[str]:
    """Return the cards in a list such as `10de:2684,1002:744c:0302`; raise LabError for an invalid PCI id."""
    ids = [card for card in cards.split(",") if card]
    for card in ids:
        if not CARD.fullmatch(card):
            raise LabError(
                f"--fake-gpu {card!r} is not a PCI id; give VENDOR:DEVICE or VENDOR:DEVICE:CLASS in four "
                "hexadecimal digits each, such as 10de:2684 for a GeForce RTX 4090"
            )
    return ids


def write(root: Path, cards: Sequence[str]) -> None:
    """Write the tree of `cards` into the file tree `root` of a host; without cards, remove it."""
    tree, no_container = root / TREE, root / NO_CONTAINER
    shutil.rmtree(tree, ignore_errors=True)
    no_container.unlink(missing_ok=True)
    if not cards:
        return
    write_file(no_container, "r! /run/systemd/container\n")
    _write_device(tree / "0000:00:00.0", *BRIDGE)

    for number, card in enumerate(cards, 1):
        match = CARD.fullmatch(card)
        if match is None:
            raise LabError(f"{card!r} is not a PCI id")
        folder = tree / f"0000:{number:02x}:00.0"
        _write_device(folder, match["vendor"], match["device"], match["kind"] or DISPLAY)


def _write_device(folder: Path, vendor: str, device: str, kind: str) -> None:
    """Write one device as the kernel shows it, including its configuration space."""
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
