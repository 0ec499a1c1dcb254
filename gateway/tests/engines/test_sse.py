import json
from typing import Any

import pytest
from bedplate_gateway.engines.sse import MAX_EVENT_BYTES, EventStream, rename_model


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def content(text: str, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return event(id="c1", model="m", choices=[choice], **more)


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
FINISH = event(id="c1", model="m", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
DONE = b"data: [DONE]\n\n"
ANSWER = content("Hello") + content("\n\n") + FINISH
OLLAMA_USAGE = event(id="c1", model="m", choices=[{"index": 0, "delta": {}}], usage=USAGE)
OPENAI_USAGE = event(id="c1", model="m", choices=[], usage=USAGE)


def relayed(stream: EventStream, *parts: bytes) -> bytes:
    return b"".join(map(stream.feed, parts))


def test_usage_is_learned_and_not_shown_to_a_client_that_did_not_ask() -> None:
    for usage in (OLLAMA_USAGE, OPENAI_USAGE):
        stream = EventStream("m", want_usage=False)
        assert relayed(stream, ANSWER + usage + DONE) == ANSWER + DONE
        assert (stream.usage, stream.events, stream.done, stream.failure) == ((7, 2), 3, True, None)


def test_usage_comes_as_openai_sends_it_where_the_client_asked() -> None:
    for usage in (OLLAMA_USAGE, OPENAI_USAGE):
        stream = EventStream("m", want_usage=True)
        assert relayed(stream, ANSWER, usage, DONE) == ANSWER + OPENAI_USAGE + DONE


def test_usage_beside_content_leaves_the_content() -> None:
    asked, silent = EventStream("m", want_usage=True), EventStream("m", want_usage=False)
    both = content("x", usage=USAGE)
    assert asked.feed(both) == both
    assert silent.feed(both) == content("x")
    assert asked.usage == silent.usage == (7, 2)


def test_any_split_of_the_bytes_gives_the_same_events() -> None:
    sent = b": a comment\n\n" + ANSWER + OLLAMA_USAGE + DONE
    for ends in (sent, sent.replace(b"\n", b"\r\n")):
        for cut in range(1, len(ends)):
            stream = EventStream("m", want_usage=False)
            assert relayed(stream, ends[:cut], ends[cut:]) == b": a comment\n\n" + ANSWER + DONE
            assert stream.usage == (7, 2)
    stream = EventStream("m", want_usage=False)
    assert relayed(stream, *(bytes([byte]) for byte in sent)) == b": a comment\n\n" + ANSWER + DONE


def test_texts_that_look_like_fields_are_only_texts() -> None:
    text = '{"usage": {"prompt_tokens": 1}, "error": "x", "model":"" } [DONE] data: [DONE]'
    stream = EventStream("m", want_usage=False)
    assert stream.feed(content(text)) == content(text)
    assert (stream.usage, stream.done, stream.failure) == (None, False, None)


def test_ollamas_empty_usage_in_each_completion_is_left_out() -> None:
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    stream = EventStream("m", want_usage=False)
    choices = [{"text": "x", "index": 0, "finish_reason": None}]
    assert stream.feed(event(choices=choices, model="m", usage=zero)) == event(choices=choices, model="m")
    assert stream.usage is None


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (event(error={"message": "out of memory", "code": 500}), "out of memory"),
        (event(error="out of memory"), "out of memory"),
        (content("").replace(b'"model":"m"', b'"model":""'), "it failed in the middle of the answer"),
    ],
)
def test_an_error_in_the_stream_ends_it(broken: bytes, words: str) -> None:
    stream = EventStream("m", want_usage=False)
    assert relayed(stream, content("a") + broken + DONE) == content("a")
    assert (stream.failure, stream.done) == (words, False)


def test_a_huge_event_is_a_failure_and_is_not_kept() -> None:
    stream = EventStream("m", want_usage=False)
    for _ in range(MAX_EVENT_BYTES // 65536 + 1):
        assert stream.feed(b"x" * 65536) == b""
    assert stream.failure is not None
    assert "more than" in stream.failure


def test_bytes_that_are_no_text_or_no_json_go_through() -> None:
    stream = EventStream("m", want_usage=False)
    for odd in (b'data: "usage":{\n\n', b'data: {"model":"m","error":"\xff\n\n', b"event: x\nid: 1\n\n"):
        assert stream.feed(odd) == odd
    assert stream.failure is None


def test_data_over_several_lines_is_one_event() -> None:
    stream = EventStream("m", want_usage=False)
    assert stream.feed(b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":3}}\n\n') == b""
    assert stream.usage == (3, 0)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_has_both_of_its_names(name: str) -> None:
    choice = {"index": 0, "delta": {"content": "", name: "hm"}, "finish_reason": None}
    relayed_event = relayed(EventStream("m", want_usage=False), event(model="m", choices=[choice]))
    delta = json.loads(relayed_event[6:])["choices"][0]["delta"]
    assert delta == {"content": "", "reasoning": "hm", "reasoning_content": "hm"}


def test_an_engines_own_name_of_the_model_is_replaced() -> None:
    stream = EventStream("the model", want_usage=False)
    first, second = content("a"), content('"model":"m"')
    expected = first + second
    assert relayed(stream, first, second) == expected.replace(b'"model":"m",', b'"model":"the model",')
    assert stream.feed(OPENAI_USAGE) == b""
    assert stream.finish(1, 1).startswith(b'data: {"id":"c1","model":"the model"')
    assert rename_model(b'{"model": "a\\"b", "x": 1}', "m") == b'{"model": "m", "x": 1}'
    assert rename_model(b'{"x": 1}', "m") == b'{"x": 1}'


def test_an_end_without_a_reason_becomes_a_bound_on_the_length() -> None:
    stream = EventStream("m", want_usage=True)
    stream.feed(content("ha") + content(" ha"))
    closing = stream.finish(5, 2).decode().split("\n\n")
    finish, usage = (json.loads(part.removeprefix("data: ")) for part in closing[:2])
    assert finish["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
    assert (finish["id"], usage["choices"]) == ("c1", [])
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert closing[2:] == ["data: [DONE]", ""]
    assert stream.done


def test_an_end_after_the_reason_only_gets_the_last_line() -> None:
    stream = EventStream("m", want_usage=False)
    assert stream.feed(ANSWER) + stream.feed(b"") + stream.finish(1, 1) == ANSWER + DONE


def test_an_end_before_anything_is_a_failure() -> None:
    stream = EventStream("m", want_usage=False)
    assert stream.feed(b": wait\n\n") + stream.feed(b"") + stream.finish(1, 1) == b": wait\n\n"
    assert stream.failure == "it ended the answer too early"


def test_a_last_line_without_its_end_counts() -> None:
    stream = EventStream("m", want_usage=False)
    assert relayed(stream, ANSWER + b"data: [DONE]", b"") == ANSWER + DONE
    assert stream.done
