"""`traffic run` from the command line: keys, reports, exit statuses and refusals."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from bedplate_traffic.fake_engine.server import Behaviour

from traffic.tests.traffic_fakes import answering, engine, serving
from traffic.tests.traffic_runs import Ran, burst, profile, run


@pytest.mark.parametrize("stdin", [False, True])
def test_each_class_has_its_own_key_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdin: bool
) -> None:
    authorizations: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        authorizations.append(request.headers["Authorization"])
        body = await request.json()
        assert body["stream"] is False
        message = {"role": "assistant", "content": "hi"}
        return web.json_response(
            {"choices": [{"message": message}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
            headers={"x-bedplate-queue-ms": "250", "x-request-id": "r-1"},
        )

    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"version": 1, "keys": {"low-one": "sk-low"}}))
    monkeypatch.setattr("sys.stdin", io.StringIO(keys.read_text()))
    monkeypatch.setenv("TRAFFIC_KEY_HIGH_ONE", "sk-high")
    classes = [
        burst("a", 3, key="low-one", stream=False),
        burst("b", 2, key="high-one", stream=False),
    ]
    with serving(answering(handle)) as url:
        ran = Ran(tmp_path, url, profile(tmp_path, *classes), "--keys", "-" if stdin else str(keys))
    assert ran.status == 0
    assert sorted(authorizations) == ["Bearer sk-high"] * 2 + ["Bearer sk-low"] * 3
    assert (ran.of("a")["completion_tokens"], ran.of("b")["completion_tokens"]) == (6, 4)
    assert ran.of("a")["queue_wait"]["p50"] == 0.25
    assert ran.of("a")["first_token"]["count"] == 0
    assert ran.report["requests"][0]["request_id"] == "r-1"
    assert "sk-" not in ran.file.read_text()


def test_all_reports_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thresholds = [
        {"class": "a", "metric": "answered", "equals": 3},
        {"class": "a", "metric": "end_to_end.p50", "max": {"class": "b", "times": 0.5}},
        {"class": "b", "metric": "queue_wait.max", "max": 1},
    ]
    wanted = profile(
        tmp_path, burst("a", 3), burst("b", 4), thresholds=thresholds, description="<b>tests</b> & more"
    )
    junit, page = tmp_path / "r.xml", tmp_path / "r.html"
    with engine() as (url, _):
        ran = Ran(tmp_path, url, wanted, "--junit", str(junit), "--html", str(page))
    assert ran.status == 1
    assert [judgement["ok"] for judgement in ran.report["thresholds"]][::2] == [True, False]
    assert ran.report["thresholds"][2]["seen"] is None
    output = capsys.readouterr().out
    assert "FAIL b: queue_wait.max is at most 1; measured: -" in output
    suite = ET.parse(junit).getroot()  # noqa: S314 - our own
    assert suite.attrib["tests"] == "3"
    assert [case.find("failure") is None for case in suite.iter("testcase")] == [
        judgement["ok"] for judgement in ran.report["thresholds"]
    ]
    text = page.read_text()
    assert "&lt;b&gt;tests&lt;/b&gt; &amp; more" in text
    assert "<script" not in text
    assert all(link.startswith(("http://www.w3.org/", url)) for link in links(text))


def links(text: str) -> list[str]:
    return ["http" + part for part in text.split("http")[1:] if part.startswith(("://", "s://"))]


def test_ctrl_c_writes_the_report(tmp_path: Path) -> None:
    file, junit = tmp_path / "r.json", tmp_path / "r.xml"
    with engine(Behaviour(concurrency=50, prompt_seconds=0.3, tokens=1)) as (url, fake):
        command = [
            sys.executable,
            "-m",
            "bedplate_traffic",
            "run",
            "--rate",
            "20",
            "--seconds",
            "60",
            "--url",
            url,
        ]
        source = str(Path(__file__).parents[2] / "src")
        process = subprocess.Popen(
            [*command, "--json", str(file), "--junit", str(junit)],
            env=os.environ | {"PYTHONPATH": source},
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 20
        while fake.outcomes["served"] < 10 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    report = json.loads(file.read_text())
    (class_report,) = report["classes"]
    assert report["interrupted"] is True
    assert report["ok"] is False
    assert class_report["answered"] > 5
    assert class_report["unfinished"] > 0
    assert class_report["slots"]["unsent"] > 1000
    assert "Interrupted: the numbers cover only" in output
    assert ET.parse(junit).getroot().attrib["errors"] == "1"  # noqa: S314 - our own


@pytest.fixture
def url() -> Iterator[str]:
    with engine() as (url, _):
        yield url


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "No load is given: name a profile, or pass --rate or --concurrency."),
        (("smoke", "--rate", "5"), "--rate is for a load without a profile: change a copy of the profile"),
        (("smokey",), "There is no profile 'smokey': did you mean smoke?"),
        (("--rate", "x"), "The rate 'x' is not a number: pass --rate 5 or --rate 1,5,10."),
        (("--rate", "-5"), "The load from the options: classes.options.load.rate is -5.0"),
        (("--rate", "1,2"), "The shape constant has one rate: pass --shape step for more."),
        (("--rate", "1", "--shape", "ramp"), "A ramp has two rates: pass them as --rate 1,10."),
        (("--rate", "1", "--seed", "-1"), "The load from the options: seed is -1"),
        (
            ("--rate", "100000", "--seconds", "9999"),
            "The load has 999900000 requests: at most 5000000 are possible.",
        ),
        (("--rate", "1", "--model", "m9"), "The model 'm9' is not offered: choose one of fake."),
        (("ratelimit",), "The profile needs the key 'ratelimit': set TRAFFIC_KEY_RATELIMIT, or name a file"),
        (
            ("ratelimit", "--keys", "/nowhere"),
            "The keys file /nowhere cannot be read (No such file or directory): check its path and its mode.",
        ),
        (("--rate", "1", "--html", "/nowhere/x"), "The report /nowhere/x cannot be written (No such file"),
        (
            ("--rate", "1", "--url", "http://192.0.1.1/v1"),
            "http://192.0.1.1/v1 is the public address 192.0.1.1",
        ),
    ],
)
def test_a_run_that_cannot_start_prints_the_reason(
    url: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("--url", url, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"traffic: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON."),
        ("[]", "is not a JSON object with keys by alias."),
        ('{"a": 1}', "is not a JSON object"),
    ],
)
def test_a_malformed_keys_file_is_refused(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    assert run("ratelimit", "--url", url, "--keys", str(file)) == 2
    assert message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    page, junit = folder / "r.html", tmp_path / "r.xml"

    def remove() -> None:
        page.unlink()
        folder.rmdir()

    with engine() as (url, _):
        timer = threading.Timer(0.5, remove)
        timer.start()
        arguments = ["--rate", "5", "--seconds", "1.5", "--url", url]
        assert run(*arguments, "--html", str(page), "--junit", str(junit)) == 2
        timer.join()
    assert f"The report {page} cannot be written" in capsys.readouterr().err
    assert "testsuite" in junit.read_text()
