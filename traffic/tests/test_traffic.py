"""`traffic --max` against a fake endpoint with faults; tests in the lab use the real gateway."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from traffic.cli import main

KEY = "sk-secret-of-the-test"


def chunk(delta: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}], **fields}


USAGE = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}
WHOLE = (
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "hi"}),
    chunk({}, usage=USAGE),
    "[DONE]",
)


class FakeEndpoint:
    """Serves /v1/models and /v1/chat/completions as a test configures them; `chat` writes the response."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.models: tuple[int, Any] = (200, {"data": [{"id": "m1"}, {"id": "m2"}]})
        self.chat: Callable[[BaseHTTPRequestHandler], None] = lambda handler: events(handler, *WHOLE)
        self.closing = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    answer(self, 401, {"error": {"message": f"Wrong key {self.headers['Authorization']}."}})
                elif self.path == "/v1/models":
                    answer(self, *fake.models)
                else:
                    answer(self, 404, {"detail": "Not Found"})

            def do_POST(self) -> None:
                fake.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                fake.chat(self)

            def log_message(self, *args: object) -> None:
                """Keep the test's output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def answer(handler: BaseHTTPRequestHandler, status: int, body: Any) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def events(handler: BaseHTTPRequestHandler, *items: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    for item in items:
        handler.wfile.write(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    """A fake endpoint that the environment names, with the right key."""
    endpoint = FakeEndpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield endpoint
    endpoint.close()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def failure(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run one request that must fail; returns its entry in the report."""
    file = tmp_path / "report.json"
    assert run("--max", "1", "--json", str(file), *arguments) == 1
    report = json.loads(file.read_text())
    assert report["ok"] is False
    assert report["summary"]["failed"] == 1
    assert report["summary"]["seconds_p50"] is None
    (request,) = report["requests"]
    assert request["ok"] is False
    assert isinstance(request, dict)
    return request


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that cannot start; returns its one line on stderr."""
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("traffic: ")
    assert KEY not in message
    return message


def test_three_requests(fake: FakeEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert run("--max", "3", "--json", str(file)) == 0
    report = json.loads(file.read_text())
    assert set(report) == {"schema", "ok", "at", "url", "model", "requests", "summary"}
    assert (report["schema"], report["ok"], report["url"], report["model"]) == (1, True, fake.url, "m1")
    for request in report["requests"]:
        assert 0 < request.pop("first_token_seconds") <= request.pop("seconds") < 2
        assert request == {
            "ok": True,
            "status": 200,
            "prompt_tokens": 12,
            "completion_tokens": 2,
            "error": None,
        }
    p50 = report["summary"].pop("seconds_p50")
    assert 0 < p50 < 2
    assert report["summary"] == {"requests": 3, "failed": 0, "prompt_tokens": 36, "completion_tokens": 6}
    assert "3 of 3 answered, 36 + 6 tokens" in capsys.readouterr().out


def test_the_request_bodies(fake: FakeEndpoint) -> None:
    assert run("--max", "2", "--model", "m2", "--max-tokens", "5") == 0
    first, second = fake.bodies
    assert first.pop("messages") != second["messages"]
    assert first == {
        "model": "m2",
        "max_tokens": 5,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    fake.bodies.clear()
    assert run("--max", "2", "--model", "m2", "--max-tokens", "5") == 0
    assert fake.bodies[1] == second


def test_the_first_token_is_timed(fake: FakeEndpoint, tmp_path: Path) -> None:
    def slow_end(handler: BaseHTTPRequestHandler) -> None:
        events(handler, *WHOLE[:2])
        time.sleep(0.2)
        for item in WHOLE[2:]:
            handler.wfile.write(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode())

    fake.chat = slow_end
    file = tmp_path / "report.json"
    assert run("--max", "1", "--json", str(file)) == 0
    (request,) = json.loads(file.read_text())["requests"]
    assert request["seconds"] - request["first_token_seconds"] > 0.15


@pytest.mark.parametrize("delta", [{"reasoning_content": "hm"}, {"tool_calls": [{"index": 0}]}])
def test_reasoning_and_tool_calls_are_tokens(fake: FakeEndpoint, delta: dict[str, Any]) -> None:
    fake.chat = lambda handler: events(handler, chunk(delta), chunk({}, usage=USAGE), "[DONE]")
    assert run("--max", "1") == 0


@pytest.mark.parametrize(
    ("items", "error"),
    [
        (WHOLE[:3], "the stream ended without [DONE]"),
        ((*WHOLE[:2], "[DONE]"), "the answer has no usage block"),
        ((WHOLE[0], *WHOLE[2:]), "the answer is empty"),
        (("{garbage", "[DONE]"), "the stream contains an invalid chunk"),
        (("7",), "the stream contains an invalid chunk"),
        ((chunk({"content": "a"}, usage={"prompt_tokens": None}),), "the stream contains an invalid"),
        (({"error": {"message": "engine\ngone"}},), "the stream ended with an error: engine gone"),
        ((), "the stream ended without [DONE]"),
    ],
)
def test_a_bad_stream_fails_the_request(
    fake: FakeEndpoint, tmp_path: Path, items: tuple[Any, ...], error: str
) -> None:
    fake.chat = lambda handler: events(handler, *items)
    request = failure(tmp_path)
    assert request["status"] == 200
    assert request["error"].startswith(error)


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


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (
            429,
            {"error": {"message": f"Rate limit of {KEY} exceeded"}},
            "status 429: Rate limit of [key] exceeded",
        ),
        (404, {"error": {"message": "model 'm1' not found"}}, "status 404: model 'm1' not found"),
        (403, {"detail": "not allowed"}, "status 403: not allowed"),
        (500, b"<html>", "status 500"),
        (502, ["x"], "status 502"),
        (307, b"", "status 307"),
    ],
)
def test_an_error_status_fails_the_request(
    fake: FakeEndpoint, tmp_path: Path, status: int, body: Any, error: str
) -> None:
    fake.chat = lambda handler: answer(handler, status, body)
    request = failure(tmp_path)
    assert (request["status"], request["error"]) == (status, error)


def test_one_failure_among_others(fake: FakeEndpoint, tmp_path: Path) -> None:
    def second_fails(handler: BaseHTTPRequestHandler) -> None:
        if len(fake.bodies) == 2:
            answer(handler, 503, {})
        else:
            events(handler, *WHOLE)

    fake.chat = second_fails
    file = tmp_path / "report.json"
    assert run("--max", "3", "--json", str(file)) == 1
    report = json.loads(file.read_text())
    assert [request["ok"] for request in report["requests"]] == [True, False, True]
    assert report["summary"]["seconds_p50"] > 0


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


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no command 'runn': use run, compare, " in refused(capsys, "runn", "smoke")


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


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000/v1",
        "http://127.0.0.1:8000",
        "ftp://127.0.0.1/v1",
        "http:///v1",
        "http://h:x/v1",
        "http://127.0.0.1/v1?a=b",
        "http://user:word@127.0.0.1/v1",
        "http://127.0.0.1/\x01/v1",
        "http://[::1/v1",
    ],
)
def test_a_bad_url_is_refused(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert "cannot be used: give http://HOST:PORT/v1" in refused(capsys, "--max", "1", "--url", url)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("host", ["192.0.1.1", "[2600::1]", "[::ffff:192.0.1.1]"])
def test_a_public_address_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("something was sent")

    monkeypatch.setattr("aiohttp.ClientSession._request", fail)
    assert "--allow-public" in refused(capsys, "--max", "1", "--url", f"http://{host}/v1")


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_API_KEY"])
@pytest.mark.usefixtures("fake")
def test_a_missing_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.delenv(name)
    assert name in refused(capsys, "--max", "1")


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("key", ["sk-ä", "sk a", "sk\n"])
def test_a_malformed_key_is_refused(capsys: pytest.CaptureFixture[str], key: str) -> None:
    assert "characters that no key has" in refused(capsys, "--max", "1", "--key", key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--max"),
        (("--max", "0"), "'0' is not a whole number above 0"),
        (("--max", "x"), "'x' is not a whole number above 0"),
        (("--max", "1", "--timeout", "nan"), "'nan' is not a number above 0"),
        (("--max", "1", "--max-tokens", "-1"), "'-1' is not a whole number above 0"),
        (("--max", "1", "--mdoel", "m1"), "--mdoel"),
    ],
)
def test_a_bad_flag_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *arguments)


def test_an_unwritable_report_is_refused(
    fake: FakeEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "--max", "1", "--json", str(tmp_path))
    assert f"The report {tmp_path} cannot be written (Is a directory)" in message
    assert fake.bodies == []


def test_an_older_report_does_not_outlive_a_run_that_cannot_start(
    fake: FakeEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    file.write_text('{"ok": true}')
    fake.models = (500, b"")
    refused(capsys, "--max", "1", "--json", str(file))
    assert file.read_text() == ""


def test_the_machines_proxy_is_not_used(fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert run("--max", "1") == 0
    assert len(fake.bodies) == 1


def test_nothing_but_the_report_goes_to_standard_output(
    fake: FakeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--max", "1", "--url", fake.url, "--key", KEY, "--json", "-"])
    output = capsys.readouterr()
    assert ended.value.code == 0
    assert json.loads(output.out)["summary"]["requests"] == 1
    assert "1/1 ok" in output.err
