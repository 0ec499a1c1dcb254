#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Loads the gateway to prove what cannot be proven otherwise: exact limits, and classes that overtake."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gateway_client import Answer, Check, Gateway, check, model_names

DOCUMENTATION = r"""
module: gateway_smoke
short_description: Prove limits and priorities of the running gateway under load
description:
  - Loads the whole stack for a minute or two. First it waits until nobody has used the keys for a minute.
  - Requests, half as many again as the key C(rpm_key) may send in a minute, all at once. Exactly its limit
    passes.
  - Questions with the key C(tpm_key), every other one streamed, until its tokens are used up.
  - A backlog of the key C(low_key), and meanwhile questions of the key C(high_key), which overtake it.
  - Returns lines of a report and never fails on what was seen. A key that is empty is not asked with.
options:
  url:
    description: The gateway's address without /v1.
    type: str
    required: true
  rpm_key:
    description: A key with a limit of requests and no other.
    type: str
    required: true
  tpm_key:
    description: A key with a limit of tokens and no other.
    type: str
    required: true
  high_key:
    description: A key of class high without limits.
    type: str
    required: true
  low_key:
    description: A key of class low without limits.
    type: str
    required: true
author: Bedplate
"""

EXAMPLES = r"""
- name: Load the gateway
  gateway_smoke:
    url: http://127.0.0.1:8000
    rpm_key: "{{ keys.ratelimit }}"
    tpm_key: "{{ keys.tpm }}"
    high_key: "{{ keys.interactive }}"
    low_key: "{{ keys.batch }}"
  register: smoke
"""

RETURN = r"""
checks:
  description: One entry a promise, as the report has them.
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
BACKLOG = 40
OVERTAKING = 5
TOKENS = 64
DECLARE = "declare it in litellm_keys, as inventory/lab/group_vars/all.yml does"


class CannotAskError(Exception):
    """A promise cannot be asked; the message says why."""


def whole(gateway: Gateway, alias: str, key: str, unit: str) -> tuple[str, int]:
    """Wait until a key's limit is whole again; return a model that it may use and the limit."""
    deadline = time.monotonic() + WINDOW_SECONDS + 5
    while True:
        listed = gateway.models(key)
        names = model_names(listed)
        limit = listed.number(f"x-ratelimit-limit-{unit}")
        if not key or listed.status == 401:
            raise CannotAskError(f"there is no key `{alias}`")
        if not names:
            raise CannotAskError("no model can be asked" if listed.status == 200 else gateway.seen(listed))
        if limit < 0:
            raise CannotAskError(f"the key `{alias}` has no limit of {unit}")
        if listed.number(f"x-ratelimit-remaining-{unit}") == limit:
            return names[0], limit
        if time.monotonic() > deadline:
            raise CannotAskError(f"somebody else uses the key `{alias}`")
        time.sleep(1)


def check_requests(gateway: Gateway, key: str) -> Check:
    """Send half as many again as may pass, and count."""
    name = "of the requests in a minute exactly the limit passes"
    try:
        model, limit = whole(gateway, "ratelimit", key, "requests")
    except CannotAskError as reason:
        return check(name, None, str(reason), DECLARE)
    sent = limit + limit // 2
    with ThreadPoolExecutor(sent) as pool:
        answers = list(pool.map(lambda _: gateway.chat(key, model), range(sent)))
    passed = sum(answer.status == 200 for answer in answers)
    refused = sum(answer.over_limit() for answer in answers)
    others = sorted(
        {gateway.seen(answer) for answer in answers if not answer.over_limit() and answer.status != 200}
    )
    took = max(answer.started for answer in answers) - min(answer.started for answer in answers)
    seen = "; ".join([f"{passed} of {sent} passed, {refused} got 429, sent within {took:.0f} s", *others])
    return check(name, passed == limit and refused == sent - limit and took < WINDOW_SECONDS, seen)


def check_tokens(gateway: Gateway, key: str) -> Check:
    """Ask until the tokens are used up."""
    name = "tokens end at the limit, streamed or not"
    try:
        model, limit = whole(gateway, "tpm", key, "tokens")
    except CannotAskError as reason:
        return check(name, None, str(reason), DECLARE)
    answers: list[Answer] = []
    while not answers or answers[-1].status == 200:
        answers.append(gateway.chat(key, model, TOKENS, stream=len(answers) % 2 == 1))
        if answers[-1].ended - answers[0].started > WINDOW_SECONDS:
            return check(name, None, f"the engine is too slow to use {limit} tokens up in a minute")
    used = [answer.tokens() for answer in answers[:-1]]
    if not answers[-1].over_limit():
        return check(name, False, gateway.seen(answers[-1]))
    seen = f"{sum(used)} of {limit} tokens in {len(used)} answers, the last of {used[-1] if used else 0}"
    return check(name, bool(used) and sum(used) >= limit > sum(used[:-1]), seen)


def check_overtaking(gateway: Gateway, high_key: str, low_key: str) -> Check:
    """Compare how long the classes wait while there is a backlog of the lower one."""
    name = "a higher class overtakes the backlog of a lower one"
    listed = gateway.models(high_key)
    if not high_key or not low_key or 401 in (listed.status, gateway.models(low_key).status):
        return check(name, None, "there are no keys `interactive` and `batch`", DECLARE)
    if not model_names(listed):
        return check(name, None, "no model can be asked" if listed.status == 200 else gateway.seen(listed))
    model = model_names(listed)[0]
    with ThreadPoolExecutor(BACKLOG) as pool:
        backlog = [pool.submit(gateway.chat, low_key, model, TOKENS) for _ in range(BACKLOG)]
        time.sleep(1)
        high = [gateway.chat(high_key, model, TOKENS) for _ in range(OVERTAKING)]
        low = [waiting.result() for waiting in backlog]
    failed = [answer for answer in high + low if answer.status != 200]
    if failed:
        return check(name, False, gateway.seen(failed[0]))
    high_wait, low_wait = (
        max(answer.number("x-bedplate-queue-ms") for answer in some) / 1000 for some in (high, low)
    )
    seen = (
        f"longest wait {high_wait:.1f} s in class high, {low_wait:.1f} s in class low with {BACKLOG} at once"
    )
    return check(name, 0 <= high_wait < low_wait / 2, seen)


def main() -> None:
    """Run the module."""
    names = ("rpm_key", "tpm_key", "high_key", "low_key")
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            **{name: {"type": "str", "required": True, "no_log": True} for name in names},
        },
        supports_check_mode=True,
    )
    gateway = Gateway(module.params["url"])
    rpm_key, tpm_key, high_key, low_key = (module.params[name] for name in names)
    checks = [
        check_requests(gateway, rpm_key),
        check_tokens(gateway, tpm_key),
        check_overtaking(gateway, high_key, low_key),
    ]
    module.exit_json(changed=False, checks=checks)


if __name__ == "__main__":
    main()
