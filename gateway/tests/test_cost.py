"""What a body costs on its way to an engine, in time of the event loop and in memory, against its size."""

import gc
import json
import re
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import pytest
from bedplate_gateway.api import messages, responses
from bedplate_gateway.api.fields import Base64
from bedplate_gateway.api.responses import ResponsesContext
from bedplate_gateway.api.schema import Request, parse_request
from bedplate_gateway.engines.context import could_overflow, fit_check
from bedplate_gateway.errors import ApiError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic_core import to_json

from gateway.tests.odd_requests import (
    CALL,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    PNG,
    RESPONSES,
    anything,
)

KIB, MIB = 1024, 1024 * 1024
SECONDS = 0.25
"""For one step of one body, on a machine five times slower than the one where 0.05 s were measured."""
MOST_GROWTH = 3
"""How many times more twice the size may cost."""
FLOOR_SECONDS, FLOOR_BYTES = 0.01, 256 * KIB
"""What costs less is not compared: it is lost in what any request costs."""

USER = '{"role":"user","content":"x"}'
TURN = (
    '{"role":"assistant","content":"","tool_calls":[' + json.dumps(CALL) + "]},"
    '{"role":"tool","tool_call_id":"c1","content":"1"}'
)
NAMED_CALL = '{"type":"function_call","call_id":"c1","name":"f","arguments":"{}"}'
OUTPUT = '{"type":"function_call_output","call_id":"c1","output":"1"}'
THOUGHT = '{"type":"reasoning","summary":[{"type":"summary_text","text":"' + "hm" * 100 + '"}]}'
USE = '{"type":"tool_use","id":"c1","name":"f","input":{"a":1}}'
RESULT = '{"type":"tool_result","tool_use_id":"c1","content":[{"type":"text","text":"1"}]}'
ANTHROPIC_IMAGE = (
    '{"type":"image","source":{"type":"base64","media_type":"image/png","data":"'
    + PNG.partition(",")[2]
    + '"}}'
)
IMAGE = '{"type":"image_url","image_url":{"url":"' + PNG + '"}}'


