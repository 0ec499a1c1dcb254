"""A host with a simulated GPU and a fake driver: decision, installation, verify, metrics and alerts.

The engine is the real one and runs on the CPU, which verify and alerts must detect.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from tests.support.alerts import AlertWatch
from tests.support.stack import Stack

CARD = "/sys/bus/pci/devices/0000:01:00.0"
SMI = "/etc/fake-nvidia-smi"
MODEL = "smollm2:135m"


def run(stack: Stack, playbook: str, settings: dict[str, Any], *arguments: str) -> tuple[str, bool]:
    """Run a playbook; returns its output in one line, and whether it passed."""
    try:
        stack.play(*arguments, playbook=playbook, settings=settings)
    except AssertionError as failed:
        return " ".join(str(failed).split()), False
    return "", True


def verified(stack: Stack) -> dict[str, dict[str, Any]]:
    """Return the checks of the last verify by name, from the report on the host."""
    report = json.loads(stack("cat /var/lib/bedplate-dashboard/verify.json"))
    return {check["name"]: check for check in report["checks"]}


def state(stack: Stack) -> dict[str, Any]:
    """Return the exporter's state for the dashboard."""
    document: dict[str, Any] = json.loads(stack("curl --silent --fail http://127.0.0.1:9101/state.json"))
    return document


def metrics(stack: Stack) -> str:
    return stack("curl --silent --fail http://127.0.0.1:9101/metrics | grep ^bedplate_gpu")


def test_the_driver_is_held_and_loaded_at_boot(stack: Stack) -> None:
    assert "nvidia-persistenced" in stack("apt-mark showhold").split()
    assert "\nblacklist nouveau\n" in stack("cat /etc/modprobe.d/bedplate-gpu.conf")
    assert stack("cat /etc/modules-load.d/bedplate-gpu.conf").endswith("\nnvidia\nnvidia_uvm\n")
    assert "Pin: version 550.*" in stack("cat /etc/apt/preferences.d/bedplate-gpu")
    assert stack("systemctl is-enabled gpu-devices").strip() == "enabled"


def test_the_engine_may_open_only_the_gpus_devices(stack: Stack) -> None:
    shown = stack("systemctl show ollama --property=DevicePolicy,PrivateDevices,DeviceAllow,After,Wants")
    assert "DevicePolicy=closed\n" in shown
    assert "PrivateDevices=no\n" in shown
    allowed = re.findall(r"^DeviceAllow=(.*)$", shown, re.MULTILINE)
    assert set(allowed) == {
        "char-nvidiactl rw",
        "char-nvidia-frontend rw",
        "char-nvidia-uvm rw",
        "char-nvidia-caps rw",
        # ProtectClock= adds it.
        "char-rtc r",
    }
    assert shown.count("gpu-devices.service") == 2


def test_the_engine_starts_without_its_gpu(stack: Stack) -> None:
    assert stack("systemctl is-active ollama").strip() == "active"
    assert "failed" in stack("systemctl is-failed gpu-devices || true")


def test_a_second_run_changes_nothing(stack: Stack, settings: dict[str, Any]) -> None:
    assert stack.play("--skip-tags", "verify", settings=settings) == 0


def test_verify_fails_because_the_model_runs_on_the_cpu(stack: Stack, settings: dict[str, Any]) -> None:
    output, passed = run(stack, "playbooks/verify.yml", settings)
    assert not passed
    assert "the kernel module nvidia is not loaded" in output
    checks = verified(stack)
    seen = {name: (check["ok"], check["seen"]) for name, check in checks.items()}
    assert seen["the GPU's kernel module is loaded"] == (False, "the kernel module nvidia is not loaded")
    libraries = seen["Ollama has the libraries for the GPU"]
    assert libraries[0] is False
    assert libraries[1].endswith("/lib/ollama has no cuda_v12")
    assert seen["Ollama's user can open the GPU's device nodes in its sandbox"] == (
        False,
        "missing: /dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia[0-9]*",
    )
    assert seen["Ollama detected the GPU"] == (
        False,
        "it uses cpu, not cuda: it fell back to the CPU",
    )
    assert seen["a model runs entirely on the GPU"] == (False, f"{MODEL} runs on the CPU")
    assert seen["the engine's runner process uses the GPU"][0] is False
    assert seen["the driver reports every nvidia GPU"] == (True, "1 of 1")
    assert all(check["next"] for check in checks.values() if check["ok"] is False)


