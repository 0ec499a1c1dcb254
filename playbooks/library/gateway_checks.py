#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Checks the running gateway's keys, paths, models and limits with requests as clients send them."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.checks import Check, check
from ansible.module_utils.drains import DRAINS_FILE, DrainError, Drains, describe, look, read_drains
from ansible.module_utils.gateway_client import JOURNAL_COMMAND, Answer, Gateway, model_names

DOCUMENTATION = r"""
module: gateway_checks
short_description: Check a running gateway as a client
description:
  - Requests the list of models, also without a key and with a wrong one, and paths that must not exist.
  - Sends chat requests of one token each, all at once, until the limit of requests per minute is used up, and
    one more, which must be refused. Earlier requests of the same minute count, so it never has to wait.
  - Requests a streamed message and a streamed response of one token each, and compares the tokens that the
    gateway has counted for the key before and after.
  - Returns entries for verify's report and never fails because of a failed check.
options:
  url:
    description: The gateway's URL without /v1.
    type: str
    required: true
  metrics_url:
    description: The URL of the gateway's metrics port.
    type: str
    required: true
  ca_file:
    description: File with the CAs that verify the certificate of an https URL.
    type: path
  key:
    description: The API key for all requests but those that test the limit.
    type: str
    required: true
  limit_key:
    description: An API key with a request limit that nothing else uses.
    type: str
    required: true
  models:
    description: The declared models.
    type: list
    elements: str
    required: true
  drains_file:
    description: The gateway's file of drained engines.
    type: path
    default: /var/lib/bedplate-gateway/drains.json
  seconds:
    description: How long all requests together may take. Those without an answer until then have failed.
    type: float
    default: 60
author: Bedplate
"""

EXAMPLES = r"""
- name: Check the gateway
  gateway_checks:
    url: http://127.0.0.1:8000
    metrics_url: http://127.0.0.1:9464
    key: "{{ verify_key }}"
    limit_key: "{{ verify_limit_key }}"
    models: ["llama3.2:3b"]
  register: gateway
"""

RETURN = r"""
checks:
  description: Entries for verify's report, as playbooks/module_utils/checks.py describes them.
  returned: always
  type: list
  elements: dict
drained:
  description: A sentence for each drained engine, by its name.
  returned: always
  type: dict
waiting:
  description: The declared models whose requests wait, since only drained engines could serve them.
  returned: always
  type: list
  elements: str
answering:
  description: The other declared models.
  returned: always
  type: list
  elements: str
"""

WINDOW_SECONDS = 60
MAX_ROUNDS = 12
"""More than the key verify-limit has requests per minute."""
# Paths of LiteLLM's proxy and of common servers; the gateway must not serve them.
CLOSED_PATHS = (
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/ui"),
    ("GET", "/models"),
    ("GET", "/v1/files"),
    ("POST", "/v1/audio/speech"),
    ("POST", "/key/generate"),
)
# Two APIs whose answers the gateway writes itself: a request of one token, and the events at its end.
STREAMS: tuple[tuple[str, dict[str, object], re.Pattern[bytes]], ...] = (
    (
        "/v1/messages",
        {"max_tokens": 1, "messages": [{"role": "user", "content": "Count to ten."}]},
        re.compile(rb"^event: message_stop$", re.MULTILINE),
    ),
    (
        "/v1/responses",
        {"max_output_tokens": 1, "input": "Count to ten."},
        re.compile(rb"^event: response\.(completed|incomplete)$", re.MULTILINE),
    ),
)
# The gateway has no series of its own for a key beyond the first thousands.
COUNTED = re.compile(
    r'^bedplate_gateway_completion_tokens_total{alias="(?:verify|\(other\))",.*} (\S+)$', re.MULTILINE
)
COUNT_SECONDS = 2.0
UPDATE_KEYS_COMMAND = "ansible-playbook site.yml --tags keys"


def check_models(gateway: Gateway, listed: Answer, key: str, declared: list[str]) -> Check:
    """Check the list of models; a request for a missing model finds out the reason."""
    name = "the gateway lists every declared model"
    if listed.status == 401:
        return check(name, False, "the key `verify` is refused with 401", UPDATE_KEYS_COMMAND)
    if listed.status != 200:
        return check(name, False, gateway.describe(listed), JOURNAL_COMMAND)
    names = model_names(listed)
    missing = [model for model in declared if model not in names]
    if not missing:
        return check(name, True, ", ".join(names), JOURNAL_COMMAND)
    why = gateway.chat(key, missing[0])
    return check(
        name,
        False,
        f"{', '.join(names) or 'no model'}; {missing[0]}: {gateway.describe(why)}",
        "ansible-playbook site.yml --tags gateway" if why.status == 404 else JOURNAL_COMMAND,
    )


