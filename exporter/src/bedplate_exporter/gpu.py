"""The host's GPUs: NVIDIA's as nvidia-smi tells them, AMD's as their kernel driver does."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

TIMEOUT_SECONDS = 5.0
"""nvidia-smi takes up to 2 s where no persistence daemon keeps the driver awake."""

WAIT_SECONDS = 2.0
"""A scrape is given up after 3 s at the shortest interval; who waits less gets the last answer that ended."""

STALE_SECONDS = 60.0
"""An answer older than this stands for nothing: something below hangs."""

VENDORS = ("nvidia", "amd")
FIELDS = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw,driver_version"
REASONS = "clocks_event_reasons.active"
"""Why a GPU runs slower than it could, as bits; drivers before 535 know no field of this name."""

THROTTLING = {"heat": 0x20 | 0x40, "power": 0x04 | 0x80, "hardware": 0x08}
LIBRARIES = ("usr/lib/*-linux-gnu/libcuda.so.1", "usr/lib*/libcuda.so.1")
"""Where distributions link the library through which an engine computes; the file is named by its version."""

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
    throttling: str | None = None
    """Why it runs slower than it could, in a word: heat, power, hardware; empty if it does not."""


@dataclass(frozen=True)
class Answer:
    """What one vendor's driver says: its GPUs, none where there are none; `failed` if there is no telling."""

    vendor: str
    gpus: tuple[Gpu, ...] = ()
    failed: bool = False
    driver_matches: bool | None = None
    """Whether kernel module and library are of one version; None where nobody says so."""
    expected: int = 0
    """How many GPUs were found in the machine, or declared, when it was set up."""
    version: str | None = None
    """The version of the driver that answers."""
    module_version: str | None = None
    library_version: str | None = None


class Gpus:
    """Asks both vendors' drivers, once at a time; a host without GPUs answers at once."""

    def __init__(
        self,
        timeout_seconds: float = TIMEOUT_SECONDS,
        *,
        root: Path = Path("/"),
        expected: Mapping[str, int] | None = None,
    ) -> None:
        """Bound nvidia-smi by `timeout_seconds`; /sys and /usr are in `root`; `expected` counts by vendor."""
        self._timeout_seconds = timeout_seconds
        self._root = root
        self._expected = expected or {}
        self._stuck: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpus")
        self._running: Future[None] | None = None
        self._last: tuple[float, tuple[Answer, ...]] = (float("-inf"), ())

    def poll(self, wait_seconds: float = WAIT_SECONDS) -> tuple[Answer, ...]:
        """Return each vendor's answer: of a new poll, or after `wait_seconds` of the last one that ended.

        Where none ended lately there is no telling, which is an answer that failed.
        """
        with self._lock:
            if self._running is None or self._running.done():
                self._running = self._pool.submit(self._ask)
            running = self._running
        wait([running], wait_seconds)
        at, answers = self._last
        if time.monotonic() - at <= STALE_SECONDS:
            return answers
        return tuple(
            Answer(vendor, failed=True, expected=self._expected.get(vendor, 0)) for vendor in VENDORS
        )

    def _ask(self) -> None:
        answers = tuple(
            replace(answer, expected=self._expected.get(answer.vendor, 0))
            for answer in (self._nvidia(), self._amd())
        )
        self._last = time.monotonic(), answers

    def _nvidia(self) -> Answer:
        module = _text(self._root / "sys/module/nvidia/version")
        library = next((path.resolve().name for place in LIBRARIES for path in self._root.glob(place)), "")
        version = library.removeprefix("libcuda.so.") if library.count(".") > 2 else None
        answer = replace(self._nvidia_smi(), module_version=module, library_version=version)
        return answer if None in (module, version) else replace(answer, driver_matches=module == version)

    def _nvidia_smi(self) -> Answer:
        tool = shutil.which("nvidia-smi")
        if tool is None:
            return Answer("nvidia")
        if self._stuck is not None and self._stuck.poll() is None:
            # A driver that hangs holds the process, killed or not: one is enough.
            return Answer("nvidia", failed=True)
        deadline = time.monotonic() + self._timeout_seconds
        status, said = self._query(tool, f"{FIELDS},{REASONS}", deadline)
        if status not in (0, None) and "not a valid field" in said:
            status, said = self._query(tool, FIELDS, deadline)
        rows = list(_rows(said))
        gpus = tuple(_nvidia_gpu(row) for row in rows)
        version = rows[0][7] if rows else None
        if status == 0:
            return Answer("nvidia", gpus, driver_matches=True, version=version)
        matches = False if MISMATCH in said else None
        return Answer("nvidia", gpus, failed=True, driver_matches=matches, version=version)

    def _query(self, tool: str, fields: str, deadline: float) -> tuple[int | None, str]:
        """Return exit status and output of one query; the status is None if there was none in time."""
        process = subprocess.Popen(
            [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            said, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            self._stuck = process
            return None, ""
        return process.returncode, said

    def _amd(self) -> Answer:
        gpus = []
        try:
            for card in sorted(self._root.glob("sys/class/drm/card[0-9]*/device")):
                # Connectors, such as card0-DP-1, have a device too: the card.
                if "-" in card.parent.name or _text(card / "vendor") != AMD_PCI_VENDOR:
                    continue
                memory = _number(card / "mem_info_vram_total")
                if memory is not None and memory >= SMALLEST_MEMORY_BYTES:
                    gpus.append(_amd_gpu(card, memory))
        except (OSError, ValueError):
            return Answer("amd", tuple(gpus), failed=True)
        version = _text(self._root / "sys/module/amdgpu/version")
        return Answer("amd", tuple(gpus), version=version, module_version=version)


def _rows(said: str) -> Iterator[list[str]]:
    for line in said.splitlines():
        fields = [field.strip() for field in line.split(",")]
        # Complaints about a lost GPU come between the lines of the others.
        if len(fields) in (8, 9) and fields[0].isdigit():
            yield fields


def _nvidia_gpu(row: list[str]) -> Gpu:
    number, name, utilization, used, total, temperature, power = row[:7]
    return Gpu(
        "nvidia",
        number,
        name,
        _scaled(utilization, 0.01),
        _scaled(used, MEBIBYTE),
        _scaled(total, MEBIBYTE),
        _scaled(temperature, 1),
        _scaled(power, 1),
        _throttling(row[8]) if len(row) > 8 else None,
    )


def _throttling(bits: str) -> str | None:
    """Return the first reason of nvidia-smi's bits, empty for none; "[N/A]" and the like are None."""
    try:
        active = int(bits, 16)
    except ValueError:
        return None
    return next((reason for reason, mask in THROTTLING.items() if active & mask), "")


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
