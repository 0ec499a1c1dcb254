"""gateway_smoke: what it says of a gateway that keeps its promises under load, and of ones that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from fake_gateway import FakeGateway, running

REQUESTS = "of the requests in a minute exactly the limit passes"
TOKENS = "tokens end at the limit, streamed or not"
OVERTAKING = "a higher class overtakes the backlog of a lower one"
RPM, TPM, HIGH, LOW = "sk-ratelimit", "sk-tpm", "sk-interactive", "sk-batch"
Smoke = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with running() as server:
        server.keys = {RPM, TPM, HIGH, LOW}
        server.limits = {RPM: ("requests", 20), TPM: ("tokens", 100)}
        server.waits = {HIGH: "400", LOW: "9000"}
        yield server


@pytest.fixture
def smoke(
    load_source: Callable[[str], ModuleType], run_module: Callable[..., dict[str, Any]], gateway: FakeGateway
) -> Smoke:
    """Run the module against the fake and return its checks by name."""
    module = load_source("playbooks/library/gateway_smoke.py")

    def run(**changed: str) -> dict[str, dict[str, Any]]:
        keys = {"rpm_key": RPM, "tpm_key": TPM, "high_key": HIGH, "low_key": LOW, **changed}
        return {check["name"]: check for check in run_module(module, {"url": gateway.url, **keys})["checks"]}

    return run


def test_a_good_gateway(smoke: Smoke) -> None:
    found = smoke()
    assert {name: check["seen"] for name, check in found.items()} == {
        REQUESTS: "20 of 30 passed, 10 got 429, sent within 0 s",
        TOKENS: "120 of 100 tokens in 3 answers, the last of 40",
        OVERTAKING: "longest wait 0.4 s in class high, 9.0 s in class low with 40 at once",
    }
    assert {check["ok"] for check in found.values()} == {True}


def test_limits_that_are_not_kept(smoke: Smoke, gateway: FakeGateway) -> None:
    gateway.told_limits = {RPM: ("requests", 22), TPM: ("tokens", 70)}
    found = smoke()
    assert (found[REQUESTS]["ok"], found[TOKENS]["ok"]) == (False, False)
    assert found[REQUESTS]["seen"] == "20 of 33 passed, 13 got 429, sent within 0 s"
    assert found[TOKENS]["seen"] == "120 of 70 tokens in 3 answers, the last of 40"


def test_a_class_that_does_not_overtake(smoke: Smoke, gateway: FakeGateway) -> None:
    gateway.waits[HIGH] = "5000"
    assert smoke()[OVERTAKING]["ok"] is False


def test_an_engine_that_fails(smoke: Smoke, gateway: FakeGateway) -> None:
    gateway.chat_status = 502
    found = smoke()
    assert {check["ok"] for check in found.values()} == {False}
    assert found[REQUESTS]["seen"].endswith("; status 502 engine_error")
    assert found[OVERTAKING]["seen"] == "status 502 engine_error"


def test_keys_that_are_not_there(smoke: Smoke, gateway: FakeGateway) -> None:
    gateway.keys = {TPM}
    gateway.limits = {}
    found = smoke(high_key="")
    assert {name: (check["ok"], check["seen"]) for name, check in found.items()} == {
        REQUESTS: (None, "there is no key `ratelimit`"),
        TOKENS: (None, "the key `tpm` has no limit of tokens"),
        OVERTAKING: (None, "there are no keys `interactive` and `batch`"),
    }


def test_a_gateway_without_models(smoke: Smoke, gateway: FakeGateway) -> None:
    gateway.models = []
    assert {(check["ok"], check["seen"]) for check in smoke().values()} == {(None, "no model can be asked")}
