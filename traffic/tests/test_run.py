"""`traffic run` from the command line: loads, classes, refusals, faults, reports and exit statuses."""

import gc
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
from typing import Any

import pytest
import yaml
from aiohttp import ClientResponse, web
from pydantic import TypeAdapter
from traffic.cli import main
from traffic.fake_engine.server import Behaviour, Fault
from traffic.load.client import Exchange
from traffic.report.model import Report

from traffic.tests.traffic_fakes import answering, engine, serving

KEY = "sk-test-very-secret"
SCHEMA = Path(__file__).parents[1] / "report.schema.json"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


class Ran:
    """One run: its exit status and its report."""

    def __init__(self, folder: Path, url: str, *arguments: str) -> None:
        self.file = folder / "report.json"
        self.status = run(*arguments, "--url", url, "--json", str(self.file))
        self.report: Any = json.loads(self.file.read_text())

    def of(self, name: str) -> Any:
        (report,) = (report for report in self.report["classes"] if report["name"] == name)
        return report

    @property
    def only(self) -> Any:
        (report,) = self.report["classes"]
        return report


def profile(folder: Path, *classes: dict[str, Any], **settings: Any) -> str:
    file = folder / "mine.yml"
    file.write_text(yaml.safe_dump({"max_seconds": 10, "classes": list(classes), **settings}))
    return str(file)


def burst(name: str = "a", size: int = 10, **settings: Any) -> dict[str, Any]:
    return {"name": name, "load": {"shape": "burst", "size": size}, **settings}


def test_an_open_loop_sends_on_schedule(tmp_path: Path) -> None:
    with engine(Behaviour(concurrency=50, prompt_seconds=0.1, seconds_per_token=0.02, tokens=5)) as (
        url,
        fake,
    ):
        ran = Ran(tmp_path, url, "--rate", "40", "--seconds", "1")
    assert ran.status == 0
    report = ran.only
    assert report["slots"] == {"planned": 40, "sent": 40, "missed": 0, "unsent": 0}
    assert report["answered"] == fake.outcomes["served"] == 40
    assert report["intended_rate"] == 40
    assert 36 < report["real_rate"] < 44
    # The engine sends its first token after 0.12 s, its last after 0.2 s.
    assert 0.119 < report["first_token"]["p50"] < 0.14
    assert 0.199 < report["end_to_end"]["p50"] < 0.23
    assert 0.015 < report["inter_token"]["p50"] < 0.025
    assert report["inter_token"]["count"] == 40 * 4
    assert report["completion_tokens"] == sum(arrival.completion_tokens for arrival in fake.arrivals) == 200
    assert report["prompt_tokens"] == sum(arrival.prompt_tokens for arrival in fake.arrivals) == 40 * 12
    assert report["status"] == {"200": 40, "2xx": 40}
    assert len(ran.report["requests"]) == 40


def test_times_are_measured_from_when_a_request_was_due(tmp_path: Path) -> None:
    """So a slow engine shows in the times, even where it delays the sending."""
    with engine(Behaviour(concurrency=1, prompt_seconds=0.05, tokens=1)) as (url, _):
        ran = Ran(tmp_path, url, "--rate", "100", "--seconds", "0.2")
    assert ran.only["end_to_end"]["max"] > 20 * 0.05 - 0.2 - 0.05


def test_missed_slots_are_counted(tmp_path: Path) -> None:
    load = {"shape": "constant", "rate": 50, "seconds": 0.4}
    with engine(Behaviour(concurrency=50, prompt_seconds=1, tokens=1)) as (url, fake):
        ran = Ran(tmp_path, url, profile(tmp_path, {"name": "a", "load": load, "max_in_flight": 5}))
    assert ran.status == 1
    assert ran.only["slots"] == {"planned": 20, "sent": 5, "missed": 15, "unsent": 0}
    assert len(fake.arrivals) == 5


