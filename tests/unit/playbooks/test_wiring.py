"""The wiring in playbooks/group_vars: the complete expected values for each test inventory."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest

from tests.support.rendering import ROOT, Stack

SERVICE_KEYS = {"verify": 60, "verify-limit": 10, "dashboard": 120, "canary": 10}
GIB = 1024**3
SMALL = {"name": "smollm2:135m", "slots": 2, "context": 8192}
# These depend on the checkout and the user's home, not on the inventory.
PLACES = {
    "bedplate_managed",
    "bedplate_template_dir",
    "bedplate_secrets_file",
    "gateway_secrets_file",
    "edge_password_file",
}
# tests/unit/roles/test_rendering.py compares it with the units.
ELSEWHERE = {"bedplate_healed"}

SYSTEM_CAS = "/etc/ssl/certs/ca-certificates.crt"

ON_CPU: dict[str, Any] = {
    "ollama_gpu_backend": "cpu",
    "ollama_gpu_parts": [],
    "ollama_gpu_groups": [],
    "exporter_gpus": {},
}
ON_GPU: dict[str, dict[str, Any]] = {
    "gpu1": {
        "ollama_gpu_backend": "cuda",
        "ollama_gpu_parts": ["cuda_v13"],
        "ollama_gpu_groups": [],
        "exporter_gpus": {"nvidia": 2},
    },
    "gpu2": {
        "ollama_gpu_backend": "rocm",
        "ollama_gpu_parts": ["rocm"],
        "ollama_gpu_groups": ["render", "video"],
        "exporter_gpus": {"amd": 1},
    },
}

PROXIES: dict[str, Any] = {
    "bedplate_download_environment": {
        "https_proxy": "http://10.2.0.9:3128",
        "APT_CONFIG": "/run/bedplate-download/apt.conf",
    },
    "bedplate_download_proxies": {"http": "http://bedplate:word-of-the-proxy@10.2.0.9:3129"},
}


def pins(gateway: str, *engines: str) -> list[dict[str, str]]:
    """Return the versions that the playbooks install, read from their files."""
    project = tomllib.loads((ROOT / "gateway/pyproject.toml").read_text())["project"]
    (ollama,) = re.findall(
        r"^ollama_version: (\S+)$", (ROOT / "roles/ollama/defaults/main.yml").read_text(), re.MULTILINE
    )
    (proxy,) = re.findall(r"^litellm==(\S+)", (ROOT / "requirements/litellm.txt").read_text(), re.MULTILINE)
    return [
        *({"component": "Ollama", "host": host, "version": ollama} for host in engines),
        {"component": "Gateway", "host": gateway, "version": project["version"]},
        {"component": "LiteLLM", "host": gateway, "version": proxy},
    ]


def edge(listen: str, host: str, **more: Any) -> dict[str, Any]:
    """Return the edge's variables of a host."""
    return {
        "edge_listen_address": listen,
        "edge_host_address": host,
        "edge_name": "bedplate",
        "edge_api": {},
        "edge_pages": [],
        "edge_groups": [],
        # Read only if the files exist.
        "edge_ca_text": "",
        "edge_login_password": "",
        **more,
    }


def api(port: int, timeout_seconds: int = 780) -> dict[str, Any]:
    """Return what the edge knows of the gateway."""
    socket = "/run/bedplate-gateway/http.sock"
    return {"port": port, "server": socket, "timeout_seconds": timeout_seconds}


def page(
    name: str, unit: str, port: int, server: str, *, open_path: str, closed: list[str]
) -> dict[str, Any]:
    """Return what the edge knows of a page."""
    paths = {"open": [open_path], "closed": closed}
    return {"name": name, "unit": unit, "port": port, "server": server, **paths}


def dashboard_page(port: int = 3001) -> dict[str, Any]:
    """Return what the edge knows of the dashboard."""
    socket = "unix@/run/bedplate-dashboard/http.sock"
    return page("dashboard", "bedplate-dashboard", port, socket, open_path="/healthz", closed=[])


def prometheus_page(port: int = 9090) -> dict[str, Any]:
    """Return what the edge knows of Prometheus."""
    closed = ["/api/v1/admin/", "/-/reload", "/-/quit"]
    return page("prometheus", "prometheus", port, "127.0.0.1:19090", open_path="/-/ready", closed=closed)


