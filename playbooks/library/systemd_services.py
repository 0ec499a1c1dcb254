#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Enables and starts many units together and waits for all of them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: systemd_services
short_description: Enable and start units together, and wait until all have started
description:
  - Starts the units side by side, in the order that their After= asks for, and waits for all of them.
  - A restart that a handler has begun is waited for as well.
  - Reloads systemd first where a unit file is newer than what systemd has read.
  - An active unit is left alone, unless it is to be restarted.
options:
  started:
    description: Units to enable and start, with their suffix.
    type: list
    elements: str
    default: []
  restarted:
    description: Units to restart, or start, with their suffix, without waiting for them.
    type: list
    elements: str
    default: []
  enabled:
    description: Units to enable only, with their suffix.
    type: list
    elements: str
    default: []
  installed_only:
    description: Whether to leave out units that do not exist.
    type: bool
    default: false
  timeout:
    description:
      - Seconds to wait for all starts.
      - Prometheus may read for 900 s after a crash what it had not yet stored in blocks.
    type: int
    default: 960
author: Bedplate
"""

EXAMPLES = r"""
- name: Start the services
  systemd_services:
    started: [prometheus.service, bedplate-dashboard.service]
"""

RETURN = r"""
actions:
  description: What was done, each as a systemctl command without its options.
  returned: always
  type: list
  elements: str
"""

PROPERTIES = ("Id", "LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload", "Job")
RUNNING = ("active", "reloading")
SHOW_SECONDS = 30


class StartError(Exception):
    """Which unit did not start and what to look at, in one sentence."""


class Unit(NamedTuple):
    """The state of a unit; `stale` means that systemd has not read its present file."""

    name: str
    exists: bool
    running: bool
    enabled: bool
    stale: bool


def parse_units(text: str, names: Sequence[str]) -> list[Unit]:
    """Return the units of `systemctl show` in the order of their names."""
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")
    ]
    found = {}
    for shown in blocks:
        found[shown.get("Id", "")] = Unit(
            name=shown.get("Id", ""),
            exists=shown.get("LoadState") != "not-found",
            # A pending job, such as a handler's restart, is waited for.
            running=shown.get("ActiveState") in RUNNING and shown.get("Job", "0") in ("", "0"),
            enabled=shown.get("UnitFileState") in ("enabled", "enabled-runtime", "alias", "static"),
            stale=shown.get("NeedDaemonReload") == "yes",
        )
    return [
        found.get(name, Unit(name, exists=False, running=False, enabled=False, stale=False)) for name in names
    ]


def run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command; raises StartError where it takes longer."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise StartError(
            f"{' '.join(command)} took longer than {seconds:.0f} s: run systemctl list-jobs there."
        ) from None


def show(names: Sequence[str]) -> list[Unit]:
    """Return the states of the units; raises StartError."""
    properties = [f"--property={name}" for name in PROPERTIES]
    done = run(["systemctl", "show", *properties, "--", *names], SHOW_SECONDS)
    if done.returncode and not done.stdout:
        raise StartError(done.stderr.strip())
    return parse_units(done.stdout, names)


def describe_failure(names: Sequence[str], output: str) -> str:
    """Return one sentence on the units that did not start."""
    failed = [unit.name for unit in show(names) if not unit.running]
    if not failed:
        return output.strip()
    command = f"journalctl -u {failed[0]}"
    options = ["--no-pager", "--output=cat", "--lines=5"]
    journal = run([*command.split(), *options], SHOW_SECONDS).stdout.strip()
    return f"{', '.join(failed)} did not start: run {command} there; its last lines are:\n{journal}"


def find_actions(
    units: Sequence[Unit], started: Sequence[str], restarted: Sequence[str] = ()
) -> Mapping[str, list[str]]:
    """Return the names for each verb of systemctl that has something to do."""
    actions = {
        "daemon-reload": [unit.name for unit in units if unit.stale],
        "restart --no-block": list(restarted),
        "enable": [unit.name for unit in units if not unit.enabled and unit.name not in restarted],
        "start": [unit.name for unit in units if not unit.running and unit.name in started],
    }
    return {verb: names for verb, names in actions.items() if names}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "started": {"type": "list", "elements": "str", "default": []},
            "restarted": {"type": "list", "elements": "str", "default": []},
            "enabled": {"type": "list", "elements": "str", "default": []},
            "installed_only": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 960},
        },
        supports_check_mode=True,
    )
    started: list[str] = module.params["started"]
    actions: list[str] = []
    try:
        restarted: list[str] = module.params["restarted"]
        units = show([*started, *restarted, *module.params["enabled"]])
        if module.params["installed_only"]:
            units = [unit for unit in units if unit.exists]
        todo = find_actions(units, started, restarted)
        for verb, names in todo.items():
            word, *rest = [*verb.split(), *([] if verb == "daemon-reload" else names)]
            actions.append(" ".join([word, *rest]))
            if module.check_mode:
                continue
            done = run(["systemctl", word, "--quiet", *rest], module.params["timeout"])
            if done.returncode:
                raise StartError(
                    describe_failure(names, done.stderr) if verb == "start" else done.stderr.strip()
                )
    except (StartError, OSError) as error:
        module.fail_json(msg=str(error), actions=actions)
    result: dict[str, Any] = {"changed": bool(actions), "actions": actions}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
