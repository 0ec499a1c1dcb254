"""A second gateway and a second LiteLLM on a lab host, in front of fake servers, beside the stack's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.hosts import send_file
from tests.support.stack import Stack, wait_for

GATEWAY, METRICS, LITELLM = 18500, 18504, 18503
FOLDER = "/run/second-stack"
KEY = "sk-a"
LITELLM_PYTHON = "/opt/bedplate/litellm/current/bin/python"
LITELLM_VARIABLES = (
    "LITELLM_MODE=PRODUCTION\nLITELLM_OFFLINE_MODE=true\nLITELLM_LOG=ERROR\nGRACEFUL_SHUTDOWN_TIMEOUT=1\n"
)
# As in templates/systemd/litellm.service.j2.
OF_TRACES = (
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=NO_CONTENT\n"
    "OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental\nOTEL_TRACES_SAMPLER=parentbased_always_off\n"
    "OTEL_SERVICE_NAME=litellm\nOTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf\nOTEL_EXPORTER_OTLP_ENDPOINT={}\n"
)
WARM_UP = (
    "  - model_name: warm-up\n    litellm_params: {model: hosted_vllm/warm-up, api_key: none, "
    "use_chat_completions_api: true, mock_response: ready}\n"
)


@contextmanager
def second_stack(
    stack: Stack,
    settings: Mapping[str, Any],
    *,
    model_list: str,
    servers: Mapping[str, tuple[Path, str]],
    environment: Mapping[str, str] | None = None,
    traces: str = "",
) -> Iterator[None]:
    """Run the second stack on the host; `servers` has a program and its arguments by the name of each one.

    `settings` are added to the gateway's, `model_list` is LiteLLM's, with the role's other settings. `traces`
    is the URL of a receiver of traces.
    """
    document = {
        "api": {"address": "127.0.0.1", "port": GATEWAY},
        "metrics": {"address": "127.0.0.1", "port": METRICS},
        "litellm": {"url": f"http://127.0.0.1:{LITELLM}", "key_file": f"{FOLDER}/master-key"},
        "keys_file": f"{FOLDER}/keys.json",
        "state_dir": FOLDER,
        "traces": {"endpoint": traces} if traces else None,
        **settings,
    }
    secret = {"sha256": hashlib.sha256(KEY.encode()).hexdigest()}
    keys = {"schema": 2, "keys": [{"alias": "a", "secrets": [secret]}]}
    stack(f"mkdir -p {FOLDER} && echo sk-second >{FOLDER}/master-key")
    for name, content in (("gateway", document), ("keys", keys), ("environment", dict(environment or {}))):
        stack(f"umask 077; cat >{FOLDER}/{name}.json", stdin=json.dumps(content))
    # The retry settings are those of the role's configuration, and so is the start program.
    shared = "sed -n '/^litellm_settings:/,$p' /etc/bedplate/litellm/config.yaml"
    if traces:
        shared += """ | sed 's/"callbacks": \\["prometheus"/&, "otel"/'"""
    stack(f"{{ cat; {shared}; }} >{FOLDER}/config.yaml", stdin=f"model_list:\n{model_list}{WARM_UP}")
    for name, (program, arguments) in servers.items():
        send_file(stack.name, program, f"{FOLDER}/{program.name}")
        stack(
            f"systemd-run --quiet --unit=second-{name} --setenv=PYTHONUNBUFFERED=1 "
            # It has what the fakes import.
            f"{LITELLM_PYTHON} {FOLDER}/{program.name} {arguments}"
        )
    stack(
        f"cat >{FOLDER}/litellm.env", stdin=LITELLM_VARIABLES + (OF_TRACES.format(traces) if traces else "")
    )
    start_second_litellm(stack)
    stack(
        "systemd-run --quiet --unit=second-gateway --property=Type=notify --property=NotifyAccess=all "
        f"/opt/bedplate/bedplate-gateway/current/bin/bedplate-gateway {FOLDER}/gateway.json"
    )
    wait_for(lambda: "litellm_up 1" in second_metrics(stack))
    try:
        yield
    finally:
        units = " ".join(f"second-{name}" for name in ("gateway", "litellm", *servers))
        stack(f"systemctl stop {units} || true; systemctl reset-failed 'second-*' || true; rm -r {FOLDER}")


def start_second_litellm(stack: Stack) -> None:
    """Start the second LiteLLM; returns when it is warmed up."""
    credentials = " ".join(
        f"--property=LoadCredential={name}:{FOLDER}/{name}" for name in ("master-key", "environment.json")
    )
    stack(
        "systemd-run --quiet --unit=second-litellm --property=Type=notify "
        f"--property=EnvironmentFile={FOLDER}/litellm.env {credentials} "
        f"{LITELLM_PYTHON} /opt/bedplate/litellm/start.py {LITELLM} {FOLDER}/config.yaml"
    )


def second_metrics(stack: Stack) -> str:
    """Return the second gateway's metrics."""
    return stack(f"curl --silent --fail http://127.0.0.1:{METRICS}/metrics")


def ask_second(stack: Stack, model: str, header: str = "", **fields: Any) -> tuple[int, dict[str, str], str]:
    """Send a chat to the second gateway, with one more header; return status, headers and body."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    answer = stack(
        f"curl --silent --include --max-time 90 --header 'Authorization: Bearer {KEY}' --header '{header}' "
        "--json @- "
        f"http://127.0.0.1:{GATEWAY}/v1/chat/completions",
        stdin=json.dumps(body),
    ).replace("\r\n", "\n")
    head, _, text = answer.partition("\n\n")
    first, *lines = head.split("\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, text
