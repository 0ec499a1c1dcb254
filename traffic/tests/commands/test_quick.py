"""`traffic --max` against a fake endpoint; tests in the lab use the real gateway."""

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from bedplate_traffic.cli import main

from traffic.tests.fake_endpoint import KEY, WHOLE, FakeEndpoint, events, exit_status, refused, respond


def test_three_requests(fake: FakeEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert exit_status("--max", "3", "--json", str(file)) == 0
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
    assert exit_status("--max", "2", "--model", "m2", "--max-tokens", "5") == 0
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
    assert exit_status("--max", "2", "--model", "m2", "--max-tokens", "5") == 0
    assert fake.bodies[1] == second


def test_one_failure_among_others(fake: FakeEndpoint, tmp_path: Path) -> None:
    def second_fails(handler: BaseHTTPRequestHandler) -> None:
        if len(fake.bodies) == 2:
            respond(handler, 503, {})
        else:
            events(handler, *WHOLE)

    fake.chat = second_fails
    file = tmp_path / "report.json"
    assert exit_status("--max", "3", "--json", str(file)) == 1
    report = json.loads(file.read_text())
    assert [request["ok"] for request in report["requests"]] == [True, False, True]
    assert report["summary"]["seconds_p50"] > 0


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


def test_nothing_but_the_report_goes_to_standard_output(
    fake: FakeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--max", "1", "--url", fake.url, "--key", KEY, "--json", "-"])
    output = capsys.readouterr()
    assert ended.value.code == 0
    assert json.loads(output.out)["summary"]["requests"] == 1
    assert "1/1 ok" in output.err
