# SPDX-License-Identifier: Apache-2.0
"""Checks what the user adds to LiteLLM's configuration: models of other providers, and settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

KNOWN: Mapping[str, list[str]] = yaml.safe_load(
    (Path(__file__).parents[1] / "vars/known.yml").read_text(encoding="utf-8")
)
PROVIDERS, PARAMETERS = frozenset(KNOWN["__litellm_providers"]), frozenset(KNOWN["__litellm_parameters"])
"""LiteLLM has more parameters, so an unknown one is refused only where it looks like a known one."""
REFERENCE = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")
# LiteLLM knows the provider of these without a prefix.
WITHOUT_PROVIDER = re.compile(r"(gpt-|o[1-9]|chatgpt-|claude-|text-embedding-|command).*")
SECRET = re.compile(
    r"(^|_)(key|secret|secret_key|access_key_id|token|password|credentials)$|^authorization$|api[-_]?key$",
    re.I,
)
NO_SECRET = ("", "none", "None", "os.environ")
SIMILAR = 0.8
"""How alike two names are, from 0 to 1, of which one is a typo of the other."""

OWN = "it protects the stack: leave it out"
PROMPTS = "it writes prompts into the journal: leave it out"
RETRIES = "the gateway counts retries: set gateway_retries"
TIMES = "the gateway's time-outs apply: set gateway_request_timeout_seconds"
FALLBACKS = "no slot would be counted: set gateway_fallbacks"
REFUSED: Mapping[str, Mapping[str, str]] = {
    "litellm_params": {
        "fallbacks": FALLBACKS,
        "context_window_fallback_dict": FALLBACKS,
        "num_retries": RETRIES,
        "max_retries": RETRIES,
        "configurable_clientside_auth_params": OWN,
    },
    "litellm_settings": {
        "prometheus_exclude_labels": "clients could create any number of series without it: leave it out",
        "request_timeout": TIMES,
        "num_retries": RETRIES,
        "set_verbose": PROMPTS,
        "json_logs": PROMPTS,
        "user_url_validation": "clients could reach addresses of your network without it: leave it out",
        "default_fallbacks": FALLBACKS,
        "fallbacks": FALLBACKS,
        "context_window_fallbacks": FALLBACKS,
        "content_policy_fallbacks": FALLBACKS,
    },
    "litellm_router_settings": {
        "disable_cooldowns": "one error would take a model from all clients without it: leave it out",
        "enable_pre_call_checks": OWN,
        "num_retries": RETRIES,
        "timeout": TIMES,
        "default_fallbacks": FALLBACKS,
        "fallbacks": FALLBACKS,
        "context_window_fallbacks": FALLBACKS,
        "content_policy_fallbacks": FALLBACKS,
        "model_group_alias": "the gateway does not know such a name: add an item with that model_name to "
        "litellm_model_list",
        "set_verbose": PROMPTS,
        "debug_level": PROMPTS,
    },
    "litellm_general_settings": {
        "master_key": OWN,
        "host": OWN,
        "port": "set litellm_listen_port",
        "cancel_on_disconnect": OWN,
        "background_health_checks": "each check is a paid request: leave it out",
        "health_check_interval": "each check is a paid request: leave it out",
        "store_model_in_db": "there is no database: leave it out",
        "store_prompts_in_spend_logs": "there is no database: leave it out",
        "custom_auth": OWN,
        "enable_jwt_auth": OWN,
        "enable_oauth2_auth": OWN,
        "allow_client_side_credentials": OWN,
        "pass_through_endpoints": OWN,
        "forward_client_headers_to_llm_api": OWN,
        "key_management_system": "keys come from litellm_environment: leave it out",
        "key_management_settings": "keys come from litellm_environment: leave it out",
    },
    "litellm_environment": dict.fromkeys(
        (
            "DATABASE_URL",
            "DIRECT_URL",
            "PATH",
            "HOME",
            "NOTIFY_SOCKET",
            "CREDENTIALS_DIRECTORY",
            "DISABLE_ADMIN_UI",
            "NO_DOCS",
            "NO_REDOC",
            "NO_OPENAPI",
            "GRACEFUL_SHUTDOWN_TIMEOUT",
        ),
        OWN,
    ),
}
REFUSED_STARTS: Mapping[str, tuple[str, ...]] = {
    "litellm_general_settings": ("database_", "alert"),
    "litellm_environment": ("LITELLM_", "LD_", "PYTHON"),
}


def typo_of(name: str, known: Sequence[str] | frozenset[str]) -> str | None:
    """Return the known name that a name looks like."""
    return next(iter(difflib.get_close_matches(name, sorted(known), 1, SIMILAR)), None)


def secret_problems(path: str, value: Any, environment: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """Iterate over secrets that are written out, and over references to nothing; no value is shown."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from secret_problems(f"{path}.{key}", inner, environment, str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from secret_problems(f"{path}[{number}]", inner, environment, name)
    elif isinstance(value, str):
        reference = REFERENCE.fullmatch(value)
        if reference and reference.group(1) not in environment:
            yield (
                f"{path} is {value}, but litellm_environment has no {reference.group(1)}: "
                "add it there, from Vault."
            )
        elif not reference and (
            (SECRET.search(name) and value not in NO_SECRET) or "@" in urlsplit(value).netloc
        ):
            yield (
                f"{path} is a secret in the configuration: write os.environ/NAME, "
                "and give NAME its value in litellm_environment, from Vault."
            )


