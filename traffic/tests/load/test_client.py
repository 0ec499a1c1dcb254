"""The client: failed connections, time-outs, and lists of models."""

import json
import socket
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from bedplate_traffic.fake_engine.server import Behaviour, Fault

from traffic.tests.fake_endpoint import WHOLE, FakeEndpoint, events, exit_status, failure, refused
from traffic.tests.traffic_fakes import answering, engine, serving
from traffic.tests.traffic_runs import Ran, burst, profile


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("error", "status 500: the fake engine was configured to fail"),
        ("cut", "the connection broke in the middle of the answer"),
        ("garbage", "the stream ended without [DONE]"),
        ("silent", "no complete answer within 0.3 s"),
        ("stall", "no complete answer within 0.3 s"),
    ],
)
def test_a_fault_fails_only_its_own_request(tmp_path: Path, fault: Any, error: str) -> None:
    with engine(Behaviour(concurrency=50, tokens=2, faults=(Fault(fault, 0.5),))) as (url, fake):
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=20)), "--timeout", "0.3")
    assert ran.status == 1
    ((message, count),) = ran.only["errors"].items()
    assert message.startswith(error)
    assert count == ran.only["failed"]
    assert ran.only["answered"] + ran.only["failed"] == 20
    assert ran.only["answered"] == fake.outcomes["served"] > 0


def test_a_response_that_is_no_http_is_a_failure(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.write(b"\x00\xffSSH-2.0 no web server\r\n\r\n")
        request.transport.close()
        return web.Response()

    with serving(answering(handle)) as url:
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=1)))
    (error,) = ran.only["errors"]
    assert error == "the server's response is not valid HTTP"


def test_the_first_token_is_timed(fake: FakeEndpoint, tmp_path: Path) -> None:
    def slow_end(handler: BaseHTTPRequestHandler) -> None:
        events(handler, *WHOLE[:2])
        time.sleep(0.2)
        for item in WHOLE[2:]:
            handler.wfile.write(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode())

    fake.chat = slow_end
    file = tmp_path / "report.json"
    assert exit_status("--max", "1", "--json", str(file)) == 0
    (request,) = json.loads(file.read_text())["requests"]
    assert request["seconds"] - request["first_token_seconds"] > 0.15


def test_a_stream_that_breaks_off_fails_the_request(fake: FakeEndpoint, tmp_path: Path) -> None:
    def broken(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'data: {"choices"')

    fake.chat = broken
    assert failure(tmp_path)["error"].startswith("the connection broke")


def test_a_dropped_connection_fails_the_request(fake: FakeEndpoint, tmp_path: Path) -> None:
    fake.chat = lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)
    request = failure(tmp_path)
    assert request["status"] is None
    assert request["error"].startswith("the connection broke")


def test_a_hang_costs_the_time_limit(fake: FakeEndpoint, tmp_path: Path) -> None:
    def hang(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = fake.closing.wait(10)

    fake.chat = hang
    request = failure(tmp_path, "--timeout", "0.3")
    assert request["error"] == "no complete answer within 0.3 s"
    assert request["seconds"] < 1


def test_a_trickle_costs_the_time_limit(fake: FakeEndpoint, tmp_path: Path) -> None:
    def trickle(handler: BaseHTTPRequestHandler) -> None:
        events(handler)
        while not fake.closing.wait(0.05):
            handler.wfile.write(b"x")

    fake.chat = trickle
    request = failure(tmp_path, "--timeout", "0.3")
    assert request["error"] == "no complete answer within 0.3 s"
    assert request["seconds"] < 1


def test_a_wrong_key_is_refused(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    message = refused(capsys, "--max", "1")
    assert f"{fake.url} refuses the key (status 401: Wrong key Bearer [key])" in message
    assert "sk-wrong" not in message


def test_no_server_is_refused(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.close()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    sentence = "http://127.0.0.1:1/v1 cannot be used: no connection to the server (Connection refused)."
    assert sentence in refused(capsys, "--max", "1")


def test_an_unknown_model_is_refused(fake: FakeEndpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'m3' is not offered: choose one of m1, m2." in refused(capsys, "--max", "1", "--model", "m3")
    assert fake.bodies == []


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((200, {"data": []}), "offers no model"),
        ((200, b"<html>"), "no list of models"),
        ((200, {"data": 7}), "no list of models"),
        ((200, [1]), "no list of models"),
        ((500, b""), "cannot be used: status 500."),
    ],
)
def test_a_bad_list_of_models_is_refused(
    fake: FakeEndpoint, capsys: pytest.CaptureFixture[str], models: tuple[int, Any], message: str
) -> None:
    fake.models = models
    assert message in refused(capsys, "--max", "1")


def test_the_machines_proxy_is_not_used(fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert exit_status("--max", "1") == 0
    assert len(fake.bodies) == 1
