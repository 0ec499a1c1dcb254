#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Adds components of the distribution's archive, from the same URIs as its component main."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: apt_components
short_description: Add components of the distribution's archive
description:
  - Writes one file of package sources in addition to those of the host, which stay unchanged. It has the same
    URIs and suites, with those of the components that are not configured yet.
options:
  path:
    description: The file to write, in deb822 form.
    type: path
    required: true
  components:
    description: Components such as contrib and non-free.
    type: list
    elements: str
    required: true
author: Bedplate
"""

EXAMPLES = r"""
- name: Add the archive's components to the package sources
  apt_components:
    path: /etc/apt/sources.list.d/bedplate-gpu-driver.sources
    components: [contrib, non-free]
"""

RETURN = r"""
suites:
  description: The suites whose components were added.
  returned: always
  type: list
  elements: str
"""

HEAD = "# Managed by Bedplate.\n"


def parse_deb822(text: str) -> Iterator[dict[str, str]]:
    """Yield the stanzas of a deb822 file as fields."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for block in re.split(r"\n\s*\n", lines):
        fields: dict[str, str] = {}
        last = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t"):
                fields[last] += "\n" + line
            elif ":" in line:
                last, _, value = line.partition(":")
                fields[last] = value.strip()
        if fields:
            yield fields


def parse_one_line(text: str) -> Iterator[dict[str, str]]:
    """Yield the `deb [options] URI SUITE COMPONENT...` lines of a classic file as deb822 fields."""
    names = {"signed-by": "Signed-By", "arch": "Architectures", "trusted": "Trusted"}
    pattern = re.compile(
        r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<parts>[^#]+)"
    )
    for line in text.splitlines():
        if match := pattern.match(line):
            fields = {
                "Types": "deb",
                "URIs": match["uri"],
                "Suites": match["suite"],
                "Components": match["parts"].strip(),
            }
            for option in (match["options"] or "").split():
                key, _, value = option.partition("=")
                fields[names.get(key.lower(), key)] = value.replace(",", " ")
            yield fields


def read_sources(folder: Path, own: Path) -> list[dict[str, str]]:
    """Return all enabled sources of binary packages under /etc/apt except `own`, as deb822 fields."""
    sources: list[dict[str, str]] = []
    for path in sorted([folder / "sources.list", *folder.glob("sources.list.d/*")]):
        if not path.is_file() or path == own:
            continue
        if path.suffix == ".sources":
            sources += parse_deb822(path.read_text())
        elif path.suffix == ".list":
            sources += parse_one_line(path.read_text())
    return [
        fields
        for fields in sources
        if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no"
    ]


def missing_sources(
    sources: list[dict[str, str]], codename: str, components: list[str]
) -> list[dict[str, str]]:
    """Return stanzas with the missing components, one per URI and suite of the release."""
    offered: dict[tuple[str, str], set[str]] = {}
    for fields in sources:
        for uri in fields.get("URIs", "").split():
            for suite in fields.get("Suites", "").split():
                offered.setdefault((uri, suite), set()).update(fields.get("Components", "").split())
    stanzas = []
    for fields in sources:
        if "main" not in fields.get("Components", "").split():
            continue
        for uri in fields["URIs"].split():
            for suite in fields["Suites"].split():
                missing = [name for name in components if name not in offered[uri, suite]]
                if missing and re.fullmatch(rf"{codename}(-(updates|security|backports))?(/updates)?", suite):
                    kept = {"Types": "deb", "URIs": uri, "Suites": suite, "Components": " ".join(missing)}
                    others = {key: value for key, value in fields.items() if key not in (*kept, "Enabled")}
                    stanzas.append(kept | others)
    return stanzas


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "components": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    codename = re.search(r"^VERSION_CODENAME=\"?([a-z]+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    added = missing_sources(
        read_sources(Path("/etc/apt"), path), codename[1] if codename else "", module.params["components"]
    )
    text = "\n".join("".join(f"{key}: {value}\n" for key, value in fields.items()) for fields in added)
    text = f"{HEAD}{text}" if added else ""
    before = path.read_text() if path.exists() else ""
    if text != before and not module.check_mode:
        if text:
            path.write_text(text)
            path.chmod(0o644)
        else:
            path.unlink()
    module.exit_json(
        changed=text != before,
        suites=[fields["Suites"] for fields in added],
        diff={"before": before, "after": text, "before_header": str(path), "after_header": str(path)},
    )


if __name__ == "__main__":
    main()
