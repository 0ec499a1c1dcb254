"""The host's GPUs: NVIDIA's as nvidia-smi reports them, AMD's as their kernel driver does."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

TIMEOUT_SECONDS = 5.0
"""nvidia-smi takes up to 2 s without the persistence daemon, which keeps the driver loaded."""

WAIT_SECONDS = 2.0
"""Below the shortest scrape timeout, 3 s; a poll that takes longer serves the next scrape."""

STALE_SECONDS = 60.0
"""An older answer is not used: the driver hangs."""

VENDORS = ("nvidia", "amd")
FIELDS = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw,driver_version"
REASONS = "clocks_event_reasons.active"
"""Why a GPU is throttled, as bits; drivers before 535 lack this field."""

THROTTLING = {"heat": 0x20 | 0x40, "power": 0x04 | 0x80, "hardware": 0x08}
LIBRARIES = ("usr/lib/*-linux-gnu/libcuda.so.1", "usr/lib*/libcuda.so.1")
"""Where distributions install the CUDA driver library; the file's name ends in its version."""

MISMATCH = "version mismatch"
MEBIBYTE = 1024 * 1024
AMD_PCI_VENDOR = "0x1002"
SMALLEST_MEMORY_BYTES = 2048 * MEBIBYTE
"""Integrated AMD graphics have less memory than this, and no engine computes on them."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU at one moment; values that it does not report are None."""

    vendor: str
    number: str
    name: str
    utilization_ratio: float | None
    memory_used_bytes: float | None
    memory_bytes: float | None
    temperature_celsius: float | None
    power_watts: float | None
    throttling: str | None = None
    """Why it is throttled: heat, power or hardware; empty if it is not."""


@dataclass(frozen=True)
class Answer:
    """What one vendor's driver reports: its GPUs, or `failed` if it does not answer correctly."""

    vendor: str
    gpus: tuple[Gpu, ...] = ()
    failed: bool = False
    driver_matches: bool | None = None
    """Whether kernel module and library have the same version; None if unknown."""
    expected: int = 0
    """How many GPUs were found, or declared, when the host was installed."""
    version: str | None = None
    """The version of the driver that answers."""
    module_version: str | None = None
    library_version: str | None = None


