"""The scenario's host."""

from __future__ import annotations

import json
import subprocess

import pytest
from gateway_lab import ROOT, Stack


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with everything on it."""
    listed = subprocess.run(
        [ROOT / "lab/lab", "inventory", "--list"], capture_output=True, text=True, check=True
    )
    hosts = json.loads(listed.stdout)["_meta"]["hostvars"]
    assert "one" in hosts, "there is no host `one`: run molecule converge --scenario-name gateway"
    return Stack("one", hosts["one"])