@dataclass(frozen=True)
class Shape:
    """A body that repeats something at one place until it has a size."""

    path: str
    before: str
    units: tuple[str, ...]
    after: str
    separator: str = ","

    def body(self, size: int) -> bytes:
        count = max(1, size * len(self.units) // sum(len(unit.encode()) + 1 for unit in self.units))
        return (self.before + self.separator.join(islice(cycle(self.units), count)) + self.after).encode()


def chat(before: str, after: str) -> tuple[str, str, str]:
    return CHAT, f'{{"model":"m","messages":[{before}', f"{after}}}"


PLACES = {
    "messages": chat("", "]"),
    "parts": chat('{"role":"user","content":[', "]}]"),
    "calls": chat('{"role":"assistant","tool_calls":[', "]}]"),
    "arguments": chat(
        '{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f",'
        '"arguments":"{\\"a\\":[',
        ']}"}}]}]',
    ),
    "role": chat('{"content":"x","role":[', "]}]"),
    "tools": chat(USER + '],"tools":[', "]"),
    "parameters": chat(
        USER + '],"tools":[{"type":"function","function":{"name":"f","parameters":{"a":[', "]}}}]"
    ),
    "schema": chat(
        USER + '],"response_format":{"type":"json_schema","json_schema":{"name":"f","schema":{"a":[',
        "]}}}",
    ),
    "stop": chat(USER + '],"stop":[', "]"),
    "unknown": chat(USER + '],"unknown":[', "]"),
    "items": (RESPONSES, '{"model":"m","input":[' + NAMED_CALL + ",", "," + USER + "]}"),
    "instructions": (RESPONSES, '{"model":"m","input":"x","instructions":[', "]}"),
    "metadata": (RESPONSES, '{"model":"m","input":"x","metadata":{', "}}"),
    "response tools": (RESPONSES, '{"model":"m","input":"x","tools":[', "]}"),
    "turns": (MESSAGES, '{"model":"m","max_tokens":9,"messages":[', "]}"),
    "blocks": (
        MESSAGES,
        '{"model":"m","max_tokens":9,"messages":[{"role":"user","content":[',
        "]}]}",
    ),
    "uses": (
        MESSAGES,
        '{"model":"m","max_tokens":9,"messages":[{"role":"assistant","content":[',
        "]}]}",
    ),
    "input": (
        MESSAGES,
        '{"model":"m","max_tokens":9,"messages":[{"role":"assistant","content":['
        '{"type":"tool_use","id":"c","name":"f","input":{"a":[',
        "]}}]}]}",
    ),
    "message tools": (MESSAGES, '{"model":"m","max_tokens":9,"messages":[' + USER + '],"tools":[', "]}"),
    "texts": (EMBEDDINGS, '{"model":"m","input":[', "]}"),
    "prompt": (COMPLETIONS, '{"model":"m","prompt":[', "]}"),
}
RIGHT = {
    "messages": (USER, TURN),
    "parts": ('{"type":"text","text":"x"}', IMAGE),
    "calls": (json.dumps(CALL),),
    "tools": ('{"type":"function","function":{"name":"f","parameters":{"a":{}}}}',),
    "items": (USER, NAMED_CALL, OUTPUT, THOUGHT, '{"type":"reasoning"}'),
    "turns": (USER,),
    "blocks": (RESULT, ANTHROPIC_IMAGE),
    "uses": (USE, '{"type":"thinking","thinking":"hm"}'),
    "message tools": ('{"name":"f","input_schema":{"a":{}}}',),
    "response tools": ('{"type":"function","name":"f","parameters":{"a":{}}}',),
}
NUMBERS = ("9" * 4000, "0.1", "1", "-1e300")


def at(place: str, *units: str) -> Shape:
    path, before, after = PLACES[place]
    return Shape(path, before, units, after)


def text(character: str) -> Shape:
    """Return a chat of one long text."""
    path, before, after = PLACES["messages"]
    return Shape(path, before + '{"role":"user","content":"', (character * 32,), '"}' + after, "")


def members(count: int) -> Shape:
    path, before, after = PLACES["metadata"]
    return Shape(path, before, tuple(f'"{number}":{number}' for number in range(count)), after)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    place = draw(st.sampled_from(list(PLACES)))
    value = anything.map(lambda drawn: json.dumps(drawn, allow_nan=False, default=str))
    if place == "metadata":
        value = st.tuples(st.text(max_size=5), anything).map(lambda pair: json.dumps(dict([pair]))[1:-1])
    elif place == "arguments":
        value = st.sampled_from(["[]", "{}", "1", '\\"a\\"', "[[]]"])
    units = st.lists(st.sampled_from(RIGHT.get(place, NUMBERS)) | value, min_size=1, max_size=3)
    return at(place, *draw(units))


def decode(shape: Shape, raw: bytes) -> tuple[ResponsesContext | None, Request]:
    if shape.path == RESPONSES:
        return responses.decode(raw, default_max_output=lambda _: None)
    if shape.path == MESSAGES:
        return None, messages.decode(raw, default_max_output=lambda _: None)[1]
    return None, parse_request(shape.path, raw, default_max_output=lambda _: None)


def steps(shape: Shape, raw: bytes) -> list[Callable[[], Any]]:
    """Return what runs for a body, each in one turn of the event loop; only the first for a refused one."""
    first = [lambda: decode(shape, raw)]
    try:
        context, request = decode(shape, raw)
    except ApiError:
        return first
    return [
        *first,
        lambda: to_json(request.engine_body(for_ollama=True)),
        lambda: to_json(request.engine_body(for_ollama=False)),
        lambda: could_overflow(request, 1) and fit_check(request),
        *([lambda: json.dumps(context.response("completed"))] if context else []),
    ]


def seconds(step: Callable[[], Any]) -> float:
    """Return the CPU time of this thread, which other processes do not change much."""
    started = time.thread_time()
    with suppress(ApiError):
        step()
    return time.thread_time() - started


def within(step: Callable[[], Any], bound: float) -> bool:
    """Return whether a step ever stays within a time: a busy machine's caches make single runs slower."""
    return any(seconds(step) < bound for _ in range(5))


def accepted(shape: Shape, raw: bytes) -> bool:
    try:
        decode(shape, raw)
    except ApiError:
        return False
    return True


def largest(shape: Shape) -> int:
    """Return the largest power of two, as a size, at which the body is accepted; 0 where it never is."""
    size = 32 * KIB
    while size < 4 * MIB and accepted(shape, shape.body(size * 2)):
        size *= 2
    return size if accepted(shape, shape.body(size)) else 0


WORST = [
    at("messages", TURN),
    at("messages", '{"role":"user","content":""}'),
    at("items", NAMED_CALL),
    at("items", THOUGHT),
    at("items", '{"type":"reasoning"}'),
    at("items", USER),
    at("parameters", "[]"),
    at("parameters", "9" * 4000),
    at("parameters", '{"a":{}}'),
    at("arguments", "[]"),
    at("arguments", "9" * 4000),
    at("calls", json.dumps(CALL)),
    at("role", "[]"),
    at("unknown", "[]"),
    at("parts", IMAGE),
    at("turns", USER),
    at("blocks", RESULT),
    at("blocks", ANTHROPIC_IMAGE),
    at("uses", USE),
    at("uses", '{"type":"thinking","thinking":"hm"}'),
    at("input", "[]"),
    at("input", "9" * 4000),
    at("message tools", '{"name":"f","input_schema":{"a":{}}}'),
    members(100_000),
    text("a"),
    text("\\n"),
    text('\\"'),
    text("\\\\"),
    text(","),
    text(";base64,"),
    text("😀"),
    text("a" * 31 + "😀"),
]


def check_time(shape: Shape) -> None:
    size = largest(shape)
    gc.disable()
    try:
        assert within(steps(shape, shape.body(4 * MIB))[0], SECONDS)
        if size == 0:
            return
        half, full = shape.body(size // 2), shape.body(size)
        for small, large in zip(steps(shape, half), steps(shape, full), strict=True):
            bound = MOST_GROWTH * max(seconds(small), seconds(small), FLOOR_SECONDS)
            assert within(large, min(bound, SECONDS))
    finally:
        gc.enable()


def memory(shape: Shape, raw: bytes) -> tuple[int, int]:
    """Return the most bytes while a body is read, and those that are held then but not counted."""
    gc.collect()
    tracemalloc.start()
    uncounted = 0
    try:
        with suppress(ApiError):
            kept = decode(shape, raw)
            uncounted = tracemalloc.get_traced_memory()[0] - kept[1].held_bytes
            assert len(kept[1].packed) < 3 * len(raw) + KIB
        return tracemalloc.get_traced_memory()[1], uncounted
    finally:
        tracemalloc.stop()


def check_memory(shape: Shape) -> None:
    """What a request keeps is counted, and less than three times its body."""
    peaks = []
    for size in (32 * KIB, 64 * KIB):
        raw = shape.body(size)
        peak, uncounted = memory(shape, raw)
        if uncounted >= 32 * KIB:
            # Other threads of this process allocate, too, but not each time.
            peak, uncounted = memory(shape, raw)
        assert uncounted < 32 * KIB
        peaks.append(peak)
    assert peaks[1] < MOST_GROWTH * max(peaks[0], FLOOR_BYTES)


def name_of(shape: Shape) -> str:
    return f"{shape.before[-20:]}{shape.units[0][:20]}"


@pytest.mark.parametrize("shape", WORST, ids=name_of)
def test_the_worst_bodies_cost_little(shape: Shape) -> None:
    check_time(shape)
    check_memory(shape)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(shapes())
def test_any_body_costs_little(shape: Shape) -> None:
    check_time(shape)
    check_memory(shape)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"'
        b"data:image/png;base64," + b"A" * (16 * MIB - 400) + b'"}}]}]}',
        b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":[{"type":"image","source":{'
        b'"type":"base64","media_type":"image/png","data":"' + b"A" * (16 * MIB - 400) + b'"}}]}]}',
        b'"data":"' * (2 * MIB),
        b";base64," * (2 * MIB),
        b'","' * (5 * MIB),
        b'{"unknown":[' + b"[]," * (5 * MIB) + b"[]]}",
    ],
    ids=["image", "Anthropic's image", "Anthropic's marks", "marks", "quotes", "arrays"],
)
def test_the_largest_bodies_cost_little(raw: bytes) -> None:
    shape = Shape(MESSAGES if b'"source"' in raw else CHAT, "", ("",), "")
    for step in steps(shape, raw):
        assert within(step, SECONDS)


def test_the_base64_of_an_image_costs_less_than_a_pattern_takes() -> None:
    """It was the largest part of what a large image costs. Both are measured here: machines differ."""
    data = "A" * (16 * MIB)
    pattern, checked = re.compile("[A-Za-z0-9+/]*"), TypeAdapter(Base64)
    of_pattern = min(seconds(lambda: pattern.fullmatch(data)) for _ in range(3))
    assert within(lambda: checked.validate_python(data), 0.7 * of_pattern)
