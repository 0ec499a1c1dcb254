#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Records which Debian packages an installation adds to a host, before apt adds them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.host_record import (
    PACKAGES,
    RECORDS,
    Packages,
    RecordError,
    load_packages,
    write_json,
)

DOCUMENTATION = r"""
module: record_packages
short_description: Record which Debian packages an installation is going to add
description:
  - Lets apt simulate the installation, without recommended packages, and adds the new packages, dependencies
    included, with their versions to /var/lib/bedplate/record/packages.json.
  - Records also which of the packages are there as dependencies of others. The installation marks them as
    manually installed, and the uninstallation undoes that.
  - Runs before the installation, so that one that is interrupted is recorded, too.
  - In check mode, and if apt refuses the installation, it records nothing; apt then tells why.
options:
  names:
    description: The packages to install.
    type: list
    elements: str
    required: true
author: Bedplate
"""

EXAMPLES = r"""
- name: Record the packages that apt is going to add
  record_packages:
    names: [curl, zstd]
"""

RETURN = r"""
new:
  description: The packages that are not there yet, with their versions.
  returned: always
  type: dict
"""

NEW_PACKAGE = re.compile(r"^Inst (\S+) \((\S+)", re.MULTILINE)
"""A line of apt's simulation; one with the old version in brackets is an upgrade."""
SIMULATE = ("apt-get", "install", "--simulate", "--no-install-recommends")
TIMEOUT_SECONDS = 120


def new_packages(names: Iterable[str]) -> dict[str, str]:
    """Return the packages, with their versions, that apt would add; none if it refuses."""
    done = subprocess.run(
        [*SIMULATE, *names],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return dict(NEW_PACKAGE.findall(done.stdout)) if done.returncode == 0 else {}


def automatic(names: Iterable[str]) -> list[str]:
    """Return those of the packages that are installed as dependencies of others."""
    done = subprocess.run(
        ["apt-mark", "showauto", *names],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    return done.stdout.split()


def record(names: Iterable[str], new: Mapping[str, str]) -> None:
    """Add packages to the record; raises RecordError."""
    known = load_packages(RECORDS)
    # A name that is new is no dependency of others, and what we added was none before.
    were_there = [name for name in names if name not in {*new, *known.installed, *known.automatic}]
    found = Packages(
        installed={**known.installed, **new},
        requested=sorted({*known.requested, *(name for name in names if name in new)}),
        automatic=sorted({*known.automatic, *(automatic(were_there) if were_there else [])}),
    )
    if found != known:
        write_json(RECORDS / f"{PACKAGES}.json", found.as_json())


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"names": {"type": "list", "elements": "str", "required": True}},
        supports_check_mode=True,
    )
    try:
        new = new_packages(module.params["names"])
        if not module.check_mode:
            record(module.params["names"], new)
    except (RecordError, OSError, subprocess.SubprocessError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, new=new)


if __name__ == "__main__":
    main()
