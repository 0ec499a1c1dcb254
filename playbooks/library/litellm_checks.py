#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Checks the running LiteLLM proxy, and that the gateway's requests go through it."""

from __future__ import annotations

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.checks import Check, check
from ansible.module_utils.gateway_client import Answer, Gateway, model_names

DOCUMENTATION = r"""
module: litellm_checks
short_description: Check the LiteLLM proxy behind a gateway
description:
  - Checks LiteLLM's version, its address, its key and its list of models.
  - Sends a chat request to the gateway, and compares LiteLLM's own request counter before and after it. For a
    direct model the counter must not change.
  - Checks that the gateway serves each model of another provider, and that its key is there. Sends it no
    request, unless told to.
  - Returns entries for verify's report and never fails because of a failed check.
options:
  gateway_url:
    description: The gateway's URL without /v1.
    type: str
    required: true
  ca_file:
    description: File with the CAs that verify the certificate of an https URL of the gateway.
    type: path
  metrics_url:
    description: The URL of the gateway's metrics port.
    type: str
    required: true
  key:
    description: An API key of the gateway.
    type: str
    required: true
  url:
    description: LiteLLM's URL without /v1.
    type: str
    required: true
  key_file:
    description: The file with LiteLLM's master key.
    type: path
    required: true
  host_address:
    description: An address of the host at which LiteLLM must not listen.
    type: str
    required: true
  version:
    description: The version that the lock file names.
    type: str
    required: true
  deployments:
    description: The names of LiteLLM's deployments, each ENGINE/MODEL.
    type: list
    elements: str
    required: true
  direct:
    description: The engines and models whose requests go without LiteLLM.
    type: list
    elements: str
    required: true
  provider_models:
    description: The models of other providers, one for each item of litellm_model_list.
    type: list
    elements: str
    default: []
  provider_keys:
    description: The names of the providers' keys.
    type: list
    elements: str
    default: []
  environment_file:
    description: The file with the providers' keys by their names, in JSON.
    type: path
  call_providers:
    description: Whether to send a chat, which may cost something, to each model of a provider.
    type: bool
    default: false
  seconds:
    description: How long all requests together may take. Those without an answer until then have failed.
    type: float
    default: 60
author: Bedplate
"""

EXAMPLES = r"""
- name: Check LiteLLM
  litellm_checks:
    gateway_url: http://127.0.0.1:8000
    metrics_url: http://127.0.0.1:9464
    key: "{{ verify_key }}"
    url: http://127.0.0.1:4000
    key_file: /etc/bedplate/bedplate-gateway/litellm-key
    host_address: 192.168.1.10
    version: 1.110.2
    deployments: ["gpu1/llama3.2:3b"]
    direct: []
  register: litellm
"""

RETURN = r"""
checks:
  description: Entries for verify's report, as playbooks/module_utils/checks.py describes them.
  returned: always
  type: list
  elements: dict
"""

JOURNAL = "journalctl -u litellm -n 50"
CONFIGURE = "ansible-playbook site.yml --tags litellm"
WARM_UP = "warm-up"
COUNT_SECONDS = 5.0
# After LiteLLM's start the gateway uses it once it has answered five polls.
USE_SECONDS = 20.0
COUNTER = re.compile(
    r'^litellm_proxy_total_requests_metric_total{.*requested_model="([^"]*)".*} (\S+)$', re.M
)
UP = re.compile(r"^bedplate_gateway_litellm_up 1", re.MULTILINE)
SERVED = re.compile(r'^bedplate_gateway_engine_serves{engine="litellm",model="([^"]*)"} 1', re.MULTILINE)
# What LiteLLM's own clients may set in a request; no client of the gateway may.
CONTROL_FIELDS: dict[str, object] = {
    "api_base": "http://127.0.0.1:9",
    "mock_response": "steered",
    "fallbacks": [WARM_UP],
    "num_retries": 0,
}


class LiteLLM:
    """LiteLLM and its gateway, with a key for each."""

    def __init__(
        self, gateway: Gateway, metrics: Gateway, proxy: Gateway, *, key: str, master_key: str
    ) -> None:
        self.gateway, self.metrics, self.proxy = gateway, metrics, proxy
        self.key, self.master_key = key, master_key

    def count(self, deployments: list[str]) -> float:
        """Return how many requests for the deployments LiteLLM has counted."""
        text = self.metrics.request("GET", "/metrics/litellm").body.decode(errors="replace")
        return sum(float(value) for name, value in COUNTER.findall(text) if name in deployments)

    def in_use(self) -> bool:
        """Return whether the gateway sends requests through LiteLLM."""
        return bool(UP.search(self.metrics.request("GET", "/metrics").body.decode(errors="replace")))


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether a condition became true within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.25)
    return True


