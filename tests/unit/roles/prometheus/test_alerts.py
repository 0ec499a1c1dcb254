"""Rules and alerts under `promtool test rules`: each alert fires above its threshold, and not just below."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.rendering import Stack

ONE_BOX = pytest.mark.parametrize("stack", ["one-box"], indirect=True)
FILES = ("recording.rules.yml", "alerts.rules.yml")
MODEL = 'model="m:1"'


class Case(NamedTuple):
    """Samples, one per minute, and the alerts with severities that fire at a time, if any."""

    story: str
    series: dict[str, str]
    at: str
    fires: tuple[str, ...] = ()
    about: str = ""
    """The alert that just does not fire in this case."""


def unit(name: str, state: str = "active") -> str:
    """Return the series of one unit's state."""
    return f'node_systemd_unit_state{{host="box", name="{name}.service", state="{state}"}}'


def requests(status: str) -> str:
    """Return the series of requests with a status."""
    return f'bedplate_gateway_requests_total{{alias="a", {MODEL}, status="{status}", host="box"}}'


def first_token(le: str) -> str:
    """Return the series of one bucket of the time to first token."""
    labels = f'class="normal", {MODEL}, host="box"'
    if le == "count":
        return f"bedplate_gateway_time_to_first_token_seconds_count{{{labels}}}"
    return f'bedplate_gateway_time_to_first_token_seconds_bucket{{{labels}, le="{le}"}}'


UP = 'up{job="ollama", host="box"}'
NODE_TARGET = 'up{job="node", host="box"}'
OLLAMA_RESTARTS = 'node_systemd_service_restart_total{host="box", name="ollama.service"}'
OTHER_DRAINED = 'bedplate_gateway_engine_drained{engine="other", host="gateway1", job="gateway"}'
GUARD = unit("ollama-guard", "failed")
RESTARTS = 'node_systemd_service_restart_total{host="box", name="bedplate-gateway.service"}'
DRAINED = 'bedplate_gateway_engine_drained{engine="box", host="gateway1", job="gateway"}'
SERVES = f'bedplate_gateway_engine_serves{{engine="box", {MODEL}}}'
IN_GPU = f'bedplate_ollama_model_gpu_memory_bytes{{host="box", {MODEL}}}'
IN_ALL = f'bedplate_ollama_model_memory_bytes{{host="box", {MODEL}}}'
GPUS = 'bedplate_gpu_devices{host="box", vendor="nvidia"}'
EXPECTED_GPUS = 'bedplate_gpu_expected{host="box", vendor="nvidia"}'
NO_GPUS = 'bedplate_gpu_devices{host="box", vendor="amd"}'
GPU_FAILED = 'bedplate_gpu_failed{host="box", vendor="nvidia"}'
DRIVER = 'bedplate_gpu_driver_matches{host="box", vendor="nvidia"}'
WAITS = 'bedplate_gateway_queue_oldest_wait_seconds{host="box", class="normal"}'
WAITS_LOW = 'bedplate_gateway_queue_oldest_wait_seconds{host="box", class="low"}'
FULL = 'bedplate_gateway_refusals_total{host="box", reason="queue_full"}'
LIMITED = 'bedplate_gateway_refusals_total{host="box", reason="key_requests"}'
AVAILABLE = 'node_filesystem_avail_bytes{host="box", mountpoint="/", fstype="ext4"}'
SIZE = 'node_filesystem_size_bytes{host="box", mountpoint="/", fstype="ext4"}'
STALLED = 'node_pressure_memory_stalled_seconds_total{host="box"}'
FREE = 'node_memory_MemAvailable_bytes{host="box"}'
MEMORY = 'node_memory_MemTotal_bytes{host="box"}'
CLOCK = 'node_time_seconds{host="box"}'
CERTIFICATE = 'bedplate_host_certificate_expiry_timestamp_seconds{host="box", path="/a.pem"}'
SERVED_START = 'bedplate_host_served_certificate_start_timestamp_seconds{host="box", address="10.0.0.1:8000"}'
SERVED_END = 'bedplate_host_served_certificate_expiry_timestamp_seconds{host="box", address="10.0.0.1:8000"}'
VERIFY = 'bedplate_dashboard_verify_ok{host="box"}'
LITELLM_UP = 'bedplate_gateway_litellm_up{host="box"}'
LITELLM_TARGET = 'up{job="litellm", host="box"}'
GATEWAY_TARGET = 'up{job="gateway", host="box"}'
LITELLM_MEMORY = 'process_resident_memory_bytes{job="litellm", host="box"}'
GATEWAY_MEMORY = 'process_resident_memory_bytes{job="gateway", host="box"}'
LITELLM_CPU = 'process_cpu_seconds_total{job="litellm", host="box"}'
GATEWAY_CPU = 'process_cpu_seconds_total{job="gateway", host="box"}'
CANARY = 'bedplate_traffic_canary_success{host="box"}'
HEALED = 'bedplate_heal_restarts_total{host="box", job="node", unit="ollama.service"}'
OPEN = 'process_open_fds{job="gateway", host="box"}'
MOST = 'process_max_fds{job="gateway", host="box"}'
HOST_OPEN = 'node_filefd_allocated{job="node", host="box"}'
HOST_MOST = 'node_filefd_maximum{job="node", host="box"}'
LOST = 'bedplate_gateway_lost_leases_total{host="box"}'
NOT_SAVED = 'bedplate_gateway_usage_log_failed{host="box"}'
DROPPED = 'bedplate_gateway_log_dropped_total{host="box"}'
KEY_CLOCK = 'bedplate_gateway_clock_offset_seconds{host="box"}'
INODES_FREE = 'node_filesystem_files_free{host="box", mountpoint="/", fstype="ext4"}'
INODES = 'node_filesystem_files{host="box", mountpoint="/", fstype="ext4"}'
READ_ONLY = 'node_filesystem_readonly{host="box", mountpoint="/", fstype="ext4"}'
UPDATES = 'bedplate_host_security_updates{host="box"}'
DAY = 1440