def model_problems(model: Any) -> Iterator[str]:
    """Iterate over what is wrong with the provider in litellm_params.model."""
    provider, slash, name = str(model or "").partition("/")
    if not model:
        yield "has no litellm_params.model: set PROVIDER/MODEL, such as openai/gpt-4o."
    elif "*" in str(model):
        yield f"has the model '{model}': the gateway has to know each model, so add an item for each."
    elif not slash and not WITHOUT_PROVIDER.fullmatch(provider):
        yield f"has the model '{model}' without a provider: write PROVIDER/MODEL, such as openai/gpt-4o."
    elif slash and (provider not in PROVIDERS or not name):
        near = typo_of(provider, PROVIDERS)
        remedy = f"write {near}." if near else "docs.litellm.ai/docs/providers lists them."
        yield f"has the model '{model}', and LiteLLM knows no provider '{provider}': {remedy}"


def item_problems(item: Any, taken: Sequence[str], engines: Sequence[str]) -> Iterator[str]:
    """Iterate over what is wrong with one item of litellm_model_list, without its name."""
    if not isinstance(item, Mapping) or not isinstance(item.get("litellm_params"), Mapping):
        yield "is no item of LiteLLM: write {model_name: NAME, litellm_params: {model: PROVIDER/MODEL}}."
        return
    params = item["litellm_params"]
    name = str(item.get("model_name"))
    if name in taken:
        yield f"has the model_name '{name}', which an engine's model has: use another name."
    for field in params:
        if remedy := REFUSED["litellm_params"].get(str(field)):
            yield f"has litellm_params.{field}: {remedy}."
        near = typo_of(str(field), PARAMETERS)
        if field not in PARAMETERS and near:
            yield f"has the unknown field litellm_params.{field}: write {near}."
    yield from model_problems(params.get("model"))
    slots = params.get("max_parallel_requests", 1)
    if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
        yield f"has litellm_params.max_parallel_requests {slots}: use a whole number of at least 1."
    address = urlsplit(str(params.get("api_base", ""))).netloc
    if address and address in [urlsplit(engine).netloc for engine in engines]:
        yield "has the api_base of an inference host, whose slots the gateway counts: leave the item out."


def provider_problems(
    model_list: Sequence[Any],
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    taken: Sequence[str],
    engines: Sequence[str],
) -> list[str]:
    """Return what is wrong, each a sentence with the remedy.

    `settings` has each of the other settings by its name, `taken` the names of the engines' models, and
    `engines` the engines' URLs.
    """
    problems: list[str] = []
    for number, item in enumerate(model_list):
        path = f"litellm_model_list[{number}]"
        problems += [f"{path} {problem}" for problem in item_problems(item, taken, engines)]
        problems += secret_problems(path, item, environment)
    for variable, values in {**settings, "litellm_environment": environment}.items():
        if not isinstance(values, Mapping):
            problems.append(f"{variable} is no dictionary: write {{NAME: VALUE}}.")
            continue
        for name in values:
            remedy = REFUSED[variable].get(name)
            if not remedy and str(name).startswith(REFUSED_STARTS.get(variable, ("\0",))):
                remedy = OWN
            if remedy:
                problems.append(f"{variable} has {name}: {remedy}.")
        if variable != "litellm_environment":
            problems += secret_problems(variable, values, environment)
    return problems


class FilterModule:
    """The filter by its name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter."""
        return {"provider_problems": provider_problems}
