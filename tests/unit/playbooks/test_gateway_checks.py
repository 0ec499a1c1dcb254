"""gateway_checks: results for a correct gateway, and for gateways with one defect each."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.fake_gateway import MODEL, FakeGateway, running

KEY, LIMIT_KEY = "sk-verify", "sk-verify-limit"
LISTED = "the gateway lists every declared model"
READY = "the gateway reports ready"
WITHOUT_KEY = "a request without a key is refused"
WRONG_KEY = "a request with a wrong key is refused"
CLOSED = "internal paths return 404"
OVER_LIMIT = "the request over the limit is refused"
HEADERS = "responses report the remaining limits"
STREAMS = "messages and responses are answered and counted on the key"


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with running() as server:
        server.keys = {KEY, LIMIT_KEY}
        server.limits = {LIMIT_KEY: ("requests", 10)}
        server.reported_limits = dict(server.limits)
        yield server


@pytest.fixture(scope="module")
def module(load_source: Callable[[str], ModuleType]) -> ModuleType:
    return load_source("playbooks/library/gateway_checks.py")


@pytest.fixture
def checks(
    module: ModuleType, run_module: Callable[..., dict[str, Any]], gateway: FakeGateway
) -> Callable[..., dict[str, dict[str, Any]]]:
    """Run the module against the fake and return its checks by name."""

    def run(*models: str, url: str = "", seconds: float = 60) -> dict[str, dict[str, Any]]:
        keys = {"key": KEY, "limit_key": LIMIT_KEY}
        params = {"url": url or gateway.url, **keys, "models": models or [MODEL], "seconds": seconds}
        params["metrics_url"] = gateway.url
        params["drains_file"] = "/nonexistent/drains.json"
        entries = run_module(module, params)["checks"]
        assert [sorted(check) for check in entries] == [["name", "next", "ok", "seen"]] * 8
        return {check["name"]: check for check in entries}

    return run


Checks = Callable[..., dict[str, dict[str, Any]]]


def failed(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the observations of the failed checks by name."""
    return {name: check["seen"] for name, check in results.items() if check["ok"] is False}


def test_a_correct_gateway_passes_all_checks(checks: Checks, gateway: FakeGateway) -> None:
    results = checks()
    assert {check["ok"] for check in results.values()} == {True}
    assert results[LISTED]["seen"] == MODEL
    assert results[OVER_LIMIT]["seen"] == "10 passed, then 429 with Retry-After 60"
    assert gateway.used[LIMIT_KEY] == 10


def test_a_used_up_limit_is_not_waited_for(checks: Checks, gateway: FakeGateway) -> None:
    gateway.used[LIMIT_KEY] = 4
    gateway.retry_after = "12"
    assert checks()[OVER_LIMIT]["seen"] == "6 passed, then 429 with Retry-After 12"
    results = checks()
    assert failed(results) == {}
    assert results[OVER_LIMIT]["seen"] == "0 passed, then 429 with Retry-After 12"


def test_requests_of_an_earlier_verify_may_stop_counting_one_by_one(module: ModuleType) -> None:
    left = iter([200] * 8 + [429] * 99)

    class Limited:
        def chat(self, *_: str) -> Any:
            headers = {"x-ratelimit-remaining-requests": "0"}
            return module.Answer(next(left), headers, b"", 0.0, 0.0)

    answers = module.use_up_limit(Limited(), LIMIT_KEY, [MODEL])
    assert [answer.status for answer in answers] == [200] * 8 + [429]


@pytest.mark.parametrize(
    ("attribute", "value", "seen"),
    [
        ("limits", {LIMIT_KEY: ("requests", 11)}, "11 passed, then 429 with Retry-After 60"),
        ("limits", {LIMIT_KEY: ("requests", 9)}, "9 passed, then 429 with Retry-After 60"),
        ("retry_after", "61", "10 passed, then 429 with Retry-After 61"),
        ("retry_after", "30", "10 passed, then 429 with Retry-After 30"),
        ("retry_after", "soon", "10 passed, then 429 with Retry-After soon"),
        ("chat_status", 502, "status 502 engine_error"),
    ],
)
def test_an_inexact_limit_is_detected(
    checks: Checks, gateway: FakeGateway, attribute: str, value: object, seen: str
) -> None:
    setattr(gateway, attribute, value)
    results = checks()
    assert results[OVER_LIMIT]["ok"] is False
    assert results[OVER_LIMIT]["seen"] == seen


def test_missing_headers_are_detected(checks: Checks, gateway: FakeGateway) -> None:
    gateway.headers = False
    assert failed(checks())[HEADERS] == (
        "missing: x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests"
    )


def test_a_dead_engine_is_distinguished_from_an_old_configuration(
    checks: Checks, gateway: FakeGateway
) -> None:
    gateway.models = []
    gateway.ready = 503
    results = checks()
    assert failed(results) == {
        LISTED: f"no model; {MODEL}: status 503 engine_unavailable",
        READY: "status 503",
    }
    assert results[LISTED]["next"] == "journalctl -u bedplate-gateway -n 50"
    assert [results[name]["ok"] for name in (OVER_LIMIT, HEADERS)] == [None, None]


