#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Drains an engine of the gateway on this host, or ends that, and waits until the gateway obeys."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.drains import (
    DRAINS_FILE,
    SCHEMA,
    DrainError,
    Drains,
    Seen,
    describe,
    look,
    read_drains,
)
from ansible.module_utils.gateway_client import Gateway

DOCUMENTATION = r"""
module: engine_drain
short_description: Drain an engine, so that it gets no new request, or end that
description:
  - Writes the gateway's file of drained engines, which the running gateway reads again within a second, and
    which outlives restarts and reboots.
  - Waits until the gateway has seen it and, after a drain, until no request runs on the engine any more.
  - Fails if it cannot tell that, so that nobody stops an engine that is in use. The drain stays.
options:
  state:
    description: What the engine has to be.
    type: str
    choices: [drained, undrained]
    required: true
  engine:
    description: The engine's name, which for an inference host is that of the inventory.
    type: str
    required: true
  engines:
    description: The names of the gateway's engines, each with the names of its models.
    type: dict
    required: true
  who:
    description: Who drains it.
    type: str
    default: ""
  why:
    description: The reason, which the dashboard shows.
    type: str
    default: ""
  seconds:
    description: How long to wait for running requests.
    type: float
    default: 300
  metrics_url:
    description: The URL of the gateway's metrics port.
    type: str
    required: true
  path:
    description: The gateway's file of drained engines.
    type: path
    default: /var/lib/bedplate-gateway/drains.json
author: Bedplate
"""

EXAMPLES = r"""
- name: Drain an engine
  engine_drain:
    state: drained
    engine: gpu1
    engines: {gpu1: ["llama3.2:3b"], gpu2: ["llama3.2:3b"]}
    who: kim
    why: new fan
    metrics_url: http://127.0.0.1:9464
"""

RETURN = r"""
drained:
  description: Whether the engine is drained now.
  returned: always
  type: bool
message:
  description: What is the case now, for the operator.
  returned: success
  type: str
seconds:
  description: How long the running requests took to end.
  returned: success
  type: float
"""

MAX_TEXT = 200
# As gateway/src/bedplate_gateway/engines/drains.py has it.
FORBIDDEN = re.compile(r"""["'`\\\x00-\x1f\x7f-\x9f\u2028\u2029]""")
SEEN_SECONDS = 10.0
"""How long the gateway may take to read the file; a restart of it takes less."""
POLL_SECONDS = 0.2


def check_text(name: str, text: str) -> None:
    """Raise DrainError for a text that cannot stand on one line of the dashboard."""
    if len(text) > MAX_TEXT:
        raise DrainError(f"{name} has {len(text)} characters: use at most {MAX_TEXT}.")
    if found := FORBIDDEN.search(text):
        what = {"\n": "a line break", "\\": "a backslash"}.get(found[0], "a control character")
        what = f"the quote {found[0]}" if found[0] in "\"'`" else what
        raise DrainError(f"{name} contains {what}: write one line without quotes and backslashes.")