def test_a_closed_loop_keeps_its_concurrency(tmp_path: Path) -> None:
    with engine(Behaviour(concurrency=50, prompt_seconds=0.02, tokens=2)) as (url, fake):
        ran = Ran(tmp_path, url, "--concurrency", "4", "--requests", "30")
    assert ran.status == 0
    assert fake.max_running == 4
    assert ran.only["answered"] == 30
    assert ran.only["intended_rate"] is None


def test_a_closed_loop_ends_after_its_seconds(tmp_path: Path) -> None:
    with engine() as (url, _):
        ran = Ran(tmp_path, url, "--concurrency", "2", "--seconds", "0.3")
    assert ran.status == 0
    assert 0.3 <= ran.report["seconds"] < 1


def test_each_class_has_its_own_key_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setenv("TRAFFIC_KEY_HIGH_ONE", "sk-high")
    classes = [
        burst("a", 3, key="low-one", stream=False),
        burst("b", 2, key="high-one", stream=False),
    ]
    with serving(answering(handle)) as url:
        ran = Ran(tmp_path, url, profile(tmp_path, *classes), "--keys", str(keys))
    assert ran.status == 0
    assert sorted(authorizations) == ["Bearer sk-high"] * 2 + ["Bearer sk-low"] * 3
    assert (ran.of("a")["completion_tokens"], ran.of("b")["completion_tokens"]) == (6, 4)
    assert ran.of("a")["queue_wait"]["p50"] == 0.25
    assert ran.of("a")["first_token"]["count"] == 0
    assert ran.report["requests"][0]["request_id"] == "r-1"
    assert "sk-" not in ran.file.read_text()


def refusing(times: int, headers: dict[str, str]) -> tuple[Any, list[float]]:
    """Return a handler that refuses its first requests, and the moments at which requests arrived."""
    arrivals: list[float] = []

    async def handle(_: web.Request) -> web.Response:
        arrivals.append(time.monotonic())
        if len(arrivals) <= times:
            text = f"slow down for {len(arrivals)}.5 s"
            return web.json_response({"error": {"message": text}}, status=429, headers=headers)
        message = {"role": "assistant", "content": "hi"}
        body = {"choices": [{"message": message}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
        return web.json_response(body)

    return handle, arrivals


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {"Retry-After": "60", "retry-after-ms": "300"}])
def test_retry_after_is_obeyed(tmp_path: Path, headers: dict[str, str]) -> None:
    handle, arrivals = refusing(1, headers)
    with serving(answering(handle)) as url:
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=1, stream=False, retries=3)))
    assert ran.status == 0
    assert arrivals[1] - arrivals[0] >= (0.3 if len(headers) == 2 else 1)
    assert ran.only["retry_after"] == {"seen": 1, "obeyed": 1, "answered": 1}
    assert ran.report["requests"][0]["retries"] == 1
    assert ran.only["end_to_end"]["max"] >= 0.3


def test_refusals_are_no_failures(tmp_path: Path) -> None:
    handle, _ = refusing(4, {"Retry-After": "7"})
    thresholds = [
        {"class": "a", "metric": "answered", "equals": 6},
        {"class": "a", "metric": "status.429", "equals": 4},
        {"class": "a", "metric": "failed", "max": 0},
    ]
    with serving(answering(handle)) as url:
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=10, stream=False), thresholds=thresholds))
    assert ran.status == 0
    assert (ran.only["refused"], ran.only["retry_after"]["seen"]) == (4, 4)
    # Refusals that differ only in their seconds are one line.
    assert ran.only["errors"] == {"status 429: slow down for … s": 4}
    assert "status 429: slow down for 1.5 s" in {request["error"] for request in ran.report["requests"]}


