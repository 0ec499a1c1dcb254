#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Reads what a host's services say of themselves: their states, their listeners and their answers."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.listeners import SS, listeners

DOCUMENTATION = r"""
module: service_survey
short_description: Read states of services, listeners beyond loopback and answers in one run
description:
  - Lists every listening TCP socket and every UDP socket without a peer, over IPv4 and IPv6, that is not
    bound to a loopback address, with its process and unit.
  - Needs root to see the processes of all users.
  - Asks all addresses side by side, without a proxy. It follows no redirect.
options:
  units:
    description: Units whose states are shown, with their suffix.
    type: list
    elements: str
    default: []
  listeners:
    description: Whether to list the listeners.
    type: bool
    default: true
  urls:
    description: Addresses of JSON documents.
    type: list
    elements: str
    default: []
  user:
    description: User of the addresses; none without one.
    type: str
    default: ""
  password:
    description: Its password.
    type: str
    default: ""
  ca_file:
    description: File with the CAs of https addresses.
    type: path
  seconds:
    description: How long an answer may take.
    type: int
    default: 5
author: Bedplate
"""

EXAMPLES = r"""
- name: Read the states of two units, the listeners and one answer
  service_survey:
    units: [ollama.service, bedplate-exporter.service]
    urls: ["http://127.0.0.1:11434/api/tags"]
  register: found
"""

RETURN = r"""
units:
  description: The host's time in seconds, then what C(systemctl show) prints of the units.
  returned: always
  type: str
answers:
  description: The answer of each address.
  returned: always
  type: list
  elements: dict
  contains:
    status: {description: The status; -1 without an answer., type: int}
    json: {description: The JSON object in the answer; empty if it has none., type: dict}
    msg: {description: Why there was no answer; else empty., type: str}
listeners:
  description: The sockets, each address, port and unit once; at most 200.
  returned: always
  type: list
  elements: dict
  contains:
    protocol: {description: tcp or udp., type: str}
    address: {description: 'The local address; 0.0.0.0 or :: for all.', type: str}
    port: {description: The local port., type: int}
    process: {description: Name of a process that has it; empty if only the kernel does., type: str}
    pid: {description: Its number; 0 if there is none., type: int}
    unit: {description: Its systemd unit; empty if there is none., type: str}
count:
  description: How many there are, those beyond 200 included.
  returned: always
  type: int
"""

MAX_LISTENERS = 200
UNIT_PROPERTIES = "Id,Type,ActiveState,ActiveEnterTimestamp,SubState,UnitFileState,NRestarts,Result"
TIMEOUT_SECONDS = 10
MAX_BYTES = 16 * 1024 * 1024


def show_units(names: Sequence[str]) -> str:
    """Return the host's time in seconds, then the states of the units as systemd prints them."""
    command = ["systemctl", "show", "--timestamp=unix", f"--property={UNIT_PROPERTIES}", "--", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    return f"{int(time.time())}\n{done.stdout.strip()}"


def ask(url: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of an address; `given` are the module's options."""
    parts = urlsplit(url)
    headers = {}
    if given["user"]:
        login = base64.b64encode(f"{given['user']}:{given['password']}".encode()).decode()
        headers["Authorization"] = f"Basic {login}"
    try:
        if parts.scheme == "https":
            trusted = ssl.create_default_context(cafile=given["ca_file"])
            connection: HTTPConnection = HTTPSConnection(
                parts.netloc, timeout=given["seconds"], context=trusted
            )
        else:
            connection = HTTPConnection(parts.netloc, timeout=given["seconds"])
        connection.request("GET", f"{parts.path}?{parts.query}".rstrip("?"), headers=headers)
        response = connection.getresponse()
        status, body = response.status, response.read(MAX_BYTES)
        connection.close()
    except (OSError, HTTPException) as error:
        return {"status": -1, "json": {}, "msg": str(error) or type(error).__name__}
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    return {"status": status, "json": document if isinstance(document, dict) else {}, "msg": ""}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "default": []},
            "listeners": {"type": "bool", "default": True},
            "urls": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            "ca_file": {"type": "path"},
            "seconds": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    given = module.params
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(ask, url, given) for url in given["urls"]]
        try:
            shown = show_units(given["units"]) if given["units"] else ""
        except (OSError, subprocess.SubprocessError) as error:
            module.fail_json(msg=f"systemd does not show the states of its units ({error}).")
        sockets = ""
        if given["listeners"]:
            try:
                sockets = subprocess.run(
                    SS, capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS
                ).stdout
            except (OSError, subprocess.SubprocessError) as error:
                module.fail_json(msg=f"ss does not list the sockets ({error}): install the package iproute2.")
    found = listeners(sockets)
    module.exit_json(
        changed=False,
        units=shown,
        answers=[answer.result() for answer in answers],
        listeners=[listener._asdict() for listener in found[:MAX_LISTENERS]],
        count=len(found),
    )


if __name__ == "__main__":
    main()
