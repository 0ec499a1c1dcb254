"""The lab's running hosts as an Ansible inventory."""

from __future__ import annotations

import shlex
from typing import Any

from . import network
from .hosts import GROUPS, Host, Hosts
from .tools import read_json


def variables(hosts: Hosts, host: Host) -> dict[str, Any]:
    """Return what Ansible has to know about one host."""
    lab, address = hosts.lab, str(hosts.address(host))
    return {
        "ansible_host": address,
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(lab.key),
        "ansible_ssh_common_args": shlex.join(hosts.ssh_options()),
        "bedplate_bind_address": address,
        "bedplate_name": f"lab-{lab.name}-{lab.id}",
    }


def listing(hosts: Hosts) -> dict[str, Any]:
    """Return the whole inventory in the form that `ansible-inventory` asks a script for.

    `lab_engine` and `lab_model` are what `lab/lab engine` and `lab/lab model` found last.
    Without running hosts the groups are empty. Raises LabError when hosts run and the guard route is missing.
    """
    lab, running = hosts.lab, hosts.running()
    if running:
        network.check_guard(lab)
    names = dict.fromkeys([*GROUPS, *(group for host in running for group in host.groups)])
    groups: dict[str, Any] = {
        name: {"hosts": [host.name for host in running if name in host.groups]} for name in names
    }
    chosen = {
        f"lab_{what}": read_json(lab.chosen(what))
        for what in ("engine", "model")
        if lab.chosen(what).exists()
    }
    return {
        "all": {"vars": chosen},
        **groups,
        "_meta": {"hostvars": {host.name: variables(hosts, host) for host in running}},
    }