CASES = [
    Case("a target is gone", {UP: "1 0x5"}, "4m", ("TargetDown warning",)),
    Case(
        "a drained host is shut down",
        {
            DRAINED: "1x30",
            UP: "1 0x30",
            NODE_TARGET: "1 0x30",
            unit("ollama"): "1 0x30",
            unit("bedplate-exporter"): "1 0x30",
            SERVES: "1 0x30",
            GPUS: "2 1x30",
            EXPECTED_GPUS: "2x30",
            DRIVER: "1 0x30",
            IN_GPU: "50x30",
            IN_ALL: "100x30",
            OLLAMA_RESTARTS: "0x3 1x3 2x30",
            HEALED: "0x3 1x30",
        },
        "8m",
    ),
    Case(
        "its other services are not drained",
        {
            DRAINED: "1x30",
            GATEWAY_TARGET: "1 0x30",
            'up{job="dashboard", host="box"}': "1 0x30",
            unit("bedplate-gateway"): "1 0x30",
            unit("bedplate-dashboard"): "1 0x30",
            RESTARTS: "0x3 1x3 2x30",
            GUARD: "0 1x30",
            AVAILABLE: "4x30",
            SIZE: "100x30",
        },
        "9m",
        (
            "TargetDown critical",
            "TargetDown warning",
            "ServiceDown critical",
            "ServiceDown warning",
            "ServiceRestarting warning",
            "OllamaUnguarded critical",
            "DiskFull critical",
        ),
    ),
    Case(
        "another host is drained",
        {OTHER_DRAINED: "1x30", DRAINED: "0x30", unit("ollama"): "1 0x30", SERVES: "1 0x30"},
        "9m",
        ("ServiceDown critical", "ModelUnavailable critical"),
    ),
    Case(
        "an engine starts again after its drain",
        {DRAINED: "1x9 0x30", unit("ollama"): "0x11 1x30", SERVES: "0x12 1x30", OLLAMA_RESTARTS: "0x5 2x30"},
        "18m",
    ),
    Case(
        "an engine stays down after its drain",
        {DRAINED: "1x9 0x30", unit("ollama"): "0x30", SERVES: "0x30"},
        "18m",
        ("ServiceDown critical", "ModelUnavailable critical"),
    ),
    Case("a target missed one scrape", {UP: "1 0 1x5"}, "4m", about="TargetDown"),
    Case(
        "LiteLLM returns no metrics",
        {LITELLM_TARGET: "1 0x5", GATEWAY_TARGET: "1x6"},
        "4m",
        ("TargetDown warning",),
    ),
    Case(
        "the gateway, which returns LiteLLM's metrics, is gone",
        {LITELLM_TARGET: "1 0x5", GATEWAY_TARGET: "1 0x5"},
        "4m",
        ("TargetDown critical",),
    ),
    Case("LiteLLM is down for six minutes", {LITELLM_UP: "1 0x9"}, "7m", ("LitellmBypassed warning",)),
    Case("LiteLLM restarts", {LITELLM_UP: "1 0x3 1x9"}, "9m", about="LitellmBypassed"),
    # The limit is 2 GiB.
    Case(
        "LiteLLM uses 1.7 GB",
        {LITELLM_MEMORY: "1.75e9x9", GATEWAY_MEMORY: "1e9x9"},
        "7m",
        ("LitellmMemory warning",),
    ),
    Case(
        "LiteLLM uses 1.6 GB",
        {LITELLM_MEMORY: "1.7e9x9", GATEWAY_MEMORY: "3e9x9"},
        "7m",
        about="LitellmMemory",
    ),
    # In 60 s, the interval of the samples: 54 s of CPU time are 90 %.
    Case("LiteLLM uses 90 % of a CPU", {LITELLM_CPU: "0+54x15"}, "12m", ("LitellmBusy warning",)),
    Case(
        "LiteLLM uses 70 % of a CPU, and the gateway more",
        {LITELLM_CPU: "0+42x15", GATEWAY_CPU: "0+60x15"},
        "12m",
        about="LitellmBusy",
    ),
    Case("an engine is stopped", {unit("ollama"): "1 0x5"}, "3m", ("ServiceDown critical",)),
    Case("a page is stopped", {unit("bedplate-dashboard"): "0x5"}, "2m", ("ServiceDown warning",)),
    Case("a service starts", {unit("ollama"): "0 1x5"}, "3m", about="ServiceDown"),
    Case("a oneshot has ended", {unit("host-facts"): "0x5"}, "5m", about="ServiceDown"),
    Case("the firewall was missing once", {GUARD: "0 1 0x15"}, "9m", ("OllamaUnguarded critical",)),
    Case("the firewall was there at each check", {GUARD: "0x15"}, "9m", about="OllamaUnguarded"),
    Case("a service dies twice", {RESTARTS: "0x3 1x3 2x9"}, "10m", ("ServiceRestarting warning",)),
    Case("a service died once", {RESTARTS: "0x3 1x12"}, "10m", about="ServiceRestarting"),
    Case("a service hung once", {HEALED: "0x3 1x12"}, "10m", ("ServiceHung warning",)),
    Case("a service hung before", {HEALED: "1x30"}, "20m", about="ServiceHung"),
    Case(
        "a process has few descriptors left",
        {OPEN: "81x5", MOST: "100x5"},
        "3m",
        ("DescriptorsFull critical",),
    ),
    Case("a host has few left", {HOST_OPEN: "81x5", HOST_MOST: "100x5"}, "3m", ("DescriptorsFull critical",)),
    Case(
        "descriptors suffice",
        {OPEN: "79x5", MOST: "100x5", HOST_OPEN: "79x5", HOST_MOST: "100x5"},
        "3m",
        about="DescriptorsFull",
    ),
    Case("a lease is lost", {LOST: "0x3 1x12"}, "10m", ("LeasesLost warning",)),
    Case("no lease is lost", {LOST: "1x12"}, "10m", about="LeasesLost"),
    Case("/run is full", {NOT_SAVED: "1x5"}, "3m", ("LimitsNotSaved warning",)),
    Case("/run has room", {NOT_SAVED: "0x5"}, "3m", about="LimitsNotSaved"),
    Case("the journal hangs", {DROPPED: "0x3 50x12"}, "10m", ("LogDropped warning",)),
    Case("the journal hung before", {DROPPED: "50x30"}, "20m", about="LogDropped"),
    Case("the clock lost its battery", {KEY_CLOCK: "-400x90"}, "80m", ("KeyClockOff warning",)),
    Case("the clock is far ahead", {KEY_CLOCK: "90000x90"}, "80m", ("KeyClockOff warning",)),
    Case("a host was off for two days", {KEY_CLOCK: "172800x60 0x30"}, "85m", about="KeyClockOff"),
    Case("a model is gone", {SERVES: "1 0x5"}, "4m", ("ModelUnavailable critical",)),
    Case("a model is loaded", {SERVES: "0 1x5"}, "4m", about="ModelUnavailable"),
    Case(
        "one of ten requests ends with 503",
        {requests("200"): "0+9x20", requests("503"): "0+1x20"},
        "15m",
        ("RequestsFailing critical",),
    ),
    Case(
        "requests are refused for their key's limit",
        {requests("200"): "0+1x20", requests("429"): "0+9x20"},
        "15m",
        about="RequestsFailing",
    ),
    Case(
        "half of the model is in main memory",
        {IN_GPU: "50x5", IN_ALL: "100x5", GPUS: "1x5", NO_GPUS: "0x5"},
        "4m",
        ("EngineOnCpu warning",),
    ),
    Case(
        "there is no GPU",
        {IN_GPU: "0x5", IN_ALL: "100x5", GPUS: "0x5", NO_GPUS: "0x5"},
        "4m",
        about="EngineOnCpu",
    ),
    Case(
        "a driver never came up, and the engine computes on the CPU",
        {IN_GPU: "0x5", IN_ALL: "100x5", GPUS: "0x5", EXPECTED_GPUS: "1x5"},
        "4m",
        ("EngineOnCpu warning", "GpuLost critical"),
    ),
    Case("all GPUs answer", {GPUS: "2x5", EXPECTED_GPUS: "2x5"}, "4m", about="GpuLost"),
    Case("one of two GPUs falls off", {GPUS: "2x5 1x5"}, "8m", ("GpuLost critical",)),
    Case("the driver does not answer", {GPU_FAILED: "0 1x5"}, "4m", ("GpuLost critical",)),
    Case("a GPU was added", {GPUS: "1x5 2x5", GPU_FAILED: "0x10"}, "8m", about="GpuLost"),
    Case("the library was updated", {DRIVER: "1 0x5"}, "4m", ("GpuDriverMismatch critical",)),
    Case("driver and library agree", {DRIVER: "1x5"}, "4m", about="GpuDriverMismatch"),
    Case("requests wait for a minute", {WAITS: "60x5"}, "4m", ("QueueSaturated warning",)),
    Case("night work waits", {WAITS_LOW: "600x5", WAITS: "5x5"}, "4m", about="QueueSaturated"),
    Case("the queue is full", {FULL: "0 0+10x9"}, "8m", ("RequestsRefused warning",)),
    Case("a key is at its limit", {LIMITED: "0 0+10x9"}, "8m", about="RequestsRefused"),
    Case(
        "nearly all streams begin late",
        {first_token("10.0"): "0+1x120", first_token("count"): "0+10x120"},
        "70m",
        # Both the fast and the slow burn rate exceed their thresholds.
        ("FirstTokenSlow critical", "FirstTokenSlow warning"),
    ),
    Case(
        "four of ten streams begin late for half a day",
        {first_token("10.0"): "0+6x720", first_token("count"): "0+10x720"},
        "12h",
        ("FirstTokenSlow warning",),
    ),
    Case(
        "five of a hundred streams begin late",
        {first_token("10.0"): "0+95x720", first_token("count"): "0+100x720"},
        "12h",
        about="FirstTokenSlow",
    ),
    Case(
        "it was slow, and is well again",
        {first_token("10.0"): "0+1x60 70+10x30", first_token("count"): "0+10x60 610+10x30"},
        "75m",
        # The 30-minute window is still above its threshold, the fast burn rate no longer.
        ("FirstTokenSlow warning",),
    ),
    Case("a disk is full", {AVAILABLE: "4x5", SIZE: "100x5"}, "4m", ("DiskFull critical",)),
    Case("a disk is nearly full", {AVAILABLE: "6x5", SIZE: "100x5"}, "4m", about="DiskFull"),
    Case("inodes are used up", {INODES_FREE: "4x5", INODES: "100x5"}, "4m", ("InodesFull critical",)),
    Case("inodes are scarce", {INODES_FREE: "6x5", INODES: "100x5"}, "4m", about="InodesFull"),
    # Such as Btrfs.
    Case("a file system counts no inodes", {INODES_FREE: "0x5", INODES: "0x5"}, "4m", about="InodesFull"),
    Case("a disk fails", {READ_ONLY: "0x3 1x9"}, "6m", ("FilesystemReadOnly critical",)),
    Case("a mount is read-only", {READ_ONLY: "1x9"}, "6m", about="FilesystemReadOnly"),
    Case("a disk was repaired", {READ_ONLY: "0x3 1x3 0x9"}, "12m", about="FilesystemReadOnly"),
    Case("updates wait for two days", {UPDATES: f"0x9 3x{2 * DAY}"}, "47h", ("SecurityUpdates warning",)),
    Case("updates are installed at night", {UPDATES: f"3x600 0x{DAY}"}, "23h", about="SecurityUpdates"),
    Case(
        "a disk fills by a tenth a day",
        {AVAILABLE: f"300000-70x{DAY}", SIZE: f"1000000x{DAY}"},
        "12h",
        ("DiskFullSoon warning",),
    ),
    Case(
        "a disk fills slowly",
        {AVAILABLE: f"300000-7x{DAY}", SIZE: f"1000000x{DAY}"},
        "12h",
        about="DiskFullSoon",
    ),
    Case("all stand still for memory", {STALLED: "0+12x20"}, "15m", ("MemoryPressure critical",)),
    Case("memory is gone", {FREE: "4x20", MEMORY: "100x20"}, "8m", ("MemoryPressure critical",)),
    Case(
        "memory is scarce",
        {FREE: "6x20", MEMORY: "100x20", STALLED: "0+3x20"},
        "15m",
        about="MemoryPressure",
    ),
    Case("a clock is a minute late", {CLOCK: "-60+60x20"}, "10m", ("ClockOff warning",)),
    Case("a clock is a second late", {CLOCK: "-1+60x20"}, "10m", about="ClockOff"),
    # promtool's time begins at 0.
    Case(
        "a certificate ends in ten days", {CERTIFICATE: f"{10 * 86400}x5"}, "1m", ("CertificateEnds warning",)
    ),
    Case("a certificate cannot be read", {CERTIFICATE: "0x5"}, "1m", ("CertificateEnds warning",)),
    Case("a certificate ends in a month", {CERTIFICATE: f"{30 * 86400}x5"}, "1m", about="CertificateEnds"),
    # The first with a life of 825 days, the others with one of 90 days.
    Case(
        "the edge's certificate ends in 59 days",
        {SERVED_START: f"{-766 * 86400}x5", SERVED_END: f"{59 * 86400}x5"},
        "1m",
        ("EdgeCertificateEnds warning",),
    ),
    Case(
        "the edge's certificate was not renewed for a week",
        {SERVED_START: f"{-68 * 86400}x5", SERVED_END: f"{22 * 86400}x5"},
        "1m",
        ("EdgeCertificateEnds warning",),
    ),
    Case(
        "the edge's certificate ends in eleven days",
        {SERVED_START: f"{-79 * 86400}x5", SERVED_END: f"{11 * 86400}x5"},
        "1m",
        ("EdgeCertificateEnds warning", "EdgeCertificateEnds critical"),
    ),
    Case(
        "the edge's certificate is due for renewal today",
        {SERVED_START: f"{-60 * 86400}x5", SERVED_END: f"{30 * 86400}x5"},
        "1m",
        about="EdgeCertificateEnds",
    ),
    Case("verify failed", {VERIFY: "1 0x5"}, "2m", ("VerifyFailed warning",)),
    Case("verify passed", {VERIFY: "0 1x5"}, "2m", about="VerifyFailed"),
    Case("the canary gets no answer", {CANARY: "1 0x30"}, "25m", ("CanaryFailing critical",)),
    Case("the canary failed once", {CANARY: "1x10 0x5 1x20"}, "16m", about="CanaryFailing"),
]

