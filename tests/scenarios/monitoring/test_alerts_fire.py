"""Real faults fire alerts, Alertmanager delivers them, and they end after the repair."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.scenarios.monitoring.metric_names import missing
from tests.support.alerts import AlertWatch, Receiver, wait_until
from tests.support.hosts import run_lab
from tests.support.stack import ROOT, Load, Stack

MODEL = "smollm2:135m"
FAKE_GPU = "Fake GPU, 5, 100, 2000, 40, 60, 550.163.01, 0x0000000000000000"
TWO_GPUS = f"0, {FAKE_GPU}\n1, {FAKE_GPU}"
ONE_GPU = f"0, {FAKE_GPU}\nUnable to determine the device handle for GPU1: GPU is lost."
OTHER_LIBRARY = "Failed to initialize NVML: Driver/library version mismatch"


def fault(*arguments: str) -> None:
    """Inject a fault into the lab, or remove it."""
    run_lab("fault", *arguments)


def verify(settings: dict[str, Any]) -> None:
    """Run verify and ignore its result."""
    command = [
        sys.executable,
        "-m",
        "ansible",
        "playbook",
        "--inventory=inventory/lab",
        "playbooks/verify.yml",
        f"--extra-vars={json.dumps(settings)}",
    ]
    subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=300)


def fake_nvidia_smi(stack: Stack, output: str, status: int = 0) -> None:
    """Install a fake nvidia-smi with this output and exit status."""
    tool = "/usr/local/bin/nvidia-smi"
    stack(
        f"cat >{tool}.new <<'END'\n#!/bin/sh\ncat <<'EOF'\n{output}\nEOF\nexit {status}\nEND\n"
        f"chmod 755 {tool}.new; mv {tool}.new {tool}"
    )


def test_nothing_fires_on_a_healthy_stack(alerts: AlertWatch) -> None:
    wait_until(lambda: not alerts.firing(), 60, lambda: f"{alerts.firing()} fire")
    assert alerts.value('count(ALERTS{alertstate="firing", severity!="none"})') == 0


def test_a_stopped_engine(stack: Stack, alerts: AlertWatch, settings: dict[str, Any]) -> None:
    refused, failing = "RequestsRefused engine_unavailable", f"RequestsFailing {MODEL}"
    dead = {"ServiceDown ollama.service", f"ModelUnavailable {MODEL}"}
    since = time.monotonic()
    stack("systemctl stop ollama")
    with stack.client(stack.key("bench")) as client:
        for _ in range(8):
            assert stack.chat(client).status_code == 503
            # Over several scrapes, because a counter has no rate until its value changes.
            time.sleep(1)
    alerts.wait_firing("the engine is stopped while clients send requests", {*dead, refused, failing}, since)
    since = time.monotonic()
    verify(settings)
    alerts.wait_firing("verify runs meanwhile", {"VerifyFailed dashboard"}, since)
    since = time.monotonic()
    stack("systemctl start ollama ollama-preload")
    # RequestsFailing covers the dashboards' 5 minutes, which are not shortened here: do not wait for its end.
    alerts.wait_ended({*dead, refused}, since)
    since = time.monotonic()
    verify(settings)
    alerts.wait_ended({"VerifyFailed dashboard"}, since)


def test_hanging_services_and_a_blocked_port(stack: Stack, alerts: AlertWatch) -> None:
    healing = "bedplate-heal@node-exporter.timer bedplate-heal@ollama.timer"

    def break_it() -> None:
        # They would be killed before the alerts fire.
        stack(f"systemctl stop {healing}")
        fault("stop", "one", "node-exporter")
        fault("stop", "one", "ollama")
        stack(
            "nft 'add table inet lab_cut;"
            " add chain inet lab_cut input { type filter hook input priority 0; };"
            " add rule inet lab_cut input tcp dport 3001 drop'"
        )

    def repair() -> None:
        fault("cont", "one", "node-exporter")
        fault("cont", "one", "ollama")
        stack(f"systemctl start {healing}")
        stack("nft delete table inet lab_cut")

    alerts.fault(
        "node exporter and engine hang, the dashboard's port is blocked",
        break_it,
        repair,
        "TargetDown node",
        "TargetDown dashboard",
        f"ModelUnavailable {MODEL}",
    )


def test_a_stopped_litellm(stack: Stack, alerts: AlertWatch) -> None:
    alerts.fault(
        "LiteLLM is stopped",
        lambda: stack("systemctl stop litellm"),
        lambda: stack("systemctl start litellm"),
        "ServiceDown litellm.service",
        "TargetDown litellm",
        # The metric is the gateway's.
        "LitellmBypassed gateway",
    )


def test_crash_loop_full_disk_and_expiring_certificate(stack: Stack, alerts: AlertWatch) -> None:
    def kill() -> None:
        before = stack("systemctl show --property=MainPID --value bedplate-dashboard").strip()
        fault("kill", "one", "bedplate-dashboard")
        state = "systemctl show --property=ActiveState --property=MainPID --value bedplate-dashboard"
        wait_until(lambda: "active" in (now := stack(state).split()) and before not in now, 30)

    def break_it() -> None:
        fault("fill", "one", "/srv", "4M")
        stack(
            "openssl req -x509 -key /etc/ssl/private/lab.key -subj /CN=one -days 5 -out /etc/ssl/lab.pem;"
            " systemctl start host-facts"
        )
        stack("systemctl stop bedplate-gateway; systemctl start traffic-canary")
        kill()
        kill()

    def repair() -> None:
        stack("systemctl start bedplate-gateway traffic-canary; systemctl restart bedplate-dashboard")
        fault("unfill", "one", "/srv")
        stack(
            "openssl req -x509 -key /etc/ssl/private/lab.key -subj /CN=one -days 90 -out /etc/ssl/lab.pem;"
            " systemctl start host-facts"
        )

    alerts.fault(
        "the gateway is stopped, the dashboard killed twice, a disk full, a certificate about to expire",
        break_it,
        repair,
        "ServiceDown bedplate-gateway.service",
        "TargetDown gateway",
        f"CanaryFailing {MODEL}",
        "ServiceRestarting bedplate-dashboard.service",
        "DiskFull /srv",
        "CertificateEnds /etc/ssl/lab.pem",
    )


def test_gpus(stack: Stack, alerts: AlertWatch) -> None:
    """With a fake nvidia-smi and a fake libcuda; the engine is the real one and runs on the CPU."""
    stack(
        "cd /usr/lib/$(uname -m)-linux-gnu; touch libcuda.so.550.163.01;"
        " ln -sf libcuda.so.550.163.01 libcuda.so.1"
    )
    stack("systemctl start ollama-preload")
    alerts.fault(
        "there are GPUs, the engine runs on the CPU",
        lambda: fake_nvidia_smi(stack, TWO_GPUS),
        lambda: stack(f"ollama stop {MODEL}"),
        f"EngineOnCpu {MODEL}",
    )
    alerts.fault(
        "a GPU is lost",
        lambda: fake_nvidia_smi(stack, ONE_GPU, status=15),
        lambda: fake_nvidia_smi(stack, TWO_GPUS),
        "GpuLost nvidia",
    )
    alerts.fault(
        "NVIDIA's library is updated",
        lambda: fake_nvidia_smi(stack, OTHER_LIBRARY, status=18),
        lambda: fake_nvidia_smi(stack, TWO_GPUS),
        "GpuDriverMismatch nvidia",
        "GpuLost nvidia",
    )


def test_a_slow_engine(stack: Stack, alerts: AlertWatch) -> None:
    slow = f"FirstTokenSlow {MODEL}"
    since = time.monotonic()
    stack("systemctl set-property --runtime ollama CPUQuota=10%")
    with Load(stack, 20, tokens=1, stream=True).running():
        alerts.wait_firing("the engine has a tenth of a processor", {slow}, since)
    since = time.monotonic()
    stack("systemctl set-property --runtime ollama CPUQuota=")
    # The alert covers a time window, so it ends only after enough streams began in time.
    with Load(stack, 2, tokens=1, stream=True).running():
        alerts.wait_ended({slow, "QueueSaturated normal"}, since)


def test_overload_while_prometheus_is_killed(stack: Stack, alerts: AlertWatch) -> None:
    load = Load(stack, 30, tokens=30)
    since = time.monotonic()
    with load.running():
        alerts.wait_firing("thirty clients send requests at once", {"QueueSaturated normal"}, since)
        # Queried for one time before and after, so the results must be equal: the scrapes until then ended.
        scraped, moment = "sum(count_over_time(up[10m]))", f"{time.time() - 5:.3f}"
        before, series = alerts.value(scraped, time=moment), alerts.value("prometheus_tsdb_head_series")
        stack("systemctl kill --kill-who=main --signal=KILL prometheus")
        took = wait_until(lambda: _responds(alerts), 30)
        after = alerts.value(scraped, time=moment)
    since = time.monotonic()
    print(f"\nPrometheus was killed with {series:.0f} series and responded again after {took:.1f} s")
    print(f"{before:.0f} samples of `up` before, {after:.0f} after")
    assert before > 10
    assert after == before
    alerts.wait_ended({"QueueSaturated normal"}, since)
    assert load.failed() == []


def _responds(alerts: AlertWatch) -> bool:
    try:
        return alerts.value("vector(1)") == 1
    except (httpx.HTTPError, AssertionError):
        return False


def test_an_invalid_rule_file_is_refused_and_the_old_rules_stay(
    stack: Stack, alerts: AlertWatch, settings: dict[str, Any], tmp_path: Path
) -> None:
    groups = len(alerts.query("rules")["groups"])
    bad = tmp_path / "bad.yml"
    bad.write_text("groups:\n  - name: bad\n    rules:\n      - {alert: Bad, expr: 'up =='}\n")
    with pytest.raises(AssertionError, match="could not parse expression"):
        stack.play("--tags=prometheus", settings={**settings, "prometheus_extra_rule_files": [str(bad)]})
    # Written directly, bypassing the role's checks.
    rules = "/etc/bedplate/prometheus/alerts.rules.yml"
    stack(f"cp -a {rules} /root/kept; sed -i '0,/expr: /s/expr: .*/expr: up ==/' {rules}")
    stack("systemctl reload prometheus", fails=True)
    assert stack("systemctl is-active prometheus").strip() == "active"
    assert len(alerts.query("rules")["groups"]) == groups
    assert alerts.value("prometheus_config_last_reload_successful") == 1
    stack(f"cp -a /root/kept {rules}; systemctl reload prometheus")


def _delivered(receiver: Receiver, alert: str) -> bool:
    return receiver.statuses(alert) == {"firing", "resolved"}


def test_alerts_are_delivered(receiver: Receiver) -> None:
    for alert in ("ServiceDown", "DiskFull", "GpuLost"):
        wait_until(partial(_delivered, receiver, alert), 30)
    # Each minute, whatever happens.
    wait_until(lambda: receiver.statuses("Watchdog") == {"firing"}, 70)
    hooks, mails = receiver.received("webhook"), receiver.received("mail")
    assert {entry["authorization"] for entry in hooks} == {"Bearer token-of-the-hook"}
    annotations = {tuple(alert["annotations"]) for entry in hooks for alert in entry["alerts"]}
    assert annotations == {("meaning", "next", "summary")}
    assert any("ServiceDown" in mail["text"] and "To: ops@example.net" in mail["text"] for mail in mails)
    print(f"\n{len(hooks)} webhooks and {len(mails)} mails")


def test_every_used_metric_is_exposed(alerts: AlertWatch) -> None:
    def left() -> dict[str, set[str]]:
        return missing(alerts.query("label/__name__/values"))

    wait_until(lambda: not left(), 20, lambda: f"not exposed: {left()}")


@pytest.mark.parametrize("metric", ["process_open_fds", "process_resident_memory_bytes"])
def test_the_services_expose_the_metrics_of_their_process(alerts: AlertWatch, metric: str) -> None:
    """The sandbox can hide what they are read from."""
    jobs = {series["metric"]["job"] for series in alerts.query("query", query=metric)["result"]}
    assert jobs >= {"gateway", "litellm", "node", "prometheus"}
