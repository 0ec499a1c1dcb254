#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Downloads a file, maybe through a proxy whose password no process list shows."""

from __future__ import annotations

import hashlib
import os
import urllib.error
from http.client import HTTPException
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

DOCUMENTATION = r"""
module: download
short_description: Download a file and verify its checksum
description:
  - Does what ansible.builtin.get_url does, which reads proxies only from the task's environment. Ansible puts
    that into the arguments of the remote shell.
  - An existing file with the checksum, or any if there is no checksum, is not downloaded again.
options:
  url:
    description: Where the file is, http:// or https://.
    type: str
    required: true
  dest:
    description: Path of the file; its directory exists.
    type: path
    required: true
  checksum:
    description: The file's SHA-256, C(sha256) and its 64 hexadecimal digits joined by a colon.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for the server each time.
    type: int
    default: 10
  proxies:
    description: Proxies with a password, by the scheme (http, https) of the addresses that they are for.
    type: dict
    default: {}
extends_documentation_fragment: ansible.builtin.files
author: Bedplate
"""

EXAMPLES = r"""
- name: Download the archive and verify its checksum
  download:
    url: https://example.org/engine.tar.zst
    checksum: sha256:9fcd79ac4575b2bd31b992eee18b1000c8ad126b451627c8f8cd091714cfbb10
    dest: /opt/bedplate/engine.tar.zst
    mode: "0644"
    proxies: {https: "http://user:password@10.0.0.1:3128"}
"""

RETURN = r"""
dest:
  description: Path of the file.
  returned: success
  type: str
"""

PIECE = 2**20


class DownloadError(Exception):
    """Why a file cannot be downloaded, in one sentence."""


def is_complete(dest: Path, checksum: str) -> bool:
    """Return whether the file is there, with its checksum if there is one."""
    if not dest.exists() or not checksum:
        return dest.exists()
    digest = hashlib.sha256()
    with dest.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}" == checksum


def download(url: str, part: Path, checksum: str, timeout: int) -> None:
    """Write the address's content to the file `part`; raises DownloadError."""
    digest = hashlib.sha256()
    try:
        with open_url(url, timeout=timeout, http_agent="bedplate") as answer, part.open("wb") as file:
            while piece := answer.read(PIECE):
                digest.update(piece)
                file.write(piece)
            # http.client does not report a body that ends early if it is read in pieces.
            if answer.length:
                raise DownloadError(f"{url} cannot be downloaded: it ended {answer.length} bytes early.")
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url} cannot be downloaded: HTTP status {error.code}.") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(f"{url} cannot be downloaded: {reason}.") from None
    found = f"sha256:{digest.hexdigest()}"
    if checksum not in ("", found):
        raise DownloadError(f"{url} has {found}, expected {checksum}: correct the checksum or the address.")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "checksum": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 10},
            "proxies": {"type": "dict", "default": {}, "no_log": True},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    given = module.params
    dest, checksum = Path(given["dest"]), given["checksum"]
    missing = not is_complete(dest, checksum)
    if missing and module.check_mode:
        module.exit_json(changed=True, dest=str(dest))
    part = dest.with_name(f".{dest.name}.part")
    if missing:
        # Not seen in /proc, which has the environment with which this process began.
        os.environ.update({f"{scheme}_proxy": url for scheme, url in given["proxies"].items()})
        try:
            download(given["url"], part, checksum, given["timeout"])
            part.replace(dest)
        except (DownloadError, OSError) as error:
            module.fail_json(msg=str(error))
        finally:
            part.unlink(missing_ok=True)
    attributes = module.load_file_common_arguments(given, path=str(dest))
    changed = module.set_fs_attributes_if_different(attributes, missing)
    module.exit_json(changed=changed, dest=str(dest))


if __name__ == "__main__":
    main()