RECORDED = {
    "bedplate:limit_used:ratio": (
        {
            'bedplate_gateway_limit{scope="key", name="a", unit="requests"}': "100x9",
            'bedplate_gateway_limit_used{scope="key", name="a", unit="requests"}': "25x9",
        },
        0.25,
    ),
    "bedplate:slots_busy:ratio": (
        {
            'bedplate_gateway_slots{engine="box", model="m:1"}': "4x9",
            'bedplate_gateway_slots_busy{engine="box", model="m:1"}': "3x9",
        },
        0.75,
    ),
    "bedplate:engine_drained:max5m": ({DRAINED: "1x5 0x9"}, 1),
    "bedplate:requests:rate5m": ({requests("200"): "0+60x9"}, 1),
    "bedplate:success:ratio5m": ({requests("200"): "0+60x9"}, 1),
    "bedplate:refusals:rate5m": ({FULL: "0+30x9"}, 0.5),
    "bedplate:prompt_tokens:rate5m": (
        {f'bedplate_gateway_prompt_tokens_total{{alias="a", {MODEL}}}': "0+120x9"},
        2,
    ),
    "bedplate:completion_tokens:rate5m": (
        {f'bedplate_gateway_completion_tokens_total{{alias="a", {MODEL}}}': "0+600x9"},
        10,
    ),
    **{
        f"bedplate:{name}:{quantile}_5m": (
            {
                f'bedplate_gateway_{name}_bucket{{class="high", {MODEL}, le="{le}"}}': "0+60x9"
                for le in ("1.0", "+Inf")
            },
            value,
        )
        for name, quantile, value in (
            ("time_to_first_token_seconds", "p50", 0.5),
            ("time_to_first_token_seconds", "p95", 0.95),
            ("request_seconds", "p50", 0.5),
            ("request_seconds", "p95", 0.95),
            ("wait_seconds", "p95", 0.95),
        )
    },
    **{
        f"bedplate:first_token_late:ratio{window}": (
            {first_token("10.0"): "0+3x9", first_token("count"): "0+4x9"},
            0.25,
        )
        for window in ("5m", "30m", "1h", "6h")
    },
}


