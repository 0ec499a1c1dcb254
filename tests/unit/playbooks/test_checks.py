"""playbooks/filter_plugins/checks.py: from the results of tasks to checks, and from checks to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

NOW = 1_800_000_000
URL = "http://10.1.0.1:9"
UNIT = {
    "Type": "exec",
    "Id": "ollama.service",
    "ActiveState": "active",
    "ActiveEnterTimestamp": f"@{NOW - 200}",
    "SubState": "running",
    "UnitFileState": "enabled",
    "NRestarts": "0",
    "Result": "success",
}


@pytest.fixture(scope="module")
def checks(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/filter_plugins/checks.py")


def shown(*units: dict[str, str]) -> str:
    """Return the time and the output of `systemctl show` for UNIT with changed properties."""
    return f"{NOW}\n" + "\n\n".join(
        "\n".join(f"{name}={value}" for name, value in {**UNIT, **unit}.items()) for unit in units
    )


@pytest.mark.parametrize(
    ("changed", "ok", "seen", "next_command"),
    [
        ({}, True, "active (running), enabled", "journalctl -u ollama -n 50"),
        (
            {"ActiveState": "inactive", "SubState": "dead"},
            False,
            "inactive (dead), enabled",
            "systemctl start ollama",
        ),
        (
            {"Type": "oneshot", "ActiveState": "inactive", "SubState": "dead"},
            True,
            "inactive (dead), enabled",
            "journalctl -u ollama -n 50",
        ),
        (
            {"Type": "oneshot", "ActiveState": "inactive", "SubState": "dead", "Result": "exit-code"},
            False,
            "inactive (dead), enabled",
            "systemctl start ollama",
        ),
        (
            {"ActiveState": "failed", "SubState": "failed"},
            False,
            "failed (failed), enabled",
            "journalctl -u ollama -n 50",
        ),
        (
            {"ActiveState": "inactive", "SubState": "dead", "UnitFileState": ""},
            False,
            "inactive (dead), not installed",
            "systemctl start ollama",
        ),
        ({"UnitFileState": "disabled"}, False, "active (running), disabled", "journalctl -u ollama -n 50"),
        (
            {"NRestarts": "1"},
            False,
            "active (running), enabled, restarted 1 time by systemd, last 3 min ago",
            "journalctl -u ollama -n 50",
        ),
        (
            {"NRestarts": "12"},
            False,
            "active (running), enabled, restarted 12 times by systemd, last 3 min ago",
            "journalctl -u ollama -n 50",
        ),
        (
            {"NRestarts": "1", "ActiveEnterTimestamp": f"@{NOW - 899}"},
            False,
            "active (running), enabled, restarted 1 time by systemd, last 14 min ago",
            "journalctl -u ollama -n 50",
        ),
        (
            {"NRestarts": "2", "ActiveEnterTimestamp": f"@{NOW - 900}"},
            True,
            "active (running), enabled, restarted 2 times by systemd, last 15 min ago",
            "journalctl -u ollama -n 50",
        ),
        (
            {"ActiveState": "activating", "ActiveEnterTimestamp": "", "SubState": "auto-restart"},
            False,
            "activating (auto-restart), enabled",
            "systemctl start ollama",
        ),
    ],
)
def test_a_unit(checks: ModuleType, changed: dict[str, str], ok: bool, seen: str, next_command: str) -> None:
    assert checks.unit_checks(shown(changed)) == [
        {"name": "ollama runs and starts at boot", "ok": ok, "seen": seen, "next": next_command}
    ]


def test_several_units(checks: ModuleType) -> None:
    preload = {key: value for key, value in UNIT.items() if key != "NRestarts"}
    output = f"{shown({})}\n\n" + "\n".join(
        f"{name}={value}" for name, value in {**preload, "Id": "ollama-preload.service"}.items()
    )
    names = [check["name"] for check in checks.unit_checks(output)]
    assert names == ["ollama runs and starts at boot", "ollama-preload runs and starts at boot"]


@pytest.mark.parametrize(
    ("tags", "oks", "seen", "next_command"),
    [
        (
            {"status": 200, "json": {"models": [{"name": "a:1"}, {"name": "c:1"}]}},
            [True, False],
            "it has a:1, c:1",
            "ansible-playbook site.yml --tags ollama",
        ),
        (
            {"status": 200, "json": {"models": []}},
            [False, False],
            "it has no model",
            "ansible-playbook site.yml --tags ollama",
        ),
        (
            {"status": -1, "msg": "refused"},
            [False, False],
            f"Ollama does not respond at {URL}",
            "journalctl -u ollama -n 50",
        ),
        (
            {"status": -1, "msg": "Request failed: <urlopen error timed out>"},
            [False, False],
            f"Ollama gave no answer in time at {URL}",
            "journalctl -u ollama -n 50",
        ),
    ],
)
def test_models(
    checks: ModuleType, tags: dict[str, Any], oks: list[bool], seen: str, next_command: str
) -> None:
    assert checks.model_checks(tags, ["a:1", "b:1"], URL) == [
        {"name": f"Ollama has {name}", "ok": ok, "seen": seen, "next": next_command}
        for name, ok in zip(("a:1", "b:1"), oks, strict=True)
    ]


def test_hosts_with_equal_declarations_have_the_same_model(checks: ModuleType) -> None:
    def host(digest: str | None, **declared: Any) -> dict[str, Any]:
        models = [] if digest is None else [{"name": "a:1", "digest": digest * 20}]
        answers = [{"json": {"models": models}}, {}]
        return {
            "ollama_models": [{"name": "a:1", **declared}],
            "ollama_url": "http://10.0.0.2:11434",
            "__verify_survey": {"answers": answers},
        }

    hosts = {
        "gpu1": host("a"),
        "gpu2": host("b"),
        # Declared otherwise, without it, without an answer, skipped, and without a declaration.
        "gpu3": host("c", parameters={"num_thread": 4}),
        "gpu4": host(None),
        "gpu5": {"ollama_models": [{"name": "a:1"}], "__verify_survey": {"answers": [{"status": -1}, {}]}},
        "gpu6": {"ollama_models": [{"name": "a:1"}]},
        "gpu7": {"__verify_survey": {"answers": [{"json": {"models": None}}, {}]}},
    }
    (differs,) = checks.same_model_checks(list(hosts), hosts)
    assert (differs["name"], differs["ok"]) == ("a:1 is the same on its hosts", False)
    assert differs["seen"] == f"{'a' * 12} on gpu1, {'b' * 12} on gpu2"
    assert differs["next"] == "ansible-playbook site.yml --tags ollama"
    hosts |= {"gpu1": host("a", pull="a:1"), "gpu2": host("b", pull="a:1")}
    (differs,) = checks.same_model_checks(list(hosts), hosts)
    pull = "OLLAMA_HOST=http://10.0.0.2:11434 ollama pull a:1"
    assert (differs["ok"], differs["next"]) == (False, f"{pull} (on gpu1), {pull} (on gpu2)")
    hosts["gpu2"] = host("a", pull="a:1")
    (same,) = checks.same_model_checks(list(hosts), hosts)
    assert same["ok"]
    assert checks.same_model_checks(["gpu1"], hosts) == []


def test_gpus(checks: ModuleType) -> None:
    drivers = [
        {"vendor": "nvidia", "failed": False, "devices": 1, "expected": 2},
        {"vendor": "amd", "failed": True, "devices": 0, "expected": 0},
        {"vendor": "nvidia", "failed": False, "devices": 2, "expected": 2},
    ]
    lost, failed, fine = checks.gpu_checks({"status": 200, "json": {"drivers": drivers}})
    assert (lost["ok"], lost["seen"]) == (False, "1 of 2")
    assert lost["next"] == "nvidia-smi; dmesg | tail -n 30"
    assert (failed["ok"], failed["seen"]) == (False, "0 of 0; the driver does not respond correctly")
    assert failed["next"] == "dmesg | grep amdgpu | tail -n 30"
    assert (fine["name"], fine["ok"]) == ("the driver reports every nvidia GPU", True)
    assert checks.gpu_checks({"status": -1}) == []


def traffic(ok: bool, failed: int, *errors: str) -> dict[str, Any]:
    """Return the result of `traffic --max=3 --json=-`."""
    summary = {"requests": 3, "failed": failed, "completion_tokens": 12, "seconds_p50": 0.3123}
    requests = [{"error": error} for error in errors] + [{"error": None}]
    document = {"ok": ok, "model": "m:1", "summary": summary, "requests": requests}
    return {"rc": int(not ok), "stdout": f"\n{json.dumps(document)}", "stderr_lines": []}


@pytest.mark.parametrize(
    ("result", "ok", "seen"),
    [
        (traffic(True, 0), True, "3 of 3 answered by m:1, 12 tokens, median 0.31 s"),
        (
            traffic(False, 2, "status 503", "status 503", "timeout"),
            False,
            "1 of 3 answered by m:1, 12 tokens, median 0.31 s; status 503; timeout",
        ),
        ({"rc": 2, "stdout": "", "stderr_lines": ["", "traffic: no key"]}, False, "traffic: no key"),
        ({"msg": "no such program"}, False, "traffic printed nothing"),
    ],
)
def test_chat_requests(checks: ModuleType, result: dict[str, Any], ok: bool, seen: str) -> None:
    check = checks.chat_check(result)
    assert (check["ok"], check["seen"]) == (ok, seen)


def targets(path: str = "/metrics", **health: str) -> dict[str, Any]:
    """Return the response of Prometheus' targets API."""
    active = [
        {
            "health": state,
            "discoveredLabels": {"__address__": f"{name}:9100", "__metrics_path__": path},
        }
        for name, state in health.items()
    ]
    return {"status": 200, "json": {"data": {"activeTargets": active}}}


