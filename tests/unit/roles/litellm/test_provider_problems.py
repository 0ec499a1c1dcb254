"""provider_problems: what nobody may add to LiteLLM's configuration is refused by name, without its value."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

TAKEN = ["m", "gpu1/m", "warm-up"]
ENGINES = ["http://10.0.0.1:11434/v1"]
SECRET = "sk-written-out"


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("roles/litellm/filter_plugins/provider_problems.py")


def item(name: str = "cloud", **params: Any) -> dict[str, Any]:
    """Return an item that is accepted, but for some parameters."""
    return {
        "model_name": name,
        "litellm_params": {"model": "openai/gpt-4o", "api_key": "os.environ/K"} | params,
    }


def problems(
    module: ModuleType, *items: Any, environment: dict[str, str] | None = None, **more: Any
) -> list[str]:
    """Return what is wrong with the items and the other settings."""
    others = {
        f"litellm_{name}": more.get(name, {}) for name in ("settings", "router_settings", "general_settings")
    }
    keys = {"K": SECRET} if environment is None else environment
    found: list[str] = module.provider_problems(items, others, keys, TAKEN, ENGINES)
    assert not any(SECRET in problem for problem in found)
    assert all(problem.endswith(".") and "litellm_" in problem.split()[0] for problem in found), found
    return found


@pytest.mark.parametrize(
    "accepted",
    [
        item(),
        item(model="gpt-4o"),
        item(
            model="bedrock/anthropic.claude-3", aws_region_name="eu-west-1", aws_access_key_id="os.environ/K"
        ),
        item(model="hosted_vllm/qwen", api_base="http://10.0.0.9:8000/v1", api_key="none"),
        item(max_tokens=5, tpm=7, some_field_of_a_new_release=1, max_parallel_requests=4),
    ],
)
def test_what_people_paste_from_litellms_pages_is_accepted(
    module: ModuleType, accepted: dict[str, Any]
) -> None:
    assert problems(module, accepted, accepted) == []


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (
            item(api_key=SECRET),
            "litellm_params.api_key is a secret in the configuration: write os.environ/NAME",
        ),
        (item(aws_secret_access_key=SECRET), "aws_secret_access_key is a secret"),
        (item(vertex_credentials=SECRET), "vertex_credentials is a secret"),
        (item(extra_headers={"Authorization": SECRET}), "extra_headers.Authorization is a secret"),
        (item(extra_headers={"x-api-key": SECRET}), "extra_headers.x-api-key is a secret"),
        (item(api_base=f"https://user:{SECRET}@host.example"), "api_base is a secret"),
        (item(api_key="os.environ/OTHER"), "litellm_environment has no OTHER: add it there"),
        (item(api_bse="https://x.example"), "unknown field litellm_params.api_bse: write api_base."),
        (item(model="opnai/gpt-4o"), "LiteLLM knows no provider 'opnai': write openai."),
        (item(model="qqqqqq/gpt-4o"), "LiteLLM knows no provider 'qqqqqq': docs.litellm.ai/docs/providers"),
        (item(model="llama3"), "without a provider: write PROVIDER/MODEL"),
        (item(model="openai/*"), "add an item for each"),
        (item(model=""), "has no litellm_params.model"),
        (item("m"), "model_name 'm', which an engine's model has: use another name"),
        (item("gpu1/m"), "which an engine's model has"),
        (item("warm-up"), "which an engine's model has"),
        (item(fallbacks=["m"]), "litellm_params.fallbacks: no slot would be counted: set gateway_fallbacks"),
        (item(max_parallel_requests=0), "use a whole number of at least 1"),
        (item(api_base="http://10.0.0.1:11434"), "api_base of an inference host"),
        ({"model_name": "x", "litellm_params": "openai/x"}, "is no item of LiteLLM"),
    ],
)
def test_a_wrong_item_is_refused(module: ModuleType, refused: dict[str, Any], words: str) -> None:
    (problem,) = problems(module, refused)
    assert problem.startswith("litellm_model_list[0]")
    assert words in problem


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("general_settings", "master_key"),
        ("general_settings", "database_url"),
        ("general_settings", "database_connection_pool_limit"),
        ("general_settings", "host"),
        ("general_settings", "custom_auth"),
        ("settings", "prometheus_exclude_labels"),
        ("settings", "set_verbose"),
        ("settings", "user_url_validation"),
        ("settings", "fallbacks"),
        ("router_settings", "fallbacks"),
        ("router_settings", "disable_cooldowns"),
        ("router_settings", "model_group_alias"),
        ("environment", "LITELLM_MASTER_KEY"),
        ("environment", "DATABASE_URL"),
        ("environment", "PYTHONPATH"),
    ],
)
def test_a_setting_that_protects_is_refused_by_name(module: ModuleType, setting: str, name: str) -> None:
    more: dict[str, Any] = {setting: {name: "os.environ/K"}}
    (problem,) = problems(module, **{"environment": {"K": SECRET}} | more)
    assert problem.startswith(f"litellm_{setting} has {name}: ")


def test_other_settings_are_accepted(module: ModuleType) -> None:
    assert problems(module, settings={"drop_params": True, "callbacks": ["otel"]}) == []
    assert problems(module, router_settings={"routing_strategy": "least-busy"}) == []
    (problem,) = problems(module, settings={"cache_params": {"password": SECRET}})
    assert "litellm_settings.cache_params.password is a secret" in problem
    (problem,) = problems(module, settings=["drop_params"])
    assert "is no dictionary" in problem
