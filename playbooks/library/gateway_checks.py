#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Asks the gateway as clients would, and judges what it promises about keys, paths, models and limits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gateway_client import LOOK, Answer, Check, Gateway, check, model_names

DOCUMENTATION = r"""
module: gateway_promises
short_description: Prove on the running gateway what clients are promised
description:
  - Asks for the models, without a key, with a wrong one, and at paths that are closed.
  - Uses a key's requests of this minute up with the smallest questions there are (one token each), all at
    once, and one more, which must be refused. What was used before counts, nothing is waited for.
  - Returns lines for verify's report and never fails on what was seen.
options:
  url:
    description: The gateway's address without /v1.
    type: str
    required: true
  key:
    description: The key that asks for the models.
    type: str
    required: true
  limit_key:
    description: A key with a limit of requests that nothing else uses.
    type: str
    required: true
  models:
    description: The declared models.
    type: list
    elements: str
    required: true
author: Bedplate
"""

EXAMPLES = r"""
- name: Ask the gateway
  gateway_promises:
    url: http://127.0.0.1:8000
    key: "{{ verify_key }}"
    limit_key: "{{ verify_limit_key }}"
    models: ["llama3.2:3b"]
  register: promises
"""

RETURN = r"""
checks:
  description: One entry a promise, as verify's report has them.
  returned: always
  type: list
  elements: dict
  contains:
    name: {description: The promise., type: str}
    ok: {description: Whether it holds; null where it could not be asked., type: bool}
    seen: {description: What was seen., type: str}
    next: {description: The command to type next., type: str}
"""

WINDOW_SECONDS = 60
CLOSED = (
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
KEYS = "ansible-playbook site.yml --tags keys"


def check_models(gateway: Gateway, listed: Answer, key: str, declared: list[str]) -> Check:
    """Judge the list of models; one that is missing is asked for, to learn why."""
    name = "the gateway lists every declared model"
    if listed.status == 401:
        return check(name, False, "the key `verify` is refused with 401", KEYS)
    if listed.status != 200:
        return check(name, False, gateway.seen(listed))
    names = model_names(listed)
    missing = [model for model in declared if model not in names]
    if not missing:
        return check(name, True, ", ".join(names))
    why = gateway.chat(key, missing[0])
    return check(
        name,
        False,
        f"{', '.join(names) or 'no model'}; {missing[0]}: {gateway.seen(why)}",
        "ansible-playbook site.yml --tags gateway" if why.status == 404 else LOOK,
    )


def check_refused(gateway: Gateway, what: str, key: str | None) -> Check:
    """Judge a request that must get 401."""
    answer = gateway.ask("GET", "/v1/models", key)
    return check(f"a request {what} is refused", answer.status == 401, gateway.seen(answer))


def check_closed(gateway: Gateway, key: str) -> Check:
    """Judge the paths that are not for clients."""
    name = "paths that are not for clients are closed"
    answers = [(path, gateway.ask(method, path, key)) for method, path in CLOSED]
    if all(answer.status == -1 for _, answer in answers):
        return check(name, False, gateway.seen(answers[0][1]))
    others = [f"{path}: {gateway.seen(answer)}" for path, answer in answers if answer.status != 404]
    return check(name, not others, ", ".join(others) or f"{len(CLOSED)} paths, each 404")


def spend(gateway: Gateway, key: str, models: list[str]) -> list[Answer]:
    """Ask until one is refused for the limit: one question, then as many at once as are left, and one more.

    The first of the models that knows chat is asked.
    """
    for model in models:
        answers = [gateway.chat(key, model)]
        if answers[0].status != 400:
            break
    # What was used a minute ago may become free meanwhile, hence up to three rounds.
    for _ in range(3):
        left = min((answer.number("x-ratelimit-remaining-requests") for answer in answers), default=-1)
        if left < 0 or any(answer.status != 200 for answer in answers):
            break
        with ThreadPoolExecutor(left + 1) as pool:
            answers += pool.map(lambda _: gateway.chat(key, model), range(left + 1))
    return answers


def check_limit(gateway: Gateway, answers: list[Answer]) -> Check:
    """Judge the requests of `spend`."""
    name = "the request over the limit is refused"
    passed = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.over_limit()]
    others = [answer for answer in answers if answer not in passed + refused]
    if others:
        key_refused = others[0].status == 401
        seen = "the key `verify-limit` is refused with 401" if key_refused else gateway.seen(others[0])
        return check(name, False, seen, KEYS if key_refused else LOOK)
    if not refused:
        return check(name, False, f"{len(passed)} of {len(passed)} passed")
    wait = refused[0].number("retry-after")
    seen = (
        f"{len(passed)} passed, then 429 with Retry-After {refused[0].headers.get('retry-after', 'missing')}"
    )
    limit = refused[0].number("x-ratelimit-limit-requests")
    exact = len(passed) <= limit and len(refused) == 1
    return check(
        name, exact and 1 <= wait <= WINDOW_SECONDS and suffices(wait, passed, refused[0], limit), seen
    )


def suffices(wait: int, passed: list[Answer], refused: Answer, limit: int) -> bool:
    """Say whether a place is free after `wait` seconds, as far as it is known when the first request came."""
    first = min((answer.started for answer in passed), default=0.0)
    return len(passed) < limit or bool(refused.ended + wait >= first + WINDOW_SECONDS)


def check_headers(answers: list[Answer]) -> Check:
    """Judge the headers that tell clients what is left."""
    wanted = [f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")]
    missing = sorted({header for answer in answers for header in wanted if header not in answer.headers})
    seen = f"missing: {', '.join(missing)}" if missing else ", ".join(wanted)
    return check("answers say what is left of the limits", not missing, seen)


def check_limits(gateway: Gateway, limit_key: str, models: list[str]) -> list[Check]:
    """Judge limits and headers."""
    if not models:
        return [
            check(name, None, "no model can be asked")
            for name in ("the request over the limit is refused", "answers say what is left of the limits")
        ]
    answers = spend(gateway, limit_key, models)
    told = [answer for answer in answers if answer.status in (200, 429)]
    return [check_limit(gateway, answers), check_headers(told or answers)]


def promises(gateway: Gateway, key: str, limit_key: str, declared: list[str]) -> list[Check]:
    """Return every check."""
    listed = gateway.models(key)
    ready = gateway.ask("GET", "/health/readiness")
    return [
        check_models(gateway, listed, key, declared),
        check("the gateway says that it is ready", ready.status == 200, gateway.seen(ready)),
        check_refused(gateway, "without a key", None),
        check_refused(gateway, "with a wrong key", "sk-wrong"),
        check_closed(gateway, key),
        *check_limits(gateway, limit_key, [model for model in declared if model in model_names(listed)]),
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "key": {"type": "str", "required": True, "no_log": True},
            "limit_key": {"type": "str", "required": True, "no_log": True},
            "models": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    checks = promises(Gateway(params["url"]), params["key"], params["limit_key"], params["models"])
    module.exit_json(changed=False, checks=checks)


if __name__ == "__main__":
    main()
