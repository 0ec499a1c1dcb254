"""litellm_checks: what verify reports of the models of other providers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.gateway_client import Gateway

from tests.support.fake_gateway import FakeGateway, running

MASTER_KEY, CLIENT_KEY = "sk-master", "sk-verify"
NAME = "each model of a provider is listed and has its key"


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/litellm_checks.py")


@pytest.fixture
def server() -> Iterator[FakeGateway]:
    """A fake of LiteLLM and of the gateway's metrics, with the models of two providers."""
    with running() as fake:
        fake.keys = {MASTER_KEY}
        fake.models = ["gpu1/m", "cloud", "spare", "warm-up"]
        serve(fake, cloud=1, spare=1)
        yield fake


def serve(fake: FakeGateway, **models: int) -> None:
    """Set which models the gateway's metrics report as served (1) and not (0)."""
    series = 'bedplate_gateway_engine_serves{{engine="litellm",model="{}"}} {:.1f}'
    fake.metrics = "\n".join(series.format(name, serves) for name, serves in models.items())


@pytest.fixture
def litellm(module: ModuleType, server: FakeGateway) -> Any:
    """The module's view of the fake."""
    clients = [Gateway(server.url), Gateway(server.url), Gateway(server.url, "LiteLLM")]
    return module.LiteLLM(*clients, key=CLIENT_KEY, master_key=MASTER_KEY)


@pytest.fixture
def check(module: ModuleType, litellm: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The check of some models, with an environment's file."""

    def run(*models: str, environment: str = '{"CLOUD_KEY": "sk-cloud"}') -> dict[str, Any]:
        file = tmp_path / "environment.json"
        file.write_text(environment)
        found: dict[str, Any] = module.check_providers(litellm, list(models), ["CLOUD_KEY"], str(file))
        assert found["name"] == NAME
        assert "sk-" not in found["seen"]
        return {**found, "seen": found["seen"].replace(str(file), "FILE")}

    return run


Run = Callable[..., dict[str, Any]]


def test_models_that_are_listed_and_have_their_keys_pass(check: Run) -> None:
    found = check("cloud", "spare")
    assert (found["ok"], found["seen"]) == (True, "2 of 2 models are listed, with 1 keys")


def test_items_of_one_name_are_shown_as_a_group(check: Run) -> None:
    found = check("cloud", "spare", "cloud")
    assert (found["ok"], found["seen"]) == (
        True,
        "2 of 2 models are listed, cloud has 2 items, with 1 keys",
    )


def test_without_models_nothing_is_checked(check: Run) -> None:
    found = check()
    assert (found["ok"], found["seen"]) == (None, "litellm_model_list is empty")


def test_a_model_that_the_gateway_does_not_serve_fails(check: Run, server: FakeGateway) -> None:
    serve(server, cloud=0)
    found = check("cloud", "spare")
    assert (found["ok"], found["seen"]) == (
        False,
        "0 of 2 models are listed without cloud, spare, with 1 keys",
    )


@pytest.mark.parametrize("environment", ["{}", '{"CLOUD_KEY": ""}', "no JSON", '{"OTHER": "sk-other"}'])
def test_a_missing_key_fails(check: Run, environment: str) -> None:
    found = check("cloud", environment=environment)
    assert (found["ok"], found["seen"]) == (False, "1 of 1 models are listed, FILE has no CLOUD_KEY")


def test_a_gateway_without_metrics_is_no_failure_of_the_provider(check: Run, server: FakeGateway) -> None:
    server.edge_only = True
    found = check("cloud")
    assert found["ok"] is None


def test_litellm_must_have_each_model_once(module: ModuleType, litellm: Any) -> None:
    assert module.check_deployments(litellm, ["gpu1/m", "cloud", "spare"])["ok"]
    assert module.check_deployments(litellm, ["gpu1/m", "cloud"])["ok"] is False
    assert module.check_deployments(litellm, ["gpu1/m", "cloud", "spare", "gone"])["ok"] is False


def test_a_call_of_a_provider_shows_its_status(module: ModuleType, litellm: Any, server: FakeGateway) -> None:
    found = module.call_provider(litellm, "cloud")
    assert (found["name"], found["ok"]) == ("the provider of cloud answers", True)
    server.chat_status = 502
    found = module.call_provider(litellm, "cloud")
    assert (found["ok"], found["seen"]) == (False, "status 502 engine_error")
