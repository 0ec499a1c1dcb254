"""The lab's running hosts as an Ansible inventory."""

import shlex
from typing import Any

from bedplate_lab import network
from bedplate_lab.access import HostAccess
from bedplate_lab.records import GROUPS, Host, HostRecords
from bedplate_lab.tools import read_json


def host_variables(records: HostRecords, host: Host) -> dict[str, Any]:
    """Return the Ansible variables of one host."""
    lab, address = records.lab, str(records.address(host))
    return {
        "ansible_host": address,
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(lab.key),
        "ansible_ssh_common_args": shlex.join(HostAccess(records).ssh_options()),
        "bedplate_bind_address": address,
        "edge_tls": "own",
        "bedplate_name": f"lab-{lab.name}-{lab.id}",
    }


def build_inventory(records: HostRecords) -> dict[str, Any]:
    """Return the whole inventory in the format that Ansible expects from an inventory script.

    `lab_engine` and `lab_model` are the last results of `lab/lab engine` and `lab/lab model`.
    Without running hosts the groups are empty. Raises LabError when hosts run and the guard route is missing.
    """
    lab, running = records.lab, records.running()
    if running:
        network.check_guard(lab)
    names = dict.fromkeys([*GROUPS, *(group for host in running for group in host.groups)])
    groups: dict[str, Any] = {
        name: {"hosts": [host.name for host in running if name in host.groups]} for name in names
    }
    artifacts = {
        f"lab_{kind}": read_json(lab.artifact_record(kind))
        for kind in ("engine", "model")
        if lab.artifact_record(kind).exists()
    }
    return {
        "all": {"vars": artifacts},
        **groups,
        "_meta": {"hostvars": {host.name: host_variables(records, host) for host in running}},
    }
