"""The keys of a file, as gpg lists them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ONE, TWO, SUB = "A" * 40, "B" * 40, "C" * 40
PUBLIC = "{kind}:-:4096:1:{id}:1650300000:::-:::scSC::::::23::0:\nfpr:::::::::{fingerprint}:\n"


def listing(*keys: tuple[str, str]) -> str:
    """Return what gpg prints for keys, each its kind and fingerprint."""
    entries = [PUBLIC.format(kind=kind, id=fpr[-16:], fingerprint=fpr) for kind, fpr in keys]
    return "tru::1:1650300000:0:3:1:5\n" + "uid:-::::1650300000::F::cudatools <x@example.com>:::\n".join(
        entries
    )


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ([("pub", ONE)], [ONE]),
        ([("pub", ONE), ("sub", SUB)], [ONE]),
        ([("pub", ONE), ("sub", SUB), ("pub", TWO)], [ONE, TWO]),
        ([("pub", TWO), ("sub", ONE)], [TWO]),
        ([("sec", ONE)], [ONE]),
        ([], []),
    ],
    ids=["one", "with a subkey", "two", "the wanted one as a subkey", "secret", "none"],
)
def test_primary_keys(
    load_source: Callable[[str], ModuleType], keys: list[tuple[str, str]], found: list[str]
) -> None:
    module = load_source("roles/gpu_driver/filter_plugins/primary_keys.py")
    assert module.primary_keys(listing(*keys)) == found


def test_a_key_is_checked_before_apt_can_read_it(repo_root: Path) -> None:
    tasks = yaml.safe_load((repo_root / "roles/gpu_driver/tasks/install.yml").read_text())
    (block,) = (task["block"] for task in tasks if task["name"] == "Add NVIDIA's repository")
    (checked,) = (task for task in block if task["name"] == "Get the repository's key")
    names = [task["name"] for task in checked["block"]]
    assert names[-2:] == ["Check that it is the only key", "Install the key"]
    download = next(task["download"] for task in checked["block"] if "download" in task)
    assert not download["dest"].startswith("/etc/apt/")
    # A key that was refused must be downloaded anew.
    assert checked["always"][0]["ansible.builtin.file"] == {"path": download["dest"], "state": "absent"}
