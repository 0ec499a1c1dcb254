"""After an uninstallation the host is as it was before the installation (30 s)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.scenarios.default.test_bare_host import BARE_HOST
from tests.support.host_state import differences, load_state, look
from tests.support.stack import Stack

UNINSTALL = "playbooks/uninstall.yml"
Confirmed = Callable[..., dict[str, Any]]


def test_a_wrong_confirmation_is_refused(stack: Stack, confirmed: Confirmed) -> None:
    output = stack.play_fails(playbook=UNINSTALL, settings={**confirmed(), "uninstall_confirm": "other"})
    installation = stack.keys_file.parent.name
    assert f"uninstall_confirm is 'other', but this is the installation '{installation}'" in output
    assert "remove the user" not in output


def test_without_a_confirmation_nothing_is_removed(stack: Stack, confirmed: Confirmed) -> None:
    before = look(stack)
    output = stack.play_fails(playbook=UNINSTALL, settings={**confirmed(), "uninstall_confirm": ""})
    assert "Nothing is removed yet." in output
    assert "remove the user ollama" in output
    assert differences(before, look(stack)) == []


def test_nothing_is_left_but_what_was_there_before(stack: Stack, confirmed: Confirmed) -> None:
    # What other tests of the scenario left.
    stack("systemctl stop lab-registry; rm --recursive --force /srv/models /usr/local/lib/lab-registry")
    stack.play(playbook=UNINSTALL, settings=confirmed())
    left = differences(load_state(BARE_HOST), look(stack))
    print("\nleft:", *left, sep="\n  ")
    assert left == []
    assert stack.play(playbook=UNINSTALL, settings=confirmed()) == 0
