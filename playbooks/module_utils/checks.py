# SPDX-License-Identifier: Apache-2.0
"""The entries of verify's report, for the modules that return some; uses only the standard library."""

from __future__ import annotations

from typing import TypedDict


class Check(TypedDict):
    """One check: `ok` is None if it could not run, `seen` is the observation, `next` the command to type."""

    name: str
    ok: bool | None
    seen: str
    next: str


def check(name: str, ok: bool | None, seen: str, next_command: str) -> Check:
    """Return one check."""
    return {"name": name, "ok": ok, "seen": seen, "next": next_command}
