# SPDX-License-Identifier: Apache-2.0
"""Filters for verify and smoke: they turn the results of tasks into checks, and the checks into a report.

A check is {name, ok, seen, next}, as in module_utils/checks.py: `ok` is None if it could not run, `seen` is
the observation and `next` the command to type. The result of a request has the keys `json` and `status`,
which is -1 or missing if there was no response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

Check = dict[str, Any]
Result = Mapping[str, Any]

REPORT_SCHEMA = 1
GPU_COMMANDS = {"nvidia": "nvidia-smi; dmesg | tail -n 30"}
GATEWAY_JOURNAL = "journalctl -u bedplate-gateway -n 50"
ENGINE_CHECK = re.compile(
    r"^((ollama|ollama-preload|bedplate-exporter|node-exporter|gpu-devices) runs |Ollama|models run )"
    r"|GPU|^the engine's runner |^the host is reachable$"
)
"""The checks that may fail while an engine is drained. Which ports are open to whom is always checked."""
RECENT_SECONDS = 900
"""How long a restart by systemd fails verify; the same as the window of the alert ServiceRestarting."""


def check(name: str, ok: bool | None, seen: str, next_command: str) -> Check:
    """Return one check."""
    return {"name": name, "ok": ok, "seen": seen, "next": next_command}


def responded(result: Result) -> bool:
    """Return whether a request got a response with status 200."""
    return bool(result.get("status", -1) == 200)


def silence(result: Result, name: str, url: str) -> str:
    """Return the words for a request without a response: whether it was waited for in vain."""
    late = "timed out" in str(result.get("msg", ""))
    return f"{name} gave no answer in time at {url}" if late else f"{name} does not respond at {url}"


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that a command printed; empty if it printed something else."""
    if not re.match(r"\s*{", text):
        return {}
    document: dict[str, Any] = json.loads(text)
    return document


def last_line(result: Result) -> str:
    """Return the last line of a command's standard error."""
    lines = result.get("stderr_lines") or ["traffic printed nothing"]
    return str(lines[-1])


# --- Services


def unit_checks(output: str) -> list[Check]:
    """Check each unit: active, enabled and not just restarted by systemd, which a crash or a heal causes.

    `output` is the host's time in seconds, then what `systemctl show --timestamp=unix` prints. A oneshot unit
    may also be inactive after success.
    """
    now, _, shown = output.partition("\n")
    return [
        unit_check(dict(line.split("=", 1) for line in block.splitlines()), int(now))
        for block in shown.split("\n\n")
    ]


def unit_check(unit: Mapping[str, str], now: int) -> Check:
    """Check one unit, given its properties as `systemctl show` names them."""
    name = unit["Id"].removesuffix(".service")
    state, restarts = unit["ActiveState"], int(unit.get("NRestarts") or 0)
    finished = unit["Type"] == "oneshot" and state == "inactive" and unit["Result"] == "success"
    active = state == "active" or finished
    enabled = unit["UnitFileState"] == "enabled"
    seen = f"{state} ({unit['SubState']}), {unit['UnitFileState'] or 'not installed'}"
    age = now - int(unit.get("ActiveEnterTimestamp", "").removeprefix("@") or now)
    if restarts:
        seen += f", restarted {restarts} time{'s' * (restarts != 1)} by systemd, last {age // 60} min ago"
    return check(
        f"{name} runs and starts at boot",
        active and enabled and unit["SubState"] != "auto-restart" and not (restarts and age < RECENT_SECONDS),
        seen,
        f"journalctl -u {name} -n 50" if active or state == "failed" else f"systemctl start {name}",
    )


# --- Inference hosts


def model_checks(tags: Result, declared: Iterable[str], url: str) -> list[Check]:
    """Check that Ollama has each declared model; `tags` is the response of its /api/tags at `url`."""
    present = [model["name"] for model in tags.get("json", {}).get("models") or []]
    if responded(tags):
        seen, next_command = (
            f"it has {', '.join(present) or 'no model'}",
            "ansible-playbook site.yml --tags ollama",
        )
    else:
        seen, next_command = silence(tags, "Ollama", url), "journalctl -u ollama -n 50"
    return [check(f"Ollama has {name}", name in present, seen, next_command) for name in declared]