def check_refused(gateway: Gateway, condition: str, key: str | None) -> Check:
    """Check that a request without a valid key returns 401; `condition` completes the check's name."""
    answer = gateway.request("GET", "/v1/models", key)
    seen = gateway.describe(answer)
    return check(f"a request {condition} is refused", answer.status == 401, seen, JOURNAL_COMMAND)


def check_closed(gateway: Gateway, key: str) -> Check:
    """Check that each of CLOSED_PATHS returns 404."""
    name = "internal paths return 404"
    answers = [(path, gateway.request(method, path, key)) for method, path in CLOSED_PATHS]
    if all(answer.status == -1 for _, answer in answers):
        return check(name, False, gateway.describe(answers[0][1]), JOURNAL_COMMAND)
    others = [f"{path}: {gateway.describe(answer)}" for path, answer in answers if answer.status != 404]
    seen = ", ".join(others) or f"{len(CLOSED_PATHS)} paths, each 404"
    return check(name, not others, seen, JOURNAL_COMMAND)


def use_up_limit(gateway: Gateway, key: str, models: list[str]) -> list[Answer]:
    """Send chat requests until one exceeds the limit: one, then all that are left plus one at once.

    Uses the first of the models that supports chat.
    """
    for model in models:
        answers = [gateway.chat(key, model)]
        if answers[0].status != 400:
            break
    # Requests of a minute ago stop counting meanwhile, at worst one after each round.
    newest = answers
    for _ in range(MAX_ROUNDS):
        left = min((answer.number("x-ratelimit-remaining-requests") for answer in newest), default=-1)
        if left < 0 or any(answer.status != 200 for answer in newest):
            break
        with ThreadPoolExecutor(left + 1) as pool:
            newest = list(pool.map(lambda _: gateway.chat(key, model), range(left + 1)))
        answers += newest
    return answers


def check_limit(gateway: Gateway, answers: list[Answer]) -> Check:
    """Check that exactly the request over the limit was refused, with a correct Retry-After."""
    name = "the request over the limit is refused"
    passed = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.over_limit()]
    others = [answer for answer in answers if answer not in passed + refused]
    if others:
        key_refused = others[0].status == 401
        seen = "the key `verify-limit` is refused with 401" if key_refused else gateway.describe(others[0])
        return check(name, False, seen, UPDATE_KEYS_COMMAND if key_refused else JOURNAL_COMMAND)
    if not refused:
        return check(name, False, f"{len(passed)} of {len(passed)} passed", JOURNAL_COMMAND)
    wait = refused[0].number("retry-after")
    seen = (
        f"{len(passed)} passed, then 429 with Retry-After {refused[0].headers.get('retry-after', 'missing')}"
    )
    limit = refused[0].number("x-ratelimit-limit-requests")
    exact = len(passed) <= limit and len(refused) == 1
    in_time = 1 <= wait <= WINDOW_SECONDS and retry_after_suffices(wait, passed, refused[0], limit)
    return check(name, exact and in_time, seen, JOURNAL_COMMAND)


def retry_after_suffices(wait: int, passed: list[Answer], refused: Answer, limit: int) -> bool:
    """Return whether a request is allowed again after `wait` seconds, judging by the first request's time."""
    first = min((answer.started for answer in passed), default=0.0)
    return len(passed) < limit or bool(refused.ended + wait >= first + WINDOW_SECONDS)