def all_hosts(address: str, clients: list[str], **more: Any) -> dict[str, Any]:
    """Return the variables of every host."""
    return {
        "edge_http_port": 0,
        "edge_metrics_listen_address": address,
        "edge_metrics_allowed_clients": clients,
        "bedplate_download_environment": {},
        "bedplate_download_proxies": {},
        "node_exporter_listen_address": address,
        "node_exporter_allowed_clients": clients,
        "node_exporter_served_certificates": [],
        **more,
    }


def engine(name: str, url: str, *models: dict[str, Any], loaded: int = 1) -> dict[str, Any]:
    """Return the gateway's settings for an inference host."""
    return {"name": name, "kind": "ollama", "url": url, "models_at_once": loaded, "models": list(models)}


def service_keys(*models: str) -> list[dict[str, Any]]:
    """Return the keys of the stack's own services."""
    return [{"alias": alias, "rpm": rpm, "models": list(models)} for alias, rpm in SERVICE_KEYS.items()]


def litellm(
    *deployments: tuple[str, str, str],
    allowed: Sequence[str] = (),
    others: Sequence[str] = (),
    traces: str = "",
) -> dict[str, Any]:
    """Return LiteLLM's wiring; each deployment is host, model and the engine's URL."""
    return {
        "litellm_other_models": [*dict.fromkeys(model for _, model, _ in deployments), *others],
        "gateway_provider_models": [],
        "litellm_allowed_addresses": ["localhost", *allowed],
        "gateway_litellm_url": "http://127.0.0.1:4000",
        "gateway_litellm_key_file": "/etc/bedplate/bedplate-gateway/litellm-key",
        "litellm_master_key_file": "/etc/bedplate/bedplate-gateway/litellm-key",
        "litellm_deployments": [
            {"name": f"{host}/{model}", "model": model, "api_base": f"{url}/v1"}
            for host, model, url in deployments
        ],
        "litellm_engine_timeout_seconds": 330,
        "litellm_traces_endpoint": traces,
    }


def litellm_target(host: str, address: str) -> dict[str, str]:
    """Return the scrape target of a gateway's LiteLLM."""
    return {"job": "litellm", "host": host, "address": address, "path": "/metrics/litellm"}


def edge_login(user: str) -> dict[str, str]:
    """Return Prometheus' login at an edge; the password and a CA are not made yet."""
    return {
        "prometheus_edge_user": user,
        "prometheus_edge_password": "",
        "prometheus_edge_ca_file": SYSTEM_CAS,
    }