@pytest.mark.parametrize(
    ("response", "ok", "seen", "next_command"),
    [
        (targets(a="up", b="up", other="down"), True, "2 of 2 up", f"open {URL}/classic/targets"),
        (targets(a="up", b="down"), False, "down: node on b", f"open {URL}/classic/targets"),
        (targets(), False, "down: node on a, node on b", f"open {URL}/classic/targets"),
        ({"status": -1}, False, f"Prometheus does not respond at {URL}", "journalctl -u prometheus -n 50"),
    ],
)
def test_targets(
    checks: ModuleType, response: dict[str, Any], ok: bool, seen: str, next_command: str
) -> None:
    expected = [{"job": "node", "host": host, "address": f"{host}:9100"} for host in ("a", "b")]
    assert checks.target_check(response, expected, URL) == {
        "name": "every Prometheus target is up",
        "ok": ok,
        "seen": seen,
        "next": next_command,
    }


def test_targets_at_one_address(checks: ModuleType) -> None:
    response = targets(a="up")
    litellm = {"job": "litellm", "host": "a", "address": "a:9100", "path": "/metrics/litellm"}
    expected = [{"job": "gateway", "host": "a", "address": "a:9100"}, litellm]
    assert checks.target_check(response, expected, URL)["seen"] == "down: litellm on a"
    response["json"]["data"]["activeTargets"] += targets(path="/metrics/litellm", a="up")["json"]["data"][
        "activeTargets"
    ]
    assert checks.target_check(response, expected, URL)["seen"] == "2 of 2 up"