def check_version(litellm: LiteLLM, version: str) -> Check:
    """Check the version in the header of an answer that LiteLLM gives itself."""
    answer = litellm.proxy.chat(litellm.master_key, WARM_UP)
    seen = answer.headers.get("x-litellm-version", litellm.proxy.describe(answer))
    return check("LiteLLM runs the locked version", seen == version, seen, CONFIGURE)


def check_address(host_address: str, port: int) -> Check:
    """Check that nobody can connect to LiteLLM at the host's own address."""
    try:
        socket.create_connection((host_address, port), timeout=2).close()
        accepted = not host_address.startswith("127.")
    except OSError:
        accepted = False
    seen = f"a connection to {host_address}:{port} was {'accepted' if accepted else 'refused'}"
    return check("LiteLLM listens on loopback only", not accepted, seen, f"ss -ltn sport = :{port}")


def check_key(litellm: LiteLLM) -> Check:
    """Check that LiteLLM refuses requests without its own key."""
    answers = [litellm.proxy.models(key) for key in ("", litellm.key)]
    seen = ", ".join(litellm.proxy.describe(answer) for answer in answers)
    refused = all(answer.status in {400, 401, 403} for answer in answers)
    return check("LiteLLM refuses requests without a key and with a client's", refused, seen, JOURNAL)


def check_deployments(litellm: LiteLLM, deployments: list[str]) -> Check:
    """Check that LiteLLM has exactly the deployments of the inventory, and the models of providers."""
    listed = litellm.proxy.models(litellm.master_key)
    names = sorted(set(model_names(listed)) - {WARM_UP})
    seen = ", ".join(names) if listed.status == 200 else litellm.proxy.describe(listed)
    return check("LiteLLM has every model of every engine", names == sorted(deployments), seen, CONFIGURE)


def check_providers(litellm: LiteLLM, models: list[str], keys: list[str], file: str) -> Check:
    """Check that the gateway serves each model of a provider, and that LiteLLM's file has each key.

    The gateway's metrics tell it, because no key of the stack's own services may use such a model.
    """
    name = "each model of a provider is listed and has its key"
    if not models:
        return check(name, None, "litellm_model_list is empty", CONFIGURE)
    metrics = litellm.metrics.request("GET", "/metrics")
    if metrics.status != 200:
        return check(name, None, litellm.metrics.describe(metrics), JOURNAL)
    names = set(models)
    missing = sorted(names - set(SERVED.findall(metrics.body.decode(errors="replace"))))
    try:
        environment = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        environment = {}
    absent = [key for key in keys if not environment.get(key)]
    seen = f"{len(names) - len(missing)} of {len(names)} models are listed"
    seen += f" without {', '.join(missing)}" if missing else ""
    seen += "".join(f", {model} has {items} items" for model, items in Counter(models).items() if items > 1)
    seen += f", {file} has no {', '.join(absent)}" if absent else f", with {len(keys)} keys"
    return check(name, not missing and not absent, seen, CONFIGURE)


def call_provider(litellm: LiteLLM, model: str) -> Check:
    """Send a chat to a provider's model, without the gateway."""
    answer = litellm.proxy.chat(litellm.master_key, model)
    seen = litellm.proxy.describe(answer)
    return check(f"the provider of {model} answers", answer.status == 200, seen, JOURNAL)


def models_of(deployments: list[str]) -> list[str]:
    """Return the models of the deployments, each once."""
    return list(dict.fromkeys(deployment.partition("/")[2] for deployment in deployments))


def chat_model(litellm: LiteLLM, models: list[str]) -> tuple[str, Answer] | None:
    """Send a chat request to each model until one supports chat; return it with its answer."""
    for model in models:
        answer = litellm.gateway.chat(litellm.key, model)
        if answer.status != 400:
            return model, answer
    return None


