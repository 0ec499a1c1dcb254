"""The spans of requests: the real gateway and a fake LiteLLM, with a fake receiver of traces."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bedplate_gateway import traces
from bedplate_gateway.access_log import AccessRecord
from bedplate_gateway.settings import TracesSettings
from bedplate_gateway.traces import Tracer, read_traceparent

from gateway.tests.engines.test_litellm import stream
from gateway.tests.test_providers import CHAT, STREAM, Stack, fails, run
from tests.support.fake_trace_receiver import FakeTraceReceiver
from tests.support.serving import serving

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
PROMPT = "a secret question"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTraceReceiver]:
    """Run a fake receiver, to which a gateway sends at once."""
    monkeypatch.setattr(traces, "SEND_SECONDS", 0.02)
    with serving(FakeTraceReceiver()) as server:
        yield server


def traced(
    tmp_path: Path, receiver: FakeTraceReceiver, test: Callable[[Stack], Awaitable[None]], **settings: Any
) -> list[dict[str, Any]]:
    """Run a test with a gateway that sends its traces; return them, with the whole request first."""
    run(tmp_path, test, traces={"endpoint": receiver.url}, **settings)
    return receiver.spans


async def ask(stack: Stack, model: str = "cloud", alias: str = "all", **headers: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    headers = {"authorization": f"Bearer sk-{alias}"} | headers
    return (await stack.client.post(CHAT, json=body, headers=headers)).status_code


def test_a_request_is_one_trace_that_litellm_continues(tmp_path: Path, receiver: FakeTraceReceiver) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(*STREAM)
        assert await ask(stack, traceparent=TRACEPARENT) == 200
        sent.update(stack.chats[0][1])

    sent: dict[str, str] = {}
    root, admission, wait, engine = traced(tmp_path, receiver, test)
    assert (root["traceId"], root["parentSpanId"], root["name"]) == (TRACE, CALLER, f"POST {CHAT}")
    assert [span["name"] for span in (admission, wait, engine)] == ["admission", "wait", "chat cloud"]
    assert {span["parentSpanId"] for span in (admission, wait, engine)} == {root["spanId"]}
    assert {span["traceId"] for span in (admission, wait, engine)} == {TRACE}
    assert [span["kind"] for span in (root, admission, wait, engine)] == [2, 1, 1, 3]
    assert sent["traceparent"] == f"00-{TRACE}-{engine['spanId']}-01"
    # One part begins where the one before ended.
    times = [int(root["startTimeUnixNano"])]
    for span in (admission, wait, engine):
        assert int(span["startTimeUnixNano"]) == times[-1]
        times.append(int(span["endTimeUnixNano"]))
    assert times == sorted(times)
    assert int(root["endTimeUnixNano"]) == times[-1]
    assert abs(times[0] / 1e9 - time.time()) < 30
    used = {"gen_ai.usage.input_tokens": 11, "gen_ai.usage.output_tokens": 3}
    model = {"gen_ai.request.model": "cloud", "gen_ai.response.model": "cloud"}
    of_both = {"gen_ai.operation.name": "chat", **model, **used}
    values = root["values"]
    assert values.pop("bedplate.request.id").startswith("req_")
    assert 0 < values.pop("gen_ai.response.time_to_first_chunk") < 30
    assert values == of_both | {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "bedplate.key.alias": "all",
        "bedplate.class": "normal",
    }
    assert engine["values"] == of_both | {
        "gen_ai.provider.name": "litellm",
        "gen_ai.request.stream": True,
        "bedplate.engine": "litellm",
        "bedplate.lane": "litellm",
        "bedplate.retries": 0,
    }
    assert not any(span["failed"] for span in (root, admission, wait, engine))


def test_no_span_has_a_prompt_an_answer_or_a_key(tmp_path: Path, receiver: FakeTraceReceiver) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(*STREAM)
        assert await ask(stack, tracestate="vendor=secret", baggage="user=secret") == 200
        assert await ask(stack, "secret-model") == 404

    assert len(traced(tmp_path, receiver, test)) == 6
    assert not any(word in receiver.raw for word in (b"secret", b"sk-", b"Hello!", b"master"))


def test_a_fallback_is_a_second_wait_and_engine(tmp_path: Path, receiver: FakeTraceReceiver) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = fails(429)
        assert await ask(stack) == 429

    root, *parts = traced(tmp_path, receiver, test, fallbacks={"cloud": ["spare"]})
    names = ["admission", "wait", "chat cloud", "wait", "chat spare"]
    assert [span["name"] for span in parts] == names
    assert [span["values"].get("error.type") for span in parts] == [
        None,
        None,
        "provider_limit",
        None,
        "provider_limit",
    ]
    values = root["values"]
    assert (values["gen_ai.request.model"], values["gen_ai.response.model"]) == ("cloud", "spare")
    # A limit is no error of the service.
    assert not root["failed"]
    assert parts[-1]["failed"]


def test_a_failed_request_is_an_error(tmp_path: Path, receiver: FakeTraceReceiver) -> None:
    async def test(stack: Stack) -> None:
        assert await ask(stack, "m") == 503

    root, _, wait = traced(tmp_path, receiver, test)
    assert (root["failed"], root["values"]["error.type"]) == (True, "engine_unavailable")
    assert (wait["name"], wait["failed"]) == ("wait", True)


def test_who_has_no_key_makes_no_trace(tmp_path: Path, receiver: FakeTraceReceiver) -> None:
    async def test(stack: Stack) -> None:
        assert await ask(stack, alias="nobody", traceparent=TRACEPARENT) == 401

    assert traced(tmp_path, receiver, test) == []


def test_a_client_can_leave_its_request_out(tmp_path: Path, receiver: FakeTraceReceiver) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(*STREAM)
        assert await ask(stack, traceparent=f"00-{TRACE}-{CALLER}-00") == 200
        # LiteLLM leaves it out, too.
        version, trace, span, flags = stack.chats[0][1]["traceparent"].split("-")
        assert (version, trace, flags) == ("00", TRACE, "00")
        assert span != CALLER

    assert traced(tmp_path, receiver, test) == []


def test_without_a_receiver_no_header_is_sent(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(*STREAM)
        assert await ask(stack, traceparent=TRACEPARENT) == 200
        assert "traceparent" not in stack.chats[0][1]
        assert stack.gateway.tracer is None
        assert stack.metric("bedplate_gateway_spans_total") == [
            'bedplate_gateway_spans_total{result="sent"} 0.0',
            'bedplate_gateway_spans_total{result="dropped"} 0.0',
        ]

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (TRACEPARENT, (TRACE, CALLER, True)),
        (f"00-{TRACE}-{CALLER}-00", (TRACE, CALLER, False)),
        (f"00-{TRACE}-{CALLER}-03", (TRACE, CALLER, True)),
        (f"cc-{TRACE}-{CALLER}-01-what-comes-later", (TRACE, CALLER, True)),
        (f"00-{TRACE}-{CALLER}-01-more", None),
        (f"ff-{TRACE}-{CALLER}-01", None),
        (f"00-{'0' * 32}-{CALLER}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{CALLER}-01", None),
        (f"00-{TRACE}-{CALLER}-01\n", None),
        (f"00-{TRACE}-{CALLER}", None),
        ("x" * 100_000, None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_valid_header_is_a_parent(header: str | None, expected: object) -> None:
    assert read_traceparent(header) == expected


@pytest.mark.parametrize("percent", [1, 30, 100])
def test_as_many_requests_are_samples_as_the_settings_say(percent: int) -> None:
    tracer = Tracer(TracesSettings(endpoint="http://127.0.0.1:9", percent=percent))
    sampled = sum(tracer.begin(None).sampled for _ in range(10_000))
    assert sampled == pytest.approx(100 * percent, abs=250)
    # An invalid header is none.
    assert tracer.begin("00-x").parent == ""


def ended(tracer: Tracer) -> None:
    """Make a trace of two spans."""
    tracer.begin(None).end(AccessRecord("req_1", 0.0, path=CHAT, alias="all", status=200))


def test_a_receiver_that_fails_stops_nobody_and_is_logged_once(
    receiver: FakeTraceReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    receiver.status = 503
    tracer = Tracer(TracesSettings(endpoint=receiver.url + "/"))
    tracer.start()
    for number in (1, 2, 3):
        ended(tracer)
        wait_for(lambda: tracer.dropped == 2 * number)  # noqa: B023 - called before the next number
    receiver.status = 200
    ended(tracer)
    tracer.stop()
    assert (tracer.sent, tracer.dropped) == (2, 6)
    url = f"{receiver.url}/v1/traces"
    assert caplog.messages == [
        f"{url} takes no spans (HTTP 503): they are dropped.",
        f"{url} takes spans again.",
    ]


def test_spans_wait_in_a_bounded_queue_and_the_end_sends_them(
    receiver: FakeTraceReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "MAX_WAITING", 120)
    tracer = Tracer(TracesSettings(endpoint=receiver.url))
    for _ in range(130):
        ended(tracer)
    assert tracer.dropped == 20
    tracer.start()
    tracer.stop()
    assert (tracer.sent, len(receiver.spans)) == (240, 240)


def test_a_dead_receiver_drops_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "SEND_SECONDS", 0.02)
    tracer = Tracer(TracesSettings(endpoint="http://127.0.0.1:9"))
    tracer.start()
    ended(tracer)
    tracer.stop()
    assert (tracer.sent, tracer.dropped) == (0, 2)


def test_requests_are_answered_while_the_receiver_hangs(tmp_path: Path) -> None:
    async def test(stack: Stack) -> None:
        stack.litellm.answer = stream(*STREAM)
        for _ in range(3):
            started = time.monotonic()
            assert await ask(stack) == 200
            assert time.monotonic() - started < 1

    with FakeTraceReceiver() as server:
        # It listens, but nothing ever answers.
        run(tmp_path, test, traces={"endpoint": server.url})


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
