#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Holds this host against what its inventory expects, and returns the differences."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.drift import Difference, Expectation, find_differences, merged, wanted_paths
from ansible.module_utils.drift_host import (
    EXPECTED,
    STATUS,
    load_expectation,
    look_at_host,
    noted,
    save_expectation,
    write_status,
)
from ansible.module_utils.host_record import RECORDS, RecordError, load_record

DOCUMENTATION = r"""
module: host_drift
short_description: Compare a host with what its inventory expects
description:
  - Compares files, units, services, users, packages, releases, models, listeners, firewall tables and mounts.
  - Changes nothing, and needs no network. With C(roles) it writes down what is expected of these roles.
  - A disk that does not answer is one difference, and ends nothing.
  - Returns no secret and no hash of one.
options:
  expected:
    description: What the inventory says of the host and its roles.
    type: dict
    required: true
  rendered:
    description:
      - The arguments of the roles' tasks with service_files, as the inventory renders them now.
      - Without it, files are compared with the host's records.
    type: list
    elements: dict
  roles:
    description: Roles that have just run. What is expected of them is written to the host.
    type: list
    elements: str
    default: []
author: Bedplate
"""

EXAMPLES = r"""
- name: Compare the host with its inventory
  host_drift:
    expected: "{{ __bedplate_expectation }}"
  register: drift
"""

RETURN = r"""
differences:
  description: What is not as expected.
  returned: success
  type: list
  elements: dict
  contains:
    kind: {description: 'What it is, such as file, unit, service or user.', type: str}
    what: {description: Its name., type: str}
    expected: {description: What the inventory declares., type: str}
    seen: {description: What is there., type: str}
    remedy: {description: The command to type next., type: str}
    known: {description: Whether bedplate_known_changes lists it., type: bool}
"""


def compare(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; raises RecordError and OSError."""
    expected = Expectation(**module.params["expected"])
    ran: list[str] = module.params["roles"]
    rendered = module.params["rendered"]
    records = load_record(RECORDS)
    old, lost = None, []
    try:
        # Playbooks of single groups do not write it.
        if EXPECTED.exists():
            old = load_expectation(EXPECTED)
            expected.noted = old.noted
    except RecordError as error:
        if not ran:
            unread = {
                "expected": "what site.yml wrote",
                "seen": str(error),
                "remedy": "ansible-playbook site.yml",
            }
            lost = [Difference(kind="host", what=str(EXPECTED), **unread)]
    if ran:
        # Nothing is expected yet of a role that has never run.
        expected.roles = {
            name: role for name, role in expected.roles.items() if name in ran or (old and name in old.roles)
        }
    seen = look_at_host(expected, records, wanted_paths(records, rendered))
    if ran:
        expected.noted = noted(seen)
        expected = merged(old, expected, ran)
    differences = [*lost, *find_differences(expected, records, seen, rendered)]
    if ran and not module.check_mode:
        save_expectation(EXPECTED, expected)
        if STATUS.parent.is_dir():
            write_status(STATUS, differences)
    # As with the records, writing down what is expected is no change.
    return {"changed": False, "differences": [asdict(each) for each in differences]}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "expected": {"type": "dict", "required": True},
            "rendered": {"type": "list", "elements": "dict"},
            "roles": {"type": "list", "elements": "str", "default": []},
        },
        # The journal would get 40 KB for each comparison, with hashes of passwords.
        no_log=True,
        supports_check_mode=True,
    )
    try:
        result = compare(module)
    except (RecordError, OSError, subprocess.SubprocessError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