def canary(
    url: str, metrics: str, *models: str, ca_file: str = "", allowed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the canary's variables; its key is not generated yet."""
    return {
        "traffic_canary_allowed_addresses": ["localhost", *allowed],
        "traffic_canary_url": f"{url}/v1",
        "traffic_canary_ca_file": ca_file,
        "traffic_canary_metrics_url": f"http://{metrics}/metrics",
        "traffic_canary_models": list(models),
        "traffic_canary_key": "",
    }


# The addresses of the gateway host and the monitoring host of three-hosts.
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "one-box": {
        "box": {
            **all_hosts("127.0.0.1", []),
            **edge(
                "127.0.0.1",
                "box",
                edge_api=api(8000),
                edge_pages=[dashboard_page(), prometheus_page()],
                edge_groups=["bedplate-gateway", "bedplate-dashboard"],
                edge_ca_names=["box"],
            ),
            "ollama_listen_address": "127.0.0.1",
            "ollama_allowed_clients": [],
            "ollama_url": "http://127.0.0.1:11434",
            "exporter_listen_address": "127.0.0.1",
            "exporter_allowed_clients": [],
            "exporter_ollama_url": "http://127.0.0.1:11434",
            "gpu_driver_engine_url": "http://127.0.0.1:11434",
            "gpu_driver_engine_models": ["smollm2:135m"],
            **ON_CPU,
            "gateway_socket": "/run/bedplate-gateway/http.sock",
            "gateway_url": "http://127.0.0.1:8000",
            "gateway_metrics_listen_address": "127.0.0.1",
            "gateway_metrics_allowed_clients": ["127.0.0.1"],
            "gateway_allowed_addresses": ["localhost"],
            "gateway_engines": [engine("box", "http://127.0.0.1:11434", SMALL)],
            "gateway_service_keys": service_keys("smollm2:135m"),
            **litellm(("box", "smollm2:135m", "http://127.0.0.1:11434")),
            **canary("http://127.0.0.1:8000", "127.0.0.1:9464", "smollm2:135m"),
            "prometheus_url": "http://127.0.0.1:9090",
            **edge_login("bedplate"),
            "prometheus_watchdog": False,
            "alertmanager_url": "http://127.0.0.1:9093",
            "prometheus_targets": [
                {"job": "gateway", "host": "box", "address": "127.0.0.1:9464"},
                litellm_target("box", "127.0.0.1:9464"),
                {"job": "ollama", "host": "box", "address": "127.0.0.1:9101"},
                {"job": "prometheus", "host": "box", "address": "127.0.0.1:9090", "scheme": "http"},
                {"job": "dashboard", "host": "box", "address": "127.0.0.1:3001", "scheme": "http"},
                {"job": "edge", "host": "box", "address": "127.0.0.1:8405"},
                {"job": "node", "host": "box", "address": "127.0.0.1:9100"},
            ],
            "prometheus_allowed_addresses": ["localhost"],
            "dashboard_allowed_addresses": ["localhost"],
            "prometheus_litellm_memory_limits": [{"host": "box", "bytes": 2 * GIB}],
            "prometheus_alertmanagers": [],
            "dashboard_name": "bedplate",
            "dashboard_socket": "/run/bedplate-dashboard/http.sock",
            "dashboard_gateway_url": "http://127.0.0.1:8000",
            # Read only if the files exist.
            "dashboard_gateway_ca": "",
            "dashboard_gateway_host": "box",
            "dashboard_gateway_metrics_url": "http://127.0.0.1:9464",
            "dashboard_scrape_seconds": 15,
            "dashboard_other_models": [],
            "dashboard_node_exporters": [{"name": "box", "url": "http://127.0.0.1:9100"}],
            "dashboard_pinned_versions": pins("box", "box"),
            "dashboard_prometheus_url": "http://127.0.0.1:19090",
            "dashboard_inference_hosts": [
                {"name": "box", "exporter_url": "http://127.0.0.1:9101", "models": ["smollm2:135m"]}
            ],
            "dashboard_model_fits": [],
            "dashboard_gateway_key": "",
        }
    },
    "three-hosts": {
        "gpu1": {
            **all_hosts("10.1.0.1", ["10.1.0.3", "10.1.0.1"]),
            **edge(
                "127.0.0.1",
                "10.1.0.1",
                edge_name="rack",
                edge_ca_names=["gateway1", "monitor1", "watch.example.org"],
            ),
            "ollama_listen_address": "10.1.0.1",
            "ollama_allowed_clients": ["10.1.0.2", "10.1.0.1"],
            "ollama_url": "http://10.1.0.1:11434",
            "exporter_listen_address": "10.1.0.1",
            "exporter_allowed_clients": ["10.1.0.3", "10.1.0.1"],
            "exporter_ollama_url": "http://10.1.0.1:11434",
            "gpu_driver_engine_url": "http://10.1.0.1:11434",
            "gpu_driver_engine_models": ["smollm2:135m"],
            **ON_CPU,
        },
        "gateway1": {
            **all_hosts(
                "10.1.0.2",
                ["10.1.0.3", "10.1.0.2"],
                node_exporter_served_certificates=["10.1.0.2:8000"],
            ),
            **edge(
                "10.1.0.2",
                "10.1.0.2",
                edge_name="rack",
                edge_api=api(8000),
                edge_groups=["bedplate-gateway"],
                edge_ca_names=["gateway1", "monitor1", "watch.example.org"],
            ),
            "gateway_socket": "/run/bedplate-gateway/http.sock",
            "gateway_url": "https://10.1.0.2:8000",
            "gateway_metrics_listen_address": "10.1.0.2",
            "gateway_metrics_allowed_clients": ["127.0.0.1", "10.1.0.3", "10.1.0.2"],
            "gateway_allowed_addresses": ["localhost", "10.1.0.1", "10.1.0.3", "10.1.0.2", "10.1.0.9"],
            "gateway_engines": [
                engine("gpu1", "http://10.1.0.1:11434", {**SMALL, "slots": 4, "context": 4096})
            ],
            "gateway_service_keys": service_keys("smollm2:135m"),
            **litellm(
                ("gpu1", "smollm2:135m", "http://10.1.0.1:11434"),
                allowed=["10.1.0.1", "10.1.0.9"],
                traces="http://10.1.0.9:4318",
            ),
            **canary(
                "https://10.1.0.2:8000",
                "10.1.0.2:9464",
                "smollm2:135m",
                ca_file=SYSTEM_CAS,
                allowed=["10.1.0.2"],
            ),
        },
        "monitor1": {
            **all_hosts(
                "127.0.0.1", [], edge_http_port=80, node_exporter_served_certificates=["10.1.0.3:3001"]
            ),
            **edge(
                "10.1.0.3",
                "10.1.0.3",
                edge_name="rack",
                edge_pages=[dashboard_page(), prometheus_page()],
                edge_groups=["bedplate-dashboard"],
                edge_ca_names=["gateway1", "monitor1", "watch.example.org"],
            ),
            "prometheus_url": "https://watch.example.org:9090",
            **edge_login("bedplate"),
            "prometheus_watchdog": False,
            "alertmanager_url": "https://watch.example.org:9093",
            "prometheus_targets": [
                {"job": "gateway", "host": "gateway1", "address": "10.1.0.2:9464"},
                litellm_target("gateway1", "10.1.0.2:9464"),
                {"job": "ollama", "host": "gpu1", "address": "10.1.0.1:9101"},
                *(
                    {
                        "job": job,
                        "host": "monitor1",
                        "address": f"watch.example.org:{port}",
                        "scheme": "https",
                    }
                    for job, port in (("prometheus", 9090), ("dashboard", 3001))
                ),
                {"job": "edge", "host": "gateway1", "address": "10.1.0.2:8405"},
                {"job": "edge", "host": "monitor1", "address": "127.0.0.1:8405"},
                {"job": "node", "host": "gpu1", "address": "10.1.0.1:9100"},
                {"job": "node", "host": "gateway1", "address": "10.1.0.2:9100"},
                {"job": "node", "host": "monitor1", "address": "127.0.0.1:9100"},
            ],
            # One target is a name.
            "prometheus_allowed_addresses": ["any"],
            "dashboard_allowed_addresses": ["localhost", "10.1.0.2", "10.1.0.1"],
            "prometheus_litellm_memory_limits": [{"host": "gateway1", "bytes": 3 * GIB}],
            "prometheus_alertmanagers": [],
            "dashboard_name": "rack",
            "dashboard_socket": "/run/bedplate-dashboard/http.sock",
            "dashboard_gateway_url": "https://10.1.0.2:8000",
            # Read only if the files exist.
            "dashboard_gateway_ca": "",
            "dashboard_gateway_host": "gateway1",
            "dashboard_gateway_metrics_url": "http://10.1.0.2:9464",
            "dashboard_scrape_seconds": 15,
            "dashboard_other_models": [],
            "dashboard_node_exporters": [
                {"name": "gpu1", "url": "http://10.1.0.1:9100"},
                {"name": "gateway1", "url": "http://10.1.0.2:9100"},
                {"name": "monitor1", "url": "http://127.0.0.1:9100"},
            ],
            "dashboard_pinned_versions": pins("gateway1", "gpu1"),
            "dashboard_prometheus_url": "http://127.0.0.1:19090",
            "dashboard_inference_hosts": [
                {"name": "gpu1", "exporter_url": "http://10.1.0.1:9101", "models": ["smollm2:135m"]}
            ],
            "dashboard_model_fits": [],
            "dashboard_gateway_key": "",
        },
    },
    "two-engines": {
        **{
            name: {
                **all_hosts(address, ["10.2.0.3", address]),
                **edge("127.0.0.1", address, edge_ca_names=["front", "front.example.org"]),
                **PROXIES,
                "ollama_listen_address": address,
                "ollama_allowed_clients": ["10.2.0.3", address],
                "ollama_url": f"http://{address}:21434",
                "exporter_listen_address": address,
                "exporter_allowed_clients": ["10.2.0.3", address],
                "exporter_ollama_url": f"http://{address}:21434",
                "gpu_driver_engine_url": f"http://{address}:21434",
                "gpu_driver_engine_models": models,
                **ON_GPU[name],
            }
            for name, address, models in (
                ("gpu1", "10.2.0.1", ["smollm2:135m", "llama3.2:3b"]),
                ("gpu2", "10.2.0.2", ["smollm2:135m"]),
            )
        },
        "front": {
            **all_hosts("127.0.0.1", [], node_exporter_served_certificates=["10.2.0.3:18000"]),
            **edge(
                "10.2.0.3",
                "10.2.0.3",
                edge_api=api(18000, 1260),
                edge_pages=[
                    dashboard_page(13001),
                    prometheus_page(29090),
                    page(
                        "alertmanager",
                        "alertmanager",
                        29093,
                        "127.0.0.1:19093",
                        open_path="/-/ready",
                        closed=["/-/reload"],
                    ),
                ],
                edge_groups=["bedplate-gateway", "bedplate-dashboard"],
                edge_ca_names=["front", "front.example.org"],
                edge_login_password="word-of-the-page",
            ),
            **PROXIES,
            "gateway_socket": "/run/bedplate-gateway/http.sock",
            "gateway_url": "https://10.2.0.3:18000",
            "gateway_metrics_listen_address": "127.0.0.1",
            "gateway_metrics_allowed_clients": ["127.0.0.1"],
            "gateway_allowed_addresses": ["localhost", *("10.2.0.1", "10.2.0.2", "10.2.0.8", "10.2.0.9")],
            "gateway_engines": [
                engine("gpu1", "http://10.2.0.1:21434", SMALL, {**SMALL, "name": "llama3.2:3b"}, loaded=2),
                engine("gpu2", "http://10.2.0.2:21434", SMALL),
                {
                    "name": "rack9",
                    "kind": "openai",
                    "url": "http://10.2.0.8:8000",
                    "api_key": "sk-of-another-server",
                    "models": [{"name": "other", "slots": 16, "context": 32768}],
                },
                {
                    "name": "rack10",
                    "kind": "openai",
                    "url": "https://10.2.0.9/llm",
                    "models": [{"name": "more", "slots": 4}],
                },
            ],
            "gateway_service_keys": service_keys("smollm2:135m", "llama3.2:3b", "other", "more"),
            **litellm(
                ("gpu1", "smollm2:135m", "http://10.2.0.1:21434"),
                ("gpu1", "llama3.2:3b", "http://10.2.0.1:21434"),
                ("gpu2", "smollm2:135m", "http://10.2.0.2:21434"),
                others=["other", "more"],
            ),
            # LiteLLM knows the provider's address, so any is allowed.
            "litellm_allowed_addresses": ["any"],
            "gateway_provider_models": [{"name": "cloud", "slots": 36}],
            **canary(
                *("10.2.0.3:18000", "127.0.0.1:19464", "smollm2:135m", "llama3.2:3b", "other", "more"),
                allowed=["10.2.0.3"],
            ),
            **canary(
                "https://10.2.0.3:18000",
                "127.0.0.1:19464",
                *("smollm2:135m", "llama3.2:3b", "other", "more"),
                ca_file=SYSTEM_CAS,
                allowed=["10.2.0.3"],
            ),
            "prometheus_url": "https://10.2.0.3:29090",
            **edge_login("ops"),
            "prometheus_edge_password": "word-of-the-page",
            "prometheus_watchdog": True,
            "alertmanager_url": "https://10.2.0.3:29093",
            "prometheus_targets": [
                {"job": "gateway", "host": "front", "address": "127.0.0.1:19464"},
                litellm_target("front", "127.0.0.1:19464"),
                {"job": "ollama", "host": "gpu1", "address": "10.2.0.1:19101"},
                {"job": "ollama", "host": "gpu2", "address": "10.2.0.2:19101"},
                {"job": "prometheus", "host": "front", "address": "10.2.0.3:29090", "scheme": "https"},
                {"job": "dashboard", "host": "front", "address": "10.2.0.3:13001", "scheme": "https"},
                {"job": "edge", "host": "front", "address": "127.0.0.1:8405"},
                {"job": "node", "host": "gpu1", "address": "10.2.0.1:19100"},
                {"job": "node", "host": "gpu2", "address": "10.2.0.2:19100"},
                {"job": "node", "host": "front", "address": "127.0.0.1:19100"},
                {"job": "alertmanager", "host": "front", "address": "127.0.0.1:19093"},
                {"job": "other", "host": "tenth", "address": "10.2.0.10:9100"},
            ],
            "prometheus_allowed_addresses": ["localhost", *("10.2.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.10")],
            "dashboard_allowed_addresses": ["localhost", *("10.2.0.3", "10.2.0.1", "10.2.0.2")],
            "prometheus_litellm_memory_limits": [{"host": "front", "bytes": 2 * GIB}],
            "prometheus_alertmanagers": ["127.0.0.1:19093"],
            "dashboard_name": "bedplate",
            "dashboard_socket": "/run/bedplate-dashboard/http.sock",
            "dashboard_gateway_url": "https://10.2.0.3:18000",
            # Read only if the files exist.
            "dashboard_gateway_ca": "",
            "dashboard_gateway_host": "front",
            "dashboard_gateway_metrics_url": "http://127.0.0.1:19464",
            "dashboard_scrape_seconds": 15,
            "dashboard_other_models": ["other", "more"],
            "dashboard_node_exporters": [
                {"name": "gpu1", "url": "http://10.2.0.1:19100"},
                {"name": "gpu2", "url": "http://10.2.0.2:19100"},
                {"name": "front", "url": "http://127.0.0.1:19100"},
            ],
            "dashboard_pinned_versions": pins("front", "gpu1", "gpu2"),
            "dashboard_prometheus_url": "http://127.0.0.1:19090",
            "dashboard_inference_hosts": [
                {
                    "name": "gpu1",
                    "exporter_url": "http://10.2.0.1:19101",
                    "models": ["smollm2:135m", "llama3.2:3b"],
                },
                {"name": "gpu2", "exporter_url": "http://10.2.0.2:19101", "models": ["smollm2:135m"]},
            ],
            "dashboard_model_fits": [],
            "dashboard_gateway_key": "",
        },
    },
}