class Gpus:
    """Polls both vendors' drivers, one poll at a time; a host without GPUs answers at once.

    `timeout_seconds` bounds nvidia-smi; /sys and /usr are in `root`; `expected` counts GPUs by vendor.
    """

    def __init__(
        self,
        timeout_seconds: float = TIMEOUT_SECONDS,
        *,
        root: Path = Path("/"),
        expected: Mapping[str, int] | None = None,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._root = root
        self._expected = expected or {}
        self._stuck: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpus")
        self._running: Future[None] | None = None
        self._last: tuple[float, tuple[Answer, ...]] = (float("-inf"), ())

    def poll(self, wait_seconds: float = WAIT_SECONDS) -> tuple[Answer, ...]:
        """Return the answers of a new poll, or of the last one if a new one takes over `wait_seconds`.

        Without a recent poll every answer is `failed`.
        """
        with self._lock:
            if self._running is None or self._running.done():
                self._running = self._pool.submit(self._poll_drivers)
            running = self._running
        wait([running], wait_seconds)
        at, answers = self._last
        if time.monotonic() - at <= STALE_SECONDS:
            return answers
        return tuple(
            Answer(vendor, failed=True, expected=self._expected.get(vendor, 0)) for vendor in VENDORS
        )

    def _poll_drivers(self) -> None:
        answers = tuple(
            replace(answer, expected=self._expected.get(answer.vendor, 0))
            for answer in (self._poll_nvidia(), self._poll_amd())
        )
        self._last = time.monotonic(), answers

    def _poll_nvidia(self) -> Answer:
        module = _read_text(self._root / "sys/module/nvidia/version")
        library = next((path.resolve().name for place in LIBRARIES for path in self._root.glob(place)), "")
        version = library.removeprefix("libcuda.so.") if library.count(".") > 2 else None
        answer = replace(self._run_nvidia_smi(), module_version=module, library_version=version)
        return answer if None in (module, version) else replace(answer, driver_matches=module == version)

    def _run_nvidia_smi(self) -> Answer:
        tool = shutil.which("nvidia-smi")
        if tool is None:
            return Answer("nvidia")
        if self._stuck is not None and self._stuck.poll() is None:
            # A hung driver blocks the process even after a kill, so no second one is started.
            return Answer("nvidia", failed=True)
        deadline = time.monotonic() + self._timeout_seconds
        status, output = self._query(tool, f"{FIELDS},{REASONS}", deadline)
        if status not in (0, None) and "not a valid field" in output:
            status, output = self._query(tool, FIELDS, deadline)
        rows = list(_parse_rows(output))
        gpus = tuple(_parse_nvidia_gpu(row) for row in rows)
        version = rows[0][7] if rows else None
        if status == 0:
            return Answer("nvidia", gpus, driver_matches=True, version=version)
        matches = False if MISMATCH in output else None
        return Answer("nvidia", gpus, failed=True, driver_matches=matches, version=version)

    def _query(self, tool: str, fields: str, deadline: float) -> tuple[int | None, str]:
        """Return exit status and output of one query; the status is None after a timeout."""
        process = subprocess.Popen(
            [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            output, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            self._stuck = process
            return None, ""
        return process.returncode, output

    def _poll_amd(self) -> Answer:
        gpus = []
        try:
            for card in sorted(self._root.glob("sys/class/drm/card[0-9]*/device")):
                # Connectors, such as card0-DP-1, also have a device link, to their card.
                if "-" in card.parent.name or _read_text(card / "vendor") != AMD_PCI_VENDOR:
                    continue
                memory = _read_number(card / "mem_info_vram_total")
                if memory is not None and memory >= SMALLEST_MEMORY_BYTES:
                    gpus.append(_read_amd_gpu(card, memory))
        except (OSError, ValueError):
            return Answer("amd", tuple(gpus), failed=True)
        version = _read_text(self._root / "sys/module/amdgpu/version")
        return Answer("amd", tuple(gpus), version=version, module_version=version)


def _parse_rows(output: str) -> Iterator[list[str]]:
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        # Error messages about a lost GPU stand between the lines of the others.
        if len(fields) in (8, 9) and fields[0].isdigit():
            yield fields


def _parse_nvidia_gpu(row: list[str]) -> Gpu:
    number, name, utilization, used, total, temperature, power = row[:7]
    return Gpu(
        vendor="nvidia",
        number=number,
        name=name,
        utilization_ratio=_scale(utilization, 0.01),
        memory_used_bytes=_scale(used, MEBIBYTE),
        memory_bytes=_scale(total, MEBIBYTE),
        temperature_celsius=_scale(temperature, 1),
        power_watts=_scale(power, 1),
        throttling=_parse_throttling(row[8]) if len(row) > 8 else None,
    )


def _parse_throttling(bits: str) -> str | None:
    """Return the first reason in nvidia-smi's bits, empty for none; None for "[N/A]" and the like."""
    try:
        active = int(bits, 16)
    except ValueError:
        return None
    return next((reason for reason, mask in THROTTLING.items() if active & mask), "")


def _scale(text: str, factor: float) -> float | None:
    """Return a number of nvidia-smi in base units; None for "[N/A]" and the like."""
    try:
        return float(text) * factor
    except ValueError:
        return None


def _read_amd_gpu(card: Path, memory: float) -> Gpu:
    sensors = next(iter(sorted((card / "hwmon").glob("hwmon*"))), card)
    busy, temperature = _read_number(card / "gpu_busy_percent"), _read_number(sensors / "temp1_input")
    # Cards have one of the two files.
    power = _read_number(sensors / "power1_average")
    power = _read_number(sensors / "power1_input") if power is None else power
    name = _read_text(card / "product_name") or f"AMD {_read_text(card / 'device') or 'GPU'}"
    return Gpu(
        vendor="amd",
        number=card.parent.name.removeprefix("card"),
        name=name,
        utilization_ratio=None if busy is None else busy / 100,
        memory_used_bytes=_read_number(card / "mem_info_vram_used"),
        memory_bytes=memory,
        temperature_celsius=None if temperature is None else temperature / 1000,
        power_watts=None if power is None else power / 1_000_000,
    )


def _read_text(path: Path) -> str | None:
    """Return the text of a kernel file, None if it does not exist; raises OSError if it cannot be read."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def _read_number(path: Path) -> float | None:
    text = _read_text(path)
    return None if text is None else float(text)