@pytest.mark.parametrize(
    ("response", "ok", "seen", "next_command"),
    [
        ({"json": {"state": "healthy", "reason": "all well", "next": None}}, True, "healthy: all well", ""),
        (
            {"json": {"state": "down", "reason": "no model", "next": "ollama ps"}},
            False,
            "down: no model",
            "ollama ps",
        ),
        (
            {"status": 401},
            False,
            f"the dashboard does not respond at {URL}",
            "journalctl -u bedplate-dashboard -n 50",
        ),
        (
            {"status": -1, "msg": "Connection failure: The read operation timed out"},
            False,
            f"the dashboard gave no answer in time at {URL}",
            "journalctl -u bedplate-dashboard -n 50",
        ),
    ],
)
def test_the_dashboards_state(
    checks: ModuleType, response: dict[str, Any], ok: bool, seen: str, next_command: str
) -> None:
    check = checks.dashboard_check(response, URL)
    assert (check["ok"], check["seen"], check["next"]) == (ok, seen, next_command)


def test_load_profiles(checks: ModuleType) -> None:
    thresholds = [{"threshold": "429 <= 1 %", "seen": 0}, {"threshold": "p95 < 3 s", "seen": 2.5}]
    document = {"ok": False, "description": "limits are exact", "thresholds": thresholds}
    runs = [
        {"item": "tpm", "rc": 1, "stdout": json.dumps(document), "stderr_lines": []},
        {"item": "priority", "rc": 2, "stdout": "", "stderr_lines": ["traffic: TRAFFIC_KEY_BATCH is empty"]},
        {"item": "ratelimit", "rc": 0, "stdout": json.dumps({**document, "ok": True}), "stderr_lines": []},
    ]
    failed, not_started, passed = checks.smoke_checks(runs, "one")
    assert failed == {
        "host": "one",
        "name": "limits are exact",
        "ok": False,
        "seen": "429 <= 1 %; measured: 0, p95 < 3 s; measured: 2.5",
        "next": "journalctl -u bedplate-gateway -n 50",
    }
    assert (not_started["name"], not_started["ok"]) == ("the profile priority", None)
    assert not_started["seen"] == "TRAFFIC_KEY_BATCH is empty"
    assert not_started["next"].startswith("declare the key in gateway_keys")
    assert passed["ok"] is True


