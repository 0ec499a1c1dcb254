# SPDX-License-Identifier: Apache-2.0
"""Filters for group_vars: they collect the lists that one group's hosts need from the other groups' hosts.

`groups` and `hostvars` are Ansible's; each filter reads only the named variables of hostvars, because reading
a variable there evaluates it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

Groups = Mapping[str, Sequence[str]]
HostVars = Mapping[str, Mapping[str, Any]]
PROVIDER_SLOTS = 32
"""Concurrent requests to a provider's model, unless its item has max_parallel_requests."""
STACK_GROUPS = ("inference", "gateway", "monitoring")


def all_hosts(groups: Groups) -> list[str]:
    """Return the stack's hosts, each once."""
    return list(dict.fromkeys(host for group in STACK_GROUPS for host in groups.get(group, [])))


def allowed_addresses(peers: Iterable[str]) -> list[str]:
    """Return a unit's IPAddressAllow for its peers: URLs, HOST:PORT, addresses, or `any`.

    systemd takes no names, and the address of a name may change, so a peer with a name allows any address.
    """
    try:
        hosts = [urlsplit(peer if "//" in peer else f"//{peer}").hostname or "" for peer in peers]
        addresses = [ip_address(host) for host in dict.fromkeys(hosts) if host != "localhost"]
    except ValueError:
        return ["any"]
    return ["localhost", *(str(address) for address in addresses if not address.is_loopback)]


def prometheus_targets(
    groups: Groups,
    hostvars: HostVars,
    host: str,
    alertmanagers: Iterable[str],
    extra_targets: Iterable[Mapping[str, str]],
) -> list[Mapping[str, str]]:
    """Return all scrape targets (job, host, address, maybe path) of the Prometheus on `host`.

    Those with a scheme are behind an edge, which requires the login.
    """

    def targets(job: str, hosts: Iterable[str], variable: str) -> list[Mapping[str, str]]:
        return [{"job": job, "host": name, "address": hostvars[name][variable]} for name in hosts]

    monitoring = [
        {"job": job, "host": name, "address": url.netloc, "scheme": url.scheme}
        for name in groups.get("monitoring", [])
        for job, variable in (
            ("prometheus", "prometheus_url"),
            ("dashboard", "__dashboard_url"),
        )
        for url in [urlsplit(hostvars[name][variable])]
    ]
    edges = dict.fromkeys([*groups.get("gateway", []), *groups.get("monitoring", [])])
    return [
        *targets("gateway", groups.get("gateway", []), "__gateway_metrics_endpoint"),
        # LiteLLM's own metrics need its master key, so the gateway reads and returns them.
        *(
            {**target, "path": "/metrics/litellm"}
            for target in targets("litellm", groups.get("gateway", []), "__gateway_metrics_endpoint")
        ),
        *targets("ollama", groups.get("inference", []), "__exporter_endpoint"),
        *monitoring,
        *targets("edge", edges, "__edge_metrics_endpoint"),
        *targets("node", all_hosts(groups), "__node_exporter_endpoint"),
        *({"job": "alertmanager", "host": host, "address": address} for address in alertmanagers),
        *extra_targets,
    ]


def litellm_memory_limits(groups: Groups, hostvars: HostVars) -> list[dict[str, Any]]:
    """Return host and memory limit (bytes) of each LiteLLM."""
    return [
        {"host": host, "bytes": int(hostvars[host]["__litellm_memory_bytes"])}
        for host in groups.get("gateway", [])
    ]