def test_one_of_two_models_is_enough(checks: Checks) -> None:
    results = checks("gone:1b", MODEL)
    assert failed(results) == {LISTED: f"{MODEL}; gone:1b: status 503 engine_unavailable"}


def test_streams_are_counted(checks: Checks, gateway: FakeGateway) -> None:
    seen = checks()[STREAMS]["seen"]
    assert seen == "/v1/messages: status 200, /v1/responses: status 200, 2 tokens counted"
    gateway.tokens_of_a_stream = 0
    assert "0 tokens counted" in failed(checks())[STREAMS]


def test_a_stream_without_its_end_and_a_path_that_is_missing_are_detected(
    checks: Checks, gateway: FakeGateway
) -> None:
    gateway.stream_ends["/v1/responses"] = "response.failed"
    assert "/v1/responses: its stream did not end" in failed(checks())[STREAMS]
    del gateway.stream_ends["/v1/messages"]
    assert "/v1/messages: status 404 unknown_url" in failed(checks())[STREAMS]


def test_a_model_without_chat_is_no_fault_of_its_own(checks: Checks, gateway: FakeGateway) -> None:
    gateway.chat_status = 400
    assert checks()[STREAMS]["ok"] is None


def test_open_paths_are_detected(checks: Checks, gateway: FakeGateway) -> None:
    gateway.open_paths = {"/metrics", "/v1/models"}
    results = failed(checks())
    assert results[CLOSED] == "/metrics: status 200"
    assert (results[WITHOUT_KEY], results[WRONG_KEY]) == ("status 200", "status 200")


def test_keys_that_the_host_does_not_have(checks: Checks, gateway: FakeGateway) -> None:
    gateway.keys = {KEY}
    results = checks()
    assert failed(results)[OVER_LIMIT] == "the key `verify-limit` is refused with 401"
    gateway.keys = {LIMIT_KEY}
    results = checks()
    assert failed(results)[LISTED] == "the key `verify` is refused with 401"
    assert results[LISTED]["next"] == "ansible-playbook site.yml --tags keys"


@pytest.mark.parametrize("edge", [True, False])
def test_a_stopped_gateway(checks: Checks, gateway: FakeGateway, edge: bool) -> None:
    """With the edge, which then answers itself, and without."""
    gateway.edge_only = edge
    if not edge:
        gateway.shutdown()
        gateway.server_close()
    results = failed(checks())
    assert results.keys() == {LISTED, READY, WITHOUT_KEY, WRONG_KEY, CLOSED}
    assert set(results.values()) == {f"the gateway does not respond at {gateway.url}"}


def test_a_gateway_that_hangs_is_not_waited_for(checks: Checks) -> None:
    """The kernel accepts connections for a stopped process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        results = checks(url=url, seconds=1.5)
        assert time.monotonic() - started < 5
    assert {check["ok"] for check in results.values()} == {False, None}
    assert {check["seen"] for check in results.values()} == {f"the gateway gave no answer in time at {url}"}


def test_after_a_question_without_an_answer_the_others_get_a_second(
    load_source: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = load_source("playbooks/module_utils/gateway_client.py")
    monkeypatch.setattr(client, "LIST_SECONDS", 0.2)
    monkeypatch.setattr(client, "SILENT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        gateway = client.Gateway(f"http://127.0.0.1:{server.getsockname()[1]}")
        first, second = gateway.models(KEY), gateway.chat(KEY, MODEL)
    assert (first.late, second.late) == (True, True)
    assert second.ended - second.started < 5


def test_models_of_drained_engines_are_not_asked(
    module: ModuleType, run_module: Callable[..., dict[str, Any]], gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.models = [MODEL, "other"]
    gateway.metrics = "\n".join(
        [
            'bedplate_gateway_engine_drained{engine="gpu1"} 1.0',
            'bedplate_gateway_engine_drained{engine="gpu2"} 0.0',
            f'bedplate_gateway_engine_serves{{engine="gpu1",model="{MODEL}"}} 1.0',
            'bedplate_gateway_engine_serves{engine="gpu2",model="other"} 1.0',
        ]
    )
    drains = tmp_path / "drains.json"
    drain = {"engine": "gpu1", "who": "kim", "since": "2026-03-01T14:02:00+00:00", "why": "new fan"}
    drains.write_text(json.dumps({"schema": 1, "drains": [drain]}))
    params = {"url": gateway.url, "metrics_url": gateway.url, "key": KEY, "limit_key": LIMIT_KEY}
    more = {"models": [MODEL, "other"], "drains_file": str(drains)}
    result = run_module(module, params | more)
    assert failed({check["name"]: check for check in result["checks"]}) == {}
    assert result["drained"] == {"gpu1": "gpu1 is drained by kim since 2026-03-01 14:02:00 UTC: new fan"}
    assert (result["waiting"], result["answering"]) == ([MODEL], ["other"])
    drains.write_text("broken")
    result = run_module(module, params | more)
    assert failed({check["name"]: check for check in result["checks"]}).keys() == {
        "the gateway knows the drained engines"
    }
