"""Shared fixtures of the unit tests; Ansible modules and plugins are loaded by path, like Ansible does."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
import pytest
from ansible.module_utils.testing import patch_module_args

from tests.support.rendering import INVENTORIES, Stack, render

ROOT = Path(__file__).resolve().parents[2]
# Ansible, too, adds the directory next to the playbooks.
ansible.module_utils.__path__.append(str(ROOT / "playbooks/module_utils"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository's root directory."""
    return ROOT


@pytest.fixture(scope="session")
def load_source() -> Callable[[str], ModuleType]:
    """A function that imports a Python file by its path relative to the repository's root."""

    def load(relative: str) -> ModuleType:
        path = ROOT / relative
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look up their module in sys.modules.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """A function that runs a loaded module's main() like Ansible and returns its result."""

    def run(module: ModuleType, params: dict[str, Any], *, check: bool = False) -> dict[str, Any]:
        arguments = {**params, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture(scope="session", params=INVENTORIES)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Each inventory of render/inventories, rendered once."""
    return render(request.param, tmp_path_factory.mktemp("render"))
