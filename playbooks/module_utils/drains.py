# SPDX-License-Identifier: Apache-2.0
"""The engines that are drained, in the gateway's file and in its metrics; uses only the standard library."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils.gateway_client import Gateway

DRAINS_FILE = "/var/lib/bedplate-gateway/drains.json"
SCHEMA = 1
SAMPLE = re.compile(r'^bedplate_gateway_(\w+)\{engine="([^"]*)"(?:,model="([^"]*)")?\} (\S+)$', re.MULTILINE)

Drains = dict[str, dict[str, str]]
"""The fields of each drain by the engine's name."""


class DrainError(Exception):
    """Why the engine is not what it has to be, in one sentence with the remedy.

    `drained`: it gets no new request, but requests run there, or may.
    """

    def __init__(self, message: str, *, drained: bool = False) -> None:
        super().__init__(message)
        self.drained = drained


class Seen(NamedTuple):
    """What the gateway reports: the drained engines, running requests by engine, who serves which model."""

    drained: frozenset[str]
    running: Mapping[str, int]
    serving: Mapping[str, frozenset[str]]

    def waiting(self, models: Iterable[str]) -> list[str]:
        """Return the models whose requests wait now, since only drained engines could serve them."""
        if not self.drained:
            return []
        return [model for model in models if not self.serving.get(model, frozenset()) - self.drained]


def read_drains(path: Path) -> Drains:
    """Return the drains in the file; raises DrainError."""
    try:
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            raise ValueError
        return {
            drain["engine"]: {name: str(drain[name]) for name in ("who", "since", "why")}
            for drain in document["drains"]
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        raise DrainError(
            f"{path} is no list of drained engines: remove it, then drain again what has to be."
        ) from None


def describe(engine: str, drain: Mapping[str, str]) -> str:
    """Return who drained the engine, since when and why."""
    since = datetime.fromisoformat(drain["since"]).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{engine} is drained by {drain['who']} since {since}{': ' * bool(drain['why'])}{drain['why']}"


def look(metrics: Gateway) -> Seen | None:
    """Return what the gateway reports now; None if it does not answer."""
    answer = metrics.request("GET", "/metrics")
    if answer.status != 200:
        return None
    drained: set[str] = set()
    running: defaultdict[str, int] = defaultdict(int)
    serving: defaultdict[str, set[str]] = defaultdict(set)
    for name, engine, model, value in SAMPLE.findall(answer.body.decode(errors="replace")):
        if name == "engine_drained" and float(value) == 1:
            drained.add(engine)
        elif name == "slots_busy":
            running[engine] += int(float(value))
        elif name == "engine_serves" and float(value) == 1:
            serving[model].add(engine)
    return Seen(
        frozenset(drained), running, {model: frozenset(engines) for model, engines in serving.items()}
    )
