"""LiteLLM's configuration and unit, as the role renders them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.rendering import ROOT, Rendered, Stack

# Maximum of `systemd-analyze security`, in tenths: 1.5.
EXPOSURE = 15


def gateway(stack: Stack) -> Rendered:
    """Return the rendered files of the stack's gateway host."""
    (rendered,) = (rendered for rendered in stack.hosts.values() if "litellm.service" in rendered.units)
    return rendered


def config(stack: Stack) -> dict[str, Any]:
    """Return LiteLLM's configuration."""
    parsed: dict[str, Any] = yaml.safe_load(gateway(stack).files["config.yaml"])
    return parsed


def test_litellm_runs_on_gateway_hosts_only(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        assert ("litellm.service" in rendered.units) == ("gateway_url" in rendered.wiring)


def test_each_engine_and_model_has_a_deployment(stack: Stack) -> None:
    expected = [
        {
            "model_name": f"{engine['name']}/{model['name']}",
            "litellm_params": {
                "model": f"hosted_vllm/{model['name']}",
                "api_base": f"{engine['url']}/v1",
                "api_key": "none",
                "use_chat_completions_api": True,
                "timeout": 330,
            },
        }
        for engine in gateway(stack).wiring["gateway_engines"]
        if engine["kind"] == "ollama"
        for model in engine["models"]
    ]
    models = config(stack)["model_list"]
    deployments, warm_up = models[: len(expected)], models[len(expected)]
    assert deployments == expected
    assert warm_up["model_name"] == "warm-up"
    # No request to it leaves the process.
    assert warm_up["litellm_params"]["mock_response"]
    assert "api_base" not in warm_up["litellm_params"]


def test_the_settings_are_the_ones_ordered(stack: Stack) -> None:
    settings = config(stack)
    assert settings["litellm_settings"]["request_timeout"] == 120
    assert settings["litellm_settings"]["num_retries"] == 1
    # One stack has it in its own settings, one has a receiver of traces.
    own = ["otel"] if stack.name != "one-box" else []
    assert settings["litellm_settings"]["callbacks"] == ["prometheus", *own]
    assert settings["router_settings"] == {"enable_pre_call_checks": False, "disable_cooldowns": True}
    assert settings["general_settings"] == {
        "master_key": "os.environ/LITELLM_MASTER_KEY",
        "cancel_on_disconnect": True,
        "background_health_checks": False,
        "health_check_interval": 300,
    }


def test_benches_can_read_the_settings_without_templating() -> None:
    variables = yaml.safe_load((ROOT / "roles/litellm/vars/main.yml").read_text())
    for section in ("settings", "router_settings", "general_settings"):
        assert "{{" not in json.dumps(variables[f"__litellm_{section}"])


def test_litellm_listens_on_loopback_and_reaches_the_engines_only(stack: Stack) -> None:
    unit = gateway(stack).units["litellm.service"]
    engines = {
        "one-box": [],
        "three-hosts": ["10.1.0.1", "10.1.0.9"],
        "two-engines": None,
    }[stack.name]
    # A provider has a name, and systemd takes no names.
    allowed = ["any"] if engines is None else ["localhost", *engines]
    assert "\nIPAddressDeny=any\n" in unit
    assert re.findall(r"^IPAddressAllow=(.*)$", unit, re.MULTILINE)[0].split() == allowed
    assert "--silent --fail --max-time 5 --output /dev/null http://127.0.0.1:4000/health/readiness;" in unit


def test_spans_have_no_prompt_and_go_to_the_receiver_only_where_one_is_set(stack: Stack) -> None:
    unit = gateway(stack).units["litellm.service"]
    assert "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=NO_CONTENT" in unit
    traces = json.loads(gateway(stack).files["gateway.json"])["traces"]
    if stack.name == "three-hosts":
        assert traces == {"endpoint": "http://10.1.0.9:4318", "percent": 10}
        assert "OTEL_EXPORTER_OTLP_ENDPOINT=http://10.1.0.9:4318\n" in unit
        assert "OTEL_TRACES_SAMPLER=parentbased_always_off" in unit
    else:
        assert traces is None
        assert "OTEL_EXPORTER" not in unit
        # Otherwise a callback of the user's own would see no request.
        assert "OTEL_TRACES_SAMPLER" not in unit


def test_models_of_providers_come_last_and_without_their_keys(stack: Stack) -> None:
    rendered = gateway(stack)
    models = [model for model in config(stack)["model_list"] if model["model_name"] == "cloud"]
    keys = [model["litellm_params"]["api_key"] for model in models]
    assert keys == (["os.environ/CLOUD_KEY"] * 2 if stack.name == "two-engines" else [])
    texts = [text for name, text in rendered.files.items() if name != "environment.json"]
    assert not any("sk-of-a-provider" in text for text in [*texts, *rendered.units.values()])
    engines = json.loads(rendered.files["gateway.json"])["engines"]
    ours = [engine for engine in engines if engine["kind"] == "litellm"]
    if stack.name == "two-engines":
        assert ours == [
            {
                "name": "litellm",
                "kind": "litellm",
                "url": "http://127.0.0.1:4000",
                "models": [{"name": "cloud", "slots": 36}],
            }
        ]
    else:
        assert ours == []


def test_memory_is_limited(stack: Stack) -> None:
    unit = gateway(stack).units["litellm.service"]
    gib = 3 if stack.name == "three-hosts" else 2
    assert f"\nMemoryMax={gib}G\n" in unit
    assert f"\nMemoryHigh={int(gib * 1024**3 * 0.9)}\n" in unit
    # The last assignment counts.
    assert re.findall(r"^Restart=(.*)$", unit, re.MULTILINE)[-1] == "always"


@pytest.mark.parametrize("stack", ["one-box", "two-engines"], indirect=True)
def test_exposure(stack: Stack, tmp_path: Path) -> None:
    unit = tmp_path / "litellm.service"
    unit.write_text(gateway(stack).units["litellm.service"])
    done = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