def test_the_checks_of_all_hosts(checks: ModuleType) -> None:
    entry = {"name": "ollama runs", "ok": None, "seen": " active\n", "next": "x"}
    hostvars = {"a": {"__verify_checks": [entry]}, "b": {}}
    first, second = checks.host_checks(["a", "b"], hostvars)
    assert first == {"host": "a", **entry, "seen": "active"}
    assert (second["host"], second["name"], second["ok"]) == ("b", "the host is reachable", False)
    assert second["next"] == "ansible -m ping b"


DRAINED = "b is drained by kim since 2026-03-01 14:02:00 UTC: new fan"


def test_what_fails_on_a_drained_host_was_not_checked(checks: ModuleType) -> None:
    names = (
        "ollama runs and starts at boot",
        "Ollama has m:1b",
        "the driver reports every nvidia GPU",
        "each port answers its clients only",
        "bedplate-gateway runs and starts at boot",
    )
    entries = [{"name": name, "ok": False, "seen": "it fails", "next": "x"} for name in names]
    gateway = {"__verify_gateway": {"drained": {"b": DRAINED, "vllm": "vllm is drained"}}}
    hostvars = {"a": {"__verify_checks": entries[:1], **gateway}, "b": {"__verify_checks": entries}}
    found = checks.host_checks(["a", "b"], hostvars)
    assert [check["ok"] for check in found] == [False, None, None, None, False, False, None, None]
    assert found[1]["seen"] == "it fails; b is drained"
    assert found[6:] == [
        {
            "host": "b",
            "name": "the engine gets requests",
            "ok": None,
            "seen": DRAINED,
            "next": "make undrain HOST=b",
        },
        {
            "host": "vllm",
            "name": "the engine gets requests",
            "ok": None,
            "seen": "vllm is drained",
            "next": "make undrain HOST=vllm",
        },
    ]


def test_a_drained_host_that_is_off_did_not_fail(checks: ModuleType) -> None:
    gateway = {"__verify_gateway": {"drained": {"b": DRAINED}}}
    found = checks.host_checks(["b", "c"], {"b": gateway, "c": {}})
    assert [(check["host"], check["name"], check["ok"]) for check in found] == [
        ("b", "the host is reachable", None),
        ("c", "the host is reachable", False),
        ("b", "the engine gets requests", None),
    ]


@pytest.mark.parametrize(
    ("drained", "ok", "seen"),
    [
        ((), False, "down: ollama on b, node on b, gateway on b"),
        (("a",), False, "down: ollama on b, node on b, gateway on b"),
        (("b",), False, "down: gateway on b"),
    ],
)
def test_targets_of_a_drained_host(checks: ModuleType, drained: tuple[str, ...], ok: bool, seen: str) -> None:
    expected = [{"job": job, "host": "b", "address": f"{job}:1"} for job in ("ollama", "node", "gateway")]
    check = checks.target_check({"status": 200, "json": {}}, expected, URL, drained)
    assert (check["ok"], check["seen"]) == (ok, seen)
    check = checks.target_check({"status": 200, "json": {}}, expected[:2], URL, ("b",))
    assert (check["ok"], check["seen"]) == (True, "0 of 2 up, b is drained")


def test_a_dashboard_that_only_waits_for_a_drained_engine(checks: ModuleType) -> None:
    drain, other = {"about": "drain gpu1"}, {"about": "disk gpu1 /"}
    document = {"state": "degraded", "reason": "requests for m wait", "next": "make undrain HOST=gpu1"}
    for faults, ok in (([drain], None), ([drain, other], False), ([], False)):
        status = {"status": 200, "json": document | {"faults": faults}}
        assert checks.dashboard_check(status, URL)["ok"] is ok


def test_no_chat_is_sent_while_only_drained_engines_could_answer(checks: ModuleType) -> None:
    check = checks.chat_check({"skipped": True, "changed": False})
    assert (check["name"], check["ok"]) == ("three chat requests are answered", None)


@pytest.mark.parametrize(("oks", "ok"), [([], True), ([True, None], True), ([True, False, None], False)])
def test_the_report(checks: ModuleType, oks: list[bool | None], ok: bool) -> None:
    entries = [{"host": "a", "name": "n", "ok": value, "seen": "s", "next": "x"} for value in oks]
    report = checks.check_report(entries, "2026-11-27T12:00:00Z")
    assert report == {"schema": 1, "ok": ok, "at": "2026-11-27T12:00:00Z", "checks": entries}