def test_a_device_node_that_cannot_be_opened(stack: Stack, settings: dict[str, Any]) -> None:
    """The nodes exist, but their driver does not run, so the sandbox cannot allow its device numbers."""
    stack(
        "cd /dev; mknod nvidiactl c 195 255; mknod nvidia0 c 195 0; mknod nvidia-uvm c 511 0; chmod 666 nv*"
    )
    run(stack, "playbooks/verify.yml", settings)
    stack("rm /dev/nvidia*")
    check = verified(stack)["Ollama's user can open the GPU's device nodes in its sandbox"]
    assert check["ok"] is False
    assert "/dev/nvidiactl: Operation not permitted" in check["seen"]


def test_the_card_in_metrics_and_state(stack: Stack) -> None:
    exported = metrics(stack)
    assert 'bedplate_gpu_expected{vendor="nvidia"} 1.0' in exported
    assert 'bedplate_gpu_devices{vendor="nvidia"} 1.0' in exported
    assert 'bedplate_gpu_info{gpu="0",name="NVIDIA GeForce RTX 4090",vendor="nvidia"} 1.0' in exported
    assert 'library_version="550.163.01",module_version="",vendor="nvidia"' in exported
    document = state(stack)
    assert [(gpu["name"], gpu["throttling"]) for gpu in document["gpus"]] == [
        ("NVIDIA GeForce RTX 4090", "power")
    ]
    assert [driver["expected"] for driver in document["drivers"]] == [1]


def test_the_card_on_the_dashboard(stack: Stack) -> None:
    shown = stack.status()["gpus"]
    assert [(gpu["name"], gpu["throttling"]) for gpu in shown] == [("NVIDIA GeForce RTX 4090", "power")]


def test_alerts(stack: Stack, alerts: AlertWatch) -> None:
    alerts.fault(
        "the engine runs on the CPU",
        lambda: stack("systemctl restart ollama-preload"),
        lambda: stack(f"ollama stop {MODEL}"),
        f"EngineOnCpu {MODEL}",
    )
    for fault, expected in (
        ("lost", {"GpuLost nvidia"}),
        ("mismatch", {"GpuLost nvidia", "GpuDriverMismatch nvidia"}),
        ("hang", {"GpuLost nvidia"}),
    ):
        alerts.fault(
            f"nvidia-smi: {fault}",
            partial(stack, f"echo {fault} >{SMI}"),
            lambda: stack(f"rm {SMI}"),
            *expected,
        )


def test_verify_detects_a_lost_gpu(stack: Stack, settings: dict[str, Any]) -> None:
    stack(f"echo lost >{SMI}; mv {CARD} /root/card")
    _, passed = run(stack, "playbooks/verify.yml", settings)
    stack(f"rm {SMI}; mv /root/card {CARD}")
    assert not passed
    check = verified(stack)["the driver reports every nvidia GPU"]
    assert (check["ok"], check["seen"]) == (False, "0 of 1; the driver does not respond correctly")


def test_a_card_that_is_too_old_is_refused(stack: Stack, settings: dict[str, Any]) -> None:
    """The scenario `refusals` tests the other refusals."""
    stack(f"echo 0x1180 >{CARD}/device")
    output, passed = run(stack, "playbooks/preflight.yml", settings)
    stack(f"echo 0x2684 >{CARD}/device")
    assert not passed
    assert "is older than Maxwell" in output
    assert "gpu_driver_enabled: false" in output
    assert re.search(r"one : ok=\d+ changed=0 ", output)


def test_uninstalling_the_driver_leaves_a_host_without_a_gpu(stack: Stack, settings: dict[str, Any]) -> None:
    off = settings | {"gpu_driver_enabled": False}
    stack.play(playbook="playbooks/gpu_uninstall.yml", settings=off)
    stack.play("--tags", "gpu_driver,ollama,exporter", settings=off)
    assert (
        stack("ls /etc/bedplate/gpu_driver /etc/systemd/system/gpu-devices.service 2>&1 || true").count(
            "No such"
        )
        == 2
    )
    assert stack("apt-mark showhold") == ""
    assert "PrivateDevices=yes" in stack("systemctl show ollama --property=PrivateDevices")
    assert 'bedplate_gpu_expected{vendor="nvidia"} 0.0' in metrics(stack)
    _, passed = run(stack, "playbooks/verify.yml", off)
    assert passed
    check = verified(stack)["models run on the expected device"]
    assert check["seen"] == "gpu_driver_enabled is false: models run on the CPU"
