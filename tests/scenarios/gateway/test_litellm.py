"""LiteLLM in the path: nobody steers it, it retries once, and requests survive its faults."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.stack import ROOT, Load, Stack, wait_for

LANES = re.compile(r'^bedplate_gateway_lane_requests_total{lane="(\w+)"} (\S+)$', re.MULTILINE)
COUNTER = re.compile(
    r'^litellm_proxy_total_requests_metric_total{.*requested_model="one/smollm2:135m".*} (\S+)$', re.MULTILINE
)
# systemd kills a LiteLLM that hangs after 30 s.
WATCHDOG_SECONDS = 30
STARTED_SECONDS = 60.0
STEERING: list[dict[str, Any]] = [
    {"api_base": "http://127.0.0.1:9/v1"},
    {"base_url": "http://127.0.0.1:9/v1"},
    {"api_key": "sk-other"},
    {"fallbacks": ["warm-up"]},
    {"mock_response": "steered"},
    {"mock_testing_fallbacks": True},
    {"num_retries": 9},
    {"timeout": 0.001},
    {"request_timeout": 0.001},
    {"extra_headers": {"x-litellm-num-retries": "9"}},
    {"headers": {"x-litellm-num-retries": "9"}},
    {"metadata": {"tags": ["steered"]}},
    {"litellm_metadata": {"tags": ["steered"]}},
    {"guardrails": ["steered"]},
    {"router_settings_override": {"fallbacks": [{"one/smollm2:135m": ["warm-up"]}]}},
    {"caching": True},
    {"user": "steered"},
]


def lanes(stack: Stack) -> dict[str, float]:
    """Return the number of requests of each lane."""
    metrics = stack(f"curl --silent --fail {stack.metrics_url}")
    return {lane: float(value) for lane, value in LANES.findall(metrics)}


def counted(stack: Stack) -> float:
    """Return how many requests for the model LiteLLM has counted."""
    metrics = stack(f"curl --silent --fail {stack.metrics_url}/litellm")
    return sum(map(float, COUNTER.findall(metrics)))


def is_up(stack: Stack) -> bool:
    """Return whether the gateway sends requests through LiteLLM."""
    return "\nbedplate_gateway_litellm_up 1" in stack(f"curl --silent --fail {stack.metrics_url}")


@pytest.fixture(autouse=True)
def _in_use(stack: Stack) -> Iterator[None]:
    """LiteLLM is in use before each test; its restarts are forgotten after it, so that verify counts none."""
    wait_for(lambda: is_up(stack), STARTED_SECONDS)
    yield
    stack("systemctl reset-failed litellm")


@pytest.mark.parametrize("field", STEERING, ids=lambda field: next(iter(field)))
def test_no_field_of_a_client_steers_litellm(stack: Stack, field: dict[str, Any]) -> None:
    with stack.client(stack.key("bench")) as client:
        before = counted(stack)
        answer = stack.chat(client, **field)
        assert answer.status_code == 200, answer.text
        assert "steered" not in answer.text
        assert answer.json()["usage"]["completion_tokens"] == 1
        wait_for(lambda: counted(stack) == before + 1)


def test_no_header_and_no_query_of_a_client_steers_litellm(stack: Stack) -> None:
    headers = {
        "x-litellm-num-retries": "9",
        "x-litellm-timeout": "0.001",
        "x-litellm-tags": "steered",
        "x-litellm-api-base": "http://127.0.0.1:9/v1",
    }
    with stack.client(stack.key("bench")) as client:
        body = {"model": stack.model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
        answer = client.post(
            "/v1/chat/completions?mock_response=steered&model=warm-up", json=body, headers=headers
        )
    assert (answer.status_code, answer.json()["model"]) == (200, stack.model)
    assert "steered" not in answer.text
    assert "steered" not in stack(f"curl --silent --fail {stack.metrics_url}/litellm")


def test_both_lanes_answer_in_the_same_shape(stack: Stack) -> None:
    """The answers are those of one seed, whole and as a stream; ids and times differ."""

    def shape(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "id": "", "created": 0}

    def ask(stream: bool) -> list[dict[str, Any]]:
        fields = {"max_tokens": 8, "temperature": 0, "seed": 1, "stream": stream}
        with stack.client(stack.key("bench")) as client:
            answer = stack.chat(
                client, **fields, **({"stream_options": {"include_usage": True}} if stream else {})
            )
        assert answer.status_code == 200
        if not stream:
            return [shape(answer.json())]
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        return [shape(json.loads(event)) for event in events[:-1]]

    both = [ask(stream) for stream in (False, True)]
    stack("systemctl stop litellm")
    try:
        wait_for(lambda: not is_up(stack))
        both_direct = [ask(stream) for stream in (False, True)]
    finally:
        stack("systemctl start litellm")
    for through, direct in zip(both, both_direct, strict=True):
        print(f"\nthrough {through}\ndirect {direct}")
        assert through[-1]["usage"] == direct[-1]["usage"]
        assert [sorted(answer) for answer in through] == [sorted(answer) for answer in direct]
        assert [[sorted(choice) for choice in answer["choices"]] for answer in through] == [
            [sorted(choice) for choice in answer["choices"]] for answer in direct
        ]


def test_a_restart_under_load_fails_no_request(stack: Stack) -> None:
    before = lanes(stack)
    whole, streams = Load(stack, clients=8), Load(stack, clients=8, stream=True)
    with whole.running(), streams.running():
        time.sleep(2)
        stack("systemctl restart litellm")
        wait_for(lambda: is_up(stack), STARTED_SECONDS)
        time.sleep(2)
    assert whole.failed() == []
    assert streams.failed() == []
    assert lanes(stack)["bypass"] > before["bypass"]


def test_a_kill_under_load_fails_only_streams_that_have_begun(stack: Stack) -> None:
    """The kernel kills it in the same way when memory runs out."""
    whole, streams = Load(stack, clients=4), Load(stack, clients=4, stream=True)
    with whole.running(), streams.running():
        time.sleep(2)
        stack("systemctl kill --kill-whom=main --signal=KILL litellm")
        time.sleep(5)
    assert whole.failed() == []
    # Each client has at most one stream at a time.
    assert len(streams.failed()) <= 4


def test_requests_inside_a_hanging_litellm_are_answered_after_its_kill(stack: Stack) -> None:
    load = Load(stack, clients=4)
    with load.running():
        time.sleep(1)
        stack("systemctl kill --kill-whom=main --signal=STOP litellm")
        print(f"\nbypassed after {wait_for(lambda: not is_up(stack)):.1f} s")
        # The four requests inside it still wait; new ones are answered.
        with stack.client(stack.key("bench")) as client:
            assert stack.chat(client).status_code == 200
        time.sleep(WATCHDOG_SECONDS)
    assert load.failed() == []
    assert max(outcome.seconds for outcome in load.outcomes) < WATCHDOG_SECONDS + 15
    assert "Watchdog timeout" in stack("journalctl --unit litellm --since -2min --no-pager")


def test_a_taken_port_keeps_litellm_down_and_requests_direct(stack: Stack) -> None:
    stack("systemctl stop litellm")
    stack("systemd-run --quiet --unit=other-server python3 -m http.server --bind 127.0.0.1 4000")
    try:
        stack("systemctl start litellm", fails=True)
        journal = stack("journalctl --unit litellm --since -1min --no-pager")
        assert "127.0.0.1:4000 cannot be used (Address already in use): set litellm_listen_port" in journal
        with stack.client(stack.key("bench")) as client:
            assert stack.chat(client).status_code == 200
        wait_for(lambda: not is_up(stack))
    finally:
        stack("systemctl stop other-server; systemctl reset-failed litellm; systemctl restart litellm")


def test_a_configuration_that_litellm_refuses_leaves_the_old_one_in_service(stack: Stack) -> None:
    """A fake `litellm` reports that it skipped an entry, as the real one does for one that it cannot read."""
    state = "systemctl show --property=MainPID --value litellm; cat /etc/bedplate/litellm/config.yaml"
    before = stack(state)
    program = "/opt/bedplate/litellm/current/bin/litellm"
    stack(f"cp -a {program} /root/litellm && printf '#!/bin/sh\necho \"config OK (1 models)\"\n' >{program}")
    try:
        output = stack.play_fails("--tags", "litellm", settings={"gateway_load_timeout_seconds": 400})
    finally:
        stack(f"cp -a /root/litellm {program} && rm /root/litellm")
    assert "LiteLLM does not accept all 2 models: config OK (1 models)" in output
    assert stack(state) == before


def test_a_direct_host_is_reached_without_litellm(stack: Stack) -> None:
    direct = {"gateway_direct": ["one"]}
    stack.play("--tags", "gateway", settings=direct)
    try:
        before = lanes(stack)
        with stack.client(stack.key("bench")) as client:
            answer = stack.chat(client)
        assert (answer.status_code, "x-litellm-call-id" in answer.headers) == (200, False)
        wait_for(lambda: lanes(stack)["direct"] == before["direct"] + 1)
        stack.play(playbook="playbooks/verify.yml", settings=direct)
        report = json.loads((ROOT / "reports/verify.json").read_text())
        (check,) = [
            each
            for each in report["checks"]
            if each["name"] == "a chat for a direct model goes without LiteLLM"
        ]
        assert check["ok"] is True
    finally:
        stack.play("--tags", "gateway")
