"""The hook against a fake of LiteLLM's three classes; verify asks the real one in the lab."""

import asyncio
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class FakeProxyError(Exception):
    def __init__(self, message: str, type: str, param: str | None, code: int) -> None:  # noqa: A002 - LiteLLM's name
        self.message, self.type, self.param, self.code = message, type, param, str(code)


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The hook's module over a keys file with one key whose secret is "right"."""
    fake_types = ModuleType("litellm.proxy._types")
    vars(fake_types).update(
        ProxyException=FakeProxyError,
        UserAPIKeyAuth=SimpleNamespace,
        LitellmUserRoles=SimpleNamespace(INTERNAL_USER="user"),
    )
    for name in ("litellm", "litellm.proxy"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "litellm.proxy._types", fake_types)
    monkeypatch.delitem(sys.modules, "bedplate_gateway.custom_auth", raising=False)
    sha256 = hashlib.sha256(b"right").hexdigest()
    keys = tmp_path / "keys.json"
    keys.write_text(
        json.dumps({"schema": 1, "keys": [{"alias": "default", "sha256": sha256, "rpm": 100, "tpm": 1000}]})
    )
    monkeypatch.setenv("BEDPLATE_KEYS_FILE", os.fspath(keys))
    yield importlib.import_module("bedplate_gateway.custom_auth")
    sys.modules.pop("bedplate_gateway.custom_auth", None)


def ask(hook: Any, secret: str) -> Any:
    return asyncio.run(hook.user_api_key_auth(request=None, api_key=secret))


def test_the_right_key_gets_its_limits_and_the_four_routes(hook: Any) -> None:
    assert vars(ask(hook, "right")) == {
        "api_key": "default",
        "key_alias": "default",
        "user_role": "user",
        "rpm_limit": 100,
        "tpm_limit": 1000,
        "max_parallel_requests": None,
        "allowed_routes": ["/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"],
    }


@pytest.mark.parametrize("secret", ["", "wrong"])
def test_no_key_and_a_wrong_key_are_refused_as_openai_does(hook: Any, secret: str) -> None:
    with pytest.raises(FakeProxyError) as raised:
        ask(hook, secret)
    error = raised.value
    assert error.code == "401"
    assert isinstance(error, hook.InvalidKeyError)
    assert error.to_dict() == {
        "message": error.message,
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert not secret or secret not in error.message