def rules(stack: Stack) -> dict[str, list[dict[str, Any]]]:
    """Return the rules of each file."""
    (files,) = (host.files for host in stack.hosts.values() if FILES[0] in host.files)
    return {
        name: [rule for group in yaml.safe_load(files[name])["groups"] for rule in group["rules"]]
        for name in FILES
    }


def promtool(stack: Stack, folder: Path, root: Path, tests: list[dict[str, Any]]) -> tuple[int, str]:
    """Run promtool's tests of the stack's rules; returns its exit status and output."""
    (files,) = (host.files for host in stack.hosts.values() if FILES[0] in host.files)
    for name in FILES:
        (folder / name).write_text(files[name])
    written = {"rule_files": list(FILES), "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(written))
    command = [str(root / "tests/tools/promtool"), "test", "rules", str(folder / "tests.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def as_test(story: str, series: dict[str, str], *queries: dict[str, Any]) -> dict[str, Any]:
    """Return one test in promtool's format."""
    return {
        "name": story,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": list(queries),
    }


def firing(case: Case) -> dict[str, Any]:
    """Return the query for firing alerts with the expected result."""
    expected = [
        {"labels": '{{alertname="{}", severity="{}"}}'.format(*alert.split()), "value": 1}
        for alert in case.fires
    ]
    expr = 'count by (alertname, severity) (ALERTS{alertstate="firing"})'
    return {"expr": expr, "eval_time": case.at, "exp_samples": expected}


@ONE_BOX
def test_each_alert_fires_only_above_its_threshold(stack: Stack, tmp_path: Path, repo_root: Path) -> None:
    status, output = promtool(
        stack, tmp_path, repo_root, [as_test(case.story, case.series, firing(case)) for case in CASES]
    )
    assert status == 0, output


@ONE_BOX
def test_a_wrong_expectation_fails(stack: Stack, tmp_path: Path, repo_root: Path) -> None:
    case = CASES[0]._replace(fires=())
    status, _ = promtool(stack, tmp_path, repo_root, [as_test(case.story, case.series, firing(case))])
    assert status != 0


@ONE_BOX
def test_every_alert_has_both_cases_and_a_next_command(stack: Stack) -> None:
    alerts = rules(stack)["alerts.rules.yml"]
    declared = {f"{rule['alert']} {rule['labels']['severity']}" for rule in alerts}
    assert {alert for case in CASES for alert in case.fires} == declared
    assert {case.about for case in CASES if case.about} == {rule["alert"] for rule in alerts}
    for rule in alerts:
        assert rule["annotations"].keys() == {"summary", "meaning", "next"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_watchdog_fires_always_where_somebody_outside_waits_for_it(
    stack: Stack, tmp_path: Path, repo_root: Path
) -> None:
    # The second inventory sets alertmanager_watchdog.
    wanted = ("Watchdog none",) if stack.name == "two-engines" else ()
    case = Case("nothing happens", {UP: "1x5"}, "1m", wanted)
    status, output = promtool(stack, tmp_path, repo_root, [as_test(case.story, case.series, firing(case))])
    assert status == 0, output


@ONE_BOX
def test_the_next_command_for_a_target_names_its_unit(stack: Stack, repo_root: Path) -> None:
    (text,) = {
        rule["annotations"]["next"]
        for rule in rules(stack)["alerts.rules.yml"]
        if rule["alert"] == "TargetDown"
    }
    renamed = dict(re.findall(r'eq \$labels\.job "(\w+)" \}\}([a-z-]+)', text))
    (jobs,) = (
        [target["job"] for target in host.wiring["prometheus_targets"]]
        for host in stack.hosts.values()
        if "prometheus_targets" in host.wiring
    )
    services = yaml.safe_load((repo_root / "playbooks/group_vars/all/services.yml").read_text())[
        "bedplate_services"
    ]
    assert {renamed.get(job, job) for job in jobs} <= services.keys()
    assert renamed.keys() <= set(jobs)


@ONE_BOX
def test_every_recording_rule_records(stack: Stack, tmp_path: Path, repo_root: Path) -> None:
    records = {rule["record"] for rule in rules(stack)["recording.rules.yml"]}
    assert RECORDED.keys() == records
    tests = [
        as_test(
            name,
            series,
            # round() keeps the labels and tolerates the last digit.
            {
                "expr": f"sum(round({name}, 0.0001))",
                "eval_time": "8m",
                "exp_samples": [{"labels": "{}", "value": value}],
            },
        )
        for name, (series, value) in RECORDED.items()
    ]
    status, output = promtool(stack, tmp_path, repo_root, tests)
    assert status == 0, output


@ONE_BOX
def test_alerts_use_what_rules_record(stack: Stack) -> None:
    got = rules(stack)
    used = {name for rule in got["alerts.rules.yml"] for name in re.findall(r"bedplate:[\w:]+", rule["expr"])}
    assert used <= {rule["record"] for rule in got["recording.rules.yml"]}