def check_lane(litellm: LiteLLM, deployments: list[str], *, through: bool) -> Check:
    """Check that a chat for one of the deployments went through LiteLLM, or did not."""
    name = "a chat goes through LiteLLM" if through else "a chat for a direct model goes without LiteLLM"
    if not deployments:
        return check(name, None, f"gateway_direct names {'every' if through else 'no'} model", JOURNAL)
    polled = litellm.metrics.request("GET", "/metrics")
    if polled.status != 200:
        return check(name, None, litellm.metrics.describe(polled), JOURNAL)
    runs = litellm.proxy.models(litellm.master_key).status != -1
    seconds = min(USE_SECONDS, litellm.metrics.seconds_left()) if runs else 0
    if through and not wait_until(litellm.in_use, seconds):
        return check(name, False, "the gateway bypasses LiteLLM", JOURNAL)
    before = litellm.count(deployments)
    asked = chat_model(litellm, models_of(deployments))
    if asked is None:
        return check(name, None, "no model supports chat", JOURNAL)
    model, answer = asked
    if answer.status != 200:
        # Other checks report that; LiteLLM is not the reason, because the gateway can bypass it.
        return check(name, None, f"{model}: {litellm.gateway.describe(answer)}", JOURNAL)
    has_id = bool(answer.headers.get("x-litellm-call-id"))
    counted = wait_until(lambda: litellm.count(deployments) > before, COUNT_SECONDS if through else 1.0)
    number = litellm.count(deployments) - before
    seen = (
        f"{model}: {litellm.gateway.describe(answer)}, LiteLLM counted {number:.0f} requests, "
        f"the answer has {'its' if has_id else 'no'} call id"
    )
    return check(name, has_id == counted == through, seen, JOURNAL)


def check_control_fields(litellm: LiteLLM, models: list[str]) -> Check:
    """Check that fields that steer LiteLLM have no effect in a client's request."""
    name = "clients cannot steer LiteLLM"
    seen = "there is no model"
    for model in models:
        plain = litellm.gateway.chat(litellm.key, model)
        if plain.status != 200:
            seen = f"no model answers a chat; {model}: {litellm.gateway.describe(plain)}"
            continue
        answer = litellm.gateway.chat(litellm.key, model, **CONTROL_FIELDS)
        effect = answer.status != 200 or b"steered" in answer.body
        seen = f"{', '.join(CONTROL_FIELDS)}: {litellm.gateway.describe(answer)}"
        return check(name, not effect, seen, JOURNAL)
    return check(name, None, seen, JOURNAL)


def litellm_checks(
    litellm: LiteLLM,
    version: str,
    host_address: str,
    *,
    deployments: list[str],
    direct: list[str],
    provider_models: list[str],
) -> list[Check]:
    """Run all checks but those of the providers."""
    lanes: dict[bool, list[str]] = {True: [], False: []}
    for deployment in deployments:
        engine, _, model = deployment.partition("/")
        lanes[engine not in direct and model not in direct].append(deployment)
    port = int(litellm.proxy.url.rpartition(":")[2])
    return [
        check_version(litellm, version),
        check_address(host_address, port),
        check_key(litellm),
        check_deployments(litellm, [*deployments, *set(provider_models)]),
        check_lane(litellm, lanes[True], through=True),
        check_lane(litellm, lanes[False], through=False),
        check_control_fields(litellm, models_of(deployments)),
    ]


def main() -> None:
    """Run the module."""
    text = {"type": "str", "required": True}
    texts = {"type": "list", "elements": "str", "required": True}
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            **dict.fromkeys(("gateway_url", "metrics_url", "url", "host_address", "version"), text),
            "key": text | {"no_log": True},
            "key_file": {"type": "path", "required": True, "no_log": False},
            "ca_file": {"type": "path"},
            "deployments": texts,
            "direct": texts,
            "provider_models": names,
            "provider_keys": names | {"no_log": False},
            "environment_file": {"type": "path"},
            "call_providers": {"type": "bool", "default": False},
            "seconds": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        master_key = Path(params["key_file"]).read_text(encoding="utf-8").strip()
    except OSError as error:
        module.fail_json(msg=f"LiteLLM's master key cannot be read ({error}): ansible-playbook site.yml")
    deadline = time.monotonic() + params["seconds"]
    litellm = LiteLLM(
        Gateway(params["gateway_url"], ca_file=params["ca_file"], deadline=deadline),
        Gateway(params["metrics_url"], deadline=deadline),
        Gateway(params["url"], "LiteLLM", deadline=deadline),
        key=params["key"],
        master_key=master_key,
    )
    models = params["provider_models"]
    checks = litellm_checks(
        litellm,
        params["version"],
        params["host_address"],
        deployments=params["deployments"],
        direct=params["direct"],
        provider_models=models,
    )
    checks.append(check_providers(litellm, models, params["provider_keys"], params["environment_file"]))
    if params["call_providers"]:
        checks += [call_provider(litellm, model) for model in dict.fromkeys(models)]
    module.exit_json(changed=False, checks=checks)


if __name__ == "__main__":
    main()
