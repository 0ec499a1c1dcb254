"""The scenario's host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.stack import Stack, stack_of


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The host with the whole stack."""
    return stack_of("uninstall")


@pytest.fixture(scope="session")
def confirmed(stack: Stack) -> Callable[..., dict[str, Any]]:
    """A function that returns the settings of an uninstallation with its confirmation."""

    def settings(name: str = "all", state: str = "models,samples,usage") -> dict[str, Any]:
        installation = stack.keys_file.parent.name
        return {"uninstall": name, "uninstall_state": state, "uninstall_confirm": installation}

    return settings