def check_headers(gateway: Gateway, answers: list[Answer]) -> Check:
    """Check the headers that report the remaining limits."""
    name = "responses report the remaining limits"
    wanted = [f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")]
    if silent := [answer for answer in answers if answer.status == -1]:
        return check(name, False, gateway.describe(silent[0]), JOURNAL_COMMAND)
    missing = sorted({header for answer in answers for header in wanted if header not in answer.headers})
    seen = f"missing: {', '.join(missing)}" if missing else ", ".join(wanted)
    return check(name, not missing, seen, JOURNAL_COMMAND)


def without_model(gateway: Gateway, listed: Answer) -> str:
    """Return why there is no model, from the response to the list of them."""
    return "there is no model to send requests to" if listed.status != -1 else gateway.describe(listed)


def check_limits(gateway: Gateway, limit_key: str, listed: Answer, models: list[str]) -> list[Check]:
    """Check limits and headers; without a model they cannot be checked."""
    if not models:
        return [
            check(name, None, without_model(gateway, listed), JOURNAL_COMMAND)
            for name in ("the request over the limit is refused", "responses report the remaining limits")
        ]
    answers = use_up_limit(gateway, limit_key, models)
    limited = [answer for answer in answers if answer.status in (200, 429)]
    return [check_limit(gateway, answers), check_headers(gateway, limited or answers)]


def counted_tokens(metrics: Gateway) -> float:
    """Return how many tokens of answers the gateway has counted for the key `verify`."""
    text = metrics.request("GET", "/metrics").body.decode(errors="replace")
    return sum(map(float, COUNTED.findall(text)))


def check_streams(gateway: Gateway, metrics: Gateway, key: str, listed: Answer, models: list[str]) -> Check:
    """Check that each of STREAMS is answered to its end, and that its tokens are counted on the key."""
    name = "messages and responses are answered and counted on the key"
    before, seen, answered = counted_tokens(metrics), [without_model(gateway, listed)], False
    for model in models:
        fields = {"model": model, "stream": True}
        answers = [
            (path, end, gateway.request("POST", path, key, fields | more)) for path, more, end in STREAMS
        ]
        seen = [f"{path}: {gateway.describe(answer)}" for path, _, answer in answers]
        if all(answer.status == 400 for *_, answer in answers):
            # The model has embeddings only.
            continue
        cut = [path for path, end, answer in answers if answer.status == 200 and not end.search(answer.body)]
        seen += [f"{path}: its stream did not end" for path in cut]
        answered = not cut and all(answer.status == 200 for *_, answer in answers)
        break
    else:
        return check(name, None, ", ".join(seen), JOURNAL_COMMAND)
    if not answered:
        return check(name, False, ", ".join(seen), JOURNAL_COMMAND)
    until = time.monotonic() + COUNT_SECONDS
    while (tokens := counted_tokens(metrics) - before) < len(STREAMS) and time.monotonic() < until:
        time.sleep(0.1)
    seen.append(f"{tokens:.0f} tokens counted")
    return check(name, tokens >= len(STREAMS), ", ".join(seen), JOURNAL_COMMAND)


def gateway_checks(
    gateway: Gateway, metrics: Gateway, keys: tuple[str, str], declared: list[str], waiting: list[str]
) -> list[Check]:
    """Run all checks with the two keys; requests for the `waiting` ones of the `declared` models wait."""
    key, limit_key = keys
    listed = gateway.models(key)
    models = [model for model in declared if model in model_names(listed) and model not in waiting]
    ready = gateway.request("GET", "/health/readiness")
    return [
        check_models(gateway, listed, key, declared),
        check("the gateway reports ready", ready.status == 200, gateway.describe(ready), JOURNAL_COMMAND),
        check_refused(gateway, "without a key", None),
        check_refused(gateway, "with a wrong key", "sk-wrong"),
        check_closed(gateway, key),
        *check_limits(gateway, limit_key, listed, models),
        check_streams(gateway, metrics, key, listed, models),
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "metrics_url": {"type": "str", "required": True},
            "key": {"type": "str", "required": True, "no_log": True},
            "limit_key": {"type": "str", "required": True, "no_log": True},
            "models": {"type": "list", "elements": "str", "required": True},
            "ca_file": {"type": "path"},
            "drains_file": {"type": "path", "default": DRAINS_FILE},
            "seconds": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    deadline = time.monotonic() + params["seconds"]
    gateway = Gateway(params["url"], ca_file=params["ca_file"], deadline=deadline)
    metrics = Gateway(params["metrics_url"], deadline=deadline)
    seen = look(metrics)
    broken: list[Check] = []
    drains: Drains = {}
    try:
        drains = read_drains(Path(params["drains_file"]))
    except DrainError as error:
        remedy = f"rm {params['drains_file']}"
        broken.append(check("the gateway knows the drained engines", False, str(error), remedy))
    waiting = seen.waiting(params["models"]) if seen else []
    keys = params["key"], params["limit_key"]
    checks = gateway_checks(gateway, metrics, keys, params["models"], waiting)
    module.exit_json(
        changed=False,
        checks=checks + broken,
        drained={engine: describe(engine, drain) for engine, drain in drains.items()},
        waiting=waiting,
        answering=[model for model in params["models"] if model not in waiting],
    )


if __name__ == "__main__":
    main()
