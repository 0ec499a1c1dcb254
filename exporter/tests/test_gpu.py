"""The GPUs' metrics with a fake nvidia-smi, which prints real output, and a fake /sys/class/drm."""

import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from bedplate_exporter.gpu import Answer, Gpus
from bedplate_exporter.metrics import GpuCollector
from bedplate_exporter.ollama import State
from bedplate_exporter.settings import SettingsError, read_expected_gpus
from bedplate_exporter.wsgi import build_state_document

H100 = "0, NVIDIA H100 80GB HBM3, 25, 4, 81559, 30, 70.15, 550.163.01, 0x0000000000000004"
GEFORCE = "1, NVIDIA GeForce GTX 1050, [N/A], 1024, 2048, 41, [N/A], 550.163.01, 0x0000000000000001"
LOST = "Unable to determine the device handle for GPU0000:41:00.0: GPU is lost."
OTHER_LIBRARY = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.183"
Install = Callable[..., None]


@pytest.fixture
def fake_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that puts a fake nvidia-smi with this output and exit status on PATH."""

    def install(output: str, status: int = 0, first: str = "") -> None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{first}\ncat <<'EOF'\n{output}\nEOF\nexit {status}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=":")

    return install


def write(card: Path, **texts: str) -> None:
    """Write a card's kernel files."""
    card = card.parent / "sys/class/drm" / card.name
    for name, text in texts.items():
        path = card / "device" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def nvidia(timeout_seconds: float = 5.0) -> Answer:
    """Return the answer of NVIDIA's driver."""
    return Gpus(timeout_seconds, root=Path("/none")).poll()[0]


def samples(gpus: Gpus) -> list[str]:
    """Return the metrics without comments."""
    registry = CollectorRegistry()
    registry.register(GpuCollector(gpus))
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_no_gpu_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Gpus(root=tmp_path).poll() == (Answer("nvidia"), Answer("amd"))


