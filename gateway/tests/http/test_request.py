import asyncio
from typing import Any
from unittest.mock import AsyncMock

import pytest
from bedplate_gateway.errors import ApiError, ClientDisconnected
from bedplate_gateway.http.request import ClientRequest


def request(*messages: dict[str, Any], headers: list[tuple[bytes, bytes]] | None = None) -> ClientRequest:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    async def send(_: object) -> None:
        return None

    return ClientRequest({"raw_path": b"/", "method": "POST", "headers": headers or []}, receive, send)


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


DISCONNECT = {"type": "http.disconnect"}


def test_a_body_comes_in_parts_up_to_the_limit() -> None:
    assert asyncio.run(request(part(b"ab", more=True), part(b"c")).body(3)) == b"abc"
    with pytest.raises(ApiError) as caught:
        asyncio.run(request(part(b"ab", more=True), part(b"cd", more=True)).body(3))
    assert caught.value.status == 413


def test_a_declared_length_over_the_limit_is_refused_before_the_body() -> None:
    with pytest.raises(ApiError):
        asyncio.run(request(headers=[(b"content-length", b"4")]).body(3))


def test_a_length_of_thousands_of_digits_is_read() -> None:
    zeros = [(b"content-length", b"0" * 5000 + b"2")]
    assert asyncio.run(request(part(b"ab"), headers=zeros).body(3)) == b"ab"
    with pytest.raises(ApiError):
        asyncio.run(request(headers=[(b"content-length", b"9" * 5000)]).body(3))


def test_the_size_is_reported_before_the_body_and_as_it_comes() -> None:
    sizes: list[int] = []
    declared = request(part(b"a", more=True), part(b"b"), headers=[(b"content-length", b"2")])
    asyncio.run(declared.body(3, sizes.append))
    assert sizes == [2, 1, 2]


def test_the_path_is_the_one_that_was_sent() -> None:
    scope = {"raw_path": b"/v1/chat%2fcompletions", "method": "POST", "headers": []}
    assert ClientRequest(scope, AsyncMock(), AsyncMock()).path == "/v1/chat%2fcompletions"


def test_the_rest_of_a_refused_body_is_read_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [part(b"abcd", more=True), part(b"e", more=True), part(b"f"), DISCONNECT]
    client = request(*messages)
    with pytest.raises(ApiError):
        asyncio.run(client.body(3))
    # Nothing is read after the end of the body.
    asyncio.run(client.discard_body())
    asyncio.run(client.discard_body())
    asyncio.run(request(headers=[(b"expect", b"100-continue")]).discard_body())

    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        return part(b"")

    monkeypatch.setattr("bedplate_gateway.http.request.DISCARD_SECONDS", 0.01)
    endless = ClientRequest({"raw_path": b"/", "method": "POST", "headers": []}, never, AsyncMock())
    asyncio.run(endless.discard_body())


def test_a_client_that_disconnects_in_the_body_or_later_is_reported() -> None:
    with pytest.raises(ClientDisconnected):
        asyncio.run(request(part(b"a", more=True), DISCONNECT).body(9))

    async def scenario() -> None:
        calls: list[str] = []
        client = request(DISCONNECT)
        client.on_disconnect(lambda: calls.append("replaced"))
        client.on_disconnect(lambda: calls.append("called"))
        await client.watch()
        assert calls == ["called"]
        client.on_disconnect(lambda: calls.append("at once"))
        assert calls == ["called", "at once"]
        assert client.disconnected.is_set()

    asyncio.run(scenario())


def test_a_header_is_found_and_the_first_counts() -> None:
    client = request(headers=[(b"authorization", b"one"), (b"authorization", b"two")])
    assert client.header("authorization") == "one"
    assert client.header("other") is None
