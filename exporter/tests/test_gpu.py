"""The GPUs' metrics with a fake nvidia-smi, whose lines are the real one's, and a fake /sys/class/drm."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from bedplate_exporter.gpu import Answer, Gpus
from bedplate_exporter.metrics import GpuCollector

H100 = "0, NVIDIA H100 80GB HBM3, 25, 4, 81559, 30, 70.15"
GEFORCE = "1, NVIDIA GeForce GTX 1050, [N/A], 1024, 2048, 41, [N/A]"
LOST = "Unable to determine the device handle for GPU0000:41:00.0: GPU is lost."
OTHER_LIBRARY = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.183"
Install = Callable[..., None]


@pytest.fixture
def fake_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that puts a fake nvidia-smi on PATH, which says this and ends with that status."""

    def install(says: str, status: int = 0, first: str = "") -> None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{first}\ncat <<'EOF'\n{says}\nEOF\nexit {status}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=":")

    return install


def write(card: Path, **texts: str) -> None:
    """Write what the kernel says of a card."""
    for name, text in texts.items():
        path = card / "device" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def nvidia(timeout_seconds: float = 5.0) -> Answer:
    """What NVIDIA's driver answers."""
    return Gpus(timeout_seconds, drm=Path("/none")).poll()[0]


def samples(gpus: Gpus) -> list[str]:
    """The metrics without their comments."""
    registry = CollectorRegistry()
    registry.register(GpuCollector(gpus))
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_no_gpu_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Gpus(drm=tmp_path).poll() == (Answer("nvidia"), Answer("amd"))


def test_two_gpus_of_nvidia(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(f"{H100}\n{GEFORCE}")
    assert samples(Gpus(drm=Path("/none"))) == [
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


def test_a_lost_gpu(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(f"{H100}\n{LOST}", status=15)
    answer = nvidia()
    assert answer.failed
    assert [gpu.number for gpu in answer.gpus] == ["0"]
    assert answer.driver_matches is None


def test_another_library(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(OTHER_LIBRARY, status=18)
    assert nvidia() == Answer("nvidia", failed=True, driver_matches=False)


def test_a_driver_that_hangs_costs_the_time_limit(fake_nvidia_smi: Install) -> None:
    fake_nvidia_smi(H100, first="exec sleep 5")
    gpus = Gpus(0.2, drm=Path("/none"))
    start = time.monotonic()
    assert gpus.poll()[0].failed
    assert time.monotonic() - start < 2


def test_a_card_of_amd_beside_a_processors_graphics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert samples(Gpus(drm=tmp_path))[4:] == [
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
    assert Gpus(drm=tmp_path).poll()[1] == Answer("amd", failed=True)
