"""gateway_promises: what it says of a gateway that keeps its promises, and of ones that break one each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from fake_gateway import MODEL, FakeGateway, running

KEY, LIMIT_KEY = "sk-verify", "sk-verify-limit"
LISTED = "the gateway lists every declared model"
READY = "the gateway says that it is ready"
WITHOUT_KEY = "a request without a key is refused"
WRONG_KEY = "a request with a wrong key is refused"
CLOSED = "paths that are not for clients are closed"
OVER_LIMIT = "the request over the limit is refused"
HEADERS = "answers say what is left of the limits"


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with running() as server:
        server.keys = {KEY, LIMIT_KEY}
        server.limits = {LIMIT_KEY: ("requests", 10)}
        server.told_limits = dict(server.limits)
        yield server


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/gateway_promises.py")


@pytest.fixture
def checks(
    module: ModuleType, run_module: Callable[..., dict[str, Any]], gateway: FakeGateway
) -> Callable[..., dict[str, dict[str, Any]]]:
    """Run the module against the fake and return its checks by name."""

    def run(*models: str, url: str = "") -> dict[str, dict[str, Any]]:
        params = {"url": url or gateway.url, "key": KEY, "limit_key": LIMIT_KEY, "models": models or [MODEL]}
        found = run_module(module, params)["checks"]
        assert [sorted(check) for check in found] == [["name", "next", "ok", "seen"]] * 7
        return {check["name"]: check for check in found}

    return run


Checks = Callable[..., dict[str, dict[str, Any]]]


def failed(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What was seen where a promise does not hold."""
    return {name: check["seen"] for name, check in found.items() if check["ok"] is False}


def test_a_good_gateway_keeps_them_all(checks: Checks, gateway: FakeGateway) -> None:
    found = checks()
    assert {check["ok"] for check in found.values()} == {True}
    assert found[LISTED]["seen"] == MODEL
    assert found[OVER_LIMIT]["seen"] == "10 passed, then 429 with Retry-After 60"
    assert gateway.used[LIMIT_KEY] == 10


def test_a_limit_that_is_used_up_is_not_waited_for(checks: Checks, gateway: FakeGateway) -> None:
    gateway.used[LIMIT_KEY] = 4
    gateway.retry_after = "12"
    assert checks()[OVER_LIMIT]["seen"] == "6 passed, then 429 with Retry-After 12"
    found = checks()
    assert failed(found) == {}
    assert found[OVER_LIMIT]["seen"] == "0 passed, then 429 with Retry-After 12"


@pytest.mark.parametrize(
    ("what", "value", "seen"),
    [
        ("limits", {LIMIT_KEY: ("requests", 11)}, "11 passed, then 429 with Retry-After 60"),
        ("limits", {LIMIT_KEY: ("requests", 9)}, "9 passed, then 429 with Retry-After 60"),
        ("retry_after", "61", "10 passed, then 429 with Retry-After 61"),
        ("retry_after", "30", "10 passed, then 429 with Retry-After 30"),
        ("retry_after", "soon", "10 passed, then 429 with Retry-After soon"),
        ("chat_status", 502, "status 502 engine_error"),
    ],
)
def test_an_inexact_limit_is_seen(
    checks: Checks, gateway: FakeGateway, what: str, value: object, seen: str
) -> None:
    setattr(gateway, what, value)
    found = checks()
    assert found[OVER_LIMIT]["ok"] is False
    assert found[OVER_LIMIT]["seen"] == seen


def test_missing_headers_are_seen(checks: Checks, gateway: FakeGateway) -> None:
    gateway.headers = False
    assert failed(checks())[HEADERS] == (
        "missing: x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests"
    )


def test_a_dead_engine_is_told_from_an_old_configuration(checks: Checks, gateway: FakeGateway) -> None:
    gateway.models = []
    gateway.ready = 503
    found = checks()
    assert failed(found) == {LISTED: f"no model; {MODEL}: status 503 engine_unavailable", READY: "status 503"}
    assert found[LISTED]["next"] == "journalctl -u bedplate-gateway -n 50"
    assert [found[name]["ok"] for name in (OVER_LIMIT, HEADERS)] == [None, None]


def test_one_of_two_models_is_enough_to_ask(checks: Checks) -> None:
    found = checks("gone:1b", MODEL)
    assert failed(found) == {LISTED: f"{MODEL}; gone:1b: status 503 engine_unavailable"}


def test_open_doors_are_seen(checks: Checks, gateway: FakeGateway) -> None:
    gateway.open_paths = {"/metrics", "/v1/models"}
    found = failed(checks())
    assert found[CLOSED] == "/metrics: status 200"
    assert (found[WITHOUT_KEY], found[WRONG_KEY]) == ("status 200", "status 200")


def test_keys_that_the_host_does_not_know(checks: Checks, gateway: FakeGateway) -> None:
    gateway.keys = {KEY}
    found = checks()
    assert failed(found)[OVER_LIMIT] == "the key `verify-limit` is refused with 401"
    gateway.keys = {LIMIT_KEY}
    found = checks()
    assert failed(found)[LISTED] == "the key `verify` is refused with 401"
    assert found[LISTED]["next"] == "ansible-playbook site.yml --tags keys"


def test_a_stopped_gateway(checks: Checks, gateway: FakeGateway) -> None:
    gateway.shutdown()
    gateway.server_close()
    found = failed(checks())
    assert found.keys() == {LISTED, READY, WITHOUT_KEY, WRONG_KEY, CLOSED}
    assert set(found.values()) == {f"the gateway does not answer at {gateway.url}"}
