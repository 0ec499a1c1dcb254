# SPDX-License-Identifier: Apache-2.0
"""Reads the output of gpg --show-keys --with-colons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def primary_keys(listing: str) -> list[str]:
    """Return the fingerprints of the primary keys, of which apt would trust each; subkeys are left out."""
    found, primary = [], False
    for line in listing.splitlines():
        fields = line.split(":")
        if fields[0] == "fpr" and primary:
            found.append(fields[9])
        if fields[0] in ("pub", "sec", "sub", "ssb"):
            primary = fields[0] in ("pub", "sec")
    return found


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by its name."""
        return {"primary_keys": primary_keys}
