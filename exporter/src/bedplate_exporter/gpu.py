"""The host's GPUs: NVIDIA's as nvidia-smi tells them, AMD's as their kernel driver does."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 5.0
"""nvidia-smi takes up to 2 s where no persistence daemon keeps the driver awake."""

FIELDS = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
MISMATCH = "version mismatch"
MEBIBYTE = 1024 * 1024
AMD_PCI_VENDOR = "0x1002"
SMALLEST_MEMORY_BYTES = 2048 * MEBIBYTE
"""An AMD processor's graphics part has less memory of its own, and no engine computes there."""


@dataclass(frozen=True)
class Gpu:
    """One GPU at one moment; what it does not tell is None."""

    vendor: str
    number: str
    name: str
    utilization_ratio: float | None
    memory_used_bytes: float | None
    memory_bytes: float | None
    temperature_celsius: float | None
    power_watts: float | None


@dataclass(frozen=True)
class Answer:
    """What one vendor's driver says: its GPUs, none where there are none; `failed` if there is no telling."""

    vendor: str
    gpus: tuple[Gpu, ...] = ()
    failed: bool = False
    driver_matches: bool | None = None
    """Whether kernel module and library are of one version; None where nobody says so."""


class Gpus:
    """Asks both vendors' drivers; a host without GPUs answers at once."""

    def __init__(self, timeout_seconds: float = TIMEOUT_SECONDS, drm: Path = Path("/sys/class/drm")) -> None:
        """`timeout_seconds` bounds a whole poll; `drm` is where the kernel lists graphics cards."""
        self._timeout_seconds = timeout_seconds
        self._drm = drm
        self._stuck: subprocess.Popen[str] | None = None

    def poll(self) -> tuple[Answer, Answer]:
        """Return NVIDIA's answer and AMD's."""
        return self._nvidia(), self._amd()

    def _nvidia(self) -> Answer:
        tool = shutil.which("nvidia-smi")
        if tool is None:
            return Answer("nvidia")
        if self._stuck is not None and self._stuck.poll() is None:
            # A driver that hangs holds the process, killed or not: one is enough.
            return Answer("nvidia", failed=True)
        process = subprocess.Popen(
            [tool, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            said, _ = process.communicate(timeout=self._timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            self._stuck = process
            return Answer("nvidia", failed=True)
        gpus = tuple(_nvidia_gpus(said))
        if process.returncode == 0:
            return Answer("nvidia", gpus, driver_matches=True)
        return Answer("nvidia", gpus, failed=True, driver_matches=False if MISMATCH in said else None)

    def _amd(self) -> Answer:
        gpus = []
        try:
            for card in sorted(self._drm.glob("card[0-9]*/device")):
                # Connectors, such as card0-DP-1, have a device too: the card.
                if "-" in card.parent.name or _text(card / "vendor") != AMD_PCI_VENDOR:
                    continue
                memory = _number(card / "mem_info_vram_total")
                if memory is not None and memory >= SMALLEST_MEMORY_BYTES:
                    gpus.append(_amd_gpu(card, memory))
        except (OSError, ValueError):
            return Answer("amd", tuple(gpus), failed=True)
        return Answer("amd", tuple(gpus))


def _nvidia_gpus(said: str) -> Iterator[Gpu]:
    for line in said.splitlines():
        fields = [field.strip() for field in line.split(",")]
        # Complaints about a lost GPU come between the lines of the others.
        if len(fields) != FIELDS.count(",") + 1 or not fields[0].isdigit():
            continue
        number, name, utilization, used, total, temperature, power = fields
        yield Gpu(
            "nvidia",
            number,
            name,
            _scaled(utilization, 0.01),
            _scaled(used, MEBIBYTE),
            _scaled(total, MEBIBYTE),
            _scaled(temperature, 1),
            _scaled(power, 1),
        )


def _scaled(text: str, factor: float) -> float | None:
    """Return a number of nvidia-smi in base units; "[N/A]" and the like are None."""
    try:
        return float(text) * factor
    except ValueError:
        return None


def _amd_gpu(card: Path, memory: float) -> Gpu:
    sensors = next(iter(sorted((card / "hwmon").glob("hwmon*"))), card)
    busy, temperature = _number(card / "gpu_busy_percent"), _number(sensors / "temp1_input")
    # Which of the two there is depends on the card.
    power = _number(sensors / "power1_average")
    power = _number(sensors / "power1_input") if power is None else power
    name = _text(card / "product_name") or f"AMD {_text(card / 'device') or 'GPU'}"
    return Gpu(
        "amd",
        card.parent.name.removeprefix("card"),
        name,
        None if busy is None else busy / 100,
        _number(card / "mem_info_vram_used"),
        memory,
        None if temperature is None else temperature / 1000,
        None if power is None else power / 1_000_000,
    )


def _text(path: Path) -> str | None:
    """Return what the kernel says in one file, None where it has none; raises OSError when it cannot say."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    return None if text is None else float(text)