def same_model_checks(hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Check that hosts with equal declarations of a model have the same one: a tag can move between pulls.

    Hosts that do not answer have checks of their own.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for host in hosts:
        (tags, *_) = (hostvars[host].get("__verify_survey") or {}).get("answers") or [{}]
        digests = {model["name"]: model["digest"] for model in tags.get("json", {}).get("models") or []}
        for declared in hostvars[host].get("ollama_models") or []:
            if digest := digests.get(declared["name"]):
                key = declared["name"], json.dumps(declared, sort_keys=True)
                found.setdefault(key, {})[host] = digest
    return [
        check(
            f"{name} is the same on its hosts",
            len(set(digests.values())) == 1,
            ", ".join(f"{digest[:12]} on {host}" for host, digest in digests.items()),
            ", ".join(
                # Ollama's client asks 127.0.0.1 by itself, where an engine for other hosts does not listen.
                f"OLLAMA_HOST={hostvars[host]['ollama_url']} ollama pull {name} (on {host})"
                for host in digests
            )
            if '"pull"' in declared
            else "ansible-playbook site.yml --tags ollama",
        )
        for (name, declared), digests in found.items()
        if len(digests) > 1
    ]


def gpu_checks(state: Result) -> list[Check]:
    """Check that each driver reports as many GPUs as expected; `state` is the exporter's response."""
    return [
        check(
            f"the driver reports every {driver['vendor']} GPU",
            not driver["failed"] and driver["devices"] >= driver["expected"],
            f"{driver['devices']} of {driver['expected']}"
            + ("; the driver does not respond correctly" if driver["failed"] else ""),
            GPU_COMMANDS.get(driver["vendor"], "dmesg | grep amdgpu | tail -n 30"),
        )
        for driver in state.get("json", {}).get("drivers", [])
    ]


# --- Gateway hosts


def chat_check(traffic: Result) -> Check:
    """Check the three chat requests of the command `traffic`, which prints its report as JSON."""
    name = "three chat requests are answered"
    if traffic.get("skipped"):
        return check(name, None, "only drained engines could answer", "make health")
    document = json_object(traffic.get("stdout", ""))
    seen = last_line(traffic)
    if summary := document.get("summary"):
        answered = summary["requests"] - summary["failed"]
        messages = [request.get("error") for request in document["requests"]]
        median = round(summary.get("seconds_p50") or 0, 2)
        seen = (
            f"{answered} of {summary['requests']} answered by {document['model']}, "
            f"{summary['completion_tokens']} tokens, median {median} s"
        )
        seen = "; ".join([seen, *dict.fromkeys(text for text in messages if isinstance(text, str))])
    return check(
        name,
        traffic.get("rc", 1) == 0 and bool(document.get("ok", False)),
        seen,
        "journalctl -u bedplate-gateway -u ollama -n 50",
    )


# --- Monitoring hosts


def target_check(
    targets: Result, expected: Sequence[Mapping[str, str]], url: str, drained: Collection[str] = ()
) -> Check:
    """Check that every expected target is up; `targets` is the response of Prometheus' API at `url`.

    Those of a drained host's engine and of the host itself may be down.
    """
    name = "every Prometheus target is up"
    if not responded(targets):
        return check(name, False, silence(targets, "Prometheus", url), "journalctl -u prometheus -n 50")
    # Two jobs may share an address: the gateway returns LiteLLM's metrics, too.
    up = {
        (target["discoveredLabels"]["__address__"], target["discoveredLabels"]["__metrics_path__"])
        for target in targets.get("json", {}).get("data", {}).get("activeTargets", [])
        if target["health"] == "up"
    }
    missing = [target for target in expected if (target["address"], target.get("path", "/metrics")) not in up]
    spared = [
        target for target in missing if target["job"] in ("ollama", "node") and target["host"] in drained
    ]
    down = [f"{target['job']} on {target['host']}" for target in missing if target not in spared]
    seen = f"{len(expected) - len(missing)} of {len(expected)} up"
    if down:
        seen = f"down: {', '.join(down)}"
    elif spared:
        seen += f", {', '.join(dict.fromkeys(target['host'] for target in spared))} is drained"
    return check(name, not down, seen, f"open {url}/classic/targets")


def dashboard_check(status: Result, url: str) -> Check:
    """Check that the dashboard reports healthy; `status` is the response of its status API at `url`."""
    document = status.get("json", {})
    if "state" not in document:
        seen = silence(status, "the dashboard", url)
        next_command = "journalctl -u bedplate-dashboard -n 50"
    else:
        seen, next_command = f"{document['state']}: {document['reason']}", document.get("next") or ""
    faults = document.get("faults") or []
    only_drained = bool(faults) and all(str(fault["about"]).startswith("drain ") for fault in faults)
    ok = None if only_drained else document.get("state") == "healthy"
    return check("the dashboard reports healthy", ok, seen, next_command)


# --- Reports


def smoke_checks(runs: Iterable[Result], host: str) -> list[Check]:
    """Return one check per load profile, with `host`."""
    return [{"host": host, **smoke_check(run)} for run in runs]


def smoke_check(run: Result) -> Check:
    """Check one load profile, given the result of `traffic run PROFILE --json=-`.

    Exit status 2 means that the profile could not start, for example because a key is not declared.
    """
    document = json_object(run.get("stdout", ""))
    not_started = run.get("rc") == 2
    seen = last_line(run).removeprefix("traffic: ")
    if "thresholds" in document:
        seen = ", ".join(
            f"{threshold['threshold']}; measured: {threshold['seen']}" for threshold in document["thresholds"]
        )
    return check(
        document.get("description", f"the profile {run['item']}"),
        None if not_started else run.get("rc") == 0 and bool(document.get("ok", False)),
        seen,
        "declare the key in gateway_keys, as inventory/lab/group_vars/all.yml does"
        if not_started
        else GATEWAY_JOURNAL,
    )


def host_checks(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Return the checks of all hosts, each with its host; a host without any was unreachable.

    What fails of a drained engine and its host did not fail, but could not be checked.
    """
    names = list(hosts)
    drained = drained_engines(names, hostvars)
    checks: list[Check] = []
    for host in names:
        unreachable = check(
            "the host is reachable",
            False,
            "the host was unreachable, or an earlier task failed on it",
            f"ansible -m ping {host}",
        )
        for entry in hostvars[host].get("__verify_checks", [unreachable]):
            seen = str(entry["seen"]).strip()
            ok = entry["ok"]
            if ok is False and host in drained and ENGINE_CHECK.search(entry["name"]):
                ok, seen = None, f"{seen}; {host} is drained"
            checks.append({"host": host, **check(entry["name"], ok, seen, entry["next"])})
    for engine, text in drained.items():
        undrain = f"make undrain HOST={engine}"
        checks.append({"host": engine, **check("the engine gets requests", None, text, undrain)})
    return checks


def drained_engines(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a sentence for each drained engine, by its name, from the results of gateway_checks."""
    results = [hostvars[host].get("__verify_gateway") or {} for host in hosts]
    return {engine: text for result in results for engine, text in result.get("drained", {}).items()}


def check_report(checks: Sequence[Check], at: str) -> dict[str, Any]:
    """Return the report that verify and smoke write; `at` is its time in ISO 8601."""
    ok = not any(entry["ok"] is False for entry in checks)
    return {"schema": REPORT_SCHEMA, "ok": ok, "at": at, "checks": checks}


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            function.__name__: function
            for function in (
                silence,
                unit_checks,
                model_checks,
                same_model_checks,
                gpu_checks,
                chat_check,
                target_check,
                dashboard_check,
                smoke_checks,
                host_checks,
                drained_engines,
                check_report,
            )
        }