def gateway_engines(
    groups: Groups, hostvars: HostVars, extra_backends: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the gateway's engines: the inference hosts with their models, and the extra backends."""
    hosts = [
        {
            "name": host,
            "kind": "ollama",
            "url": hostvars[host]["ollama_url"],
            "models_at_once": hostvars[host]["__ollama_models_at_once"],
            "models": hostvars[host]["__ollama_served"],
        }
        for host in groups.get("inference", [])
    ]
    backends = [
        {**backend, "kind": "openai", "url": re.sub(r"/*(/v1/*)?$", "", backend["url"])}
        for backend in extra_backends
    ]
    return [*hosts, *backends]


def models_by_engine(engines: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the names of each engine's models."""
    return {engine["name"]: [model["name"] for model in engine["models"]] for engine in engines}


def litellm_deployments(engines: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return name, model and api_base of a LiteLLM deployment for each model of each inference host."""
    return [
        {
            "name": f"{engine['name']}/{model['name']}",
            "model": model["name"],
            "api_base": f"{engine['url']}/v1",
        }
        for engine in engines
        if engine["kind"] == "ollama"
        for model in engine["models"]
    ]


def provider_models(model_list: Iterable[Any]) -> list[dict[str, Any]]:
    """Return name and slots of the providers' models; items of one name are a group, with all their slots."""
    slots: dict[str, int] = {}
    for item in model_list:
        # What is no item is refused where the settings are checked, and must not fail here.
        params = item.get("litellm_params") if isinstance(item, Mapping) else None
        if isinstance(params, Mapping):
            name, number = str(item.get("model_name")), params.get("max_parallel_requests", PROVIDER_SLOTS)
            slots[name] = slots.get(name, 0) + (number if isinstance(number, int) else 1)
    return [{"name": name, "slots": number} for name, number in slots.items()]


def provider_addresses(model_list: Iterable[Any]) -> list[str]:
    """Return the URLs of the providers; `any` where LiteLLM knows the URL."""
    params = [item.get("litellm_params") for item in model_list if isinstance(item, Mapping)]
    return [str(each.get("api_base") or "any") for each in params if isinstance(each, Mapping)]


def environment_urls(environment: Any) -> list[str]:
    """Return the values that are URLs, such as LANGFUSE_HOST."""
    # What is no dictionary is refused where the settings are checked, and must not fail here.
    values = environment.values() if isinstance(environment, Mapping) else ()
    return [value for value in values if isinstance(value, str) and value.startswith(("http://", "https://"))]


def served_models(models: Iterable[Mapping[str, Any]], slots: int, context: int) -> list[dict[str, Any]]:
    """Return name, slots and context length (tokens) of the declared models; num_ctx overrides `context`."""
    return [
        {
            "name": model["name"],
            "slots": slots,
            "context": int(model.get("parameters", {}).get("num_ctx", context)),
        }
        for model in models
    ]


def dashboard_inference_hosts(groups: Groups, hostvars: HostVars) -> list[dict[str, Any]]:
    """Return name, exporter_url and model names of each inference host."""
    return [
        {
            "name": host,
            "exporter_url": f"http://{hostvars[host]['__exporter_endpoint']}",
            "models": [model["name"] for model in hostvars[host].get("ollama_models", [])],
        }
        for host in groups.get("inference", [])
    ]


def dashboard_model_fits(groups: Groups, hostvars: HostVars) -> list[dict[str, Any]]:
    """Return which models fit each inference host; empty if this run did not read each of them."""
    fits = {host: hostvars[host]["__ollama_fits"] for host in groups.get("inference", [])}
    return [{"host": host, **found} for host, found in fits.items()] if all(fits.values()) else []


def dashboard_node_exporters(groups: Groups, hostvars: HostVars) -> list[dict[str, str]]:
    """Return name and URL of each host's node exporter."""
    return [
        {"name": host, "url": f"http://{hostvars[host]['__node_exporter_endpoint']}"}
        for host in all_hosts(groups)
    ]


def dashboard_pinned_versions(groups: Groups, hostvars: HostVars, gateway: str) -> list[dict[str, str]]:
    """Return component, host and version of each release that the playbooks pin."""
    ollama = [
        {"component": "Ollama", "host": host, "version": hostvars[host]["__ollama_version"]}
        for host in groups.get("inference", [])
    ]
    return [
        *ollama,
        {"component": "Gateway", "host": gateway, "version": hostvars[gateway]["__gateway_version"]},
        {"component": "LiteLLM", "host": gateway, "version": hostvars[gateway]["__litellm_version"]},
    ]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            function.__name__: function
            for function in (
                allowed_addresses,
                prometheus_targets,
                litellm_memory_limits,
                gateway_engines,
                models_by_engine,
                litellm_deployments,
                provider_models,
                provider_addresses,
                environment_urls,
                served_models,
                dashboard_inference_hosts,
                dashboard_model_fits,
                dashboard_node_exporters,
                dashboard_pinned_versions,
            )
        }