def test_the_first_refusal_may_end_a_class(tmp_path: Path) -> None:
    handle, arrivals = refusing(0, {})

    async def third(request: web.Request) -> web.Response:
        response: web.Response = await handle(request)
        return response if len(arrivals) < 3 else web.json_response({}, status=429)

    load = {"shape": "closed", "concurrency": 1, "requests": 50}
    with serving(answering(third)) as url:
        ran = Ran(
            tmp_path,
            url,
            profile(tmp_path, {"name": "a", "load": load, "stream": False, "stop_at_refusal": True}),
        )
    assert len(arrivals) == 3
    assert ran.only["tokens_before_last"] == 3


def test_disconnected_clients_are_no_failures(tmp_path: Path) -> None:
    late = burst("late", 5, cancel={"share": 1, "after": "first_token", "after_seconds": 0.05})
    early = burst("early", 5, cancel={"share": 1, "after_seconds": 0.02})
    never = burst("never", 5)
    behaviour = Behaviour(concurrency=50, prompt_seconds=0.1, seconds_per_token=0.1, tokens=5)
    with engine(behaviour) as (url, fake):
        ran = Ran(tmp_path, url, profile(tmp_path, late, early, never))
        time.sleep(0.3)
        assert (fake.outcomes["served"], fake.outcomes["fault"]) == (5, 0)
    assert ran.status == 0
    assert [ran.of(name)["cancelled"] for name in ("late", "early", "never")] == [5, 5, 0]
    requests = [request for request in ran.report["requests"] if request["class_name"] == "late"]
    assert all(request["first_token"] >= 0.2 and 0.25 <= request["seconds"] < 0.4 for request in requests)


def test_disconnected_clients_leave_no_objects_in_memory(tmp_path: Path) -> None:
    """aiohttp's shared exception for closed connections could keep references to them."""
    with engine(Behaviour(concurrency=50, seconds_per_token=0.05, tokens=50)) as (url, _):
        cancelling = burst(size=20, cancel={"share": 1, "after": "first_token", "after_seconds": 0.02})
        assert Ran(tmp_path, url, profile(tmp_path, cancelling)).only["cancelled"] == 20
        gc.collect()
        assert [item for item in gc.get_objects() if isinstance(item, (ClientResponse, Exchange))] == []


def test_goodput_counts_answers_within_the_slo(tmp_path: Path) -> None:
    with engine(Behaviour(concurrency=1, prompt_seconds=0.25, tokens=1)) as (url, _):
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=4)), "--slo-total", "0.7")
    assert (ran.only["good"], ran.only["good_ratio"]) == (2, 0.5)
    assert [request["good"] for request in ran.report["requests"]].count(True) == 2


def test_it_ends_after_max_seconds(tmp_path: Path) -> None:
    with engine(Behaviour(concurrency=1, prompt_seconds=0.2, tokens=1)) as (url, _):
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=20)), "--max-seconds", "0.7")
    assert ran.status == 1
    assert 0.7 <= ran.report["seconds"] < 1.2
    assert ran.only["answered"] in {2, 3}
    assert ran.only["answered"] + ran.only["unfinished"] == 20


def test_it_ends_after_max_requests(tmp_path: Path) -> None:
    with engine() as (url, fake):
        ran = Ran(tmp_path, url, profile(tmp_path, burst("a", 20), burst("b", 20)), "--max-requests", "25")
    assert len(fake.arrivals) == 25
    unsent = [report["slots"]["unsent"] for report in ran.report["classes"]]
    assert sum(unsent) == 15


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


def test_an_endless_answer_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traffic.load.completion_stream.MAX_BYTES", 1000)
    with engine(Behaviour(tokens=500)) as (url, _):
        ran = Ran(tmp_path, url, profile(tmp_path, burst(size=1, answer_tokens=500)))
    assert list(ran.only["errors"]) == ["the answer is longer than 1000 bytes"]


def limits(remaining: list[int]) -> Any:
    async def models(_: web.Request) -> web.Response:
        left = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        headers = {"x-ratelimit-limit-requests": "5", "x-ratelimit-remaining-requests": str(left)}
        return web.json_response({"data": [{"id": "fake"}]}, headers=headers)

    return models