def test_two_gpus_of_nvidia(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(f"{H100}\n{GEFORCE}")
    assert samples(Gpus(root=Path("/none"), expected={"nvidia": 2})) == [
        'bedplate_gpu_expected{vendor="nvidia"} 2.0',
        'bedplate_gpu_expected{vendor="amd"} 0.0',
        'bedplate_gpu_devices{vendor="nvidia"} 2.0',
        'bedplate_gpu_devices{vendor="amd"} 0.0',
        'bedplate_gpu_failed{vendor="nvidia"} 0.0',
        'bedplate_gpu_failed{vendor="amd"} 0.0',
        'bedplate_gpu_driver_matches{vendor="nvidia"} 1.0',
        'bedplate_gpu_info{gpu="0",name="NVIDIA H100 80GB HBM3",vendor="nvidia"} 1.0',
        'bedplate_gpu_info{gpu="1",name="NVIDIA GeForce GTX 1050",vendor="nvidia"} 1.0',
        'bedplate_gpu_utilization_ratio{gpu="0",vendor="nvidia"} 0.25',
        'bedplate_gpu_memory_used_bytes{gpu="0",vendor="nvidia"} 4.194304e+06',
        'bedplate_gpu_memory_used_bytes{gpu="1",vendor="nvidia"} 1.073741824e+09',
        'bedplate_gpu_memory_bytes{gpu="0",vendor="nvidia"} 8.5520809984e+10',
        'bedplate_gpu_memory_bytes{gpu="1",vendor="nvidia"} 2.147483648e+09',
        'bedplate_gpu_temperature_celsius{gpu="0",vendor="nvidia"} 30.0',
        'bedplate_gpu_temperature_celsius{gpu="1",vendor="nvidia"} 41.0',
        'bedplate_gpu_power_watts{gpu="0",vendor="nvidia"} 70.15',
    ]


def test_why_a_gpu_is_slower_than_it_could_be(fake_nvidia_smi: Install) -> None:
    lines = [H100.replace("0x0000000000000004", bits) for bits in ("0x60", "0x84", "0x8", "0x1", "[N/A]")]
    fake_nvidia_smi("\n".join(lines))
    assert [gpu.throttling for gpu in nvidia().gpus] == ["heat", "power", "hardware", "", None]


def test_a_driver_that_does_not_know_the_newer_field(fake_nvidia_smi: Install) -> None:
    complaint = 'Field "clocks_event_reasons.active" is not a valid field to query.'
    line = H100.rpartition(",")[0]
    fake_nvidia_smi(line, first=f"case $1 in *reasons*) echo '{complaint}'; exit 2;; esac")
    answer = nvidia()
    assert (answer.failed, answer.version) == (False, "550.163.01")
    assert [gpu.throttling for gpu in answer.gpus] == [None]


def test_a_lost_gpu(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(f"{H100}\n{LOST}", status=15)
    answer = nvidia()
    assert answer.failed
    assert [gpu.number for gpu in answer.gpus] == ["0"]
    assert answer.driver_matches is None


def test_another_library(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(OTHER_LIBRARY, status=18)
    assert nvidia() == Answer("nvidia", failed=True, driver_matches=False)


def versions(root: Path, module: str, library: str) -> None:
    """Write a kernel module's version and put a library of a version where Debian has it."""
    (root / "sys/module/nvidia").mkdir(parents=True)
    (root / "sys/module/nvidia/version").write_text(f"{module}\n")
    folder = root / "usr/lib/x86_64-linux-gnu"
    (folder / "nvidia/current").mkdir(parents=True)
    (folder / f"nvidia/current/libcuda.so.{library}").touch()
    (folder / "libcuda.so.1").symlink_to(f"nvidia/current/libcuda.so.{library}")


@pytest.mark.parametrize(("library", "matches"), [("550.163.01", True), ("550.90.07", False)])
def test_versions_of_module_and_library(
    tmp_path: Path, fake_nvidia_smi: Install, library: str, matches: bool
) -> None:
    versions(tmp_path / "root", "550.163.01", library)
    fake_nvidia_smi(H100)
    gpus = Gpus(root=tmp_path / "root")
    answer = gpus.poll()[0]
    assert (answer.driver_matches, answer.module_version, answer.library_version) == (
        matches,
        "550.163.01",
        library,
    )
    labels = f'library_version="{library}",module_version="550.163.01",vendor="nvidia"'
    assert f"bedplate_gpu_driver_info{{{labels}}} 1.0" in samples(gpus)


def test_a_short_wait_gets_the_last_complete_answer(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(H100, first="sleep 1")
    gpus = Gpus(root=Path("/none"), expected={"nvidia": 1})
    assert gpus.poll(0.1)[0] == Answer("nvidia", failed=True, expected=1)
    assert gpus.poll(5)[0].gpus
    start = time.monotonic()
    assert gpus.poll(0.1)[0].gpus
    assert time.monotonic() - start < 0.9


def test_a_driver_that_hangs_costs_the_time_limit(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(H100, first="exec sleep 5")
    gpus = Gpus(0.2, root=Path("/none"))
    start = time.monotonic()
    assert gpus.poll()[0].failed
    assert time.monotonic() - start < 2


def test_a_card_of_amd_next_to_integrated_graphics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    write(
        tmp_path / "card1",
        vendor="0x1002",
        device="0x744c",
        gpu_busy_percent="50",
        mem_info_vram_total=str(24 * 1024**3),
        mem_info_vram_used="1000",
        hwmon__hwmon3__temp1_input="45000",
        hwmon__hwmon3__power1_average="120000000",
    )
    write(tmp_path / "card0", vendor="0x1002", mem_info_vram_total=str(512 * 1024**2))
    write(tmp_path / "card2", vendor="0x1a03")
    assert samples(Gpus(root=tmp_path))[6:] == [
        'bedplate_gpu_info{gpu="1",name="AMD 0x744c",vendor="amd"} 1.0',
        'bedplate_gpu_utilization_ratio{gpu="1",vendor="amd"} 0.5',
        'bedplate_gpu_memory_used_bytes{gpu="1",vendor="amd"} 1000.0',
        'bedplate_gpu_memory_bytes{gpu="1",vendor="amd"} 2.5769803776e+10',
        'bedplate_gpu_temperature_celsius{gpu="1",vendor="amd"} 45.0',
        'bedplate_gpu_power_watts{gpu="1",vendor="amd"} 120.0',
    ]


def test_a_card_of_amd_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    write(tmp_path / "card0", vendor="0x1002", mem_info_vram_total="much")
    assert Gpus(root=tmp_path).poll()[1] == Answer("amd", failed=True)


def test_the_state_for_dashboards(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(f"{H100}\n{LOST}", status=15)
    gpus = Gpus(root=Path("/none"), expected={"nvidia": 2})
    body = build_state_document(
        State(at=datetime(2026, 11, 25, tzinfo=timezone.utc), latency_seconds=0.1), gpus.poll()
    )
    assert body["gpus"] == [
        {
            "vendor": "nvidia",
            "number": "0",
            "name": "NVIDIA H100 80GB HBM3",
            "utilization_ratio": 0.25,
            "memory_used_bytes": 4 * 1024**2,
            "memory_bytes": 81559 * 1024**2,
            "temperature_celsius": 30,
            "power_watts": 70.15,
            "throttling": "power",
        }
    ]
    assert body["drivers"] == [
        {
            "vendor": "nvidia",
            "expected": 2,
            "devices": 1,
            "failed": True,
            "driver_matches": None,
            "version": "550.163.01",
            "module_version": None,
            "library_version": None,
        }
    ]


def test_the_expected_number_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_expected_gpus() == {}
    monkeypatch.setenv("BEDPLATE_EXPECTED_GPUS", "nvidia=2 amd=1")
    assert read_expected_gpus() == {"nvidia": 2, "amd": 1}
    for wrong in ("nvidia", "intel=1", "nvidia=-1", "nvidia=1,amd=1"):
        monkeypatch.setenv("BEDPLATE_EXPECTED_GPUS", wrong)
        with pytest.raises(SettingsError, match=f"BEDPLATE_EXPECTED_GPUS is '{wrong}': give VENDOR=NUMBER"):
            read_expected_gpus()