def test_wiring_of_each_host(stack: Stack) -> None:
    actual = {
        host: {name: value for name, value in rendered.wiring.items() if name not in PLACES | ELSEWHERE}
        for host, rendered in stack.hosts.items()
    }
    assert actual == EXPECTED[stack.name]


def test_the_keys_of_each_stack_are_in_a_directory_of_its_name(stack: Stack) -> None:
    name = "rack" if stack.name == "three-hosts" else "bedplate"
    for rendered in stack.hosts.values():
        assert rendered.wiring["bedplate_secrets_file"].endswith(f"/config/bedplate/{name}/keys.json")


@pytest.mark.parametrize(
    ("peers", "allowed"),
    [
        ([], ["localhost"]),
        (["http://127.0.0.1:11434", "127.0.0.2:9100", "localhost:9093", "[::1]:9"], ["localhost"]),
        (["10.0.0.2:9100", "https://10.0.0.1/llm", "10.0.0.2"], ["localhost", "10.0.0.2", "10.0.0.1"]),
        (["http://[fd00::1]:8000"], ["localhost", "fd00::1"]),
        # systemd would refuse a name, and the address of one may change.
        (["10.0.0.1:9100", "https://llm.example.com/v1"], ["any"]),
        (["10.0.0.1", "any"], ["any"]),
        (["http://[fd00::1"], ["any"]),
    ],
)
def test_allowed_addresses(
    load_source: Callable[[str], ModuleType], peers: list[str], allowed: list[str]
) -> None:
    assert load_source("playbooks/filter_plugins/wiring.py").allowed_addresses(peers) == allowed


@pytest.mark.parametrize(
    ("read", "listed"),
    [(("gpu1", "gpu2"), ["gpu1", "gpu2"]), (("gpu1",), []), ((), [])],
)
def test_a_run_that_has_not_read_each_host_leaves_what_fits(
    load_source: Callable[[str], ModuleType], read: tuple[str, ...], listed: list[str]
) -> None:
    hosts = {
        host: {"__ollama_fits": {"memory": "16.0 GB"} if host in read else None} for host in ("gpu1", "gpu2")
    }
    fits = load_source("playbooks/filter_plugins/wiring.py").dashboard_model_fits(
        {"inference": list(hosts)}, hosts
    )
    assert [row["host"] for row in fits] == listed
