#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Tries connections to ports of other hosts, many at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: port_connections
short_description: Try TCP connections to ports of other hosts
description:
  - Opens a TCP connection to each port, sends nothing and closes it.
  - Up to 256 at once, so that all together take little longer than one.
options:
  targets:
    description: The ports.
    type: list
    elements: dict
    required: true
    suboptions:
      host:
        description: The host's name, which is returned with the result.
        type: str
        required: true
      address:
        description: The address to connect to.
        type: str
        required: true
      port:
        description: The port.
        type: int
        required: true
      seconds:
        description: How long to wait for an answer.
        type: float
        required: true
author: Bedplate
"""

EXAMPLES = r"""
- name: Connect to Ollama
  port_connections:
    targets: [{host: gpu1, address: 10.0.0.1, port: 11434, seconds: 1}]
  register: tried
"""

RETURN = r"""
connections:
  description: One result per target, in their order.
  returned: always
  type: list
  elements: dict
  contains:
    host: {description: The target's., type: str}
    port: {description: The target's., type: int}
    source: {description: This host's address in the connection; empty if there was none., type: str}
    error: {description: Why it could not be tried, which is an unknown name; else empty., type: str}
"""

AT_ONCE = 256


async def connect(target: Mapping[str, Any], turn: asyncio.Semaphore) -> dict[str, Any]:
    """Try one connection and return its result."""
    address, port = target["address"], target["port"]
    source = error = ""
    async with turn:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
            client.setblocking(False)
            connecting = asyncio.get_running_loop().sock_connect(client, (address, port))
            try:
                await asyncio.wait_for(connecting, target["seconds"])
                source = client.getsockname()[0]
            except socket.gaierror as caught:
                error = f"{address}: {caught.strerror}"
            # Refused, ignored or not routed: closed to this host.
            except (OSError, asyncio.TimeoutError):  # noqa: UP041 - Python 3.10 has two of that name
                pass
    return {"host": target["host"], "port": port, "source": source, "error": error}


async def connect_all(targets: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Try all connections and return their results in order."""
    turn = asyncio.Semaphore(AT_ONCE)
    return await asyncio.gather(*(connect(target, turn) for target in targets))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "targets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "host": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "seconds": {"type": "float", "required": True},
                },
            }
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, connections=asyncio.run(connect_all(module.params["targets"])))


if __name__ == "__main__":
    main()
