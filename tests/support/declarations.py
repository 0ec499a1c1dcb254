"""The roles' declarations (meta/host.yml), with the defaults of their settings filled in."""

from __future__ import annotations

import re
from typing import Any

import ansible.module_utils
import yaml

from tests.support.rendering import ROOT

# Ansible, too, adds the directory next to the playbooks.
MODULE_UTILS = str(ROOT / "playbooks/module_utils")
if MODULE_UTILS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(MODULE_UTILS)

from ansible.module_utils import host_record  # noqa: E402 - needs the path above

__all__ = ["DECLARING", "declared", "host_record"]

DECLARING = sorted(path.parts[-3] for path in ROOT.glob("roles/*/meta/host.yml"))


def declared(role: str) -> Any:
    """Return the Declaration of a role, as for a user who sets nothing."""
    file = ROOT / "roles" / role / "meta/host.yml"
    text = re.sub(r"\{\{ \w+ \| default\('([^']+)'\) \}\}", r"\1", file.read_text())
    given = {**yaml.safe_load(text), "role": role, "file": f"roles/{role}/meta/host.yml"}
    return host_record.declaration_from(given)