def test_it_waits_until_a_limit_is_whole(tmp_path: Path) -> None:
    handle, arrivals = refusing(0, {})
    start = time.monotonic()
    remaining = [5, 3, 4, 5]
    with serving(answering(handle, limits(remaining))) as url:
        ran = Ran(
            tmp_path, url, profile(tmp_path, burst(size=2, stream=False), before={"whole_limit": "requests"})
        )
    assert ran.status == 0
    assert arrivals[0] - start > 2
    assert remaining == [5]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            limits([3]),
            "The limit of the key was never whole within a minute: stop the other clients that use this key.",
        ),
        (None, "The key has no limit of requests: this profile needs a key with one."),
    ],
)
def test_a_key_without_the_needed_limit_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    models: Any,
    message: str,
) -> None:
    monkeypatch.setattr("traffic.load.runner.LIMIT_WINDOW_SECONDS", -5)
    handle, arrivals = refusing(0, {})
    with serving(answering(handle, models)) as url:
        wanted = profile(tmp_path, burst(size=2), before={"whole_limit": "requests"})
        assert run(wanted, "--url", url) == 2
    assert capsys.readouterr().err == f"traffic: {message}\n"
    assert arrivals == []


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


def test_a_run_without_requests_still_gets_an_html_page(tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    with engine() as (url, _):
        load = {"shape": "constant", "rate": 0.0001, "seconds": 1}
        ran = Ran(
            tmp_path,
            url,
            profile(tmp_path, {"name": "a", "load": load, "start_after_seconds": 5}),
            "--max-seconds",
            "0.2",
            "--html",
            str(page),
        )
    assert ran.only["slots"] == {"planned": 1, "sent": 0, "missed": 0, "unsent": 1}
    assert page.read_text().endswith("</html>\n")


def test_the_schema_file_is_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["schema"])
    assert SCHEMA.read_text() == capsys.readouterr().out, "update it: traffic schema"
    schema = json.loads(SCHEMA.read_text())
    with engine() as (url, _):
        ran = Ran(tmp_path, url, profile(tmp_path, burst()))
    assert ran.report["schema"] == 2
    TypeAdapter(Report).validate_json(ran.file.read_text())
    assert set(schema["required"]) <= set(ran.report)


def test_ctrl_c_writes_the_report(tmp_path: Path) -> None:
    file, junit = tmp_path / "r.json", tmp_path / "r.xml"
    with engine(Behaviour(concurrency=50, prompt_seconds=0.3, tokens=1)) as (url, fake):
        command = [sys.executable, "-m", "traffic", "run", "--rate", "20", "--seconds", "60", "--url", url]
        source = str(Path(__file__).parents[1] / "src")
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
            "The keys file /nowhere cannot be read (No such file or directory).",
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


def test_the_same_seed_sends_the_same_bytes(tmp_path: Path) -> None:
    def sent(*more: str) -> list[bytes]:
        bodies: list[bytes] = []

        async def handle(request: web.Request) -> web.Response:
            bodies.append(await request.read())
            return web.json_response({}, status=500)

        with serving(answering(handle)) as url:
            Ran(tmp_path, url, "--rate", "40", "--shape", "poisson", "--seconds", "1", *more)
        return bodies

    first = sent()
    assert len(first) > 20
    assert sorted(sent()) == sorted(first)
    assert sorted(sent("--seed", "2")) != sorted(first)


def test_profiles_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["profiles"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("\n") == 7
    with pytest.raises(SystemExit):
        main(["profiles", "smoke"])
    assert yaml.safe_load(capsys.readouterr().out)["classes"][0]["name"] == "smoke"
    with pytest.raises(SystemExit) as ended:
        main(["profiles", "smoky"])
    assert ended.value.code == 2