def write_drains(path: Path, drains: Drains) -> None:
    """Replace the file at once, and bring it to the disk."""
    listed = [{"engine": name, **fields} for name, fields in sorted(drains.items())]
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
        # Root's umask may be stricter, but the gateway has to read it.
        os.fchmod(file.fileno(), 0o644)
        json.dump({"schema": SCHEMA, "drains": listed}, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others that drain an engine out of the folder."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise DrainError(f"there is no {folder}: run ansible-playbook site.yml first.") from None
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def wait_seen(metrics: Gateway, engine: str, *, drained: bool) -> Seen | None:
    """Return what the gateway reports once it has read the file; None if it does not within the time."""
    until = time.monotonic() + SEEN_SECONDS
    while time.monotonic() < until:
        seen = look(metrics)
        if seen is not None and (engine in seen.drained) == drained:
            return seen
        time.sleep(POLL_SECONDS)
    return None


def count(number: int) -> str:
    """Return a number of requests in words."""
    return "1 request" if number == 1 else f"{number} requests"


def wait_idle(metrics: Gateway, engine: str, seconds: float) -> float:
    """Wait until no request runs on the drained engine and return how long; raises DrainError."""
    began = time.monotonic()
    seen = look(metrics)
    while seen is None or seen.running.get(engine, 0):
        waited = time.monotonic() - began
        if waited >= seconds:
            runs = count(seen.running[engine]) if seen else "an unknown number of requests"
            raise DrainError(
                f"{engine} is drained, but after {waited:.0f} s {runs} still ran there: wait for them with "
                f"make drain HOST={engine}, or stop the engine and lose them.",
                drained=True,
            )
        time.sleep(POLL_SECONDS)
        seen = look(metrics)
    return time.monotonic() - began


def drain(parameters: Mapping[str, Any], metrics: Gateway, *, check_mode: bool) -> dict[str, Any]:
    """Drain the engine; returns the module's result."""
    engine, path = parameters["engine"], Path(parameters["path"])
    engines: Mapping[str, list[str]] = parameters["engines"]
    check_text("WHY", parameters["why"])
    check_text("the name of who drains it", parameters["who"])
    if engine not in engines:
        raise DrainError(unknown(engine, engines, "drain"))
    with locked(path.parent):
        drains = read_drains(path)
        changed = engine not in drains
        if changed:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            drains[engine] = {"who": parameters["who"], "since": since, "why": parameters["why"]}
            if not check_mode:
                write_drains(path, drains)
    sentences = [f"{describe(engine, drains[engine])}."]
    if check_mode:
        return {"changed": changed, "message": sentences[0], "seconds": 0.0}
    seen = wait_seen(metrics, engine, drained=True)
    if seen is None:
        raise DrainError(
            f"{engine} is marked as drained, but the gateway does not confirm it within "
            f"{SEEN_SECONDS:.0f} s, so requests may still run there. A gateway that starts obeys it. "
            "Next: make health",
            drained=True,
        )
    if waiting := seen.waiting(engines[engine]):
        sentences.append(
            f"No other engine serves {', '.join(waiting)} now: such requests wait in the queue until "
            f"make undrain HOST={engine}, at most as long as gateway_queues allows (120 s by default), "
            "or go to their fallback."
        )
    seconds = wait_idle(metrics, engine, parameters["seconds"])
    sentences.append(f"No request runs there, after {seconds:.1f} s. Next: make undrain HOST={engine}")
    return {"changed": changed, "message": " ".join(sentences), "seconds": round(seconds, 1)}


def undrain(parameters: Mapping[str, Any], metrics: Gateway, *, check_mode: bool) -> dict[str, Any]:
    """Give the engine requests again; returns the module's result."""
    engine, path = parameters["engine"], Path(parameters["path"])
    with locked(path.parent):
        drains = read_drains(path)
        # It may have left the inventory since.
        if engine not in parameters["engines"] and engine not in drains:
            raise DrainError(unknown(engine, parameters["engines"], "undrain"))
        was = drains.pop(engine, None)
        if was is not None and not check_mode:
            write_drains(path, drains)
    if was is None:
        return {"changed": False, "message": f"{engine} is not drained.", "seconds": 0.0}
    message = f"{describe(engine, was).replace(' is ', ' was ', 1)}. It gets requests again."
    if check_mode:
        return {"changed": True, "message": message, "seconds": 0.0}
    seen = wait_seen(metrics, engine, drained=False)
    if seen is None:
        raise DrainError(
            f"{engine} is no longer marked as drained, but the gateway does not confirm it within "
            f"{SEEN_SECONDS:.0f} s. A gateway that starts obeys it. Next: make health"
        )
    if not any(engine in serving for serving in seen.serving.values()):
        message = f"{message[:-1]} when it answers, which it does not now. Next: make health"
    return {"changed": True, "message": message, "seconds": 0.0}


def unknown(engine: str, engines: Mapping[str, list[str]], verb: str) -> str:
    """Return the message for a name that no engine has."""
    what = f"HOST={engine} is no engine of the gateway" if engine else "HOST is not set"
    return f"{what}: use one of {', '.join(sorted(engines))}, such as make {verb} HOST={min(engines)}."


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["drained", "undrained"], "required": True},
            "engine": {"type": "str", "required": True},
            "engines": {"type": "dict", "required": True},
            "who": {"type": "str", "default": ""},
            "why": {"type": "str", "default": ""},
            "seconds": {"type": "float", "default": 300},
            "metrics_url": {"type": "str", "required": True},
            "path": {"type": "path", "default": DRAINS_FILE},
        },
        supports_check_mode=True,
    )
    metrics = Gateway(module.params["metrics_url"])
    act = drain if module.params["state"] == "drained" else undrain
    try:
        result = act(module.params, metrics, check_mode=module.check_mode)
    except DrainError as error:
        module.fail_json(msg=str(error), drained=error.drained)
    module.exit_json(**result, drained=module.params["state"] == "drained")


if __name__ == "__main__":
    main()
